"""A second opinion on a round's verdicts: math-verify's word on a sample of them, for the report. Decides nothing."""

from __future__ import annotations

import hashlib
import heapq
import importlib.metadata
import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Score
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import Progress
from sophia_mcore.records import Question, Trajectory, Verdict, after_thought
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.shards import read_table
from sophia_mcore.verify.pool import Outcome, Pool

COMPARED = ("correct", "wrong", "no_answer")  # verdicts that say something of the answer
MAX_EXAMPLES = 200
MAX_SECONDS = 60.0  # what has no answer by then is left out
_MAX_TEXT = 4_000  # characters from the end of the response, where the answer stands
_SHOWN_TEXT = 300
_COMPARE = "sophia_mcore.score.second_opinion:math_verify_agrees"


def write_second_opinion(
    path: Path,
    config: Score,
    shards: Sequence[Path],
    questions: dict[str, Question],
    verdicts: dict[str, Verdict],
    progress: Progress,
) -> None:
    """Write {"peer", "compared", "undecided", "left_out", "by_type", "examples"} unless it is there for these verdicts.

    ``by_type`` counts "compared", "only_ours" (correct for us alone), "only_peer" and "undecided" (math-verify took too
    long, failed, or cannot read the gold answer). Raises SophiaError without math-verify, or when no worker starts.
    """
    chosen = sample(verdicts, config.second_opinions)
    texts = _texts(shards, {v.trajectory_id for v in chosen})
    chosen = [v for v in chosen if v.trajectory_id in texts]
    peer = _peer()
    told = [(v.trajectory_id, v.verdict, questions[v.question_id].answer) for v in chosen]
    fingerprint = hashlib.sha256(json.dumps([peer, told]).encode()).hexdigest()
    if chosen and json_or_empty(path).get("fingerprint") == fingerprint:
        return
    path.unlink(missing_ok=True)  # about other verdicts
    if not chosen:
        return
    progress.start("second opinion (math-verify)", len(chosen), 0)
    tasks = [{"gold": questions[v.question_id].answer, "response": texts[v.trajectory_id]} for v in chosen]
    outcomes = _ask(config, tasks, progress)
    counts, examples = _compare(chosen, outcomes, questions, texts)
    total = {name: sum(mine[name] for mine in counts.values()) for name in ("compared", "undecided")}
    write_json(
        path,
        {"peer": peer, "fingerprint": fingerprint, **total, "left_out": len(chosen) - len(outcomes)}
        | {"by_type": counts, "examples": examples[:MAX_EXAMPLES]},
    )


def _peer() -> str:
    try:
        return f"math-verify {importlib.metadata.version('math-verify')}"
    except importlib.metadata.PackageNotFoundError:
        raise SophiaError("math-verify is not installed (pip install '.[score]')") from None


def sample(verdicts: dict[str, Verdict], most: int) -> list[Verdict]:
    """At most ``most`` verdicts, the answer types in equal parts; the same for the same ids, in whatever order."""
    by_type: dict[str, list[Verdict]] = {}
    for verdict in verdicts.values():
        if verdict.verdict in COMPARED:
            by_type.setdefault(verdict.answer_type, []).append(verdict)
    chosen: list[Verdict] = []
    for left, rows in zip(range(len(by_type), 0, -1), sorted(by_type.values(), key=len), strict=True):
        share = (most - len(chosen)) // left  # what a rare type leaves goes to the others
        chosen += heapq.nsmallest(share, rows, key=lambda v: hashlib.sha256(v.trajectory_id.encode()).digest())
    return sorted(chosen, key=lambda v: v.trajectory_id)


def _texts(shards: Sequence[Path], wanted: set[str]) -> dict[str, str]:
    """What follows the thought, of the wanted trajectories that were not cut off."""
    texts = {}
    for path in shards if wanted else ():
        ids = read_table(path, Trajectory, columns=("id",)).column("id").to_pylist()
        mine = [index for index, name in enumerate(ids) if name in wanted]
        if not mine:
            continue  # texts are large, and a sample is in few shards
        table = read_table(path, Trajectory, columns=("text", "finish_reason"))
        for index in mine:
            if table.column("finish_reason")[index].as_py() != "length":
                texts[ids[index]] = after_thought(table.column("text")[index].as_py())[-_MAX_TEXT:]
    return texts


def _ask(config: Score, tasks: list[dict[str, Any]], progress: Progress) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    give_up = time.monotonic() + MAX_SECONDS
    with Pool(config.workers, config.timeout_seconds, config.memory_limit_mib, _COMPARE) as pool:
        for index, task in enumerate(tasks):
            pool.submit(index, task)
        while pool.pending and time.monotonic() < give_up:
            done = pool.collect(1.0)
            outcomes.update(done)
            progress.advance(len(done))
    return outcomes


def _compare(
    chosen: list[Verdict], outcomes: dict[int, Outcome], questions: dict[str, Question], texts: dict[str, str]
) -> tuple[dict[str, dict[str, int]], list[dict[str, str]]]:
    counts: dict[str, dict[str, int]] = {}
    examples = []
    for index, outcome in sorted(outcomes.items()):
        verdict = chosen[index]
        mine = counts.setdefault(
            verdict.answer_type or "untyped", {"compared": 0, "only_ours": 0, "only_peer": 0, "undecided": 0}
        )
        if outcome.kind not in ("equal", "different"):
            mine["undecided"] += 1
            continue
        mine["compared"] += 1
        right, theirs = verdict.verdict == "correct", outcome.kind == "equal"
        if right == theirs:
            continue
        mine["only_ours" if right else "only_peer"] += 1
        example = {"id": verdict.trajectory_id, "type": verdict.answer_type, "ours": verdict.verdict}
        example |= {"peer": "correct" if theirs else "wrong", "answer": questions[verdict.question_id].answer[:500]}
        example |= {"extracted": verdict.extracted[:500], "end": texts[verdict.trajectory_id][-_SHOWN_TEXT:]}
        examples.append(example)
    return dict(sorted(counts.items())), examples


@lru_cache(maxsize=4096)
def _gold(answer: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{answer}}}", parsing_timeout=None)


def math_verify_agrees(task: dict[str, Any]) -> bool:
    """Whether math-verify, by its own extraction, calls ``task["response"]`` right. In the killable workers only.

    Raises ValueError when it cannot read the gold answer, so that nothing is decided.
    """
    from math_verify import parse, verify

    gold = _gold(task["gold"])
    if not gold:
        raise ValueError("math-verify cannot read the gold answer")
    return bool(verify(gold, parse(task["response"], parsing_timeout=None), timeout_seconds=None))


def warm_up() -> None:
    """Fill the parsers' caches before the workers are forked."""
    math_verify_agrees({"gold": "x+1", "response": r"\boxed{1+x}"})
