"""A page whose run kept nothing opens with why, and every page begins with the answer as a chart."""

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
from sophia_mcore.records import Terms, Trajectory, Verdict
from sophia_mcore.report.build import write_report
from sophia_mcore.report.examples import browser
from sophia_mcore.report.pictures import picture
from sophia_mcore.report.reading import Problems
from sophia_mcore.report.reasons import nothing_kept
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, write_shard


@pytest.fixture
def failed(tmp_path: Path) -> tuple[RunFolder, Any]:
    """Nothing is right: q0 is cut off, of q1 no answer is read, q3 is hostile, all others are wrong."""
    run, config = make_finished_run(tmp_path / "run", questions=6)
    folder = run.round(0)
    for gone in (folder.kept_file, folder.kept_summary_file):
        gone.unlink()
    for gone in (folder.train, folder.model, run.path / "evaluation"):
        shutil.rmtree(gone)
    _change(folder.trajectories, Trajectory, lambda t: replace(t, finish_reason=_end(t.question_id)))
    _change(folder.verdicts, Verdict, _judged)
    return run, config


def _end(question: str) -> str:
    return "length" if question == "q0" else "stop"


def _judged(verdict: Verdict) -> Verdict:
    name = "no_answer" if verdict.question_id in ("q0", "q1") else "wrong"
    return replace(verdict, verdict=name, extracted=HOSTILE if name == "wrong" else "")


def _change(folder: Path, kind: type, change: Any) -> None:
    for path in sorted(folder.glob("*.parquet")):
        rows = [change(row) for row in read_shard(path, kind)]
        path.unlink()
        write_shard(path, rows, kind)


def test_the_three_worst_reasons_come_with_an_example_each(failed: tuple[RunFolder, Any]) -> None:
    run, config = failed
    found = nothing_kept(run, config, 0, Problems())
    assert [(r.name, r.count) for r in found] == [("wrong", 16), ("truncated", 4), ("no_answer", 4)]
    assert found[0].question == "What is number 2?" and found[0].answer == "2" and "caption 0 of" in found[0].caption
    assert found[1].question == "What is number 0?" and found[1].image.startswith("data:image/png;base64,")
    page = write_report(config, run, PHASES).read_text()
    head = page[page.index("<main>") : page.index('id="missing"')]
    assert 'id="reasons"' in head and 'id="answer"' not in head, "the page opens with the reasons"
    assert head.count('class="reason"') == 3 and "16 trajectories (66.7%): wrong." in head
    assert "<script>" not in head and "<img src=x" not in head and "&lt;script&gt;" in head
    assert "round 0: kept trajectories</li>" in page, "only what is missing is listed as missing"


def test_reasons_are_those_of_the_rewards_terms(failed: tuple[RunFolder, Any]) -> None:
    """The verdict does not decide there: q0 is cut off, of q1 one term has no value, q2 has a low total."""
    run, config = failed
    folder = run.round(0)
    _change(folder.verdicts, Verdict, lambda verdict: replace(verdict, verdict="correct"))
    config = config.model_validate({**config.model_dump(), "rewards": [{"function": "equal", "weight": 2.0}]})
    assert nothing_kept(run, config, 0, Problems()) == []  # the terms are not there yet

    def terms(verdict: Verdict) -> Terms:
        values = '{"equal": null}' if verdict.question_id == "q1" else '{"equal": 0.25}'
        ids = {name: getattr(verdict, name) for name in ("trajectory_id", "question_id", "caption_id")}
        return Terms(**ids, values=values)

    for path in sorted(folder.verdicts.glob("*.parquet")):
        write_shard(folder.terms / path.name, [terms(row) for row in read_shard(path, Verdict)], Terms)
    found = nothing_kept(run, config, 0, Problems())
    assert [(r.name, r.count) for r in found] == [("reward", 16), ("truncated", 4), ("not_judged", 4)]
    assert found[0].says == "The weighted total of [[rewards]] is below reward.at_least."
    (block,) = browser(run, [0], 6, config, Problems()).blocks
    shown = json.loads(gzip.decompress(base64.b64decode(block)))
    rewards = {example["id"]: {caption["reward"] for caption in example["captions"]} for example in shown}
    assert rewards == {f"q{i}": {None if i == 1 else 0.5} for i in range(6)}


