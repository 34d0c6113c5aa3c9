"""A vision-language model on Megatron-Core: towers and projectors by family, language model, the whole."""
