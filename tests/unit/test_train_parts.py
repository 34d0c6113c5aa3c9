"""Learning rate, checkpoint folders, the optimizer and the worker's frame, each alone."""

import json
import os
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from xxhash import xxh3_128

from sophia_mcore.config.schema import Train
from sophia_mcore.errors import SophiaError
from sophia_mcore.train import checkpoint_folder as folders
from sophia_mcore.train import optim, worker

LAYOUT = {"tensor": 1, "pipeline": 1, "virtual_pipeline": 1, "context": 1, "data": 1}


def write_checkpoint(folder, step, keep=2):
    temporary = folders.begin(folder, step)
    (temporary / "data.distcp").write_bytes(b"x" * 100)
    return folders.commit(temporary, step, LAYOUT, keep, folders.digests(temporary, 0, 1))


def test_a_checkpoint_is_invisible_until_committed(tmp_path):
    temporary = folders.begin(tmp_path, 3)
    (temporary / "data").write_bytes(b"1")
    assert folders.list_checkpoints(tmp_path) == []
    final = folders.commit(temporary, 3, LAYOUT, 2, {})
    assert folders.list_checkpoints(tmp_path) == [final]
    assert final.name == "step-00000003"
    assert folders.read_manifest(final).step == 3


def test_old_checkpoints_are_pruned_by_count_not_by_name_length(tmp_path):
    for step in (5, 99_999_999, 100_000_000, 7):
        write_checkpoint(tmp_path, step, keep=3)
    assert [path.name for path in folders.list_checkpoints(tmp_path)] == [
        "step-100000000",
        "step-99999999",
        "step-00000007",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "data.distcp").write_bytes(b"x" * 99), "data.distcp has 99 bytes, not 100"),
        (lambda path: (path / "data.distcp").unlink(), "data.distcp: No such file"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "checkpoint.json"),
        (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json"),
        (
            lambda path: (path / "checkpoint.json").write_text('{"step": 3, "layout": {}, "files": {}, "format": 9}'),
            "9",
        ),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, damage, message):
    older, newer = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    damage(newer)
    with pytest.raises(SophiaError, match=message):
        folders.read_manifest(newer)
    assert folders.newest_checkpoint(tmp_path) == older
    damage(older)
    with pytest.raises(SophiaError, match=message):
        folders.newest_checkpoint(tmp_path)


def test_every_file_is_hashed_by_one_rank(tmp_path):
    for name in ("__0_0.distcp", "__1_0.distcp", "__5_0.distcp", "common.pt", ".metadata", "checkpoint.json"):
        (tmp_path / name).write_bytes(name.encode())
    parts = [folders.digests(tmp_path, rank, 2) for rank in (0, 1)]
    assert [sorted(part) for part in parts] == [
        [".metadata", "__0_0.distcp", "common.pt"],
        ["__1_0.distcp", "__5_0.distcp"],
    ]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_changed_byte_is_found_with_either_digest(tmp_path, earlier):
    """Checkpoints of earlier versions have sha256 digests, which are still compared."""
    path = write_checkpoint(tmp_path, 2)
    manifest = json.loads((path / "checkpoint.json").read_text())
    assert manifest["digests"]["data.distcp"] == xxh3_128((path / "data.distcp").read_bytes()).hexdigest()
    if earlier:
        del manifest["digests"]
        manifest["sha256"] = {"data.distcp": sha256((path / "data.distcp").read_bytes()).hexdigest()}
        (path / "checkpoint.json").write_text(json.dumps(manifest))
    assert folders.changed_file(path, folders.read_manifest(path), 0, 1) is None
    data = bytearray((path / "data.distcp").read_bytes())
    data[50] ^= 1
    (path / "data.distcp").write_bytes(data)
    problem = folders.changed_file(path, folders.read_manifest(path), 0, 1)
    assert problem is not None and "data.distcp: its bytes have changed" in problem


def test_no_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(SophiaError, match="no checkpoint"):
        folders.newest_checkpoint(tmp_path / "none")


def test_leftovers_of_a_killed_writer_are_cleaned(tmp_path):
    kept = write_checkpoint(tmp_path, 2)
    folders.begin(tmp_path, 4)
    kept.with_name(".old-step-00000001").mkdir()
    folders.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 2)
    (tmp_path / "step-00000002" / "checkpoint.json").write_text("{")
    assert folders.read_manifest(write_checkpoint(tmp_path, 2)).step == 2


def test_learning_rate():
    train = Train(learning_rate=1.0, final_learning_rate_fraction=0.25, warmup_steps=4)
    rates = [optim.learning_rate(step, 104, train) for step in range(104)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.25)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert (rates[53] + rates[54]) / 2 == pytest.approx(0.625)  # half way down the cosine
    assert optim.learning_rate(0, 1, Train(learning_rate=1.0)) == 1.0


def test_adam_is_torchs_adamw_with_fused_adams_interface():
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(4)]
    ours = [t.clone().requires_grad_() for t in start]
    theirs = [t.clone().requires_grad_() for t in start]
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    adam = optim.Adam([{"params": ours[:1]}, {"params": ours[1:], "weight_decay": 0.0}, {"params": []}], **settings)
    adamw = torch.optim.AdamW([{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.0}], **settings)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        adam.step()
        adamw.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-7)
        assert set(adam.state[mine]) == {"exp_avg", "exp_avg_sq"}
    assert [group.get("step") for group in adam.param_groups] == [4, 4, None]
    with pytest.raises(ValueError, match="AdamW"):
        optim.Adam(ours, adam_w_mode=False)
    with pytest.raises(ValueError, match="no capture"):
        optim.Adam(ours, capturable=True)


def run_config(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        '[run]\nname = "t"\nfolder = "unused"\n[models]\npolicy = "p"\nreasoner = "r"\n'
        '[[data.questions]]\nkind = "jsonl"\npath = "q"\n'
    )
    return config


def test_a_finished_training_returns_at_once_without_torch(tmp_path):
    config = run_config(tmp_path)
    (tmp_path / "round-1" / "train").mkdir(parents=True)
    (tmp_path / "round-1" / "train" / "summary.json").write_text(json.dumps({"steps": 3}))
    code = (
        "import sys; from sophia_mcore.train import worker; "
        f"code = worker.main([{str(config)!r}, '--round', '1']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_bad_configuration_is_one_line_and_exit_code_two(tmp_path, capsys):
    config = run_config(tmp_path)
    config.write_text(config.read_text() + "[train]\nlearning_rat = 1\n")
    assert worker.main([str(config)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "learning_rate" in lines[0]


def test_progress_finds_the_pipe_in_torchrun(tmp_path):
    """torchrun closes inherited pipes in its ranks and their numbers are used again; its own are in /proc."""
    read_end, write_end = os.pipe()
    code = (
        "import os, sys; os.dup2(os.open(os.devnull, os.O_RDONLY), int(sys.argv[1])); "
        "from sophia_mcore.train.worker import open_progress; "
        "p = open_progress(int(sys.argv[1])); p.start('train', 3); p.note('x')"
    )
    arguments = [sys.executable, "-c", code, str(write_end)]
    torchrun = {**os.environ, "TORCHELASTIC_RUN_ID": "x"}
    subprocess.run(arguments, timeout=60, check=True, env=torchrun)  # close_fds, as torchrun does
    os.close(write_end)
    with os.fdopen(read_end) as events:
        assert [json.loads(line)["event"] for line in events] == ["start", "note"]
