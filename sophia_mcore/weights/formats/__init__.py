"""File formats of checkpoints: safetensors, torch_dist, and the streams between them."""
