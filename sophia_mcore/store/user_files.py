"""The user's own functions: settings of the form `FILE.py:FUNCTION`.

They are checked by parsing the file, without running it. When a run starts, the files are copied into RUN/code with
their hashes. Only the process that calls a function imports the copy. For a further setting that names a function, add
a `yield` to `user_functions`.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sophia_mcore.config.losses import OwnLoss, reference_of
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import file_digest

INDEX = "files.json"  # in RUN/code


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A function that the configuration names.

    `key`: the setting that names it, such as "objective.loss". `parameters`: names of the positional parameters that it
    must take. `options`: values of its keyword-only parameters.
    """

    key: str
    reference: str
    parameters: tuple[str, ...]
    options: Mapping[str, bool | int | float | str]

    @property
    def file(self) -> Path:
        return Path(reference_of(self.reference).file)

    @property
    def name(self) -> str:
        return reference_of(self.reference).function

    def copy_in(self, run: RunFolder) -> Path:
        """Path of the run's copy of the file."""
        return run.code / self.key / self.file.name


def user_functions(config: Config) -> Iterator[UserFunction]:
    """All user functions that the configuration names."""
    loss = config.objective.loss
    if isinstance(loss, OwnLoss):
        parameters = ("logprobs_T", "log_ratio_T", "tokens")
        yield UserFunction(key="objective.loss", reference=loss.name, parameters=parameters, options=loss.options)


def check_function(function: UserFunction) -> str:
    """Check that the file holds the function with the right parameters; returns the file's text. Runs none of its code.

    Raises UsageError when the file is missing or not Python, when it has no such function (with the nearest name), when
    the function's parameters differ, or when an option is unknown, missing or of another type.
    """
    where = f"{function.key}: {function.file}"
    try:
        text = function.file.read_bytes().decode()
        tree = ast.parse(text)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{where}: not a Python file ({error})") from None
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function.name not in found:
        raise UsageError(f"{where}: no function {function.name!r} ({_hint(function.name, list(found))})")
    arguments = found[function.name].args
    taken = tuple(argument.arg for argument in (*arguments.posonlyargs, *arguments.args))
    where = f"{where}: {function.name}"
    if taken != function.parameters or arguments.defaults or arguments.vararg or arguments.kwarg:
        wanted = ", ".join(function.parameters)
        raise UsageError(
            f"{where} must take ({wanted}), then keyword-only options; it takes ({ast.unparse(arguments)})"
        )
    _check_options(where, function.options, arguments)
    return text


def _check_options(where: str, given: Mapping[str, Any], arguments: ast.arguments) -> None:
    options = {option.arg: value for option, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    for name, value in given.items():
        if name not in options:
            raise UsageError(f"{where} has no option {name!r} ({_hint(name, list(options))})")
        default = _literal(where, name, options[name])
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if default is not None and type(value) is not type(default) and not number:
            kinds = f"{type(default).__name__}, as its default {default!r} is"
            raise UsageError(f"{where}: option {name!r} must be of type {kinds} (got {value!r})")
    missing = [name for name, value in options.items() if value is None and name not in given]
    if missing:
        raise UsageError(f"{where}: option {missing[0]!r} has no default and is not given")


def _literal(where: str, name: str, node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        raise UsageError(f"{where}: the default of option {name!r} must be a plain value") from None


def _hint(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known) or 'none'}"


def check_user_files(config: Config) -> None:
    """Check every function that the configuration names. Raises UsageError."""
    for function in user_functions(config):
        check_function(function)


def keep_user_files(config: Config, run: RunFolder, *, replace: bool = False) -> None:
    """Copy the files into RUN/code with their hashes. A file must not have changed since the run began.

    ``replace``: accept changed files. Raises UsageError when a file has changed, and like `check_function`.
    """
    texts = [(function, check_function(function)) for function in user_functions(config)]
    if not texts:
        return
    known, index = read_json(run.code / INDEX) or {}, {}
    for function, text in texts:
        digest = hashlib.sha256(text.encode()).hexdigest()
        before = known.get(function.key, {}).get("sha256", digest)
        if before != digest and not replace:
            raise UsageError(
                f"{function.key}: {function.file} has changed since {run.path} was started: undo the change, choose "
                "another run.folder, or add --new-settings to go on with the new file"
            )
        write_text(function.copy_in(run), text)
        index[function.key] = {"reference": function.reference, "sha256": digest}
    write_json(run.code / INDEX, index)


def load_function(config: Config, run: RunFolder, key: str) -> Callable[..., Any] | None:
    """Import the function of setting ``key`` from the run's copy and bind its options. None if the setting names none.

    Runs the file's code. Raises SophiaError when the copy is missing, was changed, or cannot be imported.
    """
    function = next((one for one in user_functions(config) if one.key == key), None)
    if function is None:
        return None
    path = function.copy_in(run)
    index = read_json(run.code / INDEX) or {}
    if not path.is_file() or key not in index:
        raise SophiaError(f"{path}: the run has no copy of {function.reference}; start it with `sophia run`")
    if file_digest(path) != index[key]["sha256"]:
        raise SophiaError(f"{path}: is not the file that the run was started with")
    module_name = "sophia_user_" + "_".join((*key.split("."), path.stem))
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise SophiaError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise SophiaError(f"{function.reference}: cannot be imported ({type(error).__name__}: {error})") from error
    return partial(getattr(module, function.name), **function.options)
