"""The on-policy section of the page: figures, curves, groups, and two stages laid over each other."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.report_stage import add_stage
from tests.support.report_world import HOSTILE, make_finished_run

pytest.importorskip("plotly", reason="plotly is not installed (pip install '.[report]')")

from sophia_mcore.cli import app
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.report.build import write_report
from sophia_mcore.report.groups import FLAGS, groups
from sophia_mcore.report.reading import Problems
from sophia_mcore.store.layout import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunFolder, Any]:
    run, config = make_finished_run(tmp_path / "run", questions=6)
    add_stage(run)
    return run, config


def charts_of(page: str) -> dict[str, Any]:
    titles = dict(re.findall(r'<figcaption>([^<]*)</figcaption><div id="([^"]*)"', page))
    data = dict(re.findall(r'data-chart="([^"]*)">([^<]*)</script>', page))
    return {title: json.loads(data[name]) for title, name in titles.items()}


def groups_of(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'data-groups-block="\d+">([^<]*)</script>', page)
    return [e for block in blocks for e in json.loads(gzip.decompress(base64.b64decode(block)))]


def test_the_curves_show_what_the_stage_recorded(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    drawn = charts_of(write_report(config, folder, PHASES).read_text())
    (reward,) = drawn["Right answers of each batch (the reward)"]["data"]
    assert reward["x"] == [1, 2, 3, 4, 5, 6] and reward["y"][0] == pytest.approx(0.45)
    lengths = drawn["Mean length of answers"]["data"]
    assert [(t["name"], t["y"][0]) for t in lengths] == [("right", 10.0), ("wrong", 15.0), ("all", 12.0)]
    (validation,) = drawn["Validation questions answered right, by version"]["data"]
    assert (validation["x"], validation["y"]) == ([0, 6], [25.0, 50.0])
    for title in ("Entropy of sampled tokens (mean of -log p)", "Log-prob gap of engine and trainer",
                  "Groups of a batch", "Lag of the sampling version behind the trained one",
                  "Loss of the stage"):  # fmt: skip
        assert title in drawn
    assert "Age of replayed samples" not in drawn  # nothing was replayed
    figures = json.loads(folder.report_json.read_text())["on_policy"]
    assert figures["answers sampled"] == "96" and figures["best on the validation questions"] == "50.0% (version 6)"


def test_a_title_follows_the_reward(run: tuple[RunFolder, Any]) -> None:
    """With terms of the user's own the right answers are not the reward, and the page does not say so."""
    folder, config = run
    own = config.model_validate({**config.model_dump(), "rewards": ({"function": "format"}, {"function": "correct"})})
    log = folder.rl.train / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line | {"reward_mean": 0.7, "reward_format": 0.9}) + "\n" for line in lines))
    titles = list(charts_of(write_report(own, folder, PHASES).read_text()))
    assert not [title for title in titles if "(the reward)" in title or title.startswith("Outcome reward")]
    of_stage = titles[: titles.index("Groups of a batch")]
    first, second = (
        "Terms of the reward, means of each batch",
        "Right answers of each batch, by the verdict (not the reward)",
    )
    assert of_stage.index(first) < of_stage.index(second)
    assert "Share of right trajectories of a question, by the verdict (not the reward), round 0" in titles
    plain = list(charts_of(write_report(config, folder, PHASES).read_text()))
    assert "Right answers of each batch (the reward)" in plain
    assert "Outcome reward: share of right trajectories of a question, round 0" in plain


