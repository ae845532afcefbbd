"""The BERT ranker, its fast form for inference, the losses, model directories."""
