"""Loading, export and conversion of weights. All follow from one table of invertible operations per model family.

"Our tensors" are the parameters of the Megatron model before sharding, under their canonical names (AGENTS.md).
"""
