"""What a later phase reads is looked at before the first phase, and the first questions are shown."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sophia_mcore.batch.samples import from_mixture, image_digests
from sophia_mcore.cli import app
from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Mixture
from sophia_mcore.data.preview import previews
from sophia_mcore.data.sources import read_source
from sophia_mcore.doctor.command import doctor
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import work
from sophia_mcore.launch.inputs import inputs_of
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.state import check_unfinished
from sophia_mcore.progress import NoProgress
from sophia_mcore.store.layout import Round, RunFolder
from tests.support.pictures import plain

SHIPPED = Path(__file__).resolve().parents[2] / "examples/digits/base/policy"
GOOD = {"id": "1", "question": "Sum?", "response": "5"}
RUN = """
[run]
name = "x"
folder = "run"
[models]
policy = "policy"
reasoner = "reasoner"
[track]
enabled = false
[[data.questions]]
kind = "jsonl"
path = "q.jsonl"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(plain(8, 6, (1, 2, 3)))
    write(tmp_path / "q.jsonl", [{"id": "q1", "question": "How many?", "answer": "3", "image": "a.png"}])
    return tmp_path


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def mixture(name: str = "mix.jsonl") -> str:
    return f'[[batch.mixtures]]\npath = "{name}"\nname = "more"\nshare = 0.25\n'


BROKEN = {
    "a mixture that is missing": (mixture("none.jsonl"), "none.jsonl: No such file"),
    "a mixture that is a folder": (mixture("."), "Is a directory"),
    "a damaged line": (mixture("bad.jsonl"), "bad.jsonl, line 2: not valid JSON"),
    "an image of a mixture": (mixture("noimage.jsonl"), "line 1: none.png: image missing"),
    "an image that is none": (mixture("noimage2.jsonl"), "line 1: q.jsonl: image unreadable"),
    "half an emoji": (mixture("half.jsonl"), "line 1: 'response' contains half of a surrogate pair"),
    "pairs": ('[train]\ndata = "none.jsonl"\n', "train.data: cannot read none.jsonl"),
    "captions' prompt": ('[captions]\nprompt_file = "none.txt"\n', "none.txt: the describe prompt"),
    "reasoning's prompt": ('[reasoning]\nprompt_file = "empty.txt"\n', "prompt is empty"),
    "a placeholder": ('[reasoning]\nprompt_file = "bare.txt"\n', "lacks {caption}"),
    "an image in a prompt": ('[batch]\nlong_thinking_prompt_file = "image.txt"\n', "prompt contains <|image_pad|>"),
    "a video in a prompt": ('[captions]\nprompt_file = "video.txt"\n', "contains <|video_pad|>: videos are not"),
    "the long prompt": ('[batch]\nlong_thinking_prompt_file = "none.txt"\n', "the long_thinking prompt"),
    "the judge's prompt": ('[score.judge]\nmodel_name = "m"\njudge_prompt_file = "bare.txt"\n', "lacks {response}"),
    "the judge's other": ('[score.judge]\nmodel_name = "m"\nextract_prompt_file = "none.txt"\n', "extract_answer"),
    "the judge's cache": ('[score.judge]\nmodel_name = "m"\ncache_folder = "q.jsonl"\n', "is a file, not a folder"),
}


@pytest.fixture
def broken_files(folder: Path) -> None:
    write(folder / "bad.jsonl", [GOOD, "{nonsense\n"])
    write(folder / "noimage.jsonl", [GOOD | {"images": ["none.png"]}])
    write(folder / "noimage2.jsonl", [GOOD | {"images": ["q.jsonl"]}])
    write(folder / "half.jsonl", ['{"id": "1", "question": "q", "response": "\\ud83d"}\n'])
    (folder / "empty.txt").write_text(" \n")
    (folder / "bare.txt").write_text("Say something.")
    (folder / "image.txt").write_text("Think about <|image_pad|>.")
    (folder / "video.txt").write_text("Watch <|video_pad|>.")


