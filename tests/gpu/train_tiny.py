"""Train the tiny run of the distributed tests in this process: python train_tiny.py FOLDER STEPS (bf16, one rank).

The device is CUDA's where there is one; CUDA_VISIBLE_DEVICES="" makes it the CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sophia_mcore.store.layout import RunFolder
from tests.support import train_world


def main() -> None:
    """Make the run folder if it is not there, and train to the given step."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    policy, settings = folder / "policy", {"steps": steps, "dtype": "bfloat16", "final_learning_rate_fraction": 1.0}
    if not policy.exists():
        folder.mkdir()
        train_world.make_policy(policy)
        train_world.make_run(folder / "run", policy, train=settings)
    config = train_world.make_config(folder / "run", policy, train=settings)
    assert train_world.train(config, RunFolder(folder / "run"))


if __name__ == "__main__":
    main()
