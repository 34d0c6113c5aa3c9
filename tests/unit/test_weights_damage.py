"""Conversions of damaged, odd or changing checkpoints: one clear error, nothing half-written, the source untouched."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.progress import Progress
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.formats.stream import Files
from sophia_mcore.weights.verify import verify
from tests.support.weights_models import FAMILIES, Model, make, write

ROOT = Path(__file__).parents[2]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, read by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def in_layout(model: Model, layout: str) -> dict[str, torch.Tensor]:
    return model.native if layout == "hf" else model.custom


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good", FAMILIES["300m + qwen2"], make(FAMILIES["300m + qwen2"]), "hf")


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a folder."""
    state = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    save_file(state, folder / "model.safetensors")


def assert_refused(folder: Path, match: str, progress: Progress | None = None, **options: object) -> str:
    """The conversion must fail with one line, leave nothing behind and leave the source as it is."""
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(SophiaError, match=match) as caught:
        convert(Conversion(folder, folder.parent / "out", "megatron", **options), progress)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    return str(caught.value)


def test_missing_and_extra_tensors_are_all_listed(good: Path) -> None:
    edit(
        good,
        language_model__model__layers__0__mlp__up_proj__weight=None,
        language_model__model__layers__1__mlp__up_proj__weight=None,
        language_model__model__layers__1__self_attn__q_proj__lora_A__weight=torch.zeros(2, 2),
    )
    message = assert_refused(good, "missing")
    assert "2 tensors missing: language_model.model.layers.{0-1}.mlp.up_proj.weight" in message
    assert "1 tensors not part of this model: language_model.model.layers.1.self_attn.q_proj.lora_A.weight" in message


def test_shape_type_and_mixed_types(good: Path) -> None:
    edit(good, language_model__model__norm__weight=torch.zeros(13))
    assert_refused(good, r"language_model.model.norm.weight \[13\], expected \[12\]")
    edit(good, language_model__model__norm__weight=torch.zeros(12, dtype=torch.bfloat16),
         language_model__model__layers__0__mlp__up_proj__weight=torch.zeros(10, 12))  # fmt: skip
    assert_refused(good, r"of mixed types: language.decoder.layers.0.mlp.linear_fc1.weight \(BF16, F32\)")


@pytest.mark.parametrize("cut", [1, 100, 4000])
def test_truncated_file(good: Path, cut: int) -> None:
    file = good / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    assert_refused(good, r"model.safetensors is truncated")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"\x10\0\0\0\0\0\0\0{nonsense here!}", "corrupt"),
        (b"\xff" * 8, "truncated or not a safetensors file"),
        (b"abc", "truncated or not a safetensors file"),
        (b"", "truncated or not a safetensors file"),
    ],
)
def test_corrupt_header(good: Path, header: bytes, match: str) -> None:
    (good / "model.safetensors").write_bytes(header)
    assert_refused(good, match)


def test_overlapping_data_and_unknown_type(good: Path) -> None:
    for header, match in (
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
          "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, "overlaps"),
        ({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, "unknown dtype 'F33'"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "negative"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "needs 8"),
    ):  # fmt: skip
        text = json.dumps(header).encode()
        (good / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
        assert_refused(good, match)


def test_missing_shard_and_lying_index(good: Path, tmp_path: Path) -> None:
    weight_map = dict.fromkeys(load_file(good / "model.safetensors"), "model-00001-of-00002.safetensors")
    (good / "model.safetensors").rename(good / "model-00001-of-00002.safetensors")
    weight_map["language_model.lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = good / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(good, "lacks 1 of 2 shards: model-00002-of-00002.safetensors")
    save_file({"other": torch.zeros(1)}, good / "model-00002-of-00002.safetensors")
    assert_refused(good, "does not place there")
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "../outside.safetensors"}}))
    assert_refused(good, "names no file of its folder: '../outside.safetensors'")
    index.write_text(json.dumps({"weight_map": weight_map | {"x": ""}}))
    assert_refused(good, "names no file of its folder: ''")
    index.write_text("{}")
    assert_refused(good, "not a weights index")


