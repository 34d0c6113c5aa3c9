"""The section [rl]: defaults, the trainer's view, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.errors import UsageError
from tests.support.configs import MINIMAL_TOML

TEST = '[[evaluate.questions]]\nkind = "jsonl"\npath = "test.jsonl"\n'


def write(folder: Path, rl: str, rest: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(f"{MINIMAL_TOML}\n{rest}\n[rl]\n{rl}\n")
    return path


def test_the_papers_numbers_are_the_defaults(tmp_path: Path) -> None:
    rl = load_config(write(tmp_path, "")).on_policy
    assert (rl.questions_per_batch, rl.group, rl.samples_per_update, rl.batches) == (64, 8, 512, 480)
    assert (rl.train.learning_rate, rl.fill, rl.objective.kl) == (5e-7, "none", 0.0)
    assert (rl.objective.loss.name, rl.objective.advantage) == ("grpo", "group_normalized")
    assert (rl.objective.loss.clip_low, rl.objective.loss.clip_high) == (0.2, 0.35)  # type: ignore[union-attr]
    narrow = load_config(write(tmp_path, "[rl.objective.loss]\nname = 'grpo'\nclip_high = 0.2"))
    assert narrow.on_policy.objective.loss.clip_high == 0.2  # type: ignore[union-attr]
    assert load_config(write(tmp_path, "[rl.objective.loss]\nname = 'gspo'")).on_policy.objective.loss.name == "gspo"


def test_without_the_section_there_is_no_stage(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL_TOML)
    config = load_config(path)
    assert config.rl is None
    with pytest.raises(UsageError, match=r"no \[rl\] section"):
        config.rl_view()


def test_the_trainers_view(tmp_path: Path) -> None:
    rest = '[train]\nlearning_rate = 1.0\ndtype = "float32"\nwarmup_steps = 7\n'
    config = load_config(write(tmp_path, "batches = 10\nsamples_per_update = 128\n[rl.objective]\nkl = 0.1", rest))
    view = config.rl_view()
    assert (view.train.steps, view.train.global_batch_samples, view.train.save_every_steps) == (40, 128, 40)
    assert (view.train.learning_rate, view.train.dtype, view.train.warmup_steps) == (5e-7, "float32", 0)
    assert (view.objective.kl, view.objective.fixed_tokens) == (0.1, 16_384)
    again = tmp_path / "again.toml"
    again.write_text(dump_toml(config))
    assert load_config(again) == config


REFUSED = {  # name: (lines of [rl], what the one line says)
    "lag without correction": ("lag = 1\nplacement = 'separate'", "set objective.correction to 'tis' or 'icepop'"),
    "lag with colocated": ("lag = 1\n[rl.objective]\ncorrection = 'tis'", "lag = 1 needs placement = 'separate'"),
    "no multiple of group": ("group = 7", "samples_per_update = 512 is not a multiple of group = 7"),
    "group of one": ("group = 1", "rl.group: input should be greater than or equal to 2"),
    "temperature": ("temperature = 0.7", "rl: temperature cannot be set"),
    "top_p": ("top_p = 0.9", "rl: top_p cannot be set"),
    "sampling": ("sampling = { temperature = 1.0 }", "rl: sampling cannot be set"),
    "unknown key": ("batchs = 3", "rl.batchs: unknown key (did you mean 'batches'?)"),
    "unknown key inside": ("[rl.ssr]\nalfa = 3", "rl.ssr.alfa: unknown key (did you mean 'alpha'?)"),
    "endpoint": ("engine = { kind = 'openai', model_name = 'x' }", "new weights cannot be loaded into an endpoint"),
    "no room to rethink": ("max_tokens = 64\n[rl.rethink]\nshare = 0.5", "rethink.most_tokens = 1024 leaves no room"),
    "rethinking too short": ("[rl.rethink]\nleast_tokens = 2000", "rethink.least_tokens = 2000 exceeds"),
    "best in memory": (
        "versions = 'memory'\nkeep = 'best'\n[[rl.validation]]\nkind = 'jsonl'\npath = 'v.jsonl'",
        "rl.versions = 'memory' loses the best version",
    ),
    "best without validation": ("keep = 'best'", "[[rl.validation]] is missing"),
    "soft without cache": ("overlong = 'soft'", "needs overlong_cache > 0"),
    "answers longer than rows": ("max_tokens = 32768", "do not fit into batch.sequence_length_tokens = 32768"),
    "another model's": ("[rl.objective]\nfresh_share = 0.5", "fresh_share concerns trajectories of another model"),
    "no prompt beside an answer": (
        "max_tokens = 64\nengine = { kind = 'vllm', max_model_length_tokens = 64 }",
        "engine.max_model_length_tokens = 64 leaves no room for a prompt",
    ),
    "no such share": ("[rl.select]\nsamples = 3", "no share of samples = 3 answers lies from minimum = 0.4"),
    "reversed selection": ("[rl.select]\nminimum = 0.7", "no question would stay"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path: Path, name: str) -> None:
    lines, said = REFUSED[name]
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, lines))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_on_several_nodes_the_best_version_lies_in_the_run_folder(tmp_path: Path) -> None:
    best = "versions = 'memory'\nkeep = 'best'\nplacement = 'separate'\n"
    validation = "[[rl.validation]]\nkind = 'jsonl'\npath = 'v.jsonl'\n"
    assert load_config(write(tmp_path, f"{best}rollout_nodes = 1\n{validation}")).on_policy.keep == "best"
    several, one = ("[parallel]\nprocesses = 4\nprocesses_per_node = 2\n", "[parallel]\nprocesses = 4\n")
    assert load_config(write(tmp_path, best + validation, several)).on_policy.keep == "best"
    with pytest.raises(UsageError, match="loses the best version"):
        load_config(write(tmp_path, best + validation, one))


def test_lag_is_possible_knowingly(tmp_path: Path) -> None:
    lag = "lag = 1\nplacement = 'separate'\n"
    assert load_config(write(tmp_path, lag + "accept_lag_uncorrected = true")).on_policy.lag == 1
    assert load_config(write(tmp_path, lag + "[rl.objective]\ncorrection = 'icepop'")).on_policy.lag == 1


@pytest.mark.parametrize("path", ["test.jsonl", "./test.jsonl", "x/../test.jsonl"])
def test_the_evaluation_questions_choose_nothing(tmp_path: Path, path: str) -> None:
    validation = f'[[rl.validation]]\nkind = "jsonl"\npath = "{path}"\nlimit = 3\n'
    with pytest.raises(UsageError, match="holds the evaluation questions too"):
        load_config(write(tmp_path, validation, TEST))
    other = validation.replace(path, "validation.jsonl")
    assert len(load_config(write(tmp_path, other, TEST)).on_policy.validation) == 1
    own = validation.replace("validation", "questions")
    with pytest.raises(UsageError, match=r"rl.questions: .*test.jsonl holds the evaluation questions too"):
        load_config(write(tmp_path, own, TEST))
    with pytest.raises(UsageError, match=r"rl.questions: .*validation.jsonl holds the validation questions too"):
        load_config(write(tmp_path, other + own.replace(path, "x/../validation.jsonl"), TEST))
    assert len(load_config(write(tmp_path, own.replace(path, "more.jsonl"), TEST)).on_policy.questions) == 1


@pytest.mark.parametrize("held_out", ["evaluation", "validation"])
def test_the_rounds_questions_are_not_held_out_where_the_stage_asks_them(tmp_path: Path, held_out: str) -> None:
    source = '[[{}]]\nkind = "jsonl"\npath = "questions.jsonl"\n'
    table = "evaluate.questions" if held_out == "evaluation" else "rl.validation"
    rest = source.format("data.questions") + source.format(table)
    with pytest.raises(UsageError, match=f"data.questions: questions.jsonl holds the {held_out} questions too"):
        load_config(write(tmp_path, "", rest))
    own = source.format("rl.questions").replace("questions.jsonl", "more.jsonl")
    assert len(load_config(write(tmp_path, own, rest)).on_policy.questions) == 1


@pytest.mark.parametrize(("key", "value"), [("kl", "0.1"), ("normalization", "'fixed'")])
def test_what_only_the_stage_can_do(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"objective.{key}.* belongs to the on-policy stage: rl.objective.{key}"):
        load_config(write(tmp_path, "", f"[objective]\n{key} = {value}\n"))
