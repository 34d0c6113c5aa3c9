"""Tables of questions are compared by content however the settings name them: a file, a folder, a pattern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Config, Source
from sophia_mcore.launch.phases import PHASES, phase_named
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.store.layout import RunFolder
from tests.support.provenance_world import make_whole_run, record_all, with_values

ROW = '{"id": "%s", "image": "a.png", "question": "How many?", "answer": "3"}\n'


def run_of(folder: Path, source: Source) -> tuple[RunFolder, Config]:
    """A finished run whose questions are recorded as read from ``source``."""
    run, config = make_whole_run(folder)
    config = with_values(config, {"data.questions": (source,)})
    record_all(config, run)
    return run, config


def why(run: RunFolder, config: Config) -> str:
    return Provenance(config, run, PHASES).why_stale(phase_named("questions"), 0)


@pytest.mark.parametrize(
    ("kind", "path"), [("jsonl", "tables"), ("jsonl", "tables/*.jsonl"), ("datasets", "tables"), ("jsonl", "tables/b")]
)
def test_an_answer_that_is_mended_makes_the_questions_stale(tmp_path: Path, kind: str, path: str) -> None:
    tables = tmp_path / "tables"
    (tables / "b").mkdir(parents=True)
    for name in ("a.jsonl", "b/c.jsonl"):
        (tables / name).write_text(ROW % name)
    run, config = run_of(tmp_path / "run", Source(kind=kind, path=str(tmp_path / path)))  # type: ignore[arg-type]
    assert why(run, config) == ""
    (tables / "a.png").write_bytes(b"a picture is not a table")
    assert why(run, config) == ""
    mended = tables / ("b/c.jsonl" if path.endswith("b") else "a.jsonl")
    mended.write_text(mended.read_text().replace('"3"', '"4"'))
    assert f"tables of {tmp_path / path} the content of {tmp_path / path} has changed" in why(run, config)
    mended.write_text(mended.read_text().replace('"4"', '"3"'))
    assert why(run, config) == ""


def test_an_answer_in_the_middle_of_a_large_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    file.write_text((ROW % "q" + "\n" * 100_000) * 120)  # 12 MB
    run, config = run_of(tmp_path / "run", Source(kind="jsonl", path=str(file)))
    assert why(run, config) == ""
    for place in (31, 77):
        with open(file, "r+b") as opened:
            opened.seek(place * (len(ROW % "q") + 100_000) + (ROW % "q").index('"3"') + 1)
            opened.write(b"4")
        assert "has changed" in why(run, config)
        with open(file, "r+b") as opened:
            opened.seek(place * (len(ROW % "q") + 100_000) + (ROW % "q").index('"3"') + 1)
            opened.write(b"3")
        assert why(run, config) == ""


def test_records_of_older_versions_and_tables_that_are_not_here_now_hold(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "a.jsonl").write_text(ROW % "a")
    run, config = run_of(tmp_path / "run", Source(kind="jsonl", path=str(tables)))
    (tables / "a.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert why(run, config) == ""  # such as a run on another machine
    record = run.records(0, "questions") / "questions.json"
    found = json.loads(record.read_text())
    found["settings"] = {key: value for key, value in found["settings"].items() if not key.startswith("tables of")}
    record.write_text(json.dumps(found))
    (tmp_path / "elsewhere.jsonl").rename(tables / "a.jsonl")
    assert why(run, config) == ""


def test_later_phases_name_where_it_began_and_no_phase_between(tmp_path: Path) -> None:
    run, config = make_whole_run(tmp_path / "run")
    changed = with_values(config, {"captions.per_image": config.captions.per_image + 1})
    lines = Provenance(changed, run, PHASES).stale_lines()
    (began,) = [line for line in lines if line.startswith("captions of round 0: ")]
    reason = began.removeprefix("captions of round 0: ")
    later = [line for line in lines if line.partition(" ")[0] in ("reasoning", "score", "train", "export")]
    assert [line.partition(": ")[2] for line in later] == [f"captions of round 0 is no longer valid ({reason})"] * 4
