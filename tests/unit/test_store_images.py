"""Image store, lineage, lock, layout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Caption
from sophia_mcore.store import images as images_module
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import model_digest, prompt_hash, seed_for
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.shards import write_shard

IMAGES = [b"image %d " % i * (i % 50 + 1) for i in range(500)]


def test_images_come_back_by_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_SHARD_IMAGES", 120)
    store = ImageStore(tmp_path / "images")
    digests = store.add_many(iter(IMAGES))
    assert digests == [hashlib.sha256(image).hexdigest() for image in IMAGES]
    again = ImageStore(tmp_path / "images")
    assert len(again) == len(IMAGES) and len(os.listdir(tmp_path / "images")) == 5
    for index in (0, 499, 31, 32, 33, 250):
        assert digests[index] in again and again.get(digests[index]) == IMAGES[index]
    assert all(store.get(digest) == image for digest, image in zip(digests, IMAGES, strict=True))


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    digests = ImageStore(tmp_path).add_many([*IMAGES, *IMAGES])
    files = sorted(os.listdir(tmp_path))
    assert ImageStore(tmp_path).add_many(IMAGES) == digests[:500] == digests[500:]
    assert sorted(os.listdir(tmp_path)) == files


def test_interrupted_adding_leaves_whole_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_SHARD_IMAGES", 100)

    def interrupted() -> object:
        yield from IMAGES[:250]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageStore(tmp_path).add_many(interrupted())
    assert len(ImageStore(tmp_path)) == 200
    digests = ImageStore(tmp_path).add_many(IMAGES)
    assert len(ImageStore(tmp_path)) == 500
    assert ImageStore(tmp_path).get(digests[-1]) == IMAGES[-1]


def test_two_stores_see_each_others_images(tmp_path: Path) -> None:
    reader, writer = ImageStore(tmp_path), ImageStore(tmp_path)
    digest = writer.add_many([b"new"])[0]
    assert digest in reader and reader.get(digest) == b"new"


def test_unknown_and_damaged_images_are_named(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    digest = store.add_many([b"some image bytes"])[0]
    with pytest.raises(SophiaError, match="no image 00"):
        store.get("00" * 32)
    path = next(tmp_path.glob("*.parquet"))
    path.write_bytes(path.read_bytes().replace(b"some image", b"evil image"))
    with pytest.raises(SophiaError, match=f"{digest[:16]} .*damaged"):
        ImageStore(tmp_path).get(digest)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SophiaError, match=f"image shard {path}"):
        ImageStore(tmp_path)


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("words")
    return folder


def test_model_digest_depends_on_what_the_model_says_only(tmp_path: Path) -> None:
    first, second = _model(tmp_path / "a"), _model(tmp_path / "b")
    digest = model_digest(first)
    (second / "README.md").write_text("other words")
    assert len(digest) == 64 and model_digest(second) == digest
    for name, content in (("config.json", "{ }"), ("model.safetensors", "weightz"), ("chat_template.jinja", "x")):
        other = _model(tmp_path / f"c-{name}")
        (other / name).write_text(content)
        assert model_digest(other) != digest, name


def test_model_digest_of_no_model(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match="no model directory"):
        model_digest(tmp_path / "none")
    with pytest.raises(SophiaError, match="no weights"):
        model_digest(tmp_path)


def test_seeds_are_stable_distinct_and_31_bit() -> None:
    assert seed_for(0, "captions", 0, "ab", 1) == 1931567444  # a change would make old runs unrepeatable
    seeds = {
        seed_for(run, "captions", r, digest, k) for run in (0, 1) for r in (0, 1) for digest in "abc" for k in (0, 1)
    }
    assert len(seeds) == 24 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_for(0, 1) != seed_for(0, "1")
    assert prompt_hash("a") == hashlib.sha256(b"a").hexdigest()


def test_second_holder_of_a_lock_is_told_who_has_it(tmp_path: Path) -> None:
    told = rf"run is in use by process {os.getpid()} on .* since "
    with (
        folder_lock(tmp_path / "run" / "lock"),
        pytest.raises(SophiaError, match=told),
        folder_lock(tmp_path / "run" / "lock"),
    ):
        pass
    with folder_lock(tmp_path / "run" / "lock"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = f"""
import time
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.store.shards import write_shard
with folder_lock({str(tmp_path / "lock")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(SophiaError, match=f"process {holder.pid}"), folder_lock(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path / "lock"):
        pass


def test_lock_where_nothing_can_be_written() -> None:
    with pytest.raises(SophiaError, match="cannot write /proc/"), folder_lock("/proc/none/lock"):
        pass


def test_layout() -> None:
    run = RunFolder(Path("runs/digits"))
    assert run.round(1).kept_file == Path("runs/digits/round-1/kept.parquet")
    assert run.round(0).checkpoints == Path("runs/digits/round-0/train/checkpoints")
    assert run.evaluation("base", "paper") == Path("runs/digits/evaluation/base/paper")
    assert RunFolder("runs/x").lock_file == Path("runs/x/lock")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_hundred_thousand_images(tmp_path: Path) -> None:
    """Opening, one random look-up and memory stay small; the time is printed, not asserted."""
    store = ImageStore(tmp_path)
    digests = store.add_many(b"%08d" % i * 40 for i in range(100_000))
    start = time.perf_counter()
    again = ImageStore(tmp_path)
    opened = time.perf_counter()
    for index in range(0, 100_000, 997):
        assert again.get(digests[index]) == b"%08d" % index * 40
    print(f"open {opened - start:.2f} s, get {(time.perf_counter() - opened) / 101 * 1e3:.2f} ms")
    assert len(again) == 100_000


def test_reading_does_not_import_pandas(tmp_path: Path) -> None:
    """pyarrow does so by itself in some of its functions; it takes every process 0.4 CPU-seconds."""
    digest = ImageStore(tmp_path / "images").add_many([IMAGES[0]])[0]
    shard = tmp_path / "0.parquet"
    caption = Caption(
        id="a", images=(digest,), index=0, text="b", token_ids=(1, 2), token_logprobs=(-0.5, -1.0), logprob_sum=-1.5,
        finish_reason="stop", temperature=1.0, top_p=1.0, max_tokens=2, seed=0, model_digest="m", prompt_hash="p",
    )  # fmt: skip
    write_shard(shard, [caption], Caption)
    code = f"""
import sys
from pathlib import Path
from sophia_mcore.records import Caption
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.shards import read_shard
assert ImageStore(Path({str(tmp_path / "images")!r})).get({digest!r}) == {IMAGES[0]!r}
(caption,) = read_shard(Path({str(shard)!r}), Caption)
assert (caption.token_ids, caption.token_logprobs) == ((1, 2), (-0.5, -1.0))
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