@pytest.mark.usefixtures("broken_files")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_input_is_told_by_each_command_before_any_work(folder: Path, case: str) -> None:
    overlay, words = BROKEN[case]
    (folder / "run.toml").write_text(RUN)
    (folder / "more.toml").write_text(overlay)
    config = load_config(folder / "run.toml", [folder / "more.toml"])
    with pytest.raises(SophiaError, match=r".") as caught:
        run_phases(config, ["questions", "captions", "reasoning"], [0])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "run").exists()
    with pytest.raises(SophiaError) as caught:
        doctor(config, Console(file=io.StringIO(), width=300))
    assert words in str(caught.value)
    done = CliRunner().invoke(app, ["check", "run.toml", "--overlay", "more.toml"])
    assert isinstance(done.exception, SophiaError) and words in str(done.exception)


def test_held_out_questions_are_looked_at_with_the_first(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN + '[[evaluate.questions]]\nkind = "jsonl"\npath = "none.jsonl"\n')
    with pytest.raises(UsageError, match=r"none\.jsonl"):
        run_phases(load_config(folder / "run.toml"), ["questions"], [0])
    assert not (folder / "run").exists()


def test_a_phase_alone_asks_for_what_it_reads(folder: Path) -> None:
    """`--only questions` needs no mixture; what is to be sampled asks for everything behind it."""
    (folder / "run.toml").write_text(RUN + mixture("none.jsonl"))
    config = load_config(folder / "run.toml")
    run = RunFolder(config.run.folder)
    check_unfinished(config, run, ["questions"], [0])
    check_unfinished(config, run, ["score"], [0])
    for name in ("captions", "reasoning", "train"):
        with pytest.raises(UsageError, match=r"batch\.mixtures more"):
            check_unfinished(config, run, [name], [0])
    run.round(0).train.mkdir(parents=True)
    run.round(0).train_summary_file.write_text("{}")  # finished: a mixture that has gone since stops nothing
    check_unfinished(config, run, ["captions"], [0])


def test_good_inputs_pass(folder: Path) -> None:
    write(folder / "mix.jsonl", [GOOD | {"images": ["a.png"]}, GOOD | {"id": "2", "system": None, "images": None}])
    (folder / "run.toml").write_text(RUN + mixture())
    found = {one.key: one.look() for one in inputs_of(load_config(folder / "run.toml"))}
    assert found == {"batch.mixtures more": "mix.jsonl, 2 samples"}
    assert CliRunner().invoke(app, ["check", "run.toml"]).exit_code == 0


MADE = '[data]\nmade_by = "python make.py"\n'


@pytest.mark.parametrize(
    ("key", "overlay", "name"),
    [
        ("data.questions", "", "q.jsonl"),
        ("evaluate.questions", '[[evaluate.questions]]\nkind = "jsonl"\npath = "none.jsonl"\n', "none.jsonl"),
        ("rl.questions", '[rl]\n[[rl.questions]]\nkind = "jsonl"\npath = "none.jsonl"\n', "none.jsonl"),
        ("rl.validation", '[rl]\n[[rl.validation]]\nkind = "jsonl"\npath = "none.jsonl"\n', "none.jsonl"),
    ],
)
def test_missing_questions_name_what_makes_them(folder: Path, key: str, overlay: str, name: str) -> None:
    (folder / "run.toml").write_text(RUN.replace("[[data", MADE + "[[data") + overlay)
    (folder / name).unlink(missing_ok=True)
    words = f"{key}: {name}: no such file; what makes it: python make.py"
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert done.exit_code == 0 and f"warning: {words}" in done.stderr
    with pytest.raises(SophiaError, match=words.replace(".", r"\.")):
        run_phases(load_config(folder / "run.toml"), ["questions"], [0])
    assert not (folder / "run").exists()
    write(folder / name, [{"id": "q1", "question": "How many?", "answer": "3", "image": "a.png"}])
    assert "what makes it" not in CliRunner().invoke(app, ["check", "run.toml"]).stderr


def test_missing_pairs_name_what_makes_them(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN.replace("[[data", MADE + "[[data") + '[train]\ndata = "none.jsonl"\n')
    (folder / "q.jsonl").unlink()  # not read where there are pairs
    with pytest.raises(SophiaError, match=r"^train.data: none.jsonl: no such file; what makes it: python make.py$"):
        run_phases(load_config(folder / "run.toml"), ["train"], [0])


