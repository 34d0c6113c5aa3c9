"""The trainer of the on-policy stage: batches of sampled answers, values, updates, publication of weights."""
