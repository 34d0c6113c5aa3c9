"""Makes FP8 copies of models for rollouts with ModelOpt, and checks them tensor by tensor."""
