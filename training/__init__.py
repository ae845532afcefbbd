"""What surrounds the training loop: optimizer, precision, run directory, dev evaluation, curves."""
