"""The page shows benchmarks before and after, and the answers that changed, right to wrong first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sophia_mcore.benchmarks.rows import read_any, read_benchmark
from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.prepare import prepare_questions
from sophia_mcore.evaluate.results import results
from sophia_mcore.generate.answers import evaluate
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.progress import NoProgress
from sophia_mcore.report.benchmarks import blocks
from sophia_mcore.report.build import write_report
from sophia_mcore.report.compare import write_comparison
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round
from tests.support.benchmark_files import NEEDED, hub
from tests.support.generate_world import FakeEngine, make_config, make_run


@NEEDED
def test_benchmarks_before_and_after(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path, models={"policy": tmp_path / "InternVL3-8B"})
    run.evaluation_questions_file.unlink()
    target = run.evaluation_questions_file
    prepare_questions([hub("mmmu"), hub("dynamath")], ImageStore(run.images), target, read=read_benchmark)
    evaluate(Round(config, run, 0), "base", FakeEngine(reply="\\boxed{{D}}"), NoProgress())
    evaluate(Round(config, run, 0), "round-0", FakeEngine(reply="\\boxed{{C}}<script>alert(1)</script>"), NoProgress())
    found = results(run, config, pytest.fail)
    mmmu = found["base"]["protocols"]["paper"]["benchmarks"]["mmmu"]
    assert mmmu["n"] == 8 and mmmu["score"] == 1 / 8 and mmmu["ci95"][0] < 1 / 8 < mmmu["ci95"][1]
    assert mmmu["groups"]["l2-category"]["Art & Design"]["score"] == 0.5
    made = blocks(found)
    assert [(block.title, block.labels) for block in made] == [
        ("DynaMath", ["base", "round-0"]), ("MMMU", ["base", "round-0"])
    ]  # fmt: skip
    assert made[0].lines[1].name == "worst case of all variants"
    page = write_report(config, run, PHASES).read_text()
    assert "base to round-0: 1 right to wrong, 2 wrong to right" in page
    changed = page[page.index('id="changed"') :]
    assert changed.index("<td>right to wrong</td>") < changed.index("<td>wrong to right</td>")
    assert "InternVL3-8B + SOPHIA" in page and "60.67" in page
    assert "Not the whole benchmark: it has 900 questions" in page
    assert "<script>alert(1)" not in page


@NEEDED
def test_two_models_side_by_side(tmp_path: Path) -> None:
    """`sophia report OUT OUT_B`: a table per benchmark with both models, also where only one has a sub-metric."""
    steps = hub("mvmath")
    runs = []
    for name, sources in (("a", [steps]), ("b", [hub("mmmu"), steps.model_copy(update={"limit": 1})])):
        folder = tmp_path / name
        folder.mkdir()
        run, config = make_run(folder), make_config(folder)
        run.evaluation_questions_file.unlink()
        prepare_questions(sources, ImageStore(run.images), run.evaluation_questions_file, read=read_benchmark)
        evaluate(Round(config, run, 0), "base", FakeEngine(reply="\\boxed{{C}}"), NoProgress())
        runs.append((run, config))
    page = write_comparison(*runs, PHASES).read_text()
    tables = page[page.index('id="benchmarks"') : page.index('id="rounds"')]
    assert tables.count("A, base, %") == tables.count("B, base, %") == 2
    assert "MV-MATH" in tables and "Art &amp; Design" in tables and "step accuracy rate" in tables


@NEEDED
def test_own_questions_beside_a_benchmark(tmp_path: Path) -> None:
    """They have a table of their own, and two runs show how each answer changed, with the end of the response."""
    runs = []
    for name, letter in (("a", "C"), ("b", "D")):
        folder = tmp_path / name
        folder.mkdir()
        run, config = make_run(folder), make_config(folder)
        own = Source(kind="jsonl", path=str(folder / "own.jsonl"), name="own", columns=Columns(images=()))
        Path(own.path).write_text(json.dumps({"id": "1", "question": "Which?", "answer": "C", "images": []}) + "\n")
        run.evaluation_questions_file.unlink()
        target = run.evaluation_questions_file
        prepare_questions([hub("mmmu"), own], ImageStore(run.images), target, read=read_any)
        evaluate(Round(config, run, 0), "base", FakeEngine(reply=f"So \\boxed{{{{{letter}}}}}"), NoProgress())
        runs.append((run, config))
    assert [block.title for block in blocks(results(*runs[0], pytest.fail))] == ["MMMU", "own"]
    page = write_comparison(*runs, PHASES).read_text()
    flips = page[page.index('id="flips"') :]
    assert flips.index("<td>right to wrong</td>") < flips.index("<td>wrong to right</td>")
    assert "end of the response" in flips and "So \\boxed{D}" in flips


@NEEDED
def test_steps_of_multi_step_answers_have_an_interval(tmp_path: Path) -> None:
    """MV-MATH has step scores: they have intervals as every score has, and the page shows them."""
    run, config = make_run(tmp_path), make_config(tmp_path)
    run.evaluation_questions_file.unlink()
    prepare_questions([hub("mvmath")], ImageStore(run.images), run.evaluation_questions_file, read=read_benchmark)
    evaluate(Round(config, run, 0), "base", FakeEngine(reply="\\boxed{{C}}"), NoProgress())
    lines = {line.name: line.cells[0] for line in blocks(results(run, config, pytest.fail))[0].lines}
    for name in ("step accuracy rate", "question completeness rate"):
        found = lines[name]
        assert found and found["n"] == 2 and found["ci95"][0] <= found["score"] < found["ci95"][1]
    assert "step accuracy rate" in write_report(config, run, PHASES).read_text()


def test_ordinary_questions_have_the_same_page(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    evaluate(Round(config, run, 0), "base", FakeEngine(reply="\\boxed{{1}}"), NoProgress())
    evaluate(Round(config, run, 0), "round-0", FakeEngine(reply="\\boxed{{2}}"), NoProgress())
    page = write_report(config, run, PHASES).read_text()
    assert '<b class="text">test</b>' in page and "1 right to wrong, 1 wrong to right" in page
    assert json.loads(run.report_json.read_text())["evaluation"]["base"]["pass_at_1"] == 0.2