def test_rewards_that_fit_nothing_stop_at_the_questions(folder: Path) -> None:
    """And not after everything was sampled."""
    (folder / "run.toml").write_text(
        RUN + '[[rewards]]\nfunction = "correct"\n[[rewards]]\nfunction = "iou"\nonly = { answer_type = "boxx" }\n'
    )
    config = load_config(folder / "run.toml")
    with pytest.raises(
        UsageError, match=r"rewards.iou: only = ... fits none of the 1 questions .answer types: integer;"
    ):
        work.questions(Round(config, RunFolder(config.run.folder), 0), NoProgress())
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert isinstance(done.exception, UsageError) and "rewards.iou: only = ..." in str(done.exception)
    with open(folder / "run.toml", "a") as file:  # pairs are imitated and not judged
        file.write('[train]\ndata = "pairs.jsonl"\n')
    write(folder / "pairs.jsonl", [GOOD])
    assert CliRunner().invoke(app, ["check", "run.toml"]).exit_code == 0
    work.questions(Round(load_config(folder / "run.toml"), RunFolder(config.run.folder), 0), NoProgress())


@pytest.mark.parametrize("path", ["", "AI4Math/MathVista"])
def test_a_misspelt_benchmark_is_an_error_of_check(folder: Path, path: str) -> None:
    """Though its files would come from the hub, which nobody asks here."""
    text = RUN + f'[[evaluate.questions]]\nbenchmark = "mathvsta"\npath = "{path}"\n'
    (folder / "run.toml").write_text(text)
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert isinstance(done.exception, UsageError) and "did you mean 'mathvista'?" in str(done.exception)
    with pytest.raises(UsageError, match="did you mean 'mathvista'"):
        run_phases(load_config(folder / "run.toml"), ["questions"], [0])
    (folder / "run.toml").write_text(text.replace("mathvsta", "mathvista"))
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert done.exit_code == 0 and "a name on the hub, not looked up" in done.stdout


def test_a_benchmarks_folder_that_is_not_here_is_no_name_on_the_hub(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN + '[[evaluate.questions]]\nbenchmark = "mathvista"\npath = "data/MathVista"\n')
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert "no such file or folder: data/MathVista" in done.stdout and "would stop" in done.stdout


def test_a_step_that_no_environment_says_is_a_warning(folder: Path) -> None:
    step = '[[rewards]]\nfunction = "correct"\n[[rewards]]\nfunction = "step"\noptions = { name = "gain" }\n[rl]\n'
    (folder / "run.toml").write_text(RUN + step)
    done = CliRunner().invoke(app, ["check", "run.toml"])
    assert done.exit_code == 0
    assert "warning: rewards.step: the steps of rl.environment = 'single' say nothing of 'gain'" in done.stderr


# ---- one reader of JSON lines

ODD = {
    "mark": ("\ufeff", ""),
    "mark on a later line": ("", "\ufeff"),
    "returns": ("", "\r"),
}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("odd", ODD)
def test_questions_and_mixtures_read_the_same_lines(folder: Path, separator: str, odd: str) -> None:
    before, between = ODD[odd]
    text = f"a{separator}b"
    escaped = json.dumps(text, ensure_ascii=False) if separator > "\x1f" else json.dumps(text)
    lines = [
        f'{{"id": "{i}", "question": {escaped}, "answer": "5", "response": {escaped}, "image": "a.png"}}' for i in "12"
    ]
    joined = "\n".join([lines[0], between + lines[1]] if between == "\ufeff" else [line + between for line in lines])
    (folder / "x.jsonl").write_bytes((before + joined + "\n\n").encode())
    source = load_config(_with(folder, "x.jsonl")).data.questions[0]
    rows = list(read_source(source))
    samples = from_mixture(
        Mixture(path=folder / "x.jsonl", name="m", share=0.5), image_digests, long_thinking="", default_system=None
    )
    assert [row.id for row in rows] == ["1", "2"] and not any(row.problems for row in rows)
    assert [sample.response for sample in samples] == [text, text]


def _with(folder: Path, name: str) -> Path:
    path = folder / "other.toml"
    path.write_text("\ufeff" + RUN.replace("q.jsonl", name))  # a byte order mark in the configuration too
    return path


