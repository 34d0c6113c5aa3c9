"""From kept trajectories to packed rows: samples, tokens, packing, collated micro batches, a resumable loader."""
