"""The FP8 check of a run and its gate before training."""
