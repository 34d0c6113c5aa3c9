"""Training a round: every layout the same, killed and resumed the same to the last bit, and clear when it must stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train import session
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from tests.support import train_world
from tests.support.harness import RankError, run
from tests.support.pictures import smooth

FOUR_RANKS = {"parallel": {"tensor": 2, "pipeline": 2}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return train_world.make_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, policy):
    """One rank, never interrupted."""
    config, folder = train_world.make_run(tmp_path_factory.mktemp("one-rank") / "run", policy)
    assert run(train_world.train, 1, config, folder) == [True]
    return folder


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory, policy):
    """TP2 x PP2, never interrupted."""
    config, folder = train_world.make_run(tmp_path_factory.mktemp("four-ranks") / "run", policy, **FOUR_RANKS)
    assert run(train_world.train, 4, config, folder) == [True] * 4
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, policy):
    """TP2 x PP2, killed when its second checkpoint had just become visible."""
    config, folder = train_world.make_run(tmp_path_factory.mktemp("killed") / "run", policy, **FOUR_RANKS)
    with pytest.raises(RankError):
        run(kill_in_the_second_save, 4, config, folder, "after")
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, policy):
    """TP2 x PP2, stopped by a signal to one rank in its second step."""
    config, folder = train_world.make_run(tmp_path_factory.mktemp("stopped") / "run", policy, **FOUR_RANKS)
    assert run(train_world.train, 4, config, folder, signal_rank_two) == [False] * 4
    return folder


def newest(folder: RunFolder) -> dict[str, torch.Tensor]:
    return train_world.tensors(list_checkpoints(folder.round(0).checkpoints)[0])


def assert_same_bits(folder: RunFolder, other: RunFolder) -> None:
    assert train_world.losses(folder) == train_world.losses(other)
    mine, theirs = newest(folder), newest(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    summaries = [json.loads((f.round(0).train / "summary.json").read_text()) for f in (folder, other)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


def assert_close(folder: RunFolder, other: RunFolder) -> None:
    assert train_world.losses(folder) == pytest.approx(train_world.losses(other), rel=1e-4)
    mine, theirs = (
        {name: value for name, value in newest(f).items() if not name.startswith("optimizer")} for f in (folder, other)
    )
    assert mine.keys() == theirs.keys()
    # By norm, and not tighter: AdamW makes whole steps of gradients that are mere rounding (the key bias has hardly any
    # other). Training moves a matrix by about a tenth of its norm, so a wrong gradient is far outside. Gradients are
    # compared element by element in test_model_layouts.py.
    for name in mine:
        assert (mine[name] - theirs[name]).norm() < 4e-3 * theirs[name].norm().clamp_min(1e-3), name


@pytest.mark.parametrize(
    ("world", "sections"),
    [
        (4, FOUR_RANKS),
        (2, {}),  # data parallel
        (4, {"parallel": {"tensor": 2, "sequence_parallel": True}}),  # and data parallel 2
        (2, {"parallel": {"context": 2}}),
        (2, {"parallel": {"pipeline": 2}, "train": {"distributed_optimizer": False}}),
    ],
    ids=["tp2 pp2", "dp2", "tp2 sp dp2", "cp2", "pp2 plain optimizer"],
)
def test_every_layout_trains_the_same(tmp_path, policy, reference, world, sections):
    config, folder = train_world.make_run(tmp_path / "run", policy, **sections)
    assert run(train_world.train, world, config, folder) == [True] * world
    assert_close(folder, reference)


def test_it_learns_and_says_so(reference):
    summary = json.loads((reference.round(0).train / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["logprob_after"] > summary["logprob_before"]
    assert summary["tokens"] > 0


def test_old_checkpoints_go(reference):
    names = [path.name for path in list_checkpoints(reference.round(0).checkpoints)]
    assert names == ["step-00000006", "step-00000004"]
    assert sorted(os.listdir(reference.round(0).checkpoints)) == sorted(names)


def kill_rank_one_at_step_three(job, step):
    if step == 3 and torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_in_the_second_save(config: Config, folder: RunFolder, when: str) -> None:
    """Die on rank 0 while a checkpoint is written (before it is visible) or just after."""
    from sophia_mcore.train import checkpoint_folder

    plain = checkpoint_folder.commit

    def commit(temporary, step, *others):
        if step == 4 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        plain(temporary, step, *others)
        if (step == 4 and when == "after") or (step == 6 and when == "last"):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_folder.commit = commit
    train_world.train(config, folder)


@pytest.mark.parametrize("when", ["in a step", "before", "after", "last"])
def test_killed_and_started_again_is_as_if_nothing_had_happened(tmp_path, policy, four_ranks, killed, when):
    if when == "after":
        config, folder = train_world.copy_run(killed, tmp_path / "run", policy, **FOUR_RANKS)
    else:
        config, folder = train_world.make_run(tmp_path / "run", policy, **FOUR_RANKS)
        with pytest.raises(RankError):
            if when == "in a step":
                run(train_world.train, 4, config, folder, kill_rank_one_at_step_three)
            else:
                run(kill_in_the_second_save, 4, config, folder, when)
    assert not (folder.round(0).train / "summary.json").exists()
    assert run(train_world.train, 4, config, folder) == [True] * 4
    assert_same_bits(folder, four_ranks)
    assert [p.name for p in folder.round(0).checkpoints.iterdir() if p.name.startswith(".")] == []


def signal_rank_two(job, step):
    if step == 1 and torch.distributed.get_rank() == 2:
        os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_to_one_rank_saves_and_leaves_on_all(tmp_path, policy, four_ranks, stopped):
    config, folder = train_world.copy_run(stopped, tmp_path / "run", policy, **FOUR_RANKS)
    assert json.loads((folder.round(0).train / "stopped.json").read_text())["step"] == 3
    assert list_checkpoints(folder.round(0).checkpoints)[0].name == "step-00000003"
    assert run(train_world.train, 4, config, folder) == [True] * 4
    assert_same_bits(folder, four_ranks)
    assert not (folder.round(0).train / "stopped.json").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_loads_at_another_layout(tmp_path, policy, reference, stopped, world):
    config, folder = train_world.copy_run(stopped, tmp_path / "run", policy)
    assert run(train_world.train, world, config, folder) == [True] * world
    assert_close(folder, reference)


def test_a_torn_checkpoint_is_passed_over(tmp_path, policy, four_ranks, killed, capfd):
    config, folder = train_world.copy_run(killed, tmp_path / "run", policy, **FOUR_RANKS)
    torn = next((folder.round(0).checkpoints / "step-00000004").glob("*.distcp"))
    os.truncate(torn, torn.stat().st_size - 1)
    assert run(train_world.train, 4, config, folder) == [True] * 4
    warning = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warning) == 1 and "step-00000004" in warning[0] and torn.name in warning[0]
    assert_same_bits(folder, four_ranks)


@pytest.mark.parametrize("damaged", [".metadata", "common.pt", "*.distcp", "one bit"])
def test_damaged_bytes_of_the_right_length_are_passed_over(tmp_path, policy, four_ranks, killed, capfd, damaged):
    config, folder = train_world.copy_run(killed, tmp_path / "run", policy, **FOUR_RANKS)
    written = folder.round(0).checkpoints / "step-00000004"
    paths = list(written.glob(damaged))
    if not paths and damaged == "common.pt":
        pytest.skip("this megatron-core writes no common.pt; 0.16 does: `make test` runs it in .venv")
    for path in paths:
        path.write_bytes(b"\0" * path.stat().st_size)
    if damaged == "one bit":
        data = bytearray((written / "__2_0.distcp").read_bytes())
        data[len(data) // 2] ^= 1
        (written / "__2_0.distcp").write_bytes(data)
    assert run(train_world.train, 4, config, folder) == [True] * 4
    assert "trying the one before" in capfd.readouterr().err
    assert_same_bits(folder, four_ranks)


def cannot_load(config: Config, folder: RunFolder) -> None:
    from sophia_mcore.train import checkpoint

    def load(*_, **__):
        raise KeyError("master_param")

    checkpoint.dist_checkpointing.load = load  # a forked rank: nobody else sees
    train_world.train(config, folder)


def test_a_mistake_in_the_program_is_no_broken_checkpoint(tmp_path, policy):
    config, folder = train_world.make_run(tmp_path / "run", policy, train={"steps": 2})
    assert run(train_world.train, 1, config, folder) == [True]
    (folder.round(0).train / "summary.json").unlink()
    with pytest.raises(RankError, match="KeyError: 'master_param'"):
        run(cannot_load, 1, config, folder)


def test_no_intact_checkpoint_is_an_error_not_a_fresh_start(tmp_path, policy):
    config, folder = train_world.make_run(tmp_path / "run", policy, train={"steps": 2})
    with pytest.raises(RankError):
        run(kill_at_the_end, 1, config, folder)
    (folder.round(0).checkpoints / "step-00000002" / "checkpoint.json").write_text("{")
    with pytest.raises(SophiaError, match="no intact checkpoint"):
        run(train_world.train, 1, config, folder)


def kill_at_the_end(config: Config, folder: RunFolder) -> None:
    from sophia_mcore.train import loop

    loop._Log.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train_world.train(config, folder)


def poison_at_step_three(job, step):
    if step == 3:
        next(job.chunks[-1].parameters()).data.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_with_names(tmp_path, policy):
    config, folder = train_world.make_run(tmp_path / "run", policy, **FOUR_RANKS)
    with pytest.raises(SophiaError, match=r"loss of step 4 is not finite .* on rank 2, 3; samples: train-\d+"):
        run(train_world.train, 4, config, folder, poison_at_step_three)
    assert [path.name for path in list_checkpoints(folder.round(0).checkpoints)] == ["step-00000002"]
    assert len(train_world.losses(folder)) == 3


def poison_a_gradient_at_step_three(job, step):
    if step == 3 and torch.distributed.get_rank() == 1:
        parameter = [p for chunk in job.chunks for p in chunk.parameters() if p.requires_grad][-1]
        parameter.register_hook(lambda gradient: gradient * float("nan"))


def test_a_gradient_that_is_not_finite_stops_with_names(tmp_path, policy):
    """The loss is fine; only the backward pass of one rank is not."""
    config, folder = train_world.make_run(tmp_path / "run", policy, parallel={"pipeline": 2})
    with pytest.raises(SophiaError, match=r"gradient of step 4 is not finite .* on rank 1; samples: train-\d+"):
        run(train_world.train, 2, config, folder, poison_a_gradient_at_step_three)
    assert [path.name for path in list_checkpoints(folder.round(0).checkpoints)] == ["step-00000002"]
    assert len(train_world.losses(folder)) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_both_signals_only_ask(number):
    before = signal.getsignal(number)
    with session.stop_signals() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_asynchronous_saves_are_the_same_and_survive_kills(tmp_path, policy, four_ranks, when):
    sections = {**FOUR_RANKS, "train": {"save_asynchronously": True}}
    config, folder = train_world.make_run(tmp_path / "run", policy, **sections)
    with pytest.raises(RankError):
        run(kill_in_the_second_save, 4, config, folder, when)
    found = [path.name for path in list_checkpoints(folder.round(0).checkpoints)]
    assert found == {"before": ["step-00000002"], "after": ["step-00000004", "step-00000002"]}[when]
    assert run(train_world.train, 4, config, folder) == [True] * 4
    assert_same_bits(folder, four_ranks)


def fail_to_write(config: Config, folder: RunFolder) -> None:
    """Rank 1 cannot write its second checkpoint."""
    from torch.distributed.checkpoint import FileSystemWriter

    plain = FileSystemWriter.write_data

    def write_data(self, plan, planner):
        if torch.distributed.get_rank() == 1 and "00004" in str(self.path):
            raise OSError(28, "No space left on device")
        return plain(self, plan, planner)

    FileSystemWriter.write_data = write_data
    train_world.train(config, folder)


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path, policy, asynchronously):
    sections = {**FOUR_RANKS, "train": {"save_asynchronously": asynchronously}}
    config, folder = train_world.make_run(tmp_path / "run", policy, **sections)
    with pytest.raises(SophiaError, match=r"step-00000004: checkpoint not written: .*No space left"):
        run(fail_to_write, 4, config, folder)
    assert [path.name for path in folder.round(0).checkpoints.iterdir()] == ["step-00000002"]  # nothing half-written


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"distributed_optimizer": False}], ids=str)
def test_other_optimizers_resume_to_the_same_bits(tmp_path, policy, settings):
    folders = []
    for name, hook in (("whole", None), ("stopped", signal_rank_two)):
        sections = {**FOUR_RANKS, "train": settings}
        config, folder = train_world.make_run(tmp_path / name, policy, **sections)
        run(train_world.train, 4, config, folder, hook)
        folders.append(folder)
    run(train_world.train, 4, config, folder)
    assert_same_bits(*folders)


def test_question_answer_pairs_instead_of_the_kept_set(tmp_path, policy):
    pairs = [{"id": str(i), "question": f"{i}+1?", "response": f"{i + 1}", "images": ["a.png"]} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "a.png").write_bytes(smooth(40, 40, 1))
    config, folder = train_world.make_run(
        tmp_path / "run", policy, train={"data": tmp_path / "pairs.jsonl", "train_vision_tower": True}
    )
    folder.round(0).kept_file.unlink()
    assert run(train_world.train, 2, config, folder) == [True, True]
    assert train_world.losses(folder)[-1] < train_world.losses(folder)[0]


@pytest.mark.parametrize("hook", [None, signal_rank_two], ids=["whole", "stopped"])
def test_reference_behaviour_is_the_policy_before_training(tmp_path, policy, hook):
    objective = {"loss": {"name": "grpo"}, "behaviour": "reference", "trajectories": "kept", "advantage": "reward"}
    config, folder = train_world.make_run(tmp_path / "run", policy, **FOUR_RANKS, objective=objective)
    if not all(run(train_world.train, 4, config, folder, hook)):
        assert all(run(train_world.train, 4, config, folder))
    lines = [line for line in read_metrics(folder.round(0).train / "metrics.jsonl") if "loss" in line]
    assert lines[0]["ratio_p50"] == pytest.approx(1.0, abs=0.01)  # nothing learned yet
    assert lines[0]["loss"] == pytest.approx(-1.0, abs=1e-5)  # -ratio x weight
    assert lines[-1]["ratio_p50"] > 1.02  # what is right has become likelier
    assert lines[-1]["loss"] < -1.01


def test_nothing_to_train_on_is_one_line(tmp_path, policy):
    config, folder = train_world.make_run(tmp_path / "run", policy)
    folder.round(0).kept_file.unlink()
    with pytest.raises(SophiaError, match=r"kept.parquet: no such file; run 'sophia score' first"):
        run(train_world.train, 1, config, folder)


def test_train_world_makes_a_policy(policy):
    assert Path(policy, "model.safetensors").is_file()
