"""Functions of the user's own: found without running the file, copied with a hash, imported from the copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.doctor.configuration import user_files
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.launch.phases import PHASES, phase_named
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.user_files import check_user_files, keep_user_files, load_function

GOOD = """
from pathlib import Path
Path({ran!r}).touch()

def other():
    return 1

def margin(logprobs_T, log_ratio_T, tokens, *, tau=0.5, name="x"):
    return tau * logprobs_T
"""


def config_of(tmp_path: Path, reference: str = "mine.py:margin", **options: object) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "t", "folder": tmp_path / "run"},
            "models": {"policy": "p", "reasoner": "r"},
            "data": {"questions": [{"kind": "jsonl", "path": "q"}]},
            "objective": {"loss": {"name": f"{tmp_path}/{reference}", "options": options}},
        }
    )


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that appears when mine.py is run."""
    path = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(GOOD.format(ran=str(path)))
    return path


def test_checking_and_copying_run_nothing(tmp_path: Path, ran: Path) -> None:
    config, run = config_of(tmp_path, tau=2), RunFolder(tmp_path / "run")
    check_user_files(config)
    claim_folder(config, run)
    assert [row.state for row in user_files(config)] == ["ok"]
    assert not ran.exists()
    (tmp_path / "mine.py").unlink()
    function = load_function(config, run, "objective.loss")
    assert ran.exists() and function is not None and function(3.0, None, None) == 6.0
    assert load_function(config, run, "another.key") is None


def test_what_an_own_loss_raises_names_its_file_and_line(tmp_path: Path, ran: Path) -> None:
    text = (
        (tmp_path / "mine.py").read_text().replace("return tau", 'raise ValueError("mine is broken")\n    return tau')
    )
    (tmp_path / "mine.py").write_text(text)
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    claim_folder(config, run)
    function = load_function(config, run, "objective.loss")
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "raise ValueError" in row)
    with pytest.raises(SophiaError, match=rf"mine\.py:margin: line {line}: ValueError: mine is broken"):
        assert function is not None and function(3.0, None, None)


def test_a_changed_file_is_told(tmp_path: Path, ran: Path) -> None:
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    claim_folder(config, run)
    with open(tmp_path / "mine.py", "a") as file:
        file.write("# found a mistake\n")
    claim_folder(config, run)  # nothing has been trained with it
    assert "mistake" in (run.code / "objective.loss" / "mine.py").read_text()
    provenance = Provenance(config, run, PHASES)
    prepare(provenance, phase_named("train"), 0, print)
    write_json(run.round(0).train_summary_file, {"steps": 1})
    with open(tmp_path / "mine.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(UsageError, match=r"objective.loss: .*mine.py has changed.*train depends.*--new-settings"):
        claim_folder(config, run)
    assert "# changed" not in (run.code / "objective.loss" / "mine.py").read_text()
    claim_folder(config, run, new_settings=True)
    assert "# changed" in (run.code / "objective.loss" / "mine.py").read_text()
    (run.code / "objective.loss" / "mine.py").write_text("print()")
    with pytest.raises(SophiaError, match="is not the file that the run was started with"):
        load_function(config, run, "objective.loss")


def test_a_run_without_its_copy(tmp_path: Path, ran: Path) -> None:
    with pytest.raises(SophiaError, match="the run has no copy of"):
        load_function(config_of(tmp_path), RunFolder(tmp_path / "run"), "objective.loss")


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("mine.py:margn", {}, "no function 'margn' .did you mean 'margin'"),
        ("mine.py:zzz", {}, "no function 'zzz' .it has other, margin"),
        (
            "mine.py:other",
            {},
            r"other must take \(logprobs_T, log_ratio_T, tokens\), then keyword-only options; .* \(\)",
        ),
        ("mine.py:margin", {"tua": 1.0}, "margin has no option 'tua' .did you mean 'tau'"),
        (
            "mine.py:margin",
            {"tau": "high"},
            r"option 'tau' must be of type float, as its default 0.5 is \(got 'high'\)",
        ),
        ("mine.py:margin", {"name": True}, "option 'name' must be of type str"),
        ("absent.py:margin", {}, r"absent.py: cannot be read \(No such file"),
        ("broken.py:margin", {}, "broken.py: not a Python file"),
        ("needy.py:margin", {}, "option 'scale' has no default and is not given"),
        ("computed.py:margin", {"scale": 1}, "the default of option 'scale' must be a plain value"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, ran: Path, reference: str, options: dict[str, object], message: str
) -> None:
    (tmp_path / "broken.py").write_text("def margin(:")
    head = "def margin(logprobs_T, log_ratio_T, tokens, *, scale"
    (tmp_path / "needy.py").write_text(f"{head}): ...")
    (tmp_path / "computed.py").write_text(f"{head}=print()): ...")
    config = config_of(tmp_path, reference, **options)
    with pytest.raises(UsageError, match=f"^objective.loss: .*{message}"):
        check_user_files(config)
    with pytest.raises(UsageError):
        keep_user_files(config, RunFolder(tmp_path / "run"))
    assert user_files(config)[0].state == "stops" and not ran.exists() and not (tmp_path / "run").exists()


def test_code_that_raises_at_import(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def margin(logprobs_T, log_ratio_T, tokens): ...\nraise RuntimeError('no')")
    config, run = config_of(tmp_path), RunFolder(tmp_path / "run")
    claim_folder(config, run)
    with pytest.raises(SophiaError, match=r"mine.py:margin: cannot be imported \(RuntimeError: no\)"):
        load_function(config, run, "objective.loss")
