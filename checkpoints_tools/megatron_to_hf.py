#!/usr/bin/env python3
"""Megatron distributed checkpoint (or an original-layout folder) -> native Hugging Face folder."""

from sophia_mcore.weights.command import convert_tool

if __name__ == "__main__":
    raise SystemExit(convert_tool("hf", __doc__ or ""))
