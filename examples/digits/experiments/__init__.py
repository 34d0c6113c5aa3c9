"""Ablations on the digits example; a research harness, not needed by `make demo`."""
