"""Models to models: TensorFlow checkpoints, general students."""
