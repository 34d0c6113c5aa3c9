"""The model card: origin, scores, lines that load the model; it parses, and the same run makes the same bytes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import app
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.report.model_card import LOADS, write_cards
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest
from sophia_mcore.weights.push import push
from tests.support.report_stage import add_stage
from tests.support.report_world import HOSTILE, make_finished_run

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "digits" / "base" / "policy"
ROLLOUT_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunFolder, Any]:
    """A finished run whose export is the example's policy."""
    run, config = make_finished_run(tmp_path / "run", questions=6)
    shutil.copytree(MODEL, run.round(0).model, dirs_exist_ok=True)
    return run, config


def test_the_card_has_scores_origin_and_lineage_and_parses(run: tuple[RunFolder, Any]) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install '.[hub]')")
    folder, config = run
    (path,) = write_cards(config, folder, PHASES)
    text = path.read_text()
    assert "| base | paper | all | 66.7 | 30.0 to 90.3 | 6 |" in text
    assert "| round-0 | paper | all | 100.0 |" in text
    assert "| trajectories | 24 |" in text and "captions sha256" in text and "sophia_mcore" in text
    card = hub.ModelCard(text)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    (score,) = card.data.eval_results
    assert score.metric_value == 100.0 and score.metric_name == "pass@1, paper"


def test_the_same_run_makes_the_same_bytes_and_touches_no_weights(run: tuple[RunFolder, Any], tmp_path: Path) -> None:
    folder, config = run
    model = folder.round(0).model
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.iterdir()}
    digest = model_digest(model)
    write_cards(config, folder, PHASES)
    first = (model / "README.md").read_bytes()
    (model / "README.md").unlink()
    write_cards(config, folder, PHASES)
    assert (model / "README.md").read_bytes() == first
    assert write_cards(config, folder, PHASES) == [], "an unchanged card is not written again"
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.iterdir()}
    after.pop("README.md")
    assert after == before and model_digest(model) == digest
    shutil.copytree(folder.path, tmp_path / "moved")
    (tmp_path / "moved" / "round-0" / "model" / "README.md").unlink()
    write_cards(config, RunFolder(tmp_path / "moved"), PHASES)
    assert (tmp_path / "moved" / "round-0" / "model" / "README.md").read_bytes() == first, "no path of this machine"
    assert str(tmp_path).encode() not in first


def test_without_scores_the_card_says_so_and_the_report_adds_them(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    shutil.move(folder.path / "evaluation", folder.path / "later")
    write_cards(config, folder, PHASES)
    assert "Not evaluated yet." in (folder.round(0).model / "README.md").read_text()
    shutil.move(folder.path / "later", folder.path / "evaluation")
    assert write_cards(config, folder, PHASES) == [folder.round(0).model / "README.md"]


def test_hostile_names_stay_text(run: tuple[RunFolder, Any]) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install '.[hub]')")
    folder, config = run
    name = f'x"\n---\n# y | z {HOSTILE}'
    hostile = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    write_cards(hostile, folder, PHASES)
    text = (folder.round(0).model / "README.md").read_text()
    assert "<script>" not in text.split("---\n", 2)[2] and "\u202e" not in text
    assert text.count("\n---\n") == 1 and hub.ModelCard(text).data.library_name == "transformers"
    heading = next(line for line in text.splitlines() if line.startswith("# "))
    assert "\\| z" in heading


