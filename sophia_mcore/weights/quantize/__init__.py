"""FP8 copies for rollouts, made by ModelOpt and checked tensor by tensor."""
