"""`sophia doctor`: lists what this machine has and what is missing, the consequences, and how to get it."""
