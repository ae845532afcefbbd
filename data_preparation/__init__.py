"""From collections to pairs: passages of documents, and candidates for queries. Nothing here imports torch."""
