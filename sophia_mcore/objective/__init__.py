"""The loss: token log-probs from hidden states (`logprob`), pure functions of [T] tensors (`losses`), `reduce`."""
