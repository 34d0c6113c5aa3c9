"""`python -m tests.support.rl_supervisor RUN TRAINER ENGINE PYTHON [COPIES]`: launch.stage with what a test names.

TRAINER and ENGINE are arguments of Python as JSON lists, PYTHON runs the engine. A TRAINER of [] stands for a node that
only samples. COPIES: where this node's copies of versions lie.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.errors import run_command
from sophia_mcore.launch import stage
from sophia_mcore.store.layout import RunFolder


def main() -> int:
    run, trainer, engine, python = (
        RunFolder(Path(sys.argv[1])),
        *(json.loads(one) for one in sys.argv[2:4]),
        sys.argv[4],
    )
    copies = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    config = load_config(run.config_file)
    node = replace(stage.this_machine(config), engine_python=(python,))
    if not trainer:
        node = replace(node, torchrun=None)
    if not engine:
        node = replace(node, engines=0)
    return run_command("rl", lambda: stage.supervise(config, run, node, trainer=trainer, engine=engine, copies=copies))


if __name__ == "__main__":
    sys.exit(main())
