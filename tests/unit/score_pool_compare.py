"""What the workers of the pool's tests do instead of algebra."""

from __future__ import annotations

import os
import re
import time


def compare(task):
    """``task["do"]``: what happens; ``task["equal"]``: the answer."""
    action = task.get("do", "")
    if action == "spin":
        while True:
            pass
    if action == "spin in C":  # never looks at signals
        re.match(r"(a+)+$", "a" * 60 + "b")
    if action == "sleep":
        time.sleep(3600)
    if action == "die":
        os._exit(3)
    if action == "eat memory":
        hoard = [bytearray(1 << 20)]
        while True:
            hoard.append(bytearray(1 << 24))
    if action == "fail":
        raise ValueError("no idea")
    if action == "recurse":
        return compare(task)
    time.sleep(task.get("seconds", 0.0))
    return task["equal"]
