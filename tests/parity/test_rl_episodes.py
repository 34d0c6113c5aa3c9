"""Episodes with a real vLLM: two turns and a drawn image, played by an engine process; the trainer reads the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.tokenize import load_tokenizer
from sophia_mcore.config import dump_toml
from sophia_mcore.pretrained.chat import Chat
from sophia_mcore.pretrained.families import image_limits, image_processor
from sophia_mcore.records import Question
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.shards import read_shard
from sophia_mcore.store.user_files import keep_user_files
from sophia_mcore.train.on_policy.answers import Tokens, _sampled
from tests.parity.test_rl_engines import engine, finish, trained_by
from tests.support.rl_world import StubTrainer, make_rl_run, rollouts_of
from tests.unit.test_rl_environment import MINE

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_turns_of_a_real_engine(rollout_python: Path, tiny_internvl: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    environment = {"function": f"{tmp_path}/mine.py"}
    config, run = make_rl_run(tmp_path / "run", tiny_internvl, batches=1, environment=environment)
    rewards = ({"function": f"{tmp_path}/mine.py:share"}, {"function": "iou", "weight": 0.0, "only": {"source": "x"}})
    config = config.model_validate({**config.model_dump(), "rewards": rewards, "functions": {"timeout_seconds": 60.0}})
    run.config_file.write_text(dump_toml(config))
    keep_user_files(config, run)
    with trained_by(StubTrainer(config, run, [tiny_internvl])):
        finish(engine(rollout_python, run))
    rows = rollouts_of(run)
    assert len(rows) == 2 * 12 and {one.turn for one in rows} == {0, 1} and {one.status for one in rows} == {"done"}
    assert all(json.loads(one.scores)["share"] == len(one.text) / 100 for one in rows)
    reader = Reader(
        Chat.from_model_dir(tiny_internvl),
        load_tokenizer(tiny_internvl),
        image_processor(tiny_internvl, image_limits(config.batch)),
        ImageStore(run.images),
    )
    questions = {question.id: question for question in read_shard(run.questions_file, Question)}
    tokens = Tokens(reader, questions, system_prompt(config), 32_768, config.on_policy)
    for row in rows:
        one = _sampled(row, 0)
        assert tokens.unfit(one) is None  # its prompt's hash is the engine's
        made = tokens.sample(one, 1.0)
        assert made.input_ids[-len(row.token_logprobs) :].tolist() == list(row.token_ids[row.given :])
        assert len(made.input_ids) - made.prompt_tokens == len(one.logprobs) == len(row.token_logprobs)
