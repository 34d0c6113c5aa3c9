"""Tracking: metrics.jsonl first (the truth), MLflow beside it (a copy that may come later)."""
