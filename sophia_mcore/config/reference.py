"""Reference of the settings: key, type, default and one sentence each, read from the schema and its comments."""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import tokenize
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sophia_mcore.config.schema import Config
from sophia_mcore.config.sentences import SENTENCES
from sophia_mcore.errors import UsageError

_WIDEST = 50  # characters of a default on the page
_MARKS = {"[P]": "paper", "[C]": "ours"}
_SIMPLE = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    ``key``: as in TOML, with [] after a list of sections. ``variant``: the kind of section that it belongs to.
    ``default``: as TOML, "required" if there is no default, or "none" if it may be left out. ``origin``: "paper" or
    "ours", if the schema says so.
    """

    key: str
    type: str
    default: str
    sentence: str
    origin: str = ""
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class SettingsSection:
    """A section, or one kind of a section, with its settings."""

    key: str
    sentence: str
    settings: tuple[Setting, ...]


@cache
def reference() -> tuple[SettingsSection, ...]:
    """All sections of a run's TOML, in the order of the schema."""
    return tuple(_sections(Config, "", ""))


def _sections(model: type[BaseModel], prefix: str, variant: str) -> Iterator[SettingsSection]:
    own, deeper = [], []
    comments = _comments(model)
    for name, field in model.model_fields.items():
        models, many = _models(field.annotation)
        key = f"{prefix}{name}"
        if models:
            below = f"{key}[]." if many else f"{key}.NAME." if get_origin(field.annotation) is dict else f"{key}."
            for one in models:
                kind = _kind(one) if len(models) > 1 else ""
                deeper.append((one, below, kind))
        if not models or many:
            sentence, origin = comments.get(name, ("", ""))
            own.append(
                Setting(
                    key=f"{key}[]" if many else key, type=_type(field), default=_default(field), sentence=sentence,
                    origin=origin, variant=variant,
                )
            )  # fmt: skip
    title = (prefix.removesuffix(".") or "top level") + (f" ({variant})" if variant else "")
    if own:
        yield SettingsSection(key=title, sentence=_first_paragraph(model), settings=tuple(own))
    for one, path, kind in deeper:
        yield from _sections(one, path, kind)


def _models(annotation: Any) -> tuple[list[type[BaseModel]], bool]:
    """(sections that ``annotation`` allows, whether it is a list of sections)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], False
    many = get_origin(annotation) is tuple
    found: list[type[BaseModel]] = []
    for argument in get_args(annotation):
        models, list_inside = _models(argument)
        found, many = found + models, many or list_inside
    return found, many and bool(found)


def _kind(model: type[BaseModel]) -> str:
    for name in ("kind", "name"):
        field = model.model_fields.get(name)
        choices = get_args(field.annotation) if field is not None else ()
        if len(choices) == 1:
            return f'{name} = "{choices[0]}"'
    return model.__name__


def _type(field: FieldInfo) -> str:
    limits = [_limit(mark) for mark in field.metadata]
    return " ".join(dict.fromkeys(filter(None, [_type_of(field.annotation), *limits])))


def _type_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(filter(None, [_type_of(arguments[0]), *map(_limit, arguments[1:])]))
    if origin is Literal:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type_of(one) for one in arguments if one is not types.NoneType))
    if origin is tuple:
        return f"list of {_type_of(arguments[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _SIMPLE.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limit(mark: Any) -> str:
    found = [
        f"{sign} {value:g}"
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if (value := getattr(mark, name, None)) is not None
    ]
    for inner in getattr(mark, "metadata", ()):  # of a FieldInfo
        found += [_limit(inner)]
    return ", ".join(filter(None, found))


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "{}"
    if field.default is PydanticUndefined:
        return "required"
    return _toml(field.default)


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, BaseModel):
        given = [name for name in type(value).model_fields if name in value.model_fields_set]
        return "{ " + ", ".join(f"{name} = {_toml(getattr(value, name))}" for name in given) + " }"
    return f"{value:_}" if isinstance(value, int) else str(value)


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())


def _comments(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Field -> (sentence, origin), for each field with a comment on its line or on the lines above it."""
    found: dict[str, tuple[str, str]] = {}
    bases = [base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    for one in reversed(bases):
        source = inspect.cleandoc("\n" + inspect.getsource(one))
        lines = source.splitlines()
        beside = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source + "\n").readline)
            if token.type == tokenize.COMMENT
        }
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above: list[str] = []
            line = node.lineno - 1
            while line in beside and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, beside[line])
                line -= 1
            inner = [beside[n] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in beside]
            text = " ".join([*above, *inner])
            origin = next((word for mark, word in _MARKS.items() if mark in text), "")
            for mark in _MARKS:
                text = text.replace(mark, "")
            name = node.target.id
            sentence = " ".join(text.split()).strip("; ,")
            found[name] = (sentence or SENTENCES.get(f"{model.__name__}.{name}") or SENTENCES.get(name, ""), origin)
    return found


