"""Functions of a Python file as they are written there: names, parameters, options. The file is parsed and not run."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore.errors import UsageError

_KINDS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
_OPTION = "an option is a number, a text, true or false"


@dataclass(frozen=True, slots=True)
class Signature:
    """A function's parameters, and whether it is a generator function."""

    arguments: ast.arguments
    yields: bool = False

    @property
    def positional(self) -> tuple[str, ...]:
        """Names of the positional parameters."""
        return tuple(argument.arg for argument in (*self.arguments.posonlyargs, *self.arguments.args))

    @property
    def options(self) -> list[str]:
        """Names of the keyword-only parameters."""
        return [option.arg for option in self.arguments.kwonlyargs]


@dataclass(frozen=True, slots=True)
class Definitions:
    """What a file defines on its first level. ``others``: names that are no functions, each with what to do."""

    text: str
    functions: dict[str, Signature] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def signature(self, where: str, name: str) -> Signature:
        """Of the function ``name``. Raises UsageError, with the nearest name, when the file has no such function."""
        if name in self.functions:
            return self.functions[name]
        if name in self.others:
            raise UsageError(f"{where}: {name!r} {self.others[name]}")
        raise UsageError(f"{where}: no function {name!r} ({hint(name, list(self.functions))})")


def definitions_in(where: str, file: Path) -> Definitions:
    """Raises UsageError, which begins with ``where``, when the file cannot be read or is not Python."""
    try:
        text = file.read_bytes().decode()
        tree = ast.parse(text)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{where}: not a Python file ({error})") from None
    found = Definitions(text)
    for statement in _first_level(tree.body):
        _note(statement, found)
    return found


def texts_in(file: Path) -> set[str]:
    """The texts that stand in a Python file, and the names of what is given by keyword. Raises UsageError."""
    text = definitions_in(str(file), file).text
    nodes = list(ast.walk(ast.parse(text)))
    found = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found | {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}


def hint(name: str, known: Sequence[str], it_has: str = "it has") -> str:
    """The nearest of the known names, or all of them."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"{it_has} {', '.join(known) or 'none'}"


def _first_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that define names of the module, those inside of `if`, `try` and the like too."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for name in ("body", "handlers", "orelse", "finalbody"):
            for inner in getattr(statement, name, []):
                yield from _first_level(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _note(statement: ast.stmt, found: Definitions) -> None:
    match statement:
        case ast.FunctionDef(name=name):
            yields = not statement.decorator_list and any(
                isinstance(node, (ast.Yield, ast.YieldFrom)) for node in _own(statement)
            )
            found.functions[name] = Signature(statement.args, yields)
        case ast.AsyncFunctionDef(name=name):
            found.functions.pop(name, None)
            found.others[name] = "is an 'async def', which gives no value when it is called: write 'def'"
        case ast.ClassDef(name=name):
            found.others[name] = "is a class: name a function, written with 'def' in this file"
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            for one in names:
                name = one.asname or one.name.partition(".")[0]
                found.others[name] = "is imported, not written here: write a function with 'def' that calls it"
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=value)
        ):
            if isinstance(value, ast.Lambda):
                found.functions[name] = Signature(value.args)
            elif isinstance(value, ast.Name) and value.id in found.functions:
                found.functions[name] = found.functions[value.id]
            else:
                found.others[name] = (
                    "is no function whose parameters can be read without running the file: write it with 'def'"
                )


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's own code, without that of functions inside of it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)):
            waiting += ast.iter_child_nodes(node)


# ---- options


def check_options(where: str, given: Mapping[str, Any], arguments: ast.arguments, others: Sequence[str]) -> None:
    """Check values of keyword-only parameters: by the annotation if it is of plain types, else by the default's type.

    ``others``: options that another function takes. Raises UsageError.
    """
    options = {
        option.arg: (option.annotation, value)
        for option, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    for name, value in given.items():
        if name in options:
            _check_option(where, name, value, *options[name])
        elif name not in others:
            raise UsageError(f"{where} has no option {name!r} ({hint(name, [*options, *others])})")
    missing = [name for name, (_, default) in options.items() if default is None and name not in given]
    if missing:
        raise UsageError(f"{where}: option {missing[0]!r} has no default and is not given")


def _check_option(where: str, name: str, value: Any, annotation: ast.expr | None, node: ast.expr | None) -> None:
    allowed = _allowed(annotation)
    if allowed is not None:
        kinds = {kind for kind in allowed if isinstance(kind, type)}
        literals = [(type(one), one) for one in allowed if not isinstance(one, type)]
        if type(value) in kinds or (type(value), value) in literals or (type(value) is int and float in kinds):
            return
        words = " or ".join(one.__name__ if isinstance(one, type) else repr(one) for one in allowed)
        raise UsageError(f"{where}: option {name!r} must be {words}, as its annotation says (got {value!r})")
    try:
        default = None if node is None else ast.literal_eval(node)
    except ValueError:
        raise UsageError(f"{where}: the default of option {name!r} must be a plain value") from None
    if default is None:
        return
    if type(default) not in _KINDS.values():
        kind = type(default).__name__
        raise UsageError(f"{where}: option {name!r} cannot be set: its default {default!r} is a {kind}, and {_OPTION}")
    number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(default) and not number:
        kind = f"{type(default).__name__}, as its default {default!r} is"
        raise UsageError(f"{where}: option {name!r} must be of type {kind} (got {value!r})")


def _allowed(node: ast.expr | None) -> list[Any] | None:
    """The types and values that an annotation allows, None (no value) among them; None: it says something else."""
    match node:
        case ast.Constant(value=None):
            return [None]
        case ast.Constant(value=str(text)):  # an annotation in quotes
            try:
                return _allowed(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return None
        case ast.Name(id=name) if name in _KINDS:
            return [_KINDS[name]]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _any_of([left, right])
        case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if name == "Literal" and all(isinstance(part, ast.Constant) for part in parts):
                return [part.value for part in parts if isinstance(part, ast.Constant)]
            if name == "Optional":
                parts = [*parts, ast.Constant(None)]
            return _any_of(parts) if name in ("Optional", "Union") else None
    return None


def _any_of(parts: Sequence[ast.expr]) -> list[Any] | None:
    found: list[Any] = []
    for part in parts:
        allowed = _allowed(part)
        if allowed is None:
            return None
        found += allowed
    return found
