"""A stage that has ended is weighed anew without sampling; a function that was mended in the middle is heard."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.launch.rl import run_rl
from sophia_mcore.launch.stage import make_ready
from sophia_mcore.launch.stage_settings import accept_changed_settings
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Rollout
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.on_policy.anew import weigh_anew
from tests.support import stage_world, train_world

MINE = """
from sophia_mcore.environments import Target, Weight

def early(episode, question):
    return float(episode.text.strip()[:1] < "n")

def brief(episode, question):
    return 1.0 - len(episode.text) / 100

def above(group):
    mean = sum(sum(one.rewards) for one in group) / len(group)
    return [[Weight(sum(one.rewards) - mean)] for one in group]
"""
WEIGHTS = {"early": 1.0, "brief": 0.5}
OTHERS = {"early": 0.25, "brief": 2.0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_world.make_policy(tmp_path_factory.mktemp("policy") / "policy")


def stage(folder: Path, policy: Path, text: str = MINE, **rl: Any) -> tuple[Config, RunFolder]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(text)
    rewards = tuple({"function": f"{folder}/mine.py:{name}", "weight": weight} for name, weight in WEIGHTS.items())
    settings = {"batches": 2, "samples_per_update": 16, **rl}
    return stage_world.make_stage(
        folder / "run",
        policy,
        settings,
        rewards=rewards,
        track={"enabled": False},
        batch={"sequence_length_tokens": 384},
    )


def with_weights(config: Config, weights: dict[str, float], **rl: Any) -> Config:
    terms = tuple(term.model_copy(update={"weight": weights[term.label]}) for term in config.rewards)
    return config.model_copy(update={"rewards": terms, "rl": config.on_policy.model_copy(update=rl)})


def trained(config: Config, run: RunFolder) -> None:
    with stage_world.engine(config, run, episodes=True):
        assert stage_world.train(config, run) == [True]


def content(run: RunFolder) -> dict[str, bytes]:
    """Everything that the stage has left."""
    stays = [path for path in run.path.rglob("*") if path.is_file() and "weighed" not in path.parts]
    names = ("lock", "report.json", "report.html", "README.md")  # of the report, which is written again
    return {str(path.relative_to(run.path)): path.read_bytes() for path in stays if path.name not in names}


def expected(run: RunFolder, number: int, weights: dict[str, float]) -> dict[str, tuple[float, float]]:
    """(reward, advantage) of each answer of a batch, from what is stored of it and nothing else."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read_folder(run.rl.batch(number), Rollout):
        scores = json.loads(row.scores)
        groups[row.question_id][row.id] = sum(weights[name] * scores[name] for name in weights)
    found = {}
    for group in groups.values():
        mean, spread = statistics.fmean(group.values()), statistics.pstdev(group.values())
        found |= {name: (value, (value - mean) / spread if spread > 1e-9 else 0.0) for name, value in group.items()}
    return found


