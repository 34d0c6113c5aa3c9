"""Models by their names on the hub, from a prepared cache and without a network; a missing folder stays missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.config.schema import Models
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.benchmark import Wanted, benchmark_config
from sophia_mcore.launch.slurm.submit import dry_run, would_refuse
from sophia_mcore.pretrained.hub import hub_name, local_folder
from sophia_mcore.pretrained.released import released_config, released_names, spec_of
from sophia_mcore.weights.command import run_verify
from tests.support import configs
from tests.support.qwen_models import RELEASES
from tests.support.qwen_models import config_of as qwen_config
from tests.support.real_models import BILLIONS, MODELS

ROOT = Path(__file__).parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, as the hub's client lays it out, and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    repository = folder / "models--tiny--policy"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(ROOT / "examples" / "digits" / "base" / "policy", repository / "snapshots" / REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OpenGVLab/InternVL3-8B", "OpenGVLab/InternVL3-8B"),
        ("hf://OpenGVLab/InternVL3-8B", "OpenGVLab/InternVL3-8B"),
        ("hf://OpenGVLab/InternVL3-8B@v1.0", "OpenGVLab/InternVL3-8B@v1.0"),
        ("OpenGVLab/InternVL3-8B@abc", "OpenGVLab/InternVL3-8B@abc"),
        ("hf://examples/digits", "examples/digits"),
        ("models/InternVL3-8B", None),
        ("hf://models/InternVL3-8B", "models/InternVL3-8B"),
        ("examples/missing", None),  # a folder `examples` is here
        ("runs/digits/base/policy", None),
        ("/models/InternVL3-8B", None),
        ("../org/name", None),
        ("model", None),
        ("org/name@", None),
        ("org/na me", None),
    ],
)
def test_what_is_a_name(text: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = hub_name(Path(text))
    assert (None if found is None else str(found)) == name


def test_a_path_that_begins_with_a_dot_is_a_path() -> None:
    for text in ("./org/name", "../org/name"):
        assert hub_name(Models(policy=Path("x"), reasoner=text).reasoner or Path()) is None  # type: ignore[arg-type]
    assert Models(policy="org/name").policy == Path("org/name")  # type: ignore[arg-type]


def test_a_cached_model_is_found_with_its_revision(cache: Path) -> None:
    folder = local_folder(Path("tiny/policy"))
    assert folder.name == REVISION
    assert (folder / "config.json").is_file()
    assert local_folder(Path(f"hf://tiny/policy@{REVISION}")) == folder
    assert local_folder(folder) == folder


def test_what_is_not_there_names_the_command(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a folder here nor in the local cache.*hf download tiny/other"):
        local_folder(Path("tiny/other"))
    with pytest.raises(SophiaError, match=r"hf download tiny/other --revision v2"):
        local_folder(Path("tiny/other@v2"), download=True)


def test_verify_and_benchmark_take_names(cache: Path, tmp_path: Path) -> None:
    folder = local_folder(Path("tiny/policy"))
    assert CliRunner().invoke(app, ["verify", "tiny/policy", str(folder)], catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageError, match="hf download tiny/other"):
        run_verify(folder, Path("tiny/other"))
    wanted = Wanted(model="tiny/policy", on=["mathvista"])
    assert benchmark_config(wanted, tmp_path / "run").models.policy == Path("tiny/policy")


@pytest.mark.slow
def test_a_plan_of_every_shipped_example_needs_no_download(cache: Path) -> None:
    for name in (*sorted(MODELS), "internvl3_1b", "qwen2_5_vl_7b", "qwen2_5_vl_32b", "qwen3_vl_8b"):
        arguments = ["plan", str(ROOT / "examples" / name / "run.toml"), "--gpus", "64"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output


def test_released_qwen_models_have_their_public_sizes() -> None:
    for name in RELEASES:
        assert released_config(Path("Qwen") / f"{name}-Instruct") == qwen_config(name)


def test_released_sizes_are_those_of_the_releases() -> None:
    assert len(released_names()) >= len(MODELS)
    for folder, model in MODELS.items():
        name = next(n for n in released_names() if n.rpartition("/")[2].lower().replace("-", "_") == folder)
        found = spec_of(Path(name))
        assert found is not None and found.vision == model.vision and found.projector == model.projector
        ours, theirs = found.language, model.language
        assert (ours.num_layers, ours.hidden_size, ours.intermediate_size) == (
            theirs.num_layers, theirs.hidden_size, theirs.intermediate_size,
        )  # fmt: skip
        assert (ours.num_key_value_heads, ours.vocab_size) == (theirs.num_key_value_heads, theirs.vocab_size)
        assert BILLIONS[folder]
    assert released_config(Path("models/InternVL3-8B-hf")) == released_config(Path("InternVL3-8B"))
    for own in ("unheard-of", "unheard-of-hf", "QwQ-32B-hf", "Qwen2.5-VL-7B-Instruct-hf"):
        assert released_config(Path("models") / own) is None, own


def test_a_dry_run_looks_at_cached_models_and_says_which_submit_downloads(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    stage = {"max_tokens": 64, "start": "base"}
    here = configs.make_config(tmp_path / "run", "tiny/policy", "tiny/policy", rl=stage)
    assert would_refuse(here, stage=True) == "" and "hf download" not in " ".join(dry_run(here, stage=True).notes)
    uneven = here.model_copy(update={"parallel": here.parallel.model_copy(update={"pipeline": 64})})
    assert "do not fit parallel.pipeline = 64" in would_refuse(uneven, stage=True)
    absent = configs.make_config(tmp_path / "run", "tiny/absent", "tiny/policy", rl=stage)
    assert would_refuse(absent, stage=True) == ""
    assert dry_run(absent, stage=True).notes[-1] == (
        "tiny/absent is neither a folder here nor in the local cache; to download it: hf download tiny/absent; "
        "submit does this first, and then checks the model"
    )
