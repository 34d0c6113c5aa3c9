"""File formats of checkpoints (safetensors, torch_dist), and copying between them."""
