"""Weights: one table of invertible operations per model family; loading, export and conversion derive from it."""
