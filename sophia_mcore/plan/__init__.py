"""Estimates of a run on a cluster before it starts: memory, speed, cost."""
