"""From text to token ids: WordPiece, vocabularies, pairs, plain text. Loads no torch."""
