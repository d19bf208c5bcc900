"""What a model is worth: protocols, baselines beside it, intervals, slices and what lies beyond accuracy."""
