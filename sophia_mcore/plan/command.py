"""`sophia plan`: read the configuration and the models' sizes, rank the layouts, print, write the overlay."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from sophia_mcore.config.load import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.plan.calibrate import calibrated
from sophia_mcore.plan.hardware import Device, load_gpu
from sophia_mcore.plan.layouts import Option, Ranking, Refusal, own_option, rank_layouts
from sophia_mcore.plan.pictures import limits_of, pictures_of_data
from sophia_mcore.plan.round import Phase, round_phases
from sophia_mcore.plan.stage import StagePlan, stage_plan
from sophia_mcore.plan.workload import Assumptions, Workload, workload
from sophia_mcore.pretrained.families import check_processor, image_limits
from sophia_mcore.pretrained.hub import local_folder
from sophia_mcore.pretrained.released import spec_of
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.store.atomic import write_text

_MARK = "# Layout chosen by `sophia plan`"  # first line of an overlay; only files that have it are replaced
_OVERLAY_KEYS = (
    "tensor", "pipeline", "virtual_pipeline", "context", "sequence_parallel", "processes", "processes_per_node",
    "layers_on_first_stage", "layers_on_last_stage",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of `sophia plan`."""

    config: Config
    spec: ModelSpec
    reasoner: ModelSpec | None
    device: Device
    gpus: int
    work: Workload
    ranking: Ranking
    phases: list[Phase]
    own: Option | Refusal  # the layout that the configuration has
    stage: StagePlan | str | None  # of [rl], where the configuration has it; a text: why it is not planned
    calibration: str  # what the rates were fitted to; "": the table's

    @property
    def best(self) -> Option:
        return self.ranking.options[0]


def make_plan(
    config: Config, gpu: str, gpus: int, given: Assumptions, fp8: bool = False, measured: Path | None = None
) -> Plan:
    """Plan a round of `config` on `gpus` GPUs, with the rates of `measured` (see `calibrate`) where it is given.

    Raises:
        UsageError: an impossible number, an unknown GPU, no config.json of the policy, an unusable `measured`.
        SophiaError: no layout fits.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus}: at least 1")
    device = load_gpu(gpu)
    if gpus > device.per_node and gpus % device.per_node:
        fewer = gpus // device.per_node * device.per_node
        raise UsageError(f"--gpus {gpus}: nodes have {device.per_node}; nearest: {fewer} or {fewer + device.per_node}")
    folder = _folder(config.models.policy)
    spec = spec_of(folder)
    if spec is None:
        raise UsageError(
            f"{config.models.policy}: no config.json; a plan needs only that file of the model, no weights"
        )
    check_processor(folder, image_limits(config.batch))
    given = replace(given, pictures=pictures_of_data(config, folder), limits=limits_of(config, folder))
    calibration = ""
    if measured is not None:
        recipe = config.fp8.recipe if config.fp8.used or not fp8 else "tensorwise"
        device, calibration = calibrated(device, spec, measured, recipe)
    reasoner = _reasoner(config)
    work = workload(config, spec, given)
    ranking = rank_layouts(config, spec, work, device, gpus, fp8)
    phases = round_phases(config, spec, reasoner, work, ranking.options[0], device, gpus)
    return Plan(
        config=config, spec=spec, reasoner=reasoner, device=device, gpus=gpus, work=work, ranking=ranking,
        phases=phases, own=own_option(config, spec, work, device, gpus), calibration=calibration,
        stage=_stage(config, spec, device, gpus, given),
    )  # fmt: skip


def _stage(config: Config, spec: ModelSpec, device: Device, gpus: int, given: Assumptions) -> StagePlan | str | None:
    if config.rl is None:
        return None
    try:
        return stage_plan(config, spec, device, gpus, given)
    except SophiaError as error:  # the round is planned all the same
        return str(error)


def _reasoner(config: Config) -> ModelSpec | None:
    """The reasoner's sizes; None where it is an endpoint or of a family that only the engine knows."""
    folder = config.models.reasoner
    if folder is None or config.reasoning.engine.kind != "vllm":
        return None
    try:
        return spec_of(_folder(folder))
    except UsageError:
        return None


def _folder(path: Path) -> Path:
    """The folder of a model in the hub's cache, if it is there; else the setting as it is."""
    try:
        return local_folder(path)
    except (SophiaError, ModuleNotFoundError):
        return path


def overlay(option: Option) -> str:
    """TOML with the layout, to be given as `--overlay`."""
    values = option.setting.parallel.model_dump(exclude_none=True)
    train = option.setting.train
    tree = {
        "parallel": {key: values[key] for key in _OVERLAY_KEYS if key in values},
        "train": {
            "recompute": train.recompute,
            "distributed_optimizer": train.distributed_optimizer,
        },
        "fp8": {"recipe": option.setting.fp8.recipe},
    }
    return f"{_MARK}\n{tomli_w.dumps(tree)}"


def write_overlay(path: Path, option: Option, config_file: Path, overlays: Sequence[Path], sets: Sequence[str]) -> str:
    """Write the overlay atomically and return the command that runs with it.

    It must give the layout when it is laid over the configuration.

    Raises:
        UsageError: `path` is refused (see `check_target`), or the configuration sets a key of [parallel] that
            the layout has not, which no overlay can unset. Nothing is written then.
    """
    check_target(path, (config_file, *overlays))
    before = load_config(config_file, overlays, sets).parallel
    wanted = option.setting.parallel
    stuck = [key for key in _OVERLAY_KEYS if getattr(wanted, key) is None and getattr(before, key) not in (None, False)]
    if stuck:
        raise UsageError(f"{config_file}: remove parallel.{stuck[0]}, which the best layout does not have; run again")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "layout.toml"
        trial.write_text(overlay(option))
        load_config(config_file, [*overlays, trial], sets)
    write_text(path, overlay(option))
    words = ["sophia", "run", str(config_file)]
    words += [word for file in (*overlays, path) for word in ("--overlay", str(file))]
    words += [word for one in sets for word in ("--set", one)]
    return shlex.join(words)


def check_target(path: Path, used: Sequence[Path]) -> None:
    """Raise UsageError unless `path` is a new file in an existing folder, or an earlier overlay of `sophia plan`.

    The configuration and the overlays in use are refused in any case.
    """
    if not path.parent.is_dir():
        raise UsageError(f"--write {path}: no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--write {path}: is a folder; name a file, such as {path / 'layout.toml'}")
    if path.exists() and not path.is_file():
        raise UsageError(f"--write {path}: not a regular file; name another")
    if any(path.exists() and file.exists() and path.samefile(file) for file in used):
        raise UsageError(f"--write {path}: is in use as the configuration or an overlay; name another file")
    if path.exists() and not _is_overlay(path):
        raise UsageError(f"--write {path}: exists and was not written by `sophia plan`; name another file or remove it")


def _is_overlay(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.readline(200).strip() == _MARK.encode()
    except OSError:
        return False