def explain_setting(key: str) -> str:
    """The description of a key or a section, as text. Raises UsageError with the nearest key if it is unknown."""
    wanted = key.strip().removesuffix(".")
    lines = []
    for section in reference():
        settings = [s for s in section.settings if _matches(s.key, wanted)]
        if settings:
            lines += ["", f"[{section.key}] {section.sentence}", *(line for one in settings for line in _lines(one))]
    if not lines:
        known = sorted({s.key.replace("[]", "") for section in reference() for s in section.settings})
        known += sorted({name.rpartition(".")[0] for name in known if "." in name})
        last = [name for name in known if name.rpartition(".")[2] == wanted.rpartition(".")[2]]
        nearest = last or difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
        raise UsageError(f"no setting {key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    return "\n".join(lines[1:])


def _matches(key: str, wanted: str) -> bool:
    parts, asked = key.replace("[]", "").split("."), wanted.split(".")
    return len(asked) <= len(parts) and all(
        part in ("NAME", one) for part, one in zip(parts[: len(asked)], asked, strict=True)
    )


def _lines(setting: Setting) -> list[str]:
    origin = f" ({setting.origin})" if setting.origin else ""
    found = [f"  {setting.key} = {setting.default}{origin}", f"      {setting.type}"]
    return found + ([f"      {setting.sentence}"] if setting.sentence else [])


def json_schema() -> dict[str, Any]:
    """JSON schema of a run's TOML for editors. The sentences are its descriptions."""
    schema = Config.model_json_schema()
    for definition, model in _by_name(Config).items():
        properties = schema["$defs"].get(definition, {}).get("properties", {})
        for name, (sentence, _) in _comments(model).items():
            if sentence and name in properties:
                properties[name].setdefault("description", sentence)
    schema["properties"]["base"] = {"type": "string", "description": "a TOML file whose values this one replaces"}
    schema["$defs"]["OwnLoss"]["properties"]["name"]["pattern"] = ":"  # else it would be one with every other loss
    _require_without_base(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "sophia_mcore run"}


def _require_without_base(schema: dict[str, Any]) -> None:
    """Require the keys of the file and of its sections only where no ``base`` may have them."""
    sections = {}
    for name, value in schema["properties"].items():
        definition = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        if "required" in definition:
            sections[name] = {"required": definition.pop("required")}
    schema["if"] = {"required": ["base"]}
    schema["else"] = {"required": schema.pop("required"), "properties": sections}


def _by_name(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for field in model.model_fields.values():
        for one in _models(field.annotation)[0]:
            found |= {one.__name__: one, **_by_name(one)}
    return found


def as_markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "Every key of a run's TOML, generated from `sophia_mcore/config/schema.py`. `sophia check --explain KEY`",
        "says the same in a terminal. `sophia check --schema` prints a JSON schema for editors: save it as",
        "`run.schema.json` and put `#:schema run.schema.json` into the first line of the TOML.",
        "Origin: *paper* is a number of arXiv 2507.16814, *ours* a choice where the paper has none.",
        "",
    ]  # fmt: skip
    for section in reference():
        lines += [f"## `{section.key}`", section.sentence, "", "| key | type | default | what it does |"]
        lines.append("|---|---|---|---|")
        for s in section.settings:
            sentence = s.sentence + (f" *{s.origin}*" if s.origin else "")
            default = s.default if len(s.default) <= _WIDEST else f"{s.default[: _WIDEST - 3]}..."
            cells = (f"`{s.key}`", s.type, f"`{default}`", sentence)
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
        lines.append("")
    return "\n".join(lines)
