"""Aggregation of passage scores, measures, significance tests, tables of text. Loads no torch."""