# ---- the first questions


def test_ten_questions_of_each_source_are_shown(folder: Path) -> None:
    rows: list[Any] = [
        {"id": f"r{i}", "question": f"How many {i}?", "answer": str(i), "image": "a.png"} for i in range(30)
    ]
    rows[1] |= {"answer": None}
    rows[2] |= {"image": "none.png"}
    rows[3] |= {"options": ["red", "blue"], "answer": "B", "question": "Which?\n\x1b[31mNow"}
    rows[4] = "{nonsense\n"
    rows[5] |= {"question": "x" * 5000}
    write(folder / "q.jsonl", rows)
    (folder / "run.toml").write_text(
        RUN
        + '[[data.questions]]\nkind = "jsonl"\npath = "none.jsonl"\n'
        + '[[evaluate.questions]]\nkind = "jsonl"\npath = "one.jsonl"\n'
    )
    write(folder / "one.jsonl", rows[:1])
    first, missing, last = previews(load_config(folder / "run.toml"))
    assert first.title == "data.questions: q (q.jsonl): the first 10 rows, 3 of them bad" and first.bad == 3
    assert len(first.lines) == 10 and first.lines[0] == "q-r0: [8 x 6] How many 0? -> 0"
    assert "no answer" in first.lines[1] and "image missing" in first.lines[2] and "none.png" in first.lines[2]
    assert first.lines[3].startswith("q-r3: [8 x 6] Which? |  [31mNow | (A) red | (B) blue -> B")
    assert "not valid JSON" in first.lines[4] and len(first.lines[5]) < 250
    assert "no such file" in missing.refused and last.title.endswith("all 1 rows, 0 of them bad")
    output = CliRunner().invoke(app, ["check", "run.toml"]).stdout
    shown = [line for line in output.splitlines() if line.startswith("#")]
    assert len(shown) == 1 + 10 + 1 + 1 + 1 + 1 and load_printed(folder, output) == load_config(folder / "run.toml")
    assert shown[-1] == "# ok: run.toml, but a run would stop at the questions above"
    told = io.StringIO()
    with pytest.raises(SophiaError):
        doctor(load_config(folder / "run.toml"), Console(file=told, width=1000))
    assert "q-r0: [8 x 6] How many 0? -> 0" in told.getvalue()


def load_printed(folder: Path, text: str) -> object:
    """What `check` prints is a configuration, comments and all."""
    (folder / "printed.toml").write_text(text)
    return load_config(folder / "printed.toml")


def test_images_are_not_read_wholly(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[:-20])  # its head is whole
    (folder / "run.toml").write_text(RUN)
    (found,) = previews(load_config(folder / "run.toml"))
    assert found.bad == 0
    assert CliRunner().invoke(app, ["check", "run.toml"]).stdout.endswith("# ok: run.toml\n")
    write(folder / "q.jsonl", [{"question": "How many?", "answer": "3", "image": "a.png\0"}])
    assert "embedded null byte" in previews(load_config(folder / "run.toml"))[0].lines[0]
    with pytest.raises(SophiaError, match="1 of 1 rows are bad"):
        run_phases(load_config(folder / "run.toml"), ["questions"], [0])
    write(folder / "q.jsonl", [{"question": "How many?", "answer": "3", "image": "a.png"}])
    (folder / "a.png").write_bytes(b"")
    (found,) = previews(load_config(folder / "run.toml"))
    assert "image is empty" in found.lines[0]


def test_check_warns_of_a_model_that_is_not_there_or_not_whole(folder: Path) -> None:
    (folder / "run.toml").write_text(RUN)
    arguments = ["check", "run.toml", "--set", "models.policy=models/policy"]
    absent = CliRunner().invoke(app, arguments)
    assert absent.exit_code == 0
    assert "warning: models.policy: models/policy: no such model directory" in absent.stderr
    policy = shutil.copytree(SHIPPED, folder / "models/policy")
    assert "models.policy" not in CliRunner().invoke(app, arguments).stderr
    (policy / "model.safetensors").write_bytes((policy / "model.safetensors").read_bytes()[:-1])
    assert "warning: models.policy: models/policy/model.safetensors" in CliRunner().invoke(app, arguments).stderr
