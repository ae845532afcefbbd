"""What a run is worth: aggregation of passages, measures, significance. Loads no torch."""
