"""Every setting of the schema has a home: a part of a phase that is done again when it changes, or the list of those
that change no result. A new key without a home fails here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from sophia_mcore.config.losses import LOSSES
from sophia_mcore.config.schema import Config
from sophia_mcore.launch.phases import PHASES, phase_named
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.settings import CHANGE_NO_RESULT, covers, differing, flat
from sophia_mcore.store.layout import RunFolder
from tests.support.configs import make_config
from tests.support.provenance_world import make_whole_run, record_all, with_values

ENGINES = ({"kind": "vllm"}, {"kind": "openai", "model_name": "m"}, {"kind": "transformers"})
PROTOCOLS = [{"name": "paper", "sampling": {}}]
SOURCE = {"kind": "jsonl", "path": "questions.jsonl", "columns": {}}
MIXTURE = {"path": "m.jsonl", "name": "m", "share": 0.1}
NAMED = ("data.questions", "evaluate.questions", "evaluate.protocols", "batch.mixtures", "rewards")  # lists of sections


def variants(folder: Path) -> list[Config]:
    """Configurations that together have every key of the schema."""
    losses: list[dict[str, Any]] = [{"name": name} for name in LOSSES]
    losses.append({"name": "mine.py:margin", "options": {"tau": 1.0}})
    found = []
    for number, loss in enumerate(losses):
        engine = ENGINES[number % len(ENGINES)]
        found.append(
            make_config(
                folder,
                data={"questions": [SOURCE]},
                captions={"engine": engine},
                reasoning={"engine": engine},
                score={"judge": {"model_name": "m"}},
                evaluate={"engine": engine, "questions": [SOURCE], "protocols": PROTOCOLS},
                batch={"mixtures": [MIXTURE]},
                fp8={"recipe": "tensorwise"},
                objective={"loss": loss, "fresh_share": 0.25},
                rewards=({"function": "format", "only": {}},),
                helpers={"NAME": {"model": "m", "engine": engine}},
            )
        )
    return found


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Keys of the schema; the fields of a list of sections are no keys of their own."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        models = list(models_of(field.annotation))
        below = f"{prefix}{name}.NAME." if getattr(field.annotation, "__origin__", None) is dict else f"{prefix}{name}."
        found |= {key for one in models for key in keys_of(one, below)} or {f"{prefix}{name}"}
    return found


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif getattr(annotation, "__origin__", None) is not tuple:
        for argument in get_args(annotation):
            yield from models_of(argument)


def changes(config: Config) -> Iterator[tuple[str, str, Any]]:
    """(key of the schema, path to a value, another value) for every value of ``config``."""
    for key, value in flat(config).items():
        if key in NAMED:
            for name, inner in flat(read(config, f"{key}.0")).items():
                yield key, f"{key}.0.{name}", another(inner)
        else:
            yield key, key, another(value)


def read(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config[int(part)] if isinstance(config, tuple) else getattr(config, part)
    return config


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, Path):
        return value.with_name("other")
    return (*value, "other") if isinstance(value, tuple) else f"{value}_other"


def schema_key(key: str) -> str:
    return "objective.loss.options" if key.startswith("objective.loss.options.") else key


def test_the_variants_have_every_key(tmp_path: Path) -> None:
    found = {schema_key(key) for config in variants(tmp_path) for key in flat(config)}
    missing = {key for key in keys_of(Config) - found if not key.startswith("rl.")}  # the stage compares its own
    assert missing == set()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_change_is_found_or_changes_no_result(tmp_path: Path) -> None:
    seen: set[str] = set()
    run = None
    for config in variants(tmp_path / "run"):
        if run is None:
            run, _ = make_whole_run(tmp_path / "run", config)
        for recorded in (run.path / "records").rglob("*.json"):
            recorded.unlink()
        record_all(config, run)
        assert Provenance(config, run, PHASES).changed() == {}
        for key, path, value in changes(config):
            if path == "rl" or (path in seen and "loss" not in path):  # "rl": no text stands for a whole section
                continue
            seen.add(path)
            check(config, run, key, path, value)
    assert len(seen) > 150


def check(config: Config, run: RunFolder, key: str, path: str, value: Any) -> None:
    found = Provenance(with_values(config, {path: value}), run, PHASES)
    changed = {name for changes in found.changed().values() for name in changes}
    if path in ("evaluate.protocols.0.name", "run.folder"):  # other results, and nothing against those that are there
        return
    if covers(CHANGE_NO_RESULT, key):
        assert not changed, f"{path} is in CHANGE_NO_RESULT, and yet in the settings of a phase"
    else:
        assert changed, f"{path} has no home: name it in a part of launch/parts.py, or in CHANGE_NO_RESULT"
        assert any(name.startswith(key) for name in changed), (path, changed)
    for phase in found.changed():
        if phase == "captions" and key.startswith("score."):
            continue  # of the policy's own answers only; MLflow shows it with the score phase
        assert phase_named(phase).depends_on(key), f"{key}: missing in the settings of {phase} in launch/phases.py"


@pytest.mark.parametrize("name", CHANGE_NO_RESULT)
def test_what_changes_no_result_is_in_the_schema(name: str) -> None:
    assert any(covers((name,), key) for key in keys_of(Config)), name


def test_of_a_list_the_values_that_differ_are_named() -> None:
    source = {"kind": "jsonl", "path": "a-long-path/of/questions/that/fills/the/line.jsonl", "limit": 500, "split": "x"}
    other = [source | {"limit": 40}]
    assert differing({"q": [source]}, {"q": other}) == {"q": "0.limit 500 -> 40"}
    assert differing({"q": [source]}, {"q": [*other, source]})["q"].endswith("...")  # another number of sources
    everything = [dict.fromkeys(source, 1)]
    assert differing({"q": [source]}, {"q": everything})["q"].endswith("0.limit 500 -> 1 and 1 more")