def test_weights_of_a_stage_that_has_ended(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = stage(tmp_path, policy)
    trained(config, run)
    before = content(run)
    changed = with_weights(config, OTHERS)
    told = r"other weights \(rewards.early 1 -> 0.25, rewards.brief 0.5 -> 2\): 'sophia rl' with --new-settings"
    with pytest.raises(UsageError, match=told):
        run_rl(changed)
    run_rl(changed, new_settings=True)
    assert "nothing sampled or trained" in "".join(capsys.readouterr())
    after = content(run)
    assert {name: data for name, data in after.items() if name in before} == before
    assert not {name for name in after.keys() - before.keys() if name.startswith("rl/")}
    for number in range(2):
        lines = (run.rl.weighed / "answers" / f"{number:08d}.jsonl").read_text().splitlines()
        found = {one["id"]: (one["reward"], one["advantage"]) for one in map(json.loads, lines)}
        wanted = expected(run, number, OTHERS)
        assert found.keys() == wanted.keys() and len(found) == 16
        for name, values in wanted.items():
            assert found[name] == pytest.approx(values, abs=1e-5), name
        (line,) = [one for one in read_metrics(run.rl.weighed / "metrics.jsonl") if one["step"] == number + 1]
        assert line["reward_mean"] == pytest.approx(statistics.fmean(value for value, _ in wanted.values()))
    figures = json.loads(run.report_json.read_text())["on_policy"]
    assert figures["weighed anew with"] == "early 0.25 (was 1), brief 2 (was 0.5)"
    means = [statistics.fmean(value for value, _ in expected(run, number, OTHERS).values()) for number in range(2)]
    assert figures["weighed anew: reward mean, first to last batches"] == "{:.3f} to {:.3f} (one batch each)".format(
        *means
    )
    assert figures["reward mean, first to last batches"] != figures["weighed anew: reward mean, first to last batches"]
    with pytest.raises(UsageError, match=r"has ended with other weights .* is weighed anew already: see"):
        run_rl(changed)
    make_ready(with_weights(config, {one.label: one.weight for one in config.rewards}, batches=3), run)
    assert not run.rl.weighed.exists()  # it goes on: there will be more batches than those


def test_with_its_own_weights_everything_comes_out_as_it_was(tmp_path: Path, policy: Path) -> None:
    """Also where answers are replayed: a planner of other weights is the same planner."""
    config, run = stage(tmp_path, policy, fill="ssr")
    trained(config, run)
    found = weigh_anew(config, run, config.reward_terms, NoProgress())
    assert found["answers_effective"] == found["answers_effective_trained"] > 0
    lines = [line for line in read_metrics(run.rl.metrics_file) if line["phase"] == "batch"]
    anew = read_metrics(run.rl.weighed / "metrics.jsonl")
    assert len(anew) == 2
    for line, other in zip(lines, anew, strict=True):
        assert other == {key: line[key] for key in other} and {"reward_mean", "groups_mixed"} <= other.keys()


def test_a_weighing_of_ones_own_is_called_again(tmp_path: Path, policy: Path) -> None:
    config, run = stage(tmp_path, policy, weigh=f"{tmp_path}/mine.py:above")
    trained(config, run)
    learned = (run.rl.batch(0) / "learned.json").read_bytes()
    run_rl(with_weights(config, OTHERS), new_settings=True)
    assert (run.rl.batch(0) / "learned.json").read_bytes() == learned
    lines = (run.rl.weighed / "answers" / "00000000.jsonl").read_text().splitlines()
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for one in map(json.loads, lines):
        groups[one["question_id"]].append(one)
    for group in groups.values():
        mean = statistics.fmean(one["reward"] for one in group)
        assert [one["advantage"] for one in group] == pytest.approx([one["reward"] - mean for one in group], abs=1e-6)


def test_what_cannot_be_weighed_anew_says_what_can_be_done(tmp_path: Path, policy: Path) -> None:
    config, run = stage(tmp_path, policy, batches=1)
    trained(config, run)
    before = content(run)
    more = with_weights(config, OTHERS, max_tokens=7)
    way = rf"choose another run.folder \(with rl.start = '{run.rl.model}'.*, or a larger rl.batches"
    for new_settings in (False, True):
        with pytest.raises(UsageError, match=rf"has ended with other settings \(rewards, rl.max_tokens\): {way}"):
            run_rl(more, new_settings=new_settings)
    (tmp_path / "mine.py").write_text(MINE + "\n# other\n")
    with pytest.raises(UsageError, match=r"has ended with other settings \(rewards, the content of .*mine.py"):
        run_rl(with_weights(config, OTHERS), new_settings=True)
    assert content(run) == before and not run.rl.weighed.exists()


def test_answers_that_are_gone_are_one_line(tmp_path: Path, policy: Path) -> None:
    import shutil

    config, run = stage(tmp_path, policy, batches=1)
    trained(config, run)
    shutil.rmtree(run.rl.batch(0))
    with pytest.raises(SophiaError, match="00000000: its answers are not there any more"):
        run_rl(with_weights(config, OTHERS), new_settings=True)
    assert not run.rl.weighed_file.exists()


def test_a_verdict_has_a_weight_too(tmp_path: Path, policy: Path) -> None:
    """A stage without [[rewards]] has stored no values: its verdicts are the values of `correct`."""
    config, run = stage_world.make_stage(tmp_path / "run", policy, {"batches": 2, "samples_per_update": 16})
    with stage_world.engine(config, run):
        assert stage_world.train(config, run) == [True]
    heavier = config.model_validate({**config.model_dump(), "rewards": ({"function": "correct", "weight": 3.0},)})
    run_rl(heavier, new_settings=True)
    lines = (run.rl.weighed / "answers" / "00000001.jsonl").read_text().splitlines()
    rewards = {one["id"]: one["reward"] for one in map(json.loads, lines)}
    rights = {row.id: 3.0 * (row.verdict == "correct") for row in read_folder(run.rl.batch(1), Rollout)}
    assert rewards == rights and len(set(rights.values())) == 2


def test_a_function_that_was_mended_is_heard(tmp_path: Path, policy: Path) -> None:
    """It stops the stage in batch 1, which is sampled again. What was trained on before is trained on as it was."""
    broken = MINE.replace(
        "return float(episode", 'assert ".b1." not in episode.id, "batch 1"\n    return float(episode'
    )
    config, run = stage(tmp_path, policy, broken, batches=3)
    with (
        stage_world.engine(config, run, episodes=True),
        pytest.raises(SophiaError, match=r"batch 1: .* episodes are broken"),
    ):
        stage_world.train(config, run)
    first = {path.name: path.read_bytes() for path in run.rl.batch(0).glob("*.parquet")}
    (tmp_path / "mine.py").write_text(MINE)
    said: list[str] = []
    with pytest.raises(UsageError, match=r"other settings \(the content of .*mine.py.*--new-settings"):
        accept_changed_settings(config, run, said.append, new_settings=False)
    assert run.rl.batch(1).is_dir() and not said
    accept_changed_settings(config, run, said.append, new_settings=True)
    assert re.search(r"answers of 1 batches that are not trained yet are sampled anew; they are in .*aside", said[0])
    claim_folder(config, run, new_settings=True)
    trained(config, run)
    assert {path.name: path.read_bytes() for path in run.rl.batch(0).glob("*.parquet")} == first
    whole, other = stage(tmp_path / "whole", policy, batches=3)
    trained(whole, other)
    assert stage_world.left_behind(run)["versions"] == stage_world.left_behind(other)["versions"]
    assert run.config_file.read_text() == dump_toml(config)
