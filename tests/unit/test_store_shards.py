"""Shards: round trip, hash, atomic creation, damage, full disk, and that other tools read them."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Literal, get_type_hints

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Answer, Question, Trajectory
from sophia_mcore.store import atomic, shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    id: str
    number: int
    share: float
    flag: bool
    kind: Literal["a", "b"]
    words: tuple[str, ...]
    counts: tuple[int, ...]
    values: tuple[float, ...]
    maybe: str | None = None
    maybe_number: int | None = None
    maybe_counts: tuple[int, ...] | None = None


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_int = st.integers(-(2**63), 2**63 - 1)
_float = st.floats(allow_nan=False)
_everything = st.builds(
    Everything,
    id=_text,
    number=_int,
    share=_float,
    flag=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    words=st.lists(_text, max_size=4).map(tuple),
    counts=st.lists(_int, max_size=4).map(tuple),
    values=st.lists(_float, max_size=4).map(tuple),
    maybe=st.none() | _text,
    maybe_number=st.none() | _int,
    maybe_counts=st.none() | st.lists(_int, max_size=3).map(tuple),
)


def question(index: int) -> Question:
    return Question(id=f"q{index}", question="How many?" * 20, answer=str(index), images=("ab", "cd"))


@settings(max_examples=60, deadline=None)
@given(st.lists(_everything, max_size=6))
def test_every_field_type_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, records: list[Everything]) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.parquet"
    shards.write_shard(path, records, Everything, {"seed": 3})
    assert shards.read_shard(path, Everything) == records
    assert shards.read_metadata(path)["metadata"] == {"seed": 3}


def test_many_row_groups_and_nan(tmp_path: Path) -> None:
    common = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "model_digest": "m", "prompt_hash": "p", "seed": 1}
    records = [
        Trajectory(
            id=f"t{i}",
            question_id="q",
            caption_id="c",
            index=i,
            text="x" * (i % 7),
            token_ids=tuple(range(i % 5)),
            token_logprobs=tuple(-0.5 for _ in range(i % 5)),
            logprob_sum=math.nan if i == 3 else -1.0,
            finish_reason="stop",
            **common,
        )
        for i in range(2500)
    ]
    shards.write_shard(tmp_path / "t.parquet", records, Trajectory)
    back = shards.read_shard(tmp_path / "t.parquet", Trajectory)
    assert math.isnan(back[3].logprob_sum)
    assert back[:3] + back[4:] == records[:3] + records[4:]


def test_equal_records_give_equal_files_and_hashes(tmp_path: Path) -> None:
    first = shards.write_shard(tmp_path / "a.parquet", [question(1)], Question, {"k": 1})
    second = shards.write_shard(tmp_path / "b.parquet", [question(1)], Question, {"k": 1})
    other = shards.write_shard(tmp_path / "c.parquet", [question(2)], Question, {"k": 1})
    metadata = shards.write_shard(tmp_path / "d.parquet", [question(1)], Question, {"k": 2})
    assert first == second == shards.read_metadata(tmp_path / "a.parquet")["sha256"]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert len({first, other, metadata}) == 3


def test_a_finished_shard_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shards.write_shard(path, [question(1)], Question)
    with pytest.raises(FileExistsError):
        shards.write_shard(path, [question(2)], Question)
    assert shards.read_shard(path, Question) == [question(1)]
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_empty_shard(tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "a.parquet", [], Question)
    assert shards.read_shard(tmp_path / "a.parquet", Question) == []


def test_load_dataset_reads_a_folder_of_shards(tmp_path: Path) -> None:
    for i in range(2):
        shards.write_shard(tmp_path / f"{i}.parquet", [question(2 * i), question(2 * i + 1)], Question)
    (tmp_path / ".tmp-1-x.parquet").write_bytes(b"left by a killed writer")
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == ["q0", "q1", "q2", "q3"]
    assert loaded[0]["images"] == ["ab", "cd"]


def test_readers_pass_over_what_killed_writers_left(tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "a.parquet", [question(1)], Question)
    (tmp_path / f"{atomic.TEMPORARY_PREFIX}99-x-b.parquet").write_bytes(b"half")
    assert list(shards.read_folder(tmp_path, Question)) == [question(1)]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [question(i) for i in range(3)]
    shards.write_shard(path, records, Question)
    whole = path.read_bytes()
    damaged = tmp_path / "b.parquet"
    noticed = 0
    for position in range(len(whole)):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(SophiaError) as caught:
            shards.read_shard(damaged, Question)
        assert str(damaged) in str(caught.value) and "\n" not in str(caught.value)
        noticed += 1
    assert noticed == len(whole)


@pytest.mark.parametrize("keep", [0, 3, 11, 100, -1])
def test_truncated_shard(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.parquet"
    shards.write_shard(path, [question(i) for i in range(9)], Question)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SophiaError, match=r"a\.parquet"):
        shards.read_shard(path, Question)


def test_missing_foreign_and_other_record_types(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(SophiaError, match="no such file"):
        shards.read_shard(tmp_path / "none.parquet", Question)
    with pytest.raises(SophiaError, match="no such folder"):
        list(shards.read_folder(tmp_path / "none", Question))
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "foreign.parquet")
    with pytest.raises(SophiaError, match="not written by sophia"):
        shards.read_shard(tmp_path / "foreign.parquet", Question)
    shards.write_shard(tmp_path / "q.parquet", [question(1)], Question)
    with pytest.raises(SophiaError, match="holds Question records, not Trajectory"):
        shards.read_shard(tmp_path / "q.parquet", Trajectory)


@pytest.mark.parametrize(
    ("field", "value"), [("answer", 5), ("answer", None), ("images", (1,)), ("images", (None,)), ("question", "\ud800")]
)
def test_a_record_that_does_not_fit_is_named_and_leaves_nothing(tmp_path: Path, field: str, value: object) -> None:
    bad = Question(**({"id": "q7", "question": "a", "answer": "b"} | {field: value}))  # type: ignore[arg-type]
    with pytest.raises(SophiaError, match=rf"Question\.{field} of 'q7'"):
        shards.write_shard(tmp_path / "a.parquet", [question(1), bad], Question)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("field", ["number", "counts", "values"])
def test_numbers_are_not_bent_into_shape(tmp_path: Path, field: str) -> None:
    good = {"id": "e", "number": 1, "share": 1.0, "flag": True, "kind": "a", "words": (), "counts": (), "values": ()}
    bad = Everything(**(good | {field: {"number": 1.5, "counts": (1, 2.5), "values": ("x",)}[field]}))
    with pytest.raises(SophiaError, match=field):
        shards.write_shard(tmp_path / "a.parquet", [bad], Everything)


def _mount_small(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs: run the tests as root, in a container for example")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        why = mounted.stderr.decode().strip()
        pytest.skip(f"cannot mount a tmpfs here (a container needs CAP_SYS_ADMIN): {why}")


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    _mount_small(folder)
    try:
        records = [Question(id=f"q{i}", question=os.urandom(4000).hex(), answer="1") for i in range(500)]
        for write in (
            lambda: shards.write_shard(folder / "a.parquet", records, Question),
            lambda: atomic.write_bytes(folder / "b.bin", bytes(1 << 20)),
        ):
            with pytest.raises(SophiaError, match="No space left on device") as caught:
                write()
            assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
            assert os.listdir(folder) == []
        shards.write_shard(folder / "a.parquet", records[:5], Question)  # once there is room it works
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_file_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Like a full disk, where no small filesystem can be mounted. In a child: the limit cannot be raised again."""
    code = f"""
import os, signal, resource
from sophia_mcore.store import shards, atomic
from sophia_mcore.records import Question
from sophia_mcore.errors import SophiaError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
records = [Question(id=str(i), question=os.urandom(4000).hex(), answer="1") for i in range(200)]
try:
    shards.write_shard({str(tmp_path / "a.parquet")!r}, records, Question)
except SophiaError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    assert signal.getsignal(signal.SIGXFSZ) is not None


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SophiaError, match="file is not a folder"):
        shards.write_shard(tmp_path / "file" / "a.parquet", [question(1)], Question)
    with pytest.raises(SophiaError, match="cannot write /proc/"):
        shards.write_shard("/proc/a.parquet", [question(1)], Question)


def test_replacing_keeps_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1, "b": math.nan})
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == '{\n  "a": 1,\n  "b": null\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_killed_writer_leaves_no_shard(tmp_path: Path) -> None:
    """SIGKILL inside a write: the name does not exist, and the same write then succeeds."""
    code = f"""
