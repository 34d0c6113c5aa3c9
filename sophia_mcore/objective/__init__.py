"""The loss: log-probs of tokens from hidden states (`logprob`), losses as pure functions of [T] tensors (`losses`),
sums over ranks (`reduce`) and measurements (`metrics`)."""
