#!/usr/bin/env python3
"""Model folder -> FP8 checkpoint for rollouts."""

from sophia_mcore.weights.command import convert_tool

if __name__ == "__main__":
    raise SystemExit(convert_tool("fp8", __doc__ or ""))
