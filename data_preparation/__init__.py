"""From collections to pairs: passages of documents, and candidates of queries. Loads no torch."""
