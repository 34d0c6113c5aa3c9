"""The score phase over a real run folder: verdicts by unit, resuming, rescoring, the kept set, clear stops."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sophia_mcore.config.schema import Reward, Score
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Kept, Question, Trajectory, Verdict
from sophia_mcore.score import phase, second_opinion
from sophia_mcore.score.phase import plan_units, score_round
from sophia_mcore.score.rescore import newest_archive
from sophia_mcore.store.failures import record_failure
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, shard_files, write_shard
from sophia_mcore.verify import grade, types
from tests.support.configs import make_config

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 12
CAPTIONS = 3
SAMPLES = 4


def trajectory(question, k, n, answer, *, length=None, finish="stop"):
    caption = f"image{question % 3}.k{k}"
    return Trajectory(
        id=f"q{question}.{caption}.n{n}", question_id=f"q{question}", caption_id=caption, index=n,
        text=f"<think>{'so ' * n}</think>The answer is \\boxed{{{answer}}}.",
        token_ids=tuple(range(length or 20 - n)), token_logprobs=(), logprob_sum=float("nan"), finish_reason=finish,
        temperature=1.0, top_p=1.0, max_tokens=64, seed=0, model_digest="m", prompt_hash="p",
    )  # fmt: skip


def right_answer(question):
    return ["7", r"\frac{1}{2}", "x+1", "yes"][question % 4]


def trajectories(question):
    """Caption 0 is always right, caption 1 right three times of four, caption 2 never."""
    for k in range(CAPTIONS):
        for n in range(SAMPLES):
            good = k == 0 or (k == 1 and n)
            yield trajectory(question, k, n, right_answer(question) if good else "12345")


def config_for(folder, **sections):
    return make_config(folder, **{"score": Score(workers=1, trajectories_per_unit=24, second_opinions=0), **sections})


def make_run(folder, rows=None, shards=6):
    run = RunFolder(folder)
    rows = rows or [t for q in range(QUESTIONS) for t in trajectories(q)]
    asked = {row.question_id for row in rows}
    questions = [
        Question(id=f"q{q}", question="?", answer=right_answer(q), images=(f"image{q % 3}",))
        for q in range(QUESTIONS)
        if f"q{q}" in asked
    ]
    write_shard(run.questions_file, questions, Question)
    for index in range(shards):
        write_shard(run.round(0).trajectories / f"unit-{index}.parquet", rows[index::shards], Trajectory)
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def content(run):
    folder = run.round(0)
    verdicts = [(v.trajectory_id, v.verdict, v.extracted) for v in read_folder(folder.verdicts, Verdict)]
    return verdicts, folder.kept_file.read_bytes(), json.loads(folder.kept_summary_file.read_text())


def test_verdicts_and_the_kept_set(run):
    summary = score_round(Round(config_for(run.path), run, 0), NoProgress())
    verdicts = list(read_folder(run.round(0).verdicts, Verdict))
    assert {v.trajectory_id for v in verdicts} == {t.id for q in range(QUESTIONS) for t in trajectories(q)}
    by_id = {v.trajectory_id: v for v in verdicts}
    assert by_id["q1.image1.k0.n0"].verdict == "correct"
    assert by_id["q1.image1.k2.n0"].verdict == "wrong"
    assert by_id["q1.image1.k2.n0"].extracted == "12345"
    assert by_id["q0.image0.k0.n0"].answer_type == "integer"
    kept = read_shard(run.round(0).kept_file, Kept)
    assert [k.question_id for k in kept] == sorted(f"q{q}" for q in range(QUESTIONS))
    assert all(k.trajectory_id.endswith("k0.n3") and k.token_count == 17 and k.caption_reward == 1.0 for k in kept)
    assert kept[0].images == ("image0",)
    assert kept[0].response.endswith(r"\boxed{7}.")
    assert {name: summary[name] for name in ("questions", "captions", "trajectories", "kept")} == {
        "questions": QUESTIONS, "captions": 9, "trajectories": 144, "kept": QUESTIONS,
    }  # fmt: skip
    assert summary["verdicts"] == {"correct": 84, "wrong": 60}
    assert summary["dropped"] == {"caption_reward": 36, "not_shortest": 36, "wrong": 60}
    assert summary["caption_reward_mean"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert summary == json.loads(run.round(0).kept_summary_file.read_text())


def test_running_again_changes_nothing(run):
    score_round(Round(config_for(run.path), run, 0), NoProgress())
    before = content(run)
    times = {path: path.stat().st_mtime_ns for path in shard_files(run.round(0).verdicts)}
    score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert content(run) == before
    assert times == {path: path.stat().st_mtime_ns for path in shard_files(run.round(0).verdicts)}


def test_the_kept_set_does_not_depend_on_how_trajectories_lie_in_shards(tmp_path):
    rows = [t for q in range(QUESTIONS) for t in trajectories(q)]
    random.Random(3).shuffle(rows)
    first, second = make_run(tmp_path / "a", shards=2), make_run(tmp_path / "b", rows, shards=7)
    for run in (first, second):
        score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert read_shard(first.round(0).kept_file, Kept) == read_shard(second.round(0).kept_file, Kept)
    assert content(first)[2] == content(second)[2]


def test_a_truncated_trajectory_counts_as_no_answer(tmp_path):
    rows = [
        trajectory(q, 0, n, right_answer(q), finish="length" if n == 3 else "stop") for q in range(4) for n in range(8)
    ]
    run = make_run(tmp_path / "run", rows, shards=1)
    summary = score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert summary["verdicts"] == {"correct": 28, "no_answer": 4}
    assert summary["dropped"]["truncated"] == 4
    assert all(
        not k.trajectory_id.endswith("n3") and k.caption_reward == 0.875
        for k in read_shard(run.round(0).kept_file, Kept)
    )


def test_nothing_kept_is_a_clear_stop(tmp_path):
    run = make_run(tmp_path / "run", [trajectory(q, 0, n, "0") for q in range(4) for n in range(2)], shards=1)
    with pytest.raises(SophiaError, match=r"no trajectory of 8 was kept \(dropped: wrong 8\)") as caught:
        score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert "\n" not in str(caught.value)
    assert not run.round(0).kept_file.exists()


def test_no_trajectories_is_a_clear_stop(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(SophiaError, match="sophia generate"):
        score_round(Round(config_for(tmp_path), run, 0), NoProgress())


def test_an_unknown_question_is_a_clear_stop(tmp_path):
    run = make_run(tmp_path / "run", [trajectory(99, 0, 0, "0")], shards=1)
    with pytest.raises(SophiaError, match="'q99'"):
        score_round(Round(config_for(run.path), run, 0), NoProgress())


def test_too_many_broken_verdicts_stop_the_phase(tmp_path):
    monster = r"\sqrt[1000003]{2^{1000003}+1}+5"  # equals 7 in all digits of a float
    rows = [trajectory(0, 0, n, monster if n < 2 else "7") for n in range(10)]
    run = make_run(tmp_path / "run", rows, shards=1)
    score = Score(workers=1, timeout_seconds=0.3, max_broken_share=0.1, second_opinions=0)
    with pytest.raises(SophiaError, match=r"2 of 10 verdicts are timeouts or errors .*max_broken_share = 0.1"):
        score_round(Round(config_for(run.path, score=score), run, 0), NoProgress())
    assert not run.round(0).kept_file.exists()
    lenient = config_for(run.path, score=score.model_copy(update={"max_broken_share": 0.2}))
    assert score_round(Round(lenient, run, 0), NoProgress())["verdicts"] == {"correct": 8, "timeout": 2}


def test_other_reward_settings_make_another_kept_set_from_the_same_verdicts(run):
    score_round(Round(config_for(run.path), run, 0), NoProgress())
    times = {path: path.stat().st_mtime_ns for path in shard_files(run.round(0).verdicts)}
    summary = score_round(
        Round(config_for(run.path, reward=Reward(keep=3, use_visual_reward=False)), run, 0), NoProgress()
    )
    assert summary["kept"] == len(read_shard(run.round(0).kept_file, Kept)) == 3 * QUESTIONS
    assert times == {path: path.stat().st_mtime_ns for path in shard_files(run.round(0).verdicts)}


def test_rescoring_with_another_version_keeps_the_old_verdicts_and_lists_the_changes(run, monkeypatch):
    score_round(Round(config_for(run.path), run, 0), NoProgress())
    old = {v.trajectory_id: v.verdict for v in read_folder(run.round(0).verdicts, Verdict)}
    monkeypatch.setattr(grade, "RULES_VERSION", "test")
    original = grade.exact.decide
    monkeypatch.setattr(grade.exact, "decide", lambda gold, p: False if p == "7" else original(gold, p))
    notes = []
    progress = NoProgress()
    monkeypatch.setattr(progress, "note", notes.append, raising=False)
    score_round(Round(config_for(run.path), run, 0), progress)
    archive = newest_archive(run.round(0).verdicts)
    assert archive is not None
    assert types.RULES_VERSION in archive.name
    assert {v.trajectory_id: v.verdict for v in read_folder(archive, Verdict)} == old
    changes = json.loads((run.round(0).path / "verdict_changes.json").read_text())
    assert changes["changed"] == [{"old": "correct", "new": "wrong", "count": 21}]
    assert changes["compared"] == 144
    assert "correct -> wrong: 21" in notes[-1]


def test_units_cover_every_shard_once(run):
    shards = shard_files(run.round(0).trajectories)
    for size in (1, 24, 50, 10_000):
        units = plan_units(shards, size)
        assert [name for unit in units for name in unit.items] == [path.name for path in shards]
        assert len({unit.id for unit in units}) == len(units)


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.test_score_phase import config_for
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.progress import NoProgress
from sophia_mcore.score import phase
from sophia_mcore.store.layout import Round, RunFolder
{slow}
phase.score_round(Round(config_for(Path(sys.argv[1])), RunFolder(Path(sys.argv[1])), 0), NoProgress())
"""
SLOW = """
import time
original = phase.grade_shard
def slowly(*args):
    time.sleep(0.3)
    return original(*args)
phase.grade_shard = slowly
"""


