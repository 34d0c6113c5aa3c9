"""The report says what a run holds, survives damage, and lets no text of a model out of its place."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.report_world import HOSTILE, make_finished_run

pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")

from sophia_mcore.cli import app
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.records import Question
from sophia_mcore.report.build import write_report
from sophia_mcore.report.compare import differing_settings, write_comparison
from sophia_mcore.report.examples import FLAGS
from sophia_mcore.report.summary import print_missing
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, write_shard


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Any]:
    return make_finished_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def run(finished: tuple[RunFolder, Any], tmp_path: Path) -> tuple[RunFolder, Any]:
    shutil.copytree(finished[0].path, tmp_path / "run")
    return RunFolder(tmp_path / "run"), finished[1]


def examples_of(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'data-block="\d+">([^<]*)</script>', page)
    return [e for block in blocks for e in json.loads(gzip.decompress(base64.b64decode(block)))]


def index_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="index">([^<]*)</script>', page)
    assert found
    return json.loads(found[1])


def flagged(page: str, name: str) -> set[str]:
    bit = 1 << FLAGS.index(name)
    flags = index_of(page)["flags"]
    return {e["id"] for e, mine in zip(examples_of(page), flags, strict=True) if mine & bit}


def test_a_finished_run_is_told_whole(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    page = write_report(config, folder, PHASES).read_text()
    report = json.loads(folder.report_json.read_text())
    assert report["missing"] == []
    (entry,) = report["rounds"]
    assert entry["kept"] == 29
    assert entry["seconds"] == dict.fromkeys(("captions", "reasoning", "score", "train"), 12.5)
    assert entry["verdicts_by_type"] == {"integer": {"correct": 59, "wrong": 61}}
    base = report["evaluation"]["base"]["protocols"]["paper"]
    assert base["by_answer_type"]["integer"]["pass_at_1"] == 0.2
    for title in ("Visual reward of captions", "Why trajectories were dropped", "Length of trajectories",
                  "Gradient norm", "Time of each phase", "pass@1 by answer type"):  # fmt: skip
        assert title in page
    shown = {e["id"]: e for e in examples_of(page)}
    assert len(shown) == 30
    good, bad = shown["q5"]["captions"]
    assert (good["reward"], bad["reward"]) == (1.0, 0.0)
    assert [t.get("kept", False) for t in good["trajectories"]] == [True, False]
    assert flagged(page, "wrong") == {"q2"} == flagged(page, "none")
    assert flagged(page, "captions") == set(shown) - {"q2", "q3"}
    assert flagged(page, "rewarded") == flagged(page, "broken") == flagged(page, "verifiers") == set()


def test_pass_at_1_has_an_interval_for_each_answer_type_and_data_set(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    asked = read_shard(folder.evaluation_questions_file, Question)
    changed = [
        replace(q, source="second" if i < 5 else "first", answer="yes" if i < 5 else q.answer)
        for i, q in enumerate(asked)
    ]
    folder.evaluation_questions_file.unlink()
    write_shard(folder.evaluation_questions_file, changed, Question)
    page = write_report(config, folder, PHASES).read_text()
    rows = re.findall(r"<tr(?: class=\"dim\")?><td>.*?</tr>", page[page.index('id="evaluation"') :], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    names = ["all", "first", "second", "integer", "yes_no"]
    base, after = cells[:5], cells[5:10]
    assert [row[2] for row in base] == [row[2] for row in after] == names
    assert [row[3] for row in base] == ["20.0%", "0.0%", "80.0%", "0.0%", "80.0%"]
    assert [row[4] for row in base][2] == "37.6 to 96.4" and [row[5] for row in base] == ["20", "15", "5", "15", "5"]
    assert "pass@1 by data set" in page


def test_disagreeing_verifier_versions_are_shown(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    page = write_report(config, folder, PHASES).read_text()
    disputed = examples_of(page)[7]["captions"][0]["trajectories"][1]["id"]
    changes = {
        "old_version": "<old>",
        "new_version": "2",
        "compared": 120,
        "changed": [{"old": "wrong", "new": "correct", "count": 1}],
        "examples": [{"id": disputed, "old": "wrong", "new": "correct"}],
    }
    (folder.round(0).path / "verdict_changes.json").write_text(json.dumps(changes))
    page = write_report(config, folder, PHASES).read_text()
    assert flagged(page, "verifiers") == {"q7"}
    assert "1 of 120 verdicts differ" in page and "&lt;old&gt;" in page


def test_disagreements_with_math_verify_are_shown_by_answer_type(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    disputed = examples_of(write_report(config, folder, PHASES).read_text())[7]["captions"][0]["trajectories"][1]["id"]
    example = {"id": disputed, "type": "integer", "ours": "correct", "peer": "wrong", "answer": "7"}
    example |= {"extracted": "\u202e<b>7</b>", "end": "the end"}
    counts = {"compared": 40, "only_ours": 1, "only_peer": 0, "undecided": 2}
    opinion = {"peer": "math-verify 0", "compared": 40, "undecided": 2, "left_out": 0, "by_type": {"integer": counts}}
    folder.round(0).second_opinion_file.write_text(json.dumps(opinion | {"examples": [example]}))
    page = write_report(config, folder, PHASES).read_text()
    assert flagged(page, "peer") == {"q7"} and examples_of(page)[7]["captions"][0]["trajectories"][1]["peer"] == "wrong"
    section = page[page.index("Disagreements with math-verify 0") :]
    row = re.search(r'<td class="text">integer</td>(.*?)</tr>', section)
    assert row and re.findall(r">(\d+)<", row[1]) == ["40", "1", "0", "2"]
    assert "\u27e8U+202E\u27e9&lt;b&gt;7" in section
    assert "Verdicts that differ: 1; it could not decide 2 more." in section


def test_texts_of_models_are_never_markup(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    page = write_report(config, folder, PHASES).read_text()
    assert HOSTILE in examples_of(page)[3]["captions"][0]["text"]  # whole, in the packed data
    without_plotly = page[: page.rindex("<script>")]
    for part in ("window.hacked", "onerror", "\u202e"):
        assert part not in without_plotly
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "script-src 'sha256-" in policy[1] and "unsafe-eval" not in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1]
    assert not re.search(r'(?:src|href)="(?!#|data:)', without_plotly)  # nothing from outside


def test_a_megabyte_line_is_cut_in_the_middle(tmp_path: Path) -> None:
    from sophia_mcore.report.examples import cut

    text = cut("a" * 1_000_000 + "end", 20_000)
    assert len(text) < 20_100 and text.endswith("end") and "980,003 more characters" in text


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("round-0/trajectories/000001-b.parquet", "round-0/trajectories/000001-b.parquet"),
        ("round-0/verdicts", "round-0/verdicts"),
        ("round-0/captions/000000-a.parquet", "captions/000000-a.parquet"),
        ("round-0/kept.parquet", "kept.parquet"),
        ("round-0/kept.json", "kept.json is damaged"),
        ("round-0/train/summary.json", "summary.json is damaged"),
        ("round-0/train/metrics.jsonl", "train/metrics.jsonl: 1 lines are damaged"),
        ("questions.parquet", "questions.parquet"),
        ("evaluation/base/paper/000000-a.parquet", "evaluation/base/paper/000000-a.parquet"),
        ("images", "images"),
    ],
)
def test_damage_is_named_and_the_rest_is_shown(run: tuple[RunFolder, Any], damaged: str, words: str) -> None:
    folder, config = run
    path = folder.path / damaged
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        data = bytearray(file.read_bytes())
        data[len(data) // 2 :] = b"\x00" * (len(data) - len(data) // 2)
        file.write_bytes(data)
    page = write_report(config, folder, PHASES).read_text()
    missing = json.loads(folder.report_json.read_text())["missing"]
    assert any(words in line for line in missing), missing
    assert 'id="missing"' in page and "Not there (yet)" in page
    assert damaged == "questions.parquet" or len(examples_of(page)) == 30


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("questions.parquet", ["the checked questions (questions.parquet)"]),
        ("images", ["30 images cannot be shown: "]),
        ("metrics.jsonl", ["seconds of the phases (metrics.jsonl)"]),
        ("round-0/train/metrics.jsonl", ["round 0: the training curve (train/metrics.jsonl)"]),
        ("round-0/captions/*.parquet", ["round 0: all 60 captions"]),
        ("round-0/trajectories/000001-b.parquet", ["round 0: 60 of 120 trajectories"]),
        ("round-0/verdicts", ["round 0: all 120 verdicts"]),
        ("round-0/kept.parquet", ["round 0: all 29 kept trajectories"]),
        ("round-0", ["round 0: captions", "round 0: training", "round 0: the exported model"]),
    ],
)
def test_what_was_deleted_is_named(
    run: tuple[RunFolder, Any], capsys: pytest.CaptureFixture[str], gone: str, words: list[str]
) -> None:
    folder, config = run
    for path in list(folder.path.glob(gone)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(config, folder, PHASES)
    missing = json.loads(folder.report_json.read_text())["missing"]
    assert all(any(line.startswith(word) for line in missing) for word in words), missing
    print_missing(folder)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(missing) and all(word in "\n".join(printed) for word in words)


def test_a_later_round_is_told_of_when_an_earlier_one_is_gone(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    folder.round(0).path.rename(folder.round(1).path)
    write_report(config, folder, PHASES)
    rounds = json.loads(folder.report_json.read_text())["rounds"]
    assert [entry["round"] for entry in rounds] == [0, 1] and rounds[1]["kept"] == 29


def test_an_unfinished_run_shows_what_is_there(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    folder.round(0).model.rmdir()
    page = write_report(config, folder, PHASES).read_text()
    assert json.loads(folder.report_json.read_text())["missing"] == ["round 0: the exported model"]
    for gone in (folder.round(0).verdicts, folder.round(0).train, folder.path / "evaluation"):
        shutil.rmtree(gone)
    folder.round(0).kept_file.unlink()
    folder.round(0).kept_summary_file.unlink()
    page = write_report(config, folder, PHASES).read_text()
    report = json.loads(folder.report_json.read_text())
    assert report["rounds"][0]["trajectories"] == 120
    assert {"round 0: training", "round 0: verdicts and kept trajectories"} <= set(report["missing"])
    assert examples_of(page)[5]["captions"][0]["reward"] is None


def test_two_runs_are_compared_question_by_question(run: tuple[RunFolder, Any], tmp_path: Path) -> None:
    first, config = run
    second, _ = make_finished_run(tmp_path / "second")
    shutil.rmtree(second.evaluation("round-0", "paper"))
    shutil.copytree(second.evaluation("base", "paper"), second.evaluation("round-0", "paper"))
    other = config.model_copy(update={"reward": config.reward.model_copy(update={"alpha": 0.5})})
    target = write_comparison((first, config), (second, other), PHASES, tmp_path / "out" / "compare.html")
    page = target.read_text()
    row = re.search(r"<tr><td>round-0</td><td>paper</td>(.*?)</tr>", page, re.DOTALL)
    assert row and re.findall(r">([^<>\n]+)</td>", row[1]) == [
        "80.0%",
        "20.0%",
        "-60.0",
        "-82.0 to -38.0",
        "0",
        "12",
        "20",
    ]
    assert "round-0, paper: 12 questions" in page and "&lt;b&gt;99" in page
    assert differing_settings(config, other) == [("reward.alpha", "0.75", "0.5")]
    assert "reward.alpha" in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("round-0/kept.json", {"kept": "many", "dropped": [1], "verdicts": None}, "no usable kept, verdicts, dropped"),
        ("round-0/kept.json", {}, "no usable questions, "),
        ("round-0/train/summary.json", {"steps": 3, "loss_first": "x"}, "no usable loss_first"),
        ("round-0/train/summary.json", {"steps": 3, "rollout_gap": 7}, "no usable rollout_gap"),
        ("round-0/second_opinion.json", {"by_type": "x"}, "no usable by_type"),
        ("round-0/train/summary.json", {"steps": 999}, "the training curve after step "),
    ],
)
def test_json_of_other_types_is_named_and_left_out(
    run: tuple[RunFolder, Any], name: str, content: dict[str, Any], words: str
) -> None:
    folder, config = run
    (folder.path / name).write_text(json.dumps(content))
    assert len(examples_of(write_report(config, folder, PHASES).read_text())) == 30
    assert any(words in line for line in json.loads(folder.report_json.read_text())["missing"])


def test_a_lost_protocol_is_named_and_the_others_stay(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    whole = json.loads(write_report(config, folder, PHASES).with_name("report.json").read_text())["evaluation"]
    label, last = "base", config.evaluate.protocols[-1].name
    shards = sorted(folder.evaluation(label, last).glob("*.parquet"))
    for spoil in (lambda path: path.write_bytes(path.read_bytes()[:50]), lambda path: path.unlink()):
        spoil(shards[0])
        write_report(config, folder, PHASES)
        report = json.loads(folder.report_json.read_text())
        assert any(f"evaluation of {label}" in line for line in report["missing"])
        assert [n for n in whole if n != label] == [n for n in report["evaluation"] if n != label]


def test_a_round_that_is_a_file_is_no_round(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    shutil.rmtree(folder.round(0).path)
    folder.round(0).path.write_text("x")
    write_report(config, folder, PHASES)
    assert "round 0: training" in json.loads(folder.report_json.read_text())["missing"]


def test_a_comparison_goes_into_a_page_only(run: tuple[RunFolder, Any]) -> None:
    before = run[0].config_file.read_bytes()
    done = CliRunner().invoke(app, ["report", str(run[0].path), str(run[0].path), "--output", str(run[0].config_file)])
    assert done.exit_code != 0 and run[0].config_file.read_bytes() == before


@pytest.mark.parametrize("content", [None, "[run\n", "[run]\nname = 3\n", "\x00\xff"])
def test_without_a_configuration_the_report_shows_the_rest(run: tuple[RunFolder, Any], content: str | None) -> None:
    folder, config = run
    whole = json.loads(write_report(config, folder, PHASES).with_name("report.json").read_text())
    folder.config_file.unlink(missing_ok=True)
    if content is not None:
        folder.config_file.write_text(content, encoding="latin-1")
    shown = CliRunner().invoke(app, ["report", str(folder.path)])
    assert shown.exit_code == 0, shown.output
    report = json.loads(folder.report_json.read_text())
    assert len(report["missing"]) == 1 and "config.toml" in report["missing"][0]
    assert "assumes the default settings" in report["missing"][0]
    assert report["rounds"] == whole["rounds"] and report["evaluation"] == whole["evaluation"]


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code != 0
    assert not list(tmp_path.iterdir())
