"""TensorBoard's event files of a run, in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard` shows them.

metrics.jsonl is the truth. Its lines become event files, each named by the first line that it holds: a repeated or a
killed upload writes the same file again and no point twice. Lines that are gone (a training was rewound) start anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import Phase
from sophia_mcore.store.atomic import write_failed, write_json
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.labels import round_label
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.track.runs import Point, children_of, points

_STATE = "sophia.json"  # in each folder of event files: how many lines they hold, and the digest of these lines
MISSING = "TensorBoard needs the package tensorboardX: pip install 'sophia-mcore[tensorboard]'"


def write_events(run: RunFolder, config: Config, phases: Sequence[Phase]) -> Path:
    """Write what RUN/tensorboard does not have yet, and return that folder.

    Raises SophiaError when tensorboardX is missing or the folder cannot be written.
    """
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError:
        raise SophiaError(MISSING) from None
    try:
        for name, lines in _series(run, config, phases):
            _bring_up_to_date(run.tensorboard / name, lines)
    except OSError as error:
        raise write_failed(run.tensorboard, error) from error
    return run.tensorboard


def _series(run: RunFolder, config: Config, phases: Sequence[Phase]) -> Iterator[tuple[str, list[list[Point]]]]:
    """(folder, lines) of each phase of each round, and of the on-policy stage."""
    for index in run.rounds():
        for child in children_of(run, config, index, phases):
            if child.lines:
                yield f"{round_label(index)}/{child.phase.replace(' ', '-')}", child.lines
    stage = read_metrics(run.rl.metrics_file)
    for phase in dict.fromkeys(line["phase"] for line in stage):
        yield f"rl/{phase}", points([line for line in stage if line["phase"] == phase])


def _bring_up_to_date(folder: Path, lines: list[list[Point]]) -> None:
    state = json_or_empty(folder / _STATE)
    there = state.get("lines", 0)
    if not isinstance(there, int) or there > len(lines) or state.get("digest") != _digest(lines[:there]):
        shutil.rmtree(folder, ignore_errors=True)
        there = 0
    if there < len(lines):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"events.out.tfevents.{there:010d}.sophia", lines[there:])
        write_json(folder / _STATE, {"lines": len(lines), "digest": _digest(lines)})


def _write(target: Path, lines: list[list[Point]]) -> None:
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as temporary:
        writer = SummaryWriter(temporary)
        for line in lines:
            for name, value, step, milliseconds in line:
                writer.add_scalar(name, value, step, walltime=milliseconds / 1000)
        writer.close()
        (made,) = Path(temporary).iterdir()
        os.replace(made, target)


def _digest(lines: list[list[Point]]) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]
