"""The batches of an on-policy stage that has ended, under other weights of the reward's terms.

The values of the terms are stored with the answers, so rewards, advantages and the numbers of each batch are computed
anew from them. Nothing is sampled and nothing is trained: the model is that of the weights that the stage had.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sophia_mcore.batch.reader import Reader, longest_sample
from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import Progress
from sophia_mcore.rl.credit import Credited
from sophia_mcore.rl.groups import Weighed
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.questions import read_stage_questions
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.on_policy.answers import Tokens
from sophia_mcore.train.on_policy.batch import Planner
from sophia_mcore.train.on_policy.own import is_needed, learn

METRICS, ANSWERS = "metrics.jsonl", "answers"  # in RUN/rl/weighed


def weigh_anew(config: Config, run: RunFolder, terms: tuple[RewardTerm, ...], progress: Progress) -> dict[str, Any]:
    """Compute RUN/rl/weighed: metrics.jsonl (a line per batch, as the stage's), answers/ (a file per batch, a JSON line
    per turn of the policy: its reward and its advantage; 0 where it is not trained on) and summary.json, which is
    returned.

    ``config``: what the stage was trained with; ``terms``: with the new weights. The stage's own files stay as they
    are. A function of the user's own that weighs or relabels is called again. Raises SophiaError for damaged files.
    """
    target, rl = run.rl.weighed, config.on_policy
    weights, trained = ({one.label: one.weight for one in some} for some in (terms, config.reward_terms))
    done = json_or_empty(run.rl.weighed_file)
    if done.get("weights") == weights and done.get("trained_with") == trained and done.get("batches") == rl.batches:
        return done
    shutil.rmtree(target, ignore_errors=True)
    now = config.model_copy(update={"rewards": terms})
    questions = read_stage_questions(config, run)
    reader = Reader.of_model(run.rl.model, config, run)
    tokens = Tokens(reader, questions, system_prompt(config), longest_sample(config), rl)
    planner = Planner(now, run.rl, tokens, learned=lambda number: target / "learned" / f"{number:08d}")
    progress.start("batches weighed anew", rl.batches)
    lines, useful = [], 0
    for number in range(rl.batches):
        batches, units, groups = planner.groups(number)
        if not batches:
            raise SophiaError(f"{run.rl.batch(number)}: its answers are not there any more, so nothing can be weighed")
        if is_needed(now):
            folder = target / "learned" / f"{number:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            learn(now, run, folder, batches, units, groups, questions)
        plan = planner.plan(number)
        rows = "".join(json.dumps(row) + "\n" for row in _rows(groups, plan.weighed))
        _write(target / ANSWERS / f"{number:08d}.jsonl", rows)
        lines.append({"step": number + 1, "phase": "batch", **plan.values})
        useful += len(plan.weighed)
        progress.advance()
    _write(target / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    before = [line for line in read_metrics(run.rl.metrics_file) if line["phase"] == "batch"]
    summary = {
        "weights": weights,
        "trained_with": trained,
        "batches": rl.batches,
        "answers_effective": useful,
        "answers_effective_trained": sum(line.get("answers_effective", 0) for line in before),
    }
    write_json(run.rl.weighed_file, summary)
    return summary


def _rows(groups: dict[str, list[Credited]], weighed: tuple[Weighed, ...]) -> Iterator[dict[str, Any]]:
    """Of each turn of a judged episode."""
    advantages = {one.id: one.advantage for one in weighed}
    for question, episodes in groups.items():
        for one in episodes:
            for turn, reward in zip(one.turns, one.rewards, strict=True):
                advantage = advantages.get(turn.id, 0.0)
                yield {"id": turn.id, "question_id": question, "reward": reward, "advantage": advantage}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
