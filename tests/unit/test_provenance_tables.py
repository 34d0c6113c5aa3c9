"""Tables of questions and their pictures are compared by content: of a file, a folder, a pattern, a data set here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Config, Source
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.local import run_phases
from sophia_mcore.launch.phases import PHASES, phase_named
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.records import Question
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, shard_files
from tests.support.configs import make_config
from tests.support.pictures import noise
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


def test_a_picture_that_was_replaced_is_named_and_read_again(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(noise(8, 8, number))
    rows = [{"id": str(n), "image": f"{n}.png", "question": "What?", "answer": "3"} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = Path(__file__).parents[2] / "examples" / "digits" / "base"
    source = {"kind": "jsonl", "path": str(tmp_path / "q.jsonl")}
    config = make_config(tmp_path / "run", base / "policy", base / "reasoner", data={"questions": [source]})
    run = run_phases(config, ["questions"], [0])
    before = [question.images for question in read_shard(run.questions_file, Question)]
    os.utime(tmp_path / "0.png", (1, 1))  # copied, or fetched again: another time, the same content
    assert why(run, config) == ""
    (tmp_path / "1.png").write_bytes(noise(8, 8, 9))
    assert f"picture 1.png the content of {tmp_path / '1.png'} has changed" in why(run, config)
    with pytest.raises(UsageError, match=r"picture 1.png .* questions depends on them: .*--new-settings"):
        run_phases(config, ["questions"], [0])
    run_phases(config, ["questions"], [0], new_settings=True)
    after = [question.images for question in read_shard(run.questions_file, Question)]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert why(run, config) == ""
    (tmp_path / "1.png").unlink()
    assert why(run, config) == ""  # nobody can say


def test_parts_of_one_phase_give_a_reason_once(tmp_path: Path) -> None:
    run, config = make_whole_run(tmp_path / "run")
    shard_files(run.round(0).trajectories)[0].unlink()
    lines = Provenance(config, run, PHASES).stale_lines()
    assert lines[0] == "score of round 0: made from other trajectories of round 0"
    assert lines[1] == f"train of round 0: score of round 0 is no longer valid ({lines[0].partition(': ')[2]})"
