#!/usr/bin/env python3
"""Compare two checkpoints of any layouts, tensor by tensor and bit by bit."""

from sophia_mcore.weights.command import verify_tool

if __name__ == "__main__":
    raise SystemExit(verify_tool())
