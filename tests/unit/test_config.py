"""The configuration: strict, with the nearest valid name; every shipped file loads and round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.errors import UsageError
from tests.support.configs import MINIMAL_TOML

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, extra: str = "", base: str = MINIMAL_TOML) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(base + extra)
    return path


def message(path: Path, *sets: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(path, sets=sets)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_the_papers_numbers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert (config.captions.per_image, config.reasoning.per_caption) == (8, 8)
    assert (config.reward.alpha, config.reward.keep) == (0.75, 1)
    assert (config.train.learning_rate, config.train.weight_decay) == (2e-5, 0.05)
    assert (config.train.global_batch_samples, config.train.final_learning_rate_fraction) == (512, 0.25)
    assert config.evaluate.protocols[0].sampling.top_p == 0.8


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("[train]\nlearning_rat = 1.0\n", "train.learning_rat: unknown key (did you mean 'learning_rate'?)"),
        ("[captions.engine]\nmax_sequences = 8\n", "captions.engine.kind: required key is missing"),
        ("[trian]\nsteps = 1\n", "trian: unknown key (did you mean 'train'?)"),
        ("[captions.engine]\nkind = 'openai'\nmodel_name = 'x'\ntimeout_second = 1.0\n",
         "captions.engine.timeout_second: unknown key (did you mean 'timeout_seconds'?)"),
        ("[captions.engine]\nkind = 'vlm'\n", "captions.engine"),
        ("[train]\nsteps = 'many'\n", "train.steps: input should be a valid integer"),
        ("[reward]\nalpha = 1.5\n", "reward.alpha: input should be less than 1 (got 1.5)"),
        ("[parallel]\ntensor = 2\nprocesses = 3\n", "parallel.processes = 3 is not a multiple"),
        ("[train]\noptimizer_offload_fraction = 0.5\n", "train.optimizer_offload_fraction = 0.5 is not supported: "),
        ("[fp8]\nrecipe = 'tensorwise'\nprimary_weights = true\n", "fp8.primary_weights = True is not supported: "),
        ("[parallel]\nsequence_parallel = true\n", "parallel.sequence_parallel needs parallel.tensor > 1"),
        ("[objective.loss]\nname = 'sofia'\n", "objective.loss.name"),
        ("[captions]\nprompt_file = ''\n", "captions: prompt_file is an empty path"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_place(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in message(write(tmp_path, extra))


def test_unknown_key_in_a_list_names_its_position(tmp_path: Path) -> None:
    text = message(write(tmp_path, "colums = {}\n"))
    assert "data.questions.0.colums: unknown key (did you mean 'columns'?)" in text
    assert "tuple" not in text  # only the cause, not what follows from it


def test_a_column_is_a_name_or_several_to_try(tmp_path: Path) -> None:
    extra = 'columns = {question = "ask", answer = ["gold", "key"]}\n'
    columns = load_config(write(tmp_path, extra)).data.questions[0].columns
    assert (columns.question, columns.answer) == (("ask",), ("gold", "key"))


def test_what_is_in_a_list_is_set_by_a_file(tmp_path: Path) -> None:
    assert "a list: replace it whole" in message(write(tmp_path), "data.questions.path=other.jsonl")


def test_mistakes_after_an_overlay_name_both_files(tmp_path: Path) -> None:
    overlay = tmp_path / "more.toml"
    overlay.write_text("[train]\nstepz = 3\n")
    with pytest.raises(UsageError, match=r"run\.toml \+ .*more\.toml: .*stepz"):
        load_config(write(tmp_path), overlays=[overlay])


def test_file_that_is_missing_or_not_toml(tmp_path: Path) -> None:
    assert "no such configuration file" in message(tmp_path / "absent.toml")
    assert "not valid TOML" in message(write(tmp_path, "= 3"))
    assert "cannot be read" in message(tmp_path)


def test_no_reasoner_needs_an_endpoint(tmp_path: Path) -> None:
    base = MINIMAL_TOML.replace('reasoner = "reasoner"\n', "")
    assert "models.reasoner is missing" in message(write(tmp_path, base=base))
    endpoint = "[reasoning.engine]\nkind = 'openai'\nmodel_name = 'deepseek-r1'\n"
    assert load_config(write(tmp_path, endpoint, base)).models.reasoner is None


def test_overlays_and_sets_in_order(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text("[train]\nsteps = 5\nwarmup_steps = 2\n")
    config = load_config(write(tmp_path, "[train]\nsteps = 3\n"), [overlay], ["train.steps=7", "run.name=other"])
    assert (config.train.steps, config.train.warmup_steps, config.run.name) == (7, 2, "other")
    assert "expected section.key=value" in message(write(tmp_path), "train.steps")


def test_a_file_lies_over_its_base_and_its_bases_base(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    write(tmp_path / "low", "[train]\nsteps = 1\nwarmup_steps = 1\nweight_decay = 0.5\n")
    (tmp_path / "middle.toml").write_text('base = "low/run.toml"\n[train]\nsteps = 2\nwarmup_steps = 2\n')
    top = write(
        tmp_path, '[train]\nsteps = 3\n[[data.questions]]\nkind = "csv"\npath = "b"\n', 'base = "middle.toml"\n'
    )
    config = load_config(top)
    assert (config.train.steps, config.train.warmup_steps, config.train.weight_decay) == (3, 2, 0.5)
    assert [source.path for source in config.data.questions] == ["b"]  # a list is replaced whole
    assert load_config(tmp_path / "low" / "run.toml", [top]).train.steps == 3  # an overlay brings its bases along


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = message(write(tmp_path, base='base = "absent.toml"\n'))
    assert "run.toml: base: " in text and "absent.toml: no such configuration file" in text
    assert "base: expected the path of a TOML file (got 3)" in message(write(tmp_path, base="base = 3\n"))
    (tmp_path / "other.toml").write_text('base = "run.toml"\n')
    assert "has this file as a base itself" in message(write(tmp_path, base='base = "other.toml"\n'))


def test_resolved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    again = tmp_path / "again.toml"
    again.write_text(dump_toml(config))
    assert load_config(again) == config


EXAMPLES = sorted(p for name in ("run", "endpoint") for p in (ROOT / "examples").glob(f"*/{name}.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_example_loads(path: Path) -> None:
    config = load_config(path)
    assert config.run.folder.name == config.run.name


# what differs between the six production runs; everything else is the same
PRODUCTION = {  # policy, tensor, pipeline, layers on the first stage, processes, FP8, recomputation, captions on GPUs
    "internvl2_5_8b": ("InternVL2_5-8B-hf", 4, 1, None, 8, "none", "none", 1),
    "internvl3_8b": ("InternVL3-8B-hf", 4, 1, None, 8, "none", "none", 1),
    "internvl3_5_8b": ("InternVL3_5-8B-HF", 4, 1, None, 8, "none", "none", 1),
    "internvl2_5_38b": ("InternVL2_5-38B-hf", 8, 2, 31, 64, "tensorwise", "full", 4),
    "internvl3_38b": ("InternVL3-38B-hf", 8, 2, 31, 64, "tensorwise", "full", 4),
    "internvl3_5_38b": ("InternVL3_5-38B-HF", 8, 2, 31, 64, "tensorwise", "full", 4),
}


def test_the_production_runs_differ_in_what_is_listed_only() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("internvl*/run.toml")}
    assert folders == set(PRODUCTION) | {"internvl3_1b"}  # for one small GPU: another kind of run
    rest = []
    for name, row in PRODUCTION.items():
        values = load_config(ROOT / "examples" / name / "run.toml").model_dump(mode="json")
        run, parallel, train = values["run"], values["parallel"], values["train"]
        assert (run.pop("name"), run.pop("folder"), values["track"].pop("experiment")) == (name, f"runs/{name}", name)
        engine, again = values["captions"]["engine"], values["evaluate"]["engine"]
        assert engine == again
        found = (
            values["models"].pop("policy").rpartition("/")[2], parallel.pop("tensor"), parallel.pop("pipeline"),
            parallel.pop("layers_on_first_stage"), parallel.pop("processes"), values["fp8"].pop("recipe"),
            train.pop("recompute"), engine.pop("tensor_parallel"),
        )  # fmt: skip
        assert again.pop("tensor_parallel") == row[-1]
        assert found == row
        rest.append(values)
    assert all(values == rest[0] for values in rest)


def test_an_overlay_with_another_kind_of_engine_replaces_the_engine(tmp_path):
    """Keys of the other kind would be unknown to it; the same kind is merged key by key."""
    base = '[run]\nname = "x"\nfolder = "r"\n[models]\npolicy = "p"\nreasoner = "q"\n'
    base += '[[data.questions]]\nkind = "jsonl"\npath = "q.jsonl"\n'
    (tmp_path / "a.toml").write_text(base + '[reasoning]\nengine = { kind = "vllm", kv_cache_mib = 64 }\n')
    (tmp_path / "b.toml").write_text('[reasoning]\nengine = { kind = "transformers", dtype = "float32" }\n')
    (tmp_path / "c.toml").write_text('[reasoning]\nengine = { kind = "vllm", dtype = "float32" }\n')
    assert load_config(tmp_path / "a.toml", [tmp_path / "b.toml"]).reasoning.engine.kind == "transformers"
    merged = load_config(tmp_path / "a.toml", [tmp_path / "c.toml"]).reasoning.engine
    assert (merged.dtype, merged.kv_cache_mib) == ("float32", 64)
