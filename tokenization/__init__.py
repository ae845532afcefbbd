"""From text to token ids: WordPiece, vocabularies, pairs, plain text. Nothing here imports torch."""
