"""Slurm: from the state of a run to jobs, and what a task of a job does."""
