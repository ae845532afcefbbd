"""One reader and writer for each file of the flow. Nothing here imports torch."""
