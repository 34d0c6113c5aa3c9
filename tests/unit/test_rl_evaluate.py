"""The evaluation of a stage whose policy has several turns: both models answer every question in the environment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sophia_mcore.errors import UsageError
from sophia_mcore.launch import work
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.launch.phases import PHASES, RL_EVALUATE
from sophia_mcore.launch.readers import rl_evaluation_units
from sophia_mcore.launch.state import state_of
from sophia_mcore.progress import NoProgress
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.layout import Round
from sophia_mcore.store.shards import read_folder, read_shard, write_shard
from tests.support import tiny_models
from tests.support.rl_world import make_rl_run

MINE = """
from sophia_mcore.environments import Ask, Step

def start(question, images, seed):
    return Step({"turn": 0, "question": question.question}, Ask.user(question.question, images))

def step(state, reply, images):
    if "3" in state["question"]:
        raise ValueError("three")
    if state["turn"]:
        return Step(state)
    return Step({**state, "turn": 1}, Ask.user("Again?", images, prefill=f"\\\\boxed{{{state['question'][8:9]}}} "))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_models.save_internvl(folder / f"m{seed}", seed=seed) for seed in (1, 2)]


def test_both_models_answer_in_the_environment(tmp_path: Path, models: list[Path]) -> None:
    """What the environment has the policy begin its last turn with belongs to the answer, as it does in training."""
    (tmp_path / "mine.py").write_text(MINE)
    environment = {"function": f"{tmp_path}/mine.py"}
    config, run = make_rl_run(tmp_path / "run", models[0], questions=5, environment=environment, max_turns=2, batches=1)
    engine = {"kind": "transformers", "dtype": "float32"}
    asked = [{"kind": "jsonl", "path": f"{tmp_path}/q.jsonl"}]
    evaluate = config.evaluate.model_dump() | {"engine": engine, "questions": asked}
    config = config.model_validate(
        {**config.model_dump(), "evaluate": evaluate, "functions": {"timeout_seconds": 20.0}}
    )
    claim_folder(config, run, new_settings=True)
    questions = read_shard(run.questions_file, Question)
    run.evaluation_questions_file.parent.mkdir(parents=True)
    write_shard(run.evaluation_questions_file, questions, Question)
    shutil.copytree(models[1], run.rl.model)
    run.rl.train.mkdir()
    run.rl.summary_file.write_text('{"batches": 1}')
    round = Round(config, run, 0)
    begin(round)
    work.rl_evaluate(round, NoProgress())
    assert all(queue.done() for queue in rl_evaluation_units(round))
    for label in ("rl-start", "rl"):
        answers = {one.question_id: one for one in read_folder(run.evaluation(label, "greedy"), Answer)}
        assert sorted(answers) == [f"q{i}" for i in range(5)]
        failed = answers.pop("q3")
        assert failed.verdict == "error" and "mine.py:step: ValueError: three" in failed.text
        for name, one in answers.items():
            number = name[1:]
            assert one.text.startswith(f"\\boxed{{{number}}}") and one.extracted == number
            assert one.verdict == ("correct" if number != "4" else "wrong")  # the answer of q4 is 0
            assert len(one.token_logprobs) == len(one.token_ids)
    before = sorted(path.stat().st_mtime_ns for path in run.path.glob("evaluation/rl*/greedy/*.parquet"))
    assert begin(round) == []
    work.rl_evaluate(round, NoProgress())  # again: nothing is asked
    assert sorted(path.stat().st_mtime_ns for path in run.path.glob("evaluation/rl*/greedy/*.parquet")) == before
    assert state_of(RL_EVALUATE, round).finished
    more = config.model_copy(update={"rl": config.on_policy.model_copy(update={"batches": 2})})
    assert not state_of(RL_EVALUATE, Round(more, run, 0)).finished  # another model is still to come
    answers_are_of_the_models_that_are_there(round)


def answers_are_of_the_models_that_are_there(round: Round) -> None:
    """A stage that has gone on has another model, which is asked again; other settings are refused."""
    run = round.run
    run.rl.summary_file.write_text('{"batches": 2}')
    assert "rl of round 0" in state_of(RL_EVALUATE, round).stale and not state_of(RL_EVALUATE, round).finished
    (line,) = Provenance(round.config, run, PHASES).stale_lines()
    assert line.startswith("rl-evaluate of round 0: made from other rl of round 0")
    start = sorted(run.evaluation("rl-start", "greedy").glob("*.parquet"))
    (told,) = begin(round)
    assert "is done again" in told
    assert not run.evaluation("rl", "greedy").exists() and all(path.is_file() for path in start)
    assert len(list(run.aside.glob("*/evaluation/rl/greedy/*.parquet"))) > 0
    protocol = round.config.evaluate.protocols[0]
    sampling = protocol.sampling.model_copy(update={"max_tokens": 3})
    changed = round.config.model_copy(
        update={"evaluate": round.config.evaluate.model_copy(
            update={"protocols": (protocol.model_copy(update={"sampling": sampling}),)}
        )}
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"evaluate\.protocols \(greedy\) .* rl-evaluate depends"):
        claim_folder(changed, run)


def begin(round: Round) -> list[str]:
    """What is done before the phase; returns what is told."""
    told: list[str] = []
    prepare(Provenance(round.config, round.run, PHASES), RL_EVALUATE, 0, told.append)
    return told