def test_the_stage_has_a_card_of_its_own(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    add_stage(folder)
    shutil.copytree(MODEL, folder.rl.model)
    for label, before in (("rl-start", "base"), ("rl", "round-0")):
        shutil.copytree(folder.evaluation(before, "paper"), folder.evaluation(label, "paper"))
    write_cards(config, folder, PHASES)
    text = (folder.rl.model / "README.md").read_text()
    words = ("on-policy stage", "| rl-start | paper | all | 66.7", "| rl | paper | all | 100.0", "| batches | 6 |")
    assert all(word in text for word in words)


def test_a_hub_model_is_named_as_on_the_hub(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    cached = Path("/home/me/.cache/huggingface/hub/models--OpenGVLab--InternVL3-1B/snapshots/0123abc")
    models = config.models.model_copy(update={"policy": cached})
    write_cards(config.model_copy(update={"models": models}), folder, PHASES)
    text = (folder.round(0).model / "README.md").read_text()
    assert 'base_model: "OpenGVLab/InternVL3-1B"' in text and "/home/me" not in text


@pytest.mark.vllm
def test_the_five_lines_load_the_model(run: tuple[RunFolder, Any]) -> None:
    if not ROLLOUT_PYTHON.is_file():
        pytest.skip("no rollout environment, which has torchvision: make env")
    from PIL import Image

    folder, config = run
    (path,) = write_cards(config, folder, PHASES)
    code = re.search(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert code and code[1] == LOADS and len(code[1].splitlines()) == 5
    Image.new("RGB", (64, 64)).save(path.parent / "picture.png")
    done = subprocess.run(
        [ROLLOUT_PYTHON, "-c", code[1]], cwd=path.parent, capture_output=True, text=True, timeout=600,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What is this?" in done.stdout


class FakeHub:
    """Stands in for huggingface_hub.HfApi: remembers what it was asked for, and fails when told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._failure = failure

    def create_repo(self, repo_id: str, *, token: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}))

    def upload_folder(self, **given: Any) -> None:
        if self._failure is not None:
            raise self._failure
        self.calls.append(("upload_folder", given))


def test_the_fake_hub_has_the_interface_of_the_real_one() -> None:
    import inspect

    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install '.[hub]')")
    for name in ("repo_id", "token", "private", "exist_ok"):
        assert name in inspect.signature(hub.HfApi.create_repo).parameters
    for name in ("repo_id", "folder_path", "token", "allow_patterns", "commit_message"):
        assert name in inspect.signature(hub.HfApi.upload_folder).parameters


def test_a_push_makes_the_repository_and_sends_the_model(
    run: tuple[RunFolder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = FakeHub()
    address = push(run[0].round(0).model, "lab/model", private=True, hub=hub)
    assert address == "https://huggingface.co/lab/model" and "hf_secret" not in address
    (made, how), (sent, what) = hub.calls
    assert (made, how) == ("create_repo", {"repo_id": "lab/model", "private": True, "exist_ok": True})
    assert sent == "upload_folder" and what["token"] == "hf_secret" and "README.md" in what["allow_patterns"]


def test_a_push_that_fails_is_one_line_without_the_token(
    run: tuple[RunFolder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run[0].round(0).model
    with pytest.raises(UsageError, match="HF_TOKEN is not set"):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        push(model, "lab/model", private=False, hub=FakeHub())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("model", "lab/model/x", "../model", "lab/mo del", "lab/a--b", ""):
        with pytest.raises(UsageError, match="ORG/NAME"):
            push(model, name, private=False, hub=FakeHub())
    with pytest.raises(SophiaError, match="403 for") as caught:
        push(model, "lab/model", private=False, hub=FakeHub(RuntimeError("403 for hf_secret\nmore")))
    assert "hf_secret" not in str(caught.value) and "\n" not in str(caught.value)
    (model / "model.safetensors").unlink()
    hub = FakeHub()
    with pytest.raises(SophiaError, match="no weights"):
        push(model, "lab/model", private=False, hub=hub)
    assert hub.calls == [], "nothing is made for a model that is not whole"


def test_options_of_a_push_belong_to_it(run: tuple[RunFolder, Any]) -> None:
    done = CliRunner().invoke(app, ["export", str(run[0].config_file), "--private"])
    assert isinstance(done.exception, UsageError) and "--private" in str(done.exception)


def test_the_metadata_is_json_in_yaml(run: tuple[RunFolder, Any]) -> None:
    write_cards(run[1], run[0], PHASES)
    head = (run[0].round(0).model / "README.md").read_text().split("---\n")[1]
    values = {name: json.loads(value) for name, _, value in (line.partition(": ") for line in head.splitlines())}
    assert values["library_name"] == "transformers" and all(values.values())
