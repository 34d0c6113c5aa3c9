"""Training on Megatron-Core: worker -> loop -> step, with optim, checkpoint and measure beside them."""
