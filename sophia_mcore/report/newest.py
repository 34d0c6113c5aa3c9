"""The newest texts and figures of a run that goes on, read from its folder: what `sophia watch` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Answer, Caption, Rollout, Trajectory, Verdict
from sophia_mcore.report.rendering import visible
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_table, shard_files
from sophia_mcore.track.metrics import TRAIN, read_metrics

SERIES = 32  # newest values of a curve: with its name and step they fit into 80 columns
_END = 600  # characters of a text's end, where the answer stands
_BARS = "▁▂▃▄▅▆▇█"
_TRAIN = ("loss", "logprob_kept", "gradient_norm", "tokens_per_second")
_BATCH = ("accuracy", "tokens_right", "tokens_wrong", "entropy_sampled", "rollout_gap_p99", "lag_mean")


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a model. ``written``: seconds since 1970 at which its shard appeared."""

    kind: str  # such as "caption"
    about: str  # whose it is, and what the verifier said of it
    text: str
    written: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The newest values of a figure, oldest first; ``step``: that of the last."""

    name: str
    step: int
    values: tuple[float, ...]

    def drawn(self) -> str:
        """The values as a line of bars.

        >>> Curve("loss", 4, (4.0, 2.0, 1.0, 1.0)).drawn()
        '█▃▁▁'
        """
        low, high = min(self.values), max(self.values)
        span = (high - low) or 1.0
        return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in self.values)


def newest_texts(run: RunFolder, rounds: Sequence[int], count: int = 3) -> list[Text]:
    """The last texts of the shards written last, newest first: at most ``count``, of each kind of text one."""
    newest: dict[str, tuple[float, Path, type]] = {}
    for kind, folder, record in _places(run, rounds):
        for path in shard_files(folder) if folder.is_dir() else ():
            try:
                written = path.stat().st_mtime
            except OSError:
                continue  # set aside meanwhile
            if kind not in newest or written > newest[kind][0]:
                newest[kind] = (written, path, record)
    found = []
    for kind, (written, path, record) in sorted(newest.items(), key=lambda item: -item[1][0])[:count]:
        if (text := _last(kind, path, record, written)) is not None:
            found.append(text)
    return found


def _places(run: RunFolder, rounds: Sequence[int]) -> Iterator[tuple[str, Path, type]]:
    for index in rounds:
        folder = run.round(index)
        yield "caption", folder.captions, Caption
        yield "answer of the policy's own", folder.fresh, Answer
        yield "trajectory", folder.trajectories, Trajectory
    for path in sorted(run.rl.rollouts.glob("*"))[-3:]:
        yield "rollout of the on-policy stage", path, Rollout
    for path in sorted(run.evaluation_questions_file.parent.glob("*/*")):
        yield "evaluation answer", path, Answer


def _last(kind: str, path: Path, record: type, written: float) -> Text | None:
    names = ["text", *(["id"] if record is Caption else ["question_id"])]
    names += ["verdict", "extracted"] if issubclass(record, Answer) else []
    try:
        rows = read_table(path, record, columns=names)
    except SophiaError:
        return None  # damaged, or set aside meanwhile: the report names it
    if not len(rows):
        return None
    row = {name: rows.column(name)[-1].as_py() for name in names}
    about = row.get("question_id") or row.get("id") or ""
    if "verdict" in row:
        about += f", {row['verdict'].replace('_', ' ')}" + (f", read: {row['extracted'][:80]}" * bool(row["extracted"]))
    return Text(kind, visible(about), visible(row["text"][-_END:]), written)


def verdict_counts(run: RunFolder, index: int) -> dict[str, int]:
    """Verdicts of a round so far, most frequent first."""
    folder = run.round(index).verdicts
    counts: Counter[str] = Counter()
    for path in shard_files(folder) if folder.is_dir() else ():
        try:
            counts.update(read_table(path, Verdict, columns=["verdict"]).column("verdict").to_pylist())
        except SophiaError:
            continue
    return dict(counts.most_common())


def curves(run: RunFolder, rounds: Sequence[int]) -> list[Curve]:
    """Figures of the training that wrote last: of a round, or of the on-policy stage."""
    stage = run.rl.metrics_file
    files = [path for path in (*(run.round(index).train_metrics_file for index in rounds), stage) if path.is_file()]
    if not files:
        return []
    path = max(files, key=lambda file: file.stat().st_mtime)
    phase = "batch" if path == stage else TRAIN
    lines = [line for line in read_metrics(path) if line["phase"] == phase]
    return [c for name in (_BATCH if path == stage else _TRAIN) if (c := _curve(lines, name)) is not None]


def _curve(lines: list[dict[str, Any]], name: str) -> Curve | None:
    points = [(line["step"], float(line[name])) for line in lines if isinstance(line.get(name), int | float)]
    if not points:
        return None
    return Curve(name.replace("_", " "), points[-1][0], tuple(value for _, value in points[-SERIES:]))
