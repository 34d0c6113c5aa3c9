"""Reads a run's TOML with overlays and `--set a.b=c`. Every mistake becomes one clear line.

Order of precedence, lowest first: defaults of the schema, the file, overlays in order, `--set` in order.
A file may name a base file (`base = "../internvl/8b.toml"`, relative to its own folder). The file's values replace
those of the base, key by key.
"""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, Tag, ValidationError

from sophia_mcore.config.moved import MOVED, RETIRED, check_retired, drop_retired, move_keys
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError

_MAX_LISTED = 5


def load_config(path: Path, overlays: Sequence[Path] = (), sets: Sequence[str] = ()) -> Config:
    """Load the TOML file ``path``, changed by ``overlays`` and then by ``sets`` ("section.key=value" each).

    A moved key (`config.moved`) is also read from its old place, with a warning on stderr.

    Raises UsageError for a file or base that is missing or not TOML, for a cycle of bases, for an unknown key (with the
    nearest valid name), and for a wrong type or value.
    """
    tree = read_with_bases(path)
    for overlay in overlays:
        merge(tree, read_with_bases(overlay))
    for assignment in sets:
        assign(tree, assignment)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        files = " + ".join(str(file) for file in (path, *overlays))
        raise UsageError(f"{files}: {explain(error, Config)}") from None


def dump_toml(config: BaseModel) -> str:
    """The resolved configuration as TOML, without optional values that are None. Loading it gives an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def dump_given(config: BaseModel) -> str:
    """The configuration as TOML without what has its default, as `[[stages]]` are changed and read again."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude_unset=True))


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A ValidationError as one line: what is wrong and where, with the nearest valid name for an unknown key."""
    problems = []
    items = [item for item in error.errors() if not _is_consequence(item["loc"], error)]
    for item in items[:_MAX_LISTED]:
        where = ".".join(str(part) for part in _visible(item["loc"], model))
        if item["type"] == "extra_forbidden":
            problems.append(_unknown_key(where, item["loc"], model))
        elif item["type"] == "missing":
            problems.append(f"{where}: required key is missing")
        elif item["type"] == "union_tag_not_found":
            problems.append(f"{where}.{item['ctx']['discriminator'].strip(chr(39))}: required key is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            given = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
            problems.append(f"{where}: {message}{given}" if where else message)
    left_out = len(items) - _MAX_LISTED
    if left_out > 0:
        problems.append(f"and {left_out} more")
    return "; ".join(problems)


def _is_consequence(location: tuple[int | str, ...], error: ValidationError) -> bool:
    """Whether another error, further inside ``location``, has caused the error at ``location``."""
    depth = len(location)
    return depth > 0 and any(len(e["loc"]) > depth and e["loc"][:depth] == location for e in error.errors())


def read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Values of a file merged over those of its base, and so on. ``above``: files whose bases have led to this file."""
    if path.resolve() in above:
        raise UsageError(f"{above[-1]}: base: {path} has this file as a base itself")
    tree = _read_toml(path)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"{path}: base: expected the path of a TOML file (got {base!r})")
    below = path.parent / base
    if not below.is_file():
        raise UsageError(f"{path}: base: {below}: no such configuration file")
    values = read_with_bases(below, (*above, path.resolve()))
    merge(values, tree)
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such configuration file") from None
    except (IsADirectoryError, PermissionError) as error:
        hint = f"; did you mean {path / 'config.toml'}?" if (path / "config.toml").is_file() else ""
        raise UsageError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    try:
        _warn(str(path), move_keys(tree))
        drop_retired(tree)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    return tree


def _warn(where: str, moved: dict[str, str]) -> None:
    """One line for one key, and a line for each of several."""
    if not moved:
        return
    keys = [f"{old} is {new} now" for old, new in moved.items()]
    until = "; the old place is read in this version only"
    told = f"{keys[0]}{until}" if len(keys) == 1 else "\n  ".join([f"{len(keys)} keys have moved{until}:", *keys])
    print(f"warning: {where}: {told}", file=sys.stderr, flush=True)


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    """Put the values of ``overlay`` in the places of those of ``base``, key by key, in place."""
    for key, value in overlay.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and value.get("kind") in (None, below.get("kind")):
            merge(below, value)  # an engine of another kind is replaced as a whole, since it has other keys
        else:
            base[key] = value


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Set the value of "section.key=value" in ``tree``. Raises UsageError for an assignment of another form."""
    key, separator, text = assignment.partition("=")
    key = key.strip()
    if key in MOVED:
        _warn(f"--set {assignment}", {key: MOVED[key]})
        key = MOVED[key]
    parts = key.split(".")
    if not separator or not all(parts):
        raise UsageError(f"--set {assignment!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    if key in RETIRED:
        try:
            check_retired(key, value)
        except ValueError as error:
            raise UsageError(f"--set {assignment}: {error}") from None
        return
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            what = (
                "a list: replace it whole in a file of its own (--overlay FILE)"
                if isinstance(tree, list)
                else "a value"
            )
            raise UsageError(f"--set {assignment!r}: {part!r} is {what}, not a section")
    tree[parts[-1]] = value


def _visible(location: tuple[int | str, ...], model: type[BaseModel]) -> list[int | str]:
    """The location as the user wrote it, without the tags that pydantic adds for discriminated unions."""
    shown: list[int | str] = []
    current: Any = model
    for part in location:
        tagged = _variants(current)
        if len(tagged) > 1 and part in tagged:
            current = tagged[str(part)]
            continue
        shown.append(part)
        current = _descend(current, part)
    return shown


def _unknown_key(where: str, location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    current: Any = model
    for part in location[:-1]:
        tagged = _variants(current)
        current = tagged[str(part)] if len(tagged) > 1 and part in tagged else _descend(current, part)
    names = [name for variant in _variants(current).values() for name in variant.model_fields]
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid: {', '.join(names)}"
    return f"{where}: unknown key ({hint})"


def _descend(annotation: Any, part: int | str) -> Any:
    """Annotation of field ``part`` (str) of a model, or of the elements (int) of a tuple of models."""
    if isinstance(part, int):
        return next((arg for arg in get_args(annotation) if arg is not Ellipsis), None)
    for model in _variants(annotation).values():
        if part in model.model_fields:
            return model.model_fields[part].annotation
    return None


def _variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """Models that ``annotation`` allows, by tag: that of a `Tag`, the only value of `kind`, or the class name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        tags = get_args(kind.annotation) if kind is not None else ()
        return {(str(tags[0]) if len(tags) == 1 else annotation.__name__): annotation}
    found: dict[str, type[BaseModel]] = {}
    arguments = get_args(annotation)
    tag = next((argument.tag for argument in arguments if isinstance(argument, Tag)), None)
    for argument in arguments:
        if argument is not Ellipsis and not isinstance(argument, str):
            models = _variants(argument)
            if tag is not None and len(models) == 1:
                models = {tag: next(iter(models.values()))}
            found.update(models)
    return found
