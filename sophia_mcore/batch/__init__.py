"""Makes training batches from kept trajectories: samples, tokens, packing, collated micro batches, resumable loader."""