import os, signal
from sophia_mcore.store import atomic
with atomic.creating({str(tmp_path / "a.bin")!r}) as file:
    file.write(b"half"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
    with atomic.creating(tmp_path / "a.bin") as file:
        file.write(b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_a_shard_of_an_older_version_gets_the_defaults_of_newer_fields(tmp_path: Path) -> None:
    """As runs have stored the policy's answers before they had a source and a caption."""
    newer = [field.name for field in fields(Answer) if field.default is not MISSING]
    types = {name: kind for name, kind in get_type_hints(Answer).items() if name not in newer}
    older = make_dataclass("Answer", types.items())
    values = {name: "stop" if kind is not int else 1 for name, kind in types.items()}
    values |= {"token_ids": (1,), "token_logprobs": (-0.5,), "logprob_sum": -0.5, "temperature": 1.0, "top_p": 1.0}
    shards.write_shard(tmp_path / "a.parquet", [older(**values)] * 2, older)
    answer = Answer(**values)
    assert shards.read_shard(tmp_path / "a.parquet", Answer) == [answer, answer]
    assert (answer.source, answer.caption_id) == ("policy", "")
    table = shards.read_table(tmp_path / "a.parquet", Answer, columns=["source"])
    assert table.to_pydict() == {"source": ["policy"] * 2}

    oldest = make_dataclass("Answer", {"id": str}.items())
    shards.write_shard(tmp_path / "b.parquet", [oldest(id="a")], oldest)
    with pytest.raises(SophiaError, match=r"b\.parquet has no column extracted, .*verdict: another version wrote it"):
        shards.read_shard(tmp_path / "b.parquet", Answer)


def test_chosen_records_and_values_of_a_folder(tmp_path: Path) -> None:
    for name, numbers in (("a", range(3)), ("b", range(3, 5))):
        shards.write_shard(tmp_path / f"{name}.parquet", [question(i) for i in numbers], Question)
    assert shards.read_shard(tmp_path / "a.parquet", Question, {"q2", "q0", "q4"}) == [question(0), question(2)]
    assert list(shards.read_folder(tmp_path, Question, {"q4": 1.0, "q1": 2.0}.keys())) == [question(1), question(4)]
    assert list(shards.read_folder(tmp_path, Question, ())) == []
    found = list(shards.read_values(tmp_path, Question, ("answer", "images", "id")))
    assert found == [(str(i), ["ab", "cd"], f"q{i}") for i in range(5)]
