"""Slurm: submits the jobs that a run needs, shows their state, and runs their tasks."""
