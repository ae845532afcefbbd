"""One reader and one writer for each file format. Nothing here imports torch."""
