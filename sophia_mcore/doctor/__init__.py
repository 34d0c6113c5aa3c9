"""`sophia doctor`: what this machine has, what it lacks, what that costs and how to get it."""
