"""Process groups, the backend switch and context parallelism."""
