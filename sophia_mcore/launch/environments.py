"""Runs a phase on this machine in its Python environment, and checks models and layout before.

vLLM and Megatron are installed in different environments, so each phase that needs one of them is a process of its own.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.process import run_worker
from sophia_mcore.phase import Phase
from sophia_mcore.progress import Progress, relay
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import FAILED, SUMMARY, Round

SAVE_SECONDS = 600  # time that ranks have to save and leave when they are asked to stop
_NVIDIA = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")  # a machine with a driver has one of them


def asks_an_endpoint_only(config: Config) -> bool:
    """Whether the run only evaluates what an endpoint serves: no model folder is read, and none need be here."""
    return config.evaluate.only and config.evaluate.engine.kind == "openai"


def preflight(round: Round) -> None:
    """Check before any work that the model folders can be loaded and that the layout fits the policy.

    Raises the SophiaError or UsageError with which a later phase would fail.
    """
    from sophia_mcore.launch.inputs import check_engine_layouts
    from sophia_mcore.parallel.layout import check_run_layout
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.spec import ModelSpec, require_image_token

    config = round.config
    if asks_an_endpoint_only(config):
        return
    check_model_dir(round.policy)
    if config.evaluate.only:
        check_engine_layouts(config, round.policy)
        return  # whatever the engine can load: it is not trained here
    if config.models.reasoner is not None:
        check_model_dir(config.models.reasoner)
    spec = ModelSpec.from_model_dir(round.policy)
    require_image_token(round.policy, spec)
    check_engine_layouts(config, round.policy)
    check_run_layout(spec, config)


def run_here(phase: Phase, round: Round, progress: Progress) -> None:
    """Run a phase on this machine: in this process, in a worker, or on ranks under torchrun. Raises SophiaError."""
    name = f"{phase.name}-round-{round.index}"
    arguments = [str(round.run.config_file), "--round", str(round.index)]
    if phase.ranks is not None:
        if phase.inputs is not None:
            phase.inputs(round)  # checked here because ranks take long to start
        run_ranks(round, progress, name, phase.ranks.module, arguments)
        folder = phase.ranks.folder(round)
        if not (folder / SUMMARY).is_file():
            raise SophiaError(
                json_or_empty(folder / FAILED).get("error") or f"{folder}: {phase.name} wrote no {SUMMARY}"
            )
    elif phase.environment == "here":
        assert phase.work is not None, f"phase {phase.name}: neither work nor ranks"
        phase.work(round, progress)
    else:
        environments = round.config.environments
        python = environments.trainer if phase.environment == "trainer" else environments.rollout
        run_worker(
            [interpreter(python), "-m", "sophia_mcore.launch.worker", phase.name, *arguments],
            log_file=round.run.logs / f"{name}.log",
            environment={},
            follow=partial(relay, progress),
        )


def run_ranks(round: Round, progress: Progress, name: str, module: str, arguments: list[str]) -> None:
    """Run a module on every rank with torchrun on this machine; it logs to logs/NAME.log. Raises SophiaError."""
    config = round.config
    _require_driver_for_fp8(config)
    threads = config.train.threads_per_process
    run_worker(
        [
            interpreter(config.environments.trainer),
            *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.parallel.world_size}"),
            *(f"--shutdown-timeout={SAVE_SECONDS}", "-m", module, *arguments),
        ],
        log_file=round.run.logs / f"{name}.log",
        environment={"OMP_NUM_THREADS": str(threads)} if threads else {},
        follow=partial(relay, progress),
        patience_seconds=SAVE_SECONDS + 10,
    )


def _require_driver_for_fp8(config: Config) -> None:
    """Raise an error before the ranks start, because that takes long. The ranks check the device itself."""
    from sophia_mcore.parallel.layout import fp8_refusal

    if config.fp8.native and not has_nvidia_driver():
        raise fp8_refusal(config.fp8.recipe, "a CUDA device")


def has_nvidia_driver() -> bool:
    """Whether this machine can have a CUDA device, found without importing torch."""
    return any(Path(sign).exists() for sign in _NVIDIA)


def interpreter(path: Path | None) -> str:
    """Path of an environment's Python; None: the running Python. Raises SophiaError if the file is missing."""
    if path is None:
        return sys.executable
    if not path.is_file():
        raise SophiaError(f"{path}: no such interpreter ('make env' makes it; [environments] in the config names it)")
    return str(path.absolute())


def rollout_python() -> Path | None:
    """Python of the rollout environment: .venv-vllm beside the running environment or in the working directory."""
    for folder in (Path(sys.prefix).parent, Path.cwd()):
        python = folder / ".venv-vllm" / "bin" / "python"
        if python.is_file():
            return python.absolute()
    return None
