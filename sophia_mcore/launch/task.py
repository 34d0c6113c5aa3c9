"""The entry point of users' copies of the .sbatch files of version 0.1, in this version only.

``python -m sophia_mcore.launch.task PHASE RUN/config.toml --round R`` is ``launch.worker`` with ``--slurm``.
"""

from __future__ import annotations

import sys

from sophia_mcore.launch.worker import main

if __name__ == "__main__":
    print("warning: sophia_mcore.launch.task is sophia_mcore.launch.worker ... --slurm now", file=sys.stderr)
    sys.exit(main([*sys.argv[1:], "--slurm"]))
