"""The settings that a result depends on, as values that can be stored and compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sophia_mcore.errors import SophiaError, listed
from sophia_mcore.store.content import Contents, Tables

Values = dict[str, Any]  # key of a setting -> JSON; a file or folder is {"path": ..., "content": digest or None}
_INNER = 3  # changed values of a list or table that one line names
TABLES = "tables of"  # begins the names of values that records of older versions lack

_ENGINE = (
    "kind", "tensor_parallel", "max_sequences", "max_images_per_prompt", "gpu_memory_fraction", "kv_cache_mib",
    "enforce_eager", "threads", "across_units",
    "base_url", "api_key_variable", "timeout_seconds", "max_retries", "concurrency",
)  # fmt: skip
# Keys and sections that change where, how fast or how carefully work is done, or what is shown of it, but no result.
# The user may change them at any time. Every other key must be among the settings of a part of a phase. A "*" stands
# for a name that the user has chosen.
CHANGE_NO_RESULT = (
    "run.name", "run.folder", "run.rounds", "environments", "track", "cluster", "parallel", "export",
    "data.max_bad_rows", "data.made_by",
    *(f"{phase}.engine.{key}" for phase in ("captions", "reasoning", "evaluate", "helpers.*") for key in _ENGINE),
    "score.workers", "score.max_broken_share", "score.second_opinions",
    *(
        f"score.judge.{key}"
        for key in ("base_url", "api_key_variable", "timeout_seconds", "max_retries", "concurrency", "cache_folder")
    ),
    "objective.chunk_tokens", "objective.log_entropy",
    "train.distributed_optimizer", "train.recompute", "train.save_every_steps",
    "train.keep_checkpoints", "train.save_asynchronously", "train.measure_samples", "train.term_gradients_every_steps",
    "train.warn_rollout_gap", "train.threads_per_process", "train.distributed_timeout_seconds",
    "evaluate.evaluate_base", "evaluate.only", "fp8.check.skip",
    "functions",  # limits of processes
    "rl",  # changes no result of a round; launch.rl compares the settings of the on-policy stage
    "stages",  # each has a folder with its own settings
)  # fmt: skip


def covers(prefixes: Sequence[str], key: str) -> bool:
    """Whether ``key`` is one of ``prefixes``, or lies in a section that is one of them; "*" stands for any one name.

    >>> covers(("train", "helpers.*.engine"), "helpers.judge.engine.threads"), covers(("train",), "training")
    (True, False)
    """
    return any(key == prefix or key.startswith(f"{prefix}.") or _fits(prefix, key) for prefix in prefixes)


def _fits(pattern: str, key: str) -> bool:
    if "*" not in pattern:
        return False
    wanted, parts = pattern.split("."), key.split(".")
    return len(parts) >= len(wanted) and all(name in ("*", part) for name, part in zip(wanted, parts, strict=False))


def flat(config: BaseModel) -> dict[str, Any]:
    """All settings by dotted key, such as "reward.alpha". A list counts as one value."""
    return dict(_flat(config.model_dump(mode="python")))


def at_default(config: BaseModel, prefix: str = "") -> set[str]:
    """Keys, as of ``flat``, of the settings that have their default. A record of an older version may lack them."""
    found = set()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= at_default(value, f"{prefix}{name}.")
        elif not field.is_required() and value == field.get_default(call_default_factory=True):
            found.add(f"{prefix}{name}")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def relevant(settings: Mapping[str, Any], prefixes: Sequence[str], contents: Contents) -> Values:
    """The settings (as from ``flat``) that lie in ``prefixes`` and can change a result, as values to be stored."""
    found = {
        key: as_stored(value, contents)
        for key, value in settings.items()
        if covers(prefixes, key) and not covers(CHANGE_NO_RESULT, key)
    }
    for key in [key for key in found if covers(("models",), key) and isinstance(settings[key], Path)]:
        found[key]["content"] = contents.given(model_folder(settings[key]))
    return found


def model_folder(path: Path) -> Path:
    """The cached folder of a model that is named by its name on the hub; ``path`` itself if it is not in the cache."""
    from sophia_mcore.pretrained.hub import local_folder

    try:
        return local_folder(path)
    except SophiaError:
        return path


def as_stored(value: Any, contents: Contents) -> Any:
    """``value`` as JSON. A path becomes {"path": ..., "content": digest of the file or folder}."""
    if isinstance(value, Path):
        return {"path": str(value), "content": contents.given(value)}
    if isinstance(value, Tables):
        return {"path": value.path, "content": contents.tables(value)}
    if isinstance(value, Mapping):
        return {str(name): as_stored(child, contents) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_stored(item, contents) for item in value]
    return value


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], may_be_missing: Collection[str] = ()
) -> dict[str, str]:
    """The keys whose values differ: key -> "old -> new". ``before`` may lack the keys in ``may_be_missing``."""
    keys = [key for key in now if key in before or key not in may_be_missing]
    keys += [key for key in before if key not in now]
    pairs = {key: (before.get(key), now.get(key)) for key in keys}
    return {key: _change(old, new) for key, (old, new) in pairs.items() if not _same(old, new)}


def _same(old: Any, new: Any) -> bool:
    if _is_file(old) and _is_file(new):
        if old["content"] and new["content"]:
            return bool(old["content"] == new["content"])
        return bool(old["path"] == new["path"])  # one of the two could not be read
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_same(old.get(name), new.get(name)) for name in {**old, **new})
    return bool(old == new)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"path", "content"}


def _change(old: Any, new: Any) -> str:
    if _is_file(old) and _is_file(new) and old["path"] == new["path"]:
        return f"the content of {new['path']} has changed"
    found = [f"{place} {_shown(a)} -> {_shown(b)}".lstrip() for place, a, b in _leaves(old, new)]
    return listed(found, _INNER)


def _leaves(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (place, old, new) of each value that differs inside of lists and tables, such as ("0.limit", 500, 40)."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = {str(position): pair for position, pair in enumerate(zip(old, new, strict=True))}
    elif isinstance(old, dict) and isinstance(new, dict) and not _is_file(old):
        pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    else:
        yield place, old, new
        return
    for name, (a, b) in pairs.items():
        if not _same(a, b):
            yield from _leaves(a, b, f"{place}.{name}".lstrip("."))


def _shown(value: Any) -> str:
    text = value["path"] if _is_file(value) else "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