def test_no_weights_no_config_no_folder(good: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        convert(Conversion(tmp_path / "nothing", tmp_path / "out", "hf"))
    (good / "model.safetensors").unlink()
    assert_refused(good, "no weights in")
    (good / "model.safetensors").mkdir()
    assert_refused(good, "cannot read .*model.safetensors: Is a directory")
    (good / "model.safetensors").rmdir()
    (good / "config.json").unlink()
    assert_refused(good, "config.json")


def test_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    sizes = FAMILIES["300m + qwen2, tied"]
    model = make(sizes)
    folder = write(tmp_path / "a", sizes, model, "hf")
    embedding = model.native["language_model.model.embed_tokens.weight"]
    edit(folder, language_model__lm_head__weight=embedding.clone())
    convert(Conversion(folder, tmp_path / "b", "hf"))
    assert_same(stored(tmp_path / "b"), model.native)  # the redundant copy is left out
    shutil.rmtree(tmp_path / "b")
    edit(folder, language_model__lm_head__weight=embedding + 1)
    assert_refused(folder, "tie_word_embeddings is true, but language_model.lm_head.weight differs")


def test_full_disk(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    for call in ("posix_fallocate", "pwritev", "fsync"):
        with monkeypatch.context() as patch:

            def full(*arguments: object) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, call, full)
            assert_refused(good, "cannot write .*No space left on device")
    count = 0

    def sometimes(*arguments: object) -> int:
        nonlocal count
        count += 1
        if count > 150:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwritev", sometimes)
    assert_refused(good, "cannot write .*No space left on device")
    assert count > 150


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """A real refusal by the kernel, in a process of its own."""
    sizes = replace(FAMILIES["300m + qwen2"], vocabulary=4000)
    folder = write(tmp_path / "a", sizes, make(sizes), "hf")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    done = run_tool("megatron_to_hf.py", folder, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 1 and "file size limit" in done.stderr and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def run_tool(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "checkpoints_tools" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def test_source_changes_while_it_is_read(good: Path, tmp_path: Path) -> None:
    class Meddler:
        def start(self, task: str, total: int, completed: int = 0) -> None:
            pass

        def advance(self, count: int = 1) -> None:
            os.utime(good / "model.safetensors", ns=(1, 1))

        def note(self, text: str) -> None:
            pass

    assert_refused(good, "model.safetensors changed while it was read", progress=Meddler())


def test_killed_in_the_middle_then_run_again(good: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom sophia_mcore.weights.convert import Conversion, convert\n"
        "from sophia_mcore.weights.formats import copying\nold = copying.write_box\n"
        "def slow(*a):\n    old(*a); print('wrote', flush=True); time.sleep(0.2)\n"
        "copying.write_box = slow\n"
        "convert(Conversion(Path(sys.argv[1]), Path(sys.argv[2]), 'hf-custom', workers=1))\n"
    )
    arguments = [sys.executable, "-c", script, str(good), str(tmp_path / "out")]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.stdout is not None and child.stdout.readline() == b"wrote\n"
    with pytest.raises(SophiaError, match="in use by process"):
        convert(Conversion(good, tmp_path / "out", "hf-custom"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists() and (tmp_path / ".tmp-out").exists()
    convert(Conversion(good, tmp_path / "out", "hf-custom", verify=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "out"]
    assert not (tmp_path / "out" / "lock").exists()


def test_damage_to_a_distributed_checkpoint(good: Path, tmp_path: Path) -> None:
    made = tmp_path / "m"
    convert(Conversion(good, made, "megatron", tensor=2))
    whole = {p.name: p.read_bytes() for p in made.iterdir()}

    def broken(match: str, **files: bytes | None) -> None:
        for name, data in files.items():
            path = made / name.replace("_metadata", ".metadata").replace("_distcp", ".distcp")
            path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(SophiaError, match=match):
            convert(Conversion(made, tmp_path / "out", "hf"))
        for name, data in whole.items():
            (made / name).write_bytes(data)

    data = whole["__0_0.distcp"]
    broken("__0_0.distcp is truncated", __0_0_distcp=data[:-1])
    broken("cannot read .*__1_0.distcp", __1_0_distcp=None)
    broken("corrupt at", __0_0_distcp=bytes(len(data)))
    broken("corrupt or not a distributed checkpoint", _metadata=whole[".metadata"][:-100])
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "evil").encode() + b"'\ntR."
    broken("corrupt or not a distributed checkpoint", _metadata=evil)
    assert not (tmp_path / "evil").exists()
    convert(Conversion(made, tmp_path / "out", "hf", verify=True))


def test_flipped_bit_is_found_by_verify(good: Path, tmp_path: Path) -> None:
    convert(Conversion(good, tmp_path / "b", "hf-custom"))
    file = tmp_path / "b" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    comparison = verify(good, tmp_path / "b")
    assert not comparison.is_equal and list(comparison.different.values()) == ["values differ"]


def test_tools(good: Path, tmp_path: Path) -> None:
    done = run_tool("hf_to_megatron.py", good, tmp_path / "m", "--tp", 2, "--verify")
    assert done.returncode == 0 and "equal bit for bit" in done.stdout, done.stderr
    done = run_tool("megatron_to_hf.py", tmp_path / "m", tmp_path / "h")
    assert done.returncode == 0, done.stderr
    done = run_tool("verify.py", good, tmp_path / "h")
    assert done.returncode == 0 and done.stdout.startswith("equal: "), done.stderr
    edit(tmp_path / "h", language_model__model__norm__weight=torch.zeros(12, dtype=torch.bfloat16))
    done = run_tool("verify.py", good, tmp_path / "h")
    assert done.returncode == 1 and "values differ: language.decoder.final_layernorm.weight" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    done = run_tool("hf_to_megatron.py", good, tmp_path / "x", "--tp", 7)
    assert done.returncode == 2 and "--tp 7 does not divide" in done.stderr and "nearest: " in done.stderr


def test_a_flipped_bit_in_a_checkpoint_s_metadata_is_told_with_its_place(good: Path, tmp_path: Path) -> None:
    """Whatever it hits: a name, a size, a pickle opcode. It may also hit nothing that is read."""
    convert(Conversion(good, tmp_path / "made", "megatron"))
    file = tmp_path / "made" / ".metadata"
    whole, seen = file.read_bytes(), 0
    for position in (75, 159, 8087, *range(0, len(whole), len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[position % len(whole)] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            open_checkpoint(tmp_path / "made")
        except SophiaError as error:
            assert str(tmp_path / "made") in str(error)
            seen += 1
    assert seen > 20


def test_bytes_that_a_filesystem_refuses_at_close_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS writes the last bytes when a file is closed; nothing is synced where no power cut matters."""
    plain = os.close

    def close(descriptor: int) -> None:
        last = os.readlink(f"/proc/self/fd/{descriptor}").endswith("two")
        plain(descriptor)
        if last:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch, pytest.raises(SophiaError, match=r"cannot write .*two: .*quota is used up"):
        patch.setattr(os, "close", close)
        with Files() as files:
            for name in ("one", "two", "three"):
                files.create(tmp_path / name, 4)
    with monkeypatch.context() as patch, pytest.raises(SophiaError, match="the first error"):
        patch.setattr(os, "close", close)
        with Files() as files:
            files.create(tmp_path / "four-two", 4)
            raise SophiaError("the first error")
