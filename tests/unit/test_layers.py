"""The layers of AGENTS.md hold: imports go down only, the two L2 halves never meet, no cycle, sizes stay small."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sophia_mcore"

LAYERS = {
    "__version__": 0, "errors": 0, "records": 0, "config": 0, "progress": 0, "endpoint": 0,
    "death_signal": 0, "provenance": 2,
    "store": 1, "data": 1, "pretrained": 1, "verify": 1, "score": 1, "batch": 1, "phase": 1, "rl": 1, "environments": 1,
    "benchmarks": 1,
    "objective.losses": 1, "objective.reduce": 1, "objective": 1,
    "generate": 2, "model": 2, "parallel": 2, "weights": 2, "objective.logprob": 2,
    "train": 3, "evaluate": 3, "track": 3, "plan": 3,
    "launch": 4, "doctor": 4, "report": 4,
    "cli": 4,
}  # fmt: skip
LIGHT = {
    "launch",
    "doctor",
    "cli",
    "report",
    "track",
    "plan",
    "provenance",
}  # above layer 1, yet without torch at import
ROLLOUT_HALF = {"generate"}
MEGATRON_HALF = {"model", "parallel", "weights", "objective.logprob"}


def unit_of(module: str) -> str:
    """The entry of LAYERS that ``module`` (without the package's name) belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LAYERS else parts[0]


def guarded_nodes(tree: ast.AST) -> set[int]:
    """What stands under `if TYPE_CHECKING`."""
    return {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }


@functools.cache  # three tests ask for them; parsed files would take too much memory to keep
def imports_of(path: Path) -> list[tuple[str, int]]:
    """Modules of the package that the file imports, anywhere in it except under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    guarded = guarded_nodes(tree)
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sophia_mcore"):
            base = node.module.removeprefix("sophia_mcore").lstrip(".")
            found += [(base or alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                (a.name.removeprefix("sophia_mcore."), node.lineno)
                for a in node.names
                if a.name.startswith("sophia_mcore.")
            ]
    return found


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def name_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


def test_imports_go_down_only() -> None:
    wrong = []
    for path in modules():
        own = unit_of(name_of(path))
        for target, line in imports_of(path):
            other = unit_of(target)
            assert other in LAYERS, f"{path}:{line}: {target} has no layer"
            if LAYERS[other] > LAYERS[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {other}, which lies above it")
    assert not wrong, "\n".join(wrong)


def test_the_verifier_is_useful_alone() -> None:
    """verify/ knows no configuration, store, progress or phase: only the shared types and errors."""
    allowed = {"verify", "records", "errors"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: verify imports {target}"
        for path in modules()
        if unit_of(name_of(path)) == "verify"
        for target, line in imports_of(path)
        if unit_of(target) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_rollout_and_megatron_halves_never_meet() -> None:
    wrong = []
    for path in modules():
        own = unit_of(name_of(path))
        for target, line in imports_of(path):
            other = unit_of(target)
            if (own in ROLLOUT_HALF and other in MEGATRON_HALF) or (own in MEGATRON_HALF and other in ROLLOUT_HALF):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_cycle_between_folders() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        own = unit_of(name_of(path))
        edges[own] |= {unit_of(target) for target, _ in imports_of(path)} - {own}

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail, node))
        for target in edges[node]:
            visit(target, (*trail, node))

    for node in list(edges):
        visit(node, ())


# Imports under `if TYPE_CHECKING` that lead back, each with its reason.
FOR_TYPES = {
    # the way of working with a lag is given the whole loop
    ("sophia_mcore.generate.rollout_stream", "sophia_mcore.generate.rollout_loop"),
}


def test_no_cycle_between_modules() -> None:
    """At the top of a module or inside of a function: a module needs nothing that needs it."""
    edges, typed = module_edges(typing=False), module_edges(typing=True)
    assert not [" -> ".join(cycle) for cycle in cycles(edges)]
    for name, target in FOR_TYPES:
        assert target in typed[name] - edges[name], f"{name} no longer imports {target} for its types: take it out"
        typed[name].discard(target)
    assert not [" -> ".join(cycle) for cycle in cycles(typed)]


def module_edges(*, typing: bool) -> dict[str, set[str]]:
    """For each module those that it imports; with ``typing`` also under `if TYPE_CHECKING`."""
    known = {f"sophia_mcore.{name_of(path)}": path for path in modules()}
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text())
        left_out = set() if typing else guarded_nodes(tree)
        found: set[str] = set()
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in known else node.module for one in full.values()}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        edges[name] = found & known.keys() - {name}
    return edges


def cycles(edges: dict[str, set[str]]) -> Iterator[tuple[str, ...]]:
    """A cycle for each module that a walk from it comes back to, as the modules on the way."""
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if node in trail:
            yield (*trail[trail.index(node) :], node)
        elif node not in done:
            for target in sorted(edges[node]):
                yield from visit(target, (*trail, node))
            done.add(node)

    for node in edges:
        yield from visit(node, ())


@pytest.mark.parametrize("folder", ["sophia_mcore", "checkpoints_tools", "examples", "tests", "tools"])
def test_files_and_functions_stay_small(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > 400:
            wrong.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 75:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert not wrong, "\n".join(wrong)


def test_heavy_modules_are_not_imported_by_light_ones() -> None:
    """Commands such as --help and check start without torch, vLLM, Megatron, datasets or transformers."""
    heavy = {"torch", "vllm", "megatron", "transformers", "datasets", "mlflow"}
    wrong = []
    for path in modules():
        if LAYERS[unit_of(name_of(path))] > 1 and unit_of(name_of(path)) not in LIGHT:
            continue
        for node in ast.parse(path.read_text()).body:
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            )  # fmt: skip
            wrong += [f"{path.relative_to(ROOT)}: {n}" for n in names if n.split(".")[0] in heavy]
    allowed = {"objective", "batch/collate.py"}
    wrong = [w for w in wrong if not any(f"sophia_mcore/{a}" in w for a in allowed)]
    assert not wrong, "\n".join(wrong)


def test_tests_are_packages_and_nobody_changes_the_import_path() -> None:
    """A module has one full name from every checkout folder; `pythonpath` in pyproject.toml is the only addition."""
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert not [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").exists()]
    wrong = []
    for folder in ("sophia_mcore", "checkpoints_tools", "examples", "tests", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, f"sys.path in {wrong}"
