"""Collect counts, rewards, losses and pass@1 from a run folder. Read-only; works on unfinished runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.evaluate.results import results
from sophia_mcore.phase import Phase, sampled_rounds
from sophia_mcore.provenance.check import Provenance, unchecked_line
from sophia_mcore.records import Caption, Kept, Trajectory, Verdict
from sophia_mcore.report.reading import Columns, Problems, columns, metrics, read_json, records
from sophia_mcore.report.rewards import efficiency_data, reward_data
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START, round_label
from sophia_mcore.store.layout import RoundFolder, RunFolder

MAX_DIFFERING = 50  # verdicts that the page lists with both verifiers' words
_COUNTS = dict[str, int]
_KEPT = {
    "questions": int, "captions": int, "trajectories": int, "kept": int, "caption_reward_mean": float,
    "verdicts": _COUNTS, "dropped": _COUNTS, "thoughts": _COUNTS,
    "verifier_versions": list[str], "early_stop": dict[str, Any],
}  # fmt: skip
_TRAINED = {
    "steps": int, "loss_first": float | None, "loss_last": float | None, "logprob_before": float | None,
    "logprob_after": float | None, "rollout_gap": dict[str, float] | None, "rollout_gap_limit": float,
}  # fmt: skip
_OPINION = {
    "peer": str, "compared": int, "undecided": int, "left_out": int, "by_type": dict[str, _COUNTS],
    "examples": list[dict[str, Any]],
}  # fmt: skip


def collect(
    config: Config, run: RunFolder, phases: Sequence[Phase], problems: Problems | None = None
) -> dict[str, Any]:
    """The content of report.json.

    {"run", "rounds": [{"round", "questions", "captions", "trajectories", "kept", "caption_reward_mean",
    "tokens_generated", "verdicts", "verdicts_by_type", "verdict_changes", "second_opinion", "dropped",
    "thoughts", "early_stop": {"tokens_saved", ...}, "seconds": {phase: seconds},
    "train": {"steps", "loss_first", "loss_last", ...}}],
    "evaluation": {"base": {"pass_at_1", "n", "ci95": [lo, hi], ...}, "round-0": {...}}, "rewards": {...},
    "outcome_efficiency": [{"of", "share", "tokens", "answers"}], "missing": [...]}.
    A part that is not there yet is absent and named in "missing", and so is a damaged file. "stale": the phases whose
    results were made with other settings or from other results than those of now; "unchecked": a line when for some
    nobody knows. A run of `sophia rl` alone has no rounds but the seconds of its phases, and misses none.
    """
    problems = problems or Problems()
    missing: list[str] = []
    rounds = []
    if not run.questions_file.is_file():
        missing.append(f"the checked questions ({run.questions_file.name})")
    if not run.metrics_file.is_file() and not run.slurm.path.is_dir():  # Slurm keeps the times of its jobs
        missing.append(f"seconds of the phases ({run.metrics_file.name})")
    seconds = _seconds(metrics(run.metrics_file, problems))
    alone = run.is_stage_alone
    for index in range(max(config.run.rounds, _rounds_begun(run))):
        entry: dict[str, Any] = {"round": index}
        if not alone:
            entry = _round(run, index, missing, problems, sampled=sampled_rounds(config))
        if seconds.get(index):
            entry["seconds"] = seconds[index]
        if len(entry) > 1 or (index == 0 and not alone):
            rounds.append(entry)
        missing += _untimed(run, entry, phases, seconds.get(index, {}))
    evaluation = results(run, config, problems.add)
    of_rounds = [BASE] * config.evaluate.evaluate_base + [round_label(r["round"]) for r in rounds]
    for label in [STAGE_START, STAGE] if alone else of_rounds:
        if config.evaluate.questions and label not in evaluation:
            missing.append(f"evaluation of {label}")
        elif config.evaluate.questions:
            lost = {protocol.name for protocol in config.evaluate.protocols} - evaluation[label]["protocols"].keys()
            missing += [f"evaluation of {label} under {name!r}" for name in sorted(lost)]
    rewards, efficiency = reward_data(config, run, problems), efficiency_data(run, problems)
    missing += problems.lines
    provenance = Provenance(config, run, phases)
    unchecked = provenance.unchecked_phases()
    return {
        "run": config.run.name,
        "rounds": rounds,
        "evaluation": evaluation,
        "rewards": rewards,
        "outcome_efficiency": efficiency,
        "missing": missing,
        "stale": provenance.stale_lines(),
        "unchecked": [unchecked_line(run, unchecked)] if unchecked else [],
        "fork": read_json(run.fork_file, problems, {"path": str, "shared": list[str]}) or {},
    }


def _untimed(run: RunFolder, entry: dict[str, Any], phases: Sequence[Phase], seconds: dict[str, float]) -> list[str]:
    """Finished phases that are missing from metrics.jsonl. Empty if that file does not exist."""
    if not run.metrics_file.is_file():
        return []
    untimed = [phase.name for phase in phases if phase.reported in entry and phase.name not in seconds]
    return [f"round {entry['round']}: seconds of {name}" for name in untimed]


def _rounds_begun(run: RunFolder) -> int:
    return max(run.rounds(), default=-1) + 1


def _seconds(lines: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Seconds of each phase by round; a phase that was started several times has the sum."""
    spent: dict[int, dict[str, float]] = defaultdict(dict)
    for line in lines:
        value = line.get("seconds")
        if isinstance(value, int | float):
            phases = spent[line["step"]]
            phases[line["phase"]] = round(phases.get(line["phase"], 0.0) + value, 3)
    return dict(spent)


