#!/usr/bin/env python3
"""Hugging Face folder (native or original layout) -> Megatron distributed checkpoint."""

from sophia_mcore.weights.command import convert_tool

if __name__ == "__main__":
    raise SystemExit(convert_tool("megatron", __doc__ or ""))
