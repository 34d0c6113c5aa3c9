"""InternVL on Megatron-Core: spec (from the Hugging Face config), tower, projector, language model, the whole."""