def _round(
    run: RunFolder, index: int, missing: list[str], problems: Problems, *, sampled: bool = True
) -> dict[str, Any]:
    """The entry of a round. ``sampled`` False: it trains on given pairs, and no captions or trajectories are missed."""
    folder = run.round(index)
    entry: dict[str, Any] = {"round": index}
    captions = columns(folder.captions, Caption, ["tokens"], problems)["tokens"]
    trajectories = columns(folder.trajectories, Trajectory, ["tokens"], problems)["tokens"]
    verdicts = columns(folder.verdicts, Verdict, ["answer_type", "verdict"], problems)
    kept = read_json(folder.kept_summary_file, problems, _KEPT)
    if kept is None and sampled:
        so_far = {"captions": len(captions), "trajectories": len(trajectories)}
        entry.update({name: count for name, count in so_far.items() if count})
        judged, left = len(verdicts["verdict"]), len(trajectories) - len(verdicts["verdict"])
        some = f"{left:,} of {len(trajectories):,} verdicts and " if left > 0 else ""
        missing.append(f"round {index}: {some if judged else 'verdicts and '}kept trajectories")
        missing += [f"round {index}: {name}" for name, count in so_far.items() if not count]
    elif kept is not None:
        entry.update({name: kept[name] for name in _KEPT if name in kept})
        stored = {"captions": len(captions), "trajectories": len(trajectories)}
        stored |= {"verdicts": len(verdicts["verdict"]), "kept": len(records(folder.kept_file, Kept, problems))}
        missing += _lost(index, kept, stored)
    if captions or trajectories:
        sampled = entry.get("early_stop", {}).get("tokens_sampled", sum(trajectories))
        entry["tokens_generated"] = sum(captions) + sampled
    entry.update(_grading(folder, verdicts, problems))
    train = read_json(folder.train_summary_file, problems, _TRAINED)
    if train is None:
        missing.append(f"round {index}: training")
    else:
        entry["train"] = train
        if not folder.train_metrics_file.is_file():
            missing.append(f"round {index}: the training curve (train/metrics.jsonl)")
    if not folder.model.is_dir():
        missing.append(f"round {index}: the exported model")
    curve = metrics(folder.train_metrics_file, problems)  # the charts draw what is whole
    last = max((line["step"] for line in curve if "loss" in line), default=0)
    if train is not None and curve and last < train.get("steps", 0):
        missing.append(f"round {index}: the training curve after step {last} of {train['steps']}")
    return entry


def _lost(index: int, kept: dict[str, Any], stored: dict[str, int]) -> list[str]:
    """Records that kept.json counted and that are missing from the shards."""
    counted = kept | {"verdicts": sum(kept.get("verdicts", {}).values())}
    names = {"kept": "kept trajectories"}
    lost = {name: counted[name] - there for name, there in stored.items() if there < counted.get(name, 0)}
    shares = {name: f"{count:,} of" if stored[name] else "all" for name, count in lost.items()}
    return [f"round {index}: {share} {counted[name]:,} {names.get(name, name)}" for name, share in shares.items()]


def _grading(folder: RoundFolder, verdicts: Columns, problems: Problems) -> dict[str, Any]:
    """Verdict counts by the answer type that the grader used, and changes against another verifier version."""
    found: dict[str, Any] = {}
    by_type: dict[str, dict[str, int]] = {}
    for answer_type, verdict in zip(verdicts["answer_type"], verdicts["verdict"], strict=True):
        counts = by_type.setdefault(answer_type or "untyped", {})
        counts[verdict] = counts.get(verdict, 0) + 1
    if by_type:
        found["verdicts_by_type"] = {name: dict(sorted(by_type[name].items())) for name in sorted(by_type)}
    opinion = read_json(folder.second_opinion_file, problems, _OPINION)
    if opinion is not None and opinion.get("by_type"):
        summary = {name: opinion.get(name, 0) for name in ("peer", "compared", "undecided", "left_out", "by_type")}
        found["second_opinion"] = summary | {"examples": opinion.get("examples", [])[:MAX_DIFFERING]}
    changes = read_json(folder.verdict_changes_file, problems)
    if changes is not None:
        kept = ("old_version", "new_version", "compared", "changed")
        found["verdict_changes"] = {name: changes[name] for name in kept if name in changes}
    return found
