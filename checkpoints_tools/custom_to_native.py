#!/usr/bin/env python3
"""The original release's layout -> transformers' native layout."""

from sophia_mcore.weights.command import convert_tool

if __name__ == "__main__":
    raise SystemExit(convert_tool("hf", __doc__ or ""))
