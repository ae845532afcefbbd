"""What a model is: the BERT ranker, its checkpoints and vocabulary, the distillation losses, the optimiser."""