def test_a_stage_without_a_round_misses_none(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    shutil.rmtree(folder.round(0).path)
    for before, after in (("base", "rl-start"), ("round-0", "rl")):
        (folder.path / "evaluation" / before).rename(folder.path / "evaluation" / after)
    page = write_report(config, folder, PHASES).read_text()
    report = json.loads(folder.report_json.read_text())
    assert report["missing"] == [] and 'id="missing"' not in page
    assert "#rounds" not in page and 'id="rounds"' not in page and 'id="examples-section"' not in page
    assert len(groups_of(page)) == 24 and "before the on-policy stage" in page
    shutil.rmtree(folder.path / "evaluation" / "rl")
    write_report(config, folder, PHASES)
    assert json.loads(folder.report_json.read_text())["missing"] == ["evaluation of rl"]


def test_groups_have_right_and_wrong_answers_beside_each_other(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    page = write_report(config, folder, PHASES).read_text()
    shown = groups_of(page)
    assert len(shown) == 24 and shown[0]["round"] == "batch 0" and shown[0]["source"] == "version 0"
    index = json.loads(re.search(r'id="groups-index">([^<]*)</script>', page)[1])  # type: ignore[index]

    def having(flag: str) -> set[str]:
        bit = 1 << FLAGS.index(flag)
        return {group["id"] for group, mine in zip(shown, index["flags"], strict=True) if mine & bit}

    assert (having("all_right"), having("all_wrong")) == ({"q0"}, {"q1"})
    assert (having("mixed"), having("rethought"), having("truncated")) == ({"q2", "q3"}, {"q3"}, set())
    mixed = next(group for group in shown if group["id"] == "q2")
    assert (mixed["tokens_right"], mixed["tokens_wrong"]) == ("10 tokens", "15 tokens")
    assert HOSTILE in mixed["answers"][0]["text"]
    without_plotly = page[: page.rindex("<script>")]
    assert "window.hacked" not in without_plotly and "onerror" not in without_plotly


def test_many_groups_are_shown_from_first_to_last_batch(run: tuple[RunFolder, Any]) -> None:
    found = groups(run[0], Problems(), most=12)
    assert found is not None
    assert list(dict.fromkeys(found.index["round"])) == ["batch 0", "batch 2", "batch 5"]


def test_an_unfinished_stage_is_named_and_shown(tmp_path: Path) -> None:
    folder, config = make_finished_run(tmp_path / "run", questions=6)
    add_stage(folder, batches=3, ended=False)
    page = write_report(config, folder, PHASES).read_text()
    missing = json.loads(folder.report_json.read_text())["missing"]
    assert "the end of the on-policy stage (3 batches are trained)" in missing
    assert len(groups_of(page)) == 12


def test_a_run_without_a_stage_has_no_section(tmp_path: Path) -> None:
    folder, config = make_finished_run(tmp_path / "run", questions=4)
    folder.rl.path.mkdir()  # the questions phase leaves validation questions there
    assert 'id="on-policy"' not in write_report(config, folder, PHASES).read_text()
    assert json.loads(folder.report_json.read_text())["missing"] == []


def test_a_damaged_stage_is_named_and_the_rest_is_shown(run: tuple[RunFolder, Any]) -> None:
    folder, config = run
    shard = next(folder.rl.batch(0).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    (folder.rl.train / "metrics.jsonl").write_text('{"step": 1, "phase": "batch", "accuracy": "x"}\nrubbish\n')
    page = write_report(config, folder, PHASES).read_text()
    missing = json.loads(folder.report_json.read_text())["missing"]
    assert any("rollouts/00000000/000000-a.parquet" in line for line in missing), missing
    assert any("metrics.jsonl: 1 lines are damaged" in line for line in missing), missing
    assert groups_of(page), "the other batches are shown"


def test_two_stages_are_laid_over_each_other(run: tuple[RunFolder, Any], tmp_path: Path) -> None:
    second, _ = make_finished_run(tmp_path / "second", questions=6)
    add_stage(second, batches=4)
    target = tmp_path / "c.html"
    shown = CliRunner().invoke(app, ["report", str(run[0].path), str(second.path), "--output", str(target)])
    assert shown.exit_code == 0, shown.output
    page = target.read_text()
    curves = charts_of(page)["Right answers of each batch (the reward)"]["data"]
    assert [(c["name"], len(c["x"])) for c in curves] == [("A accuracy", 6), ("B accuracy", 4)]
    assert curves[0]["line"]["color"] != curves[1]["line"]["color"]
    efficiency = re.search(r'<section id="efficiency">(.*?)</section>', page, re.DOTALL)
    assert efficiency and re.findall(r"<td>([AB])</td><td>on-policy stage, (\w+) batches", efficiency[1]) == [
        ("A", "first"), ("A", "last"), ("B", "first"), ("B", "last"),
    ]  # fmt: skip
    row = re.search(r"<td>answers sampled</td>(.*?)</tr>", page)
    assert row and re.findall(r">(\d+)<", row[1]) == ["96", "64"]


def test_one_stage_beside_a_run_without(run: tuple[RunFolder, Any], tmp_path: Path) -> None:
    second, _ = make_finished_run(tmp_path / "second", questions=6)
    target = tmp_path / "c.html"
    shown = CliRunner().invoke(app, ["report", str(run[0].path), str(second.path), "--output", str(target)])
    assert shown.exit_code == 0, shown.output
    row = re.search(r"<td>batches</td>(.*?)</tr>", target.read_text())
    assert row and re.findall(r">([^<>]+)</td>", row[1]) == ["6", "-"]