def start(run, slow=True):
    code = SCRIPT.format(slow=SLOW if slow else "")
    return subprocess.Popen([sys.executable, "-c", code, str(run.path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("shards_done", [0, 2, 5])
def test_killing_the_phase_loses_nothing(tmp_path, shards_done):
    run, quiet = make_run(tmp_path / "run"), make_run(tmp_path / "quiet")
    score_round(Round(config_for(quiet.path), quiet, 0), NoProgress())
    process = start(run)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        done = len(shard_files(run.round(0).verdicts)) if run.round(0).verdicts.is_dir() else 0
        if done >= shards_done:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert content(run) == content(quiet)


def test_several_processes_share_the_units(tmp_path):
    run, quiet = make_run(tmp_path / "run"), make_run(tmp_path / "quiet")
    score_round(Round(config_for(quiet.path), quiet, 0), NoProgress())
    processes = [start(run) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert content(run) == content(quiet)


def test_helper_processes_of_the_phase_itself(tmp_path, monkeypatch):
    run, quiet = make_run(tmp_path / "run"), make_run(tmp_path / "quiet")
    score_round(Round(config_for(quiet.path), quiet, 0), NoProgress())
    monkeypatch.setattr(phase, "PARALLEL_FROM", 1)
    score = Score(workers=3, trajectories_per_unit=24, second_opinions=0)
    score_round(Round(config_for(run.path, score=score), run, 0), NoProgress())
    assert content(run) == content(quiet)


def test_a_kept_set_left_by_a_killed_process_is_completed(run):
    config = config_for(run.path)
    score_round(Round(config, run, 0), NoProgress())
    before = content(run)
    run.round(0).kept_summary_file.unlink()
    score_round(Round(config, run, 0), NoProgress())
    assert content(run) == before
    shutil.rmtree(run.round(0).verdicts)
    score_round(Round(config, run, 0), NoProgress())
    assert content(run) == before


def test_questions_without_trajectories_stop_the_phase_unless_their_units_failed_for_good(run):
    run.questions_file.unlink()
    questions = [
        Question(id=f"q{q}", question="?", answer=right_answer(q), images=(f"image{q % 3}",))
        for q in range(QUESTIONS + 2)
    ]
    write_shard(run.questions_file, questions, Question)
    with pytest.raises(SophiaError, match=r"2 of 14 questions have no trajectories yet, such as 'q12'"):
        score_round(Round(config_for(run.path), run, 0), NoProgress())
    assert not run.round(0).kept_file.exists()
    record_failure(run.round(0).trajectories, "000007", SophiaError("a bad node"))
    assert score_round(Round(config_for(run.path), run, 0), NoProgress())["questions"] > 0


def test_math_verify_judges_a_sample_too_and_its_disagreements_are_listed(run, monkeypatch):
    rows = [trajectory(0, 0, n, answer) for n, answer in enumerate(["7", "7.0000001", "12345", "8"])]
    run = make_run(run.path.parent / "other", rows, shards=1)
    config = config_for(run.path, score=Score(workers=1, second_opinions=3), reward=Reward(alpha=0.25))
    score_round(Round(config, run, 0), NoProgress())
    path = run.round(0).second_opinion_file
    first = json.loads(path.read_text())
    assert first["compared"] == 3 and first["peer"].startswith("math-verify 0.")
    everything = config.model_copy(update={"score": Score(workers=1, second_opinions=50)})
    score_round(Round(everything, run, 0), NoProgress())
    found = json.loads(path.read_text())
    assert found["by_type"] == {"integer": {"compared": 4, "only_ours": 1, "only_peer": 0, "undecided": 0}}
    (example,) = found["examples"]
    assert (example["extracted"], example["ours"], example["peer"]) == ("7.0000001", "correct", "wrong")
    monkeypatch.setattr(second_opinion, "Pool", None)  # the same verdicts are not asked about again
    score_round(Round(everything, run, 0), NoProgress())
    score_round(Round(config_for(run.path, reward=Reward(alpha=0.25)), run, 0), NoProgress())
    assert not path.exists()  # nobody is asked now, and an old word is not kept


def test_the_sample_holds_every_answer_type_and_does_not_depend_on_the_order():
    verdicts = {
        f"t{i}": Verdict(
            trajectory_id=f"t{i}", question_id="q", caption_id="c", verdict="timeout" if i == 5 else "wrong",
            seconds=0.0, extracted="", answer_type="text" if i < 9 else "integer", verifier="v", verifier_version="1",
        )
        for i in range(1000)
    }  # fmt: skip
    chosen = second_opinion.sample(verdicts, 100)
    assert len(chosen) == 100 and sum(v.answer_type == "text" for v in chosen) == 8  # not the timeout
    assert chosen == second_opinion.sample(dict(reversed(verdicts.items())), 100)


def test_no_second_opinion_never_stops_a_round(run, monkeypatch):
    def fails(*_, **__):
        raise SophiaError("no worker")

    monkeypatch.setattr(second_opinion, "Pool", fails)
    config = config_for(run.path, score=Score(workers=1, second_opinions=10))
    assert score_round(Round(config, run, 0), NoProgress())["kept"] == QUESTIONS
    assert not run.round(0).second_opinion_file.exists()