def test_a_round_that_kept_something_or_is_not_judged_has_no_reasons(failed: tuple[RunFolder, Any]) -> None:
    run, config = failed
    shards = sorted(run.round(0).verdicts.glob("*.parquet"))
    kept = read_shard(shards[0], Verdict)
    shards[0].unlink()
    write_shard(shards[0], kept[:-1], Verdict)
    assert nothing_kept(run, config, 0, Problems()) == []  # one is not judged yet
    shards[0].unlink()
    write_shard(shards[0], [replace(v, verdict="correct") for v in kept], Verdict)
    assert nothing_kept(run, config, 0, Problems()) == []


def test_a_run_that_fails_to_keep_anything_leaves_its_page(failed: tuple[RunFolder, Any]) -> None:
    run, config = failed
    assert not run.report_html.exists()
    from sophia_mcore.errors import SophiaError
    from sophia_mcore.launch import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_run_rounds", _nothing_kept)
        patch.setattr(local, "check_unfinished", lambda *_: None)
        patch.setattr(local, "with_local_models", lambda config, *_, **__: config)
        with pytest.raises(SophiaError, match="no trajectory of 24 was kept"):
            local.run_phases(config, ["score", "report"], [0], new_settings=True)
    assert 'id="reasons"' in run.report_html.read_text()


def _nothing_kept(*_: Any) -> None:
    from sophia_mcore.errors import SophiaError

    raise SophiaError("no trajectory of 24 was kept")


def test_the_page_begins_with_the_answer_as_a_chart(tmp_path: Path) -> None:
    run, config = make_finished_run(tmp_path / "run")
    page = write_report(config, run, PHASES).read_text()
    head = page[page.index("<main>") : page.index('id="evaluation"')]
    assert "Right on the first try: 20.0% before, 80.0% after" in head
    labels = re.findall(r'aria-label="([^"]*)"', head)
    assert labels == [
        "before (base), paper: 20.0%, 95% interval 8.1 to 41.6",
        "after round 0, paper: 80.0%, 95% interval 58.4 to 91.9",
    ]
    assert re.findall(r'class="value" x="0" y="1" width="([\d.]+)"', head) == ["20.00", "80.00"]
    assert '<b class="number">+60.0 points</b>' in head and "(95% interval +38.0 to +82.0)" in head


def test_without_an_evaluation_the_page_says_so(tmp_path: Path) -> None:
    run, config = make_finished_run(tmp_path / "other", questions=4)
    shutil.rmtree(run.path / "evaluation")
    assert "No model has been evaluated yet" in write_report(config, run, PHASES).read_text()


def test_a_comparison_begins_with_both_runs_bars(tmp_path: Path) -> None:
    first, _ = make_finished_run(tmp_path / "a", questions=4)
    second, _ = make_finished_run(tmp_path / "b", questions=4)
    shown = CliRunner().invoke(app, ["report", str(first.path), str(second.path), "--output", str(tmp_path / "c.html")])
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "c.html").read_text()
    head = page[page.index("<main>") : page.index('id="pairs"')]
    names = [label.partition(",")[0] for label in re.findall(r'aria-label="([^"]*)"', head)]
    assert "Right on the first try, round-0, protocol paper: A 100.0%, B 100.0%" in head
    assert names == ["A before (base)", "A after round 0", "B before (base)", "B after round 0"]


@pytest.mark.parametrize(
    ("size", "most", "whole"),
    [((40, 30), 10, True), ((1200, 900), 2_000_000, True), ((1200, 900), 30_000, False), ((3000, 20), 90_000, True)],
)
def test_pictures_keep_their_size_where_there_is_room(size: tuple[int, int], most: int, whole: bool) -> None:
    import base64
    import io
    import random

    from PIL import Image

    small = (size[0] // 4 + 1, size[1] // 4 + 1)
    noise = Image.frombytes("RGB", small, random.Random(0).randbytes(3 * small[0] * small[1]))
    buffer = io.BytesIO()
    noise.resize(size).save(buffer, "PNG")
    url, original = picture(buffer.getvalue(), most)
    data = base64.b64decode(url.partition("base64,")[2])
    shown = Image.open(io.BytesIO(data))
    assert (shown.size == size) is whole and original == ("" if whole else "1200 x 900")
    assert (len(data) <= most) is (most != 10), "what is small already stays as it is"
