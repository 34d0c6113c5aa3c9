"""Functions that the configuration names: the user's own, `FILE.py:FUNCTION`, and built-in ones.

The user's are checked by parsing the file, without running it. When a run starts, the files are copied into RUN/code
with their hashes. Only the process that calls a function imports the copy. For a further setting that names a function,
add a `yield` to `named_functions`. Built-in ones are checked in the same way and not copied.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sophia_mcore.config.functions import WEIGHS, named
from sophia_mcore.config.losses import OwnLoss, reference_of
from sophia_mcore.config.rl import Rl
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.signatures import Signature, check_options, definitions_in

INDEX = "files.json"  # in RUN/code


_BUILT_IN = Path(__file__).resolve().parents[1] / "environments"
REWARD = (
    ("episode", "question"), ("group", "question"), ("episode", "question", "images"), ("group", "question", "images"),
)  # fmt: skip
ENVIRONMENT = {
    "start": (("question", "images", "seed"),),
    "step": (("state", "reply"), ("state", "reply", "images")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """A function that the configuration names.

    `key`: the setting that names it, such as "objective.loss". `parameters`: names of the positional parameters that it
    must take, in one of several ways. `options`: values of its keyword-only parameters. `built_in`: of the package.
    """

    key: str
    file: Path
    name: str
    parameters: tuple[tuple[str, ...], ...]
    options: Mapping[str, bool | int | float | str]
    built_in: bool = False

    @property
    def reference(self) -> str:
        """How the configuration names it."""
        return self.name if self.built_in else f"{self.file}:{self.name}"

    def copy_in(self, run: RunFolder) -> Path:
        """Where the run keeps its copy of the file; of a built-in one the file itself."""
        return self.file if self.built_in else run.code / self.key / self.file.name


def named_functions(config: Config) -> Iterator[UserFunction]:
    """All functions that the configuration names by `FILE.py:FUNCTION` or by the name of a built-in one."""
    losses = [("objective.loss", config.objective.loss)]
    if isinstance(config.rl, Rl):
        losses.append(("rl.objective.loss", config.rl.objective.loss))
    for key, loss in losses:
        if isinstance(loss, OwnLoss):
            file, name = reference_of(loss.name)
            parameters = (("logprobs_T", "log_ratio_T", "tokens"),)
            yield UserFunction(key=key, file=Path(file), name=name, parameters=parameters, options=loss.options)
    for term in config.reward_terms:
        key = f"rewards.{term.label}"
        yield _function(key, term.function, "rewards.py", REWARD, term.options)
        if term.ask:
            yield _function(f"{key}.ask", term.ask, "rewards.py", (("episode", "question"),), {})
    if isinstance(config.rl, Rl):
        yield from _of_the_stage(config.rl)


def _of_the_stage(rl: Rl) -> Iterator[UserFunction]:
    chosen = rl.environment
    file = chosen.file or _BUILT_IN / f"{chosen.function}.py"
    for name, parameters in ENVIRONMENT.items():
        yield UserFunction(
            key=f"rl.environment.{name}",
            file=file,
            name=name,
            parameters=parameters,
            options=chosen.options,
            built_in=chosen.file is None,
        )
    if rl.weigh.function not in WEIGHS:
        yield _function("rl.weigh", rl.weigh.function, "weigh.py", (("group",),), rl.weigh.options)
    for index, one in enumerate(rl.relabel):
        yield _function(f"rl.relabel.{index}", one.function, "relabel.py", (("episode", "question"),), one.options)


def _function(
    key: str, text: str, module: str, parameters: tuple[tuple[str, ...], ...], options: Mapping[str, Any]
) -> UserFunction:
    """`text` is a reference, or the name of a function in the built-in ``module``."""
    file, name = named(text, (text,), "function")
    return UserFunction(
        key=key, file=file or _BUILT_IN / module, name=name, parameters=parameters, options=options, built_in=not file
    )


def user_functions(config: Config) -> Iterator[UserFunction]:
    """Those of the user's own."""
    return (function for function in named_functions(config) if not function.built_in)


def check_function(function: UserFunction) -> str:
    """Check that the file holds the function with the right parameters; returns the file's text. Runs none of its code.

    Raises UsageError when the file is missing or not Python, when it has no such function (with the nearest name), when
    the function's parameters differ or it is a generator, or when an option is unknown, missing or of another type.
    """
    where = f"{function.key}: {function.name if function.built_in else function.file}"
    found = definitions_in(where, function.file)
    signature = found.signature(where, function.name)
    arguments = signature.arguments
    where = where if function.built_in else f"{where}: {function.name}"
    if signature.positional not in function.parameters or arguments.defaults or arguments.vararg or arguments.kwarg:
        wanted = " or ".join(f"({', '.join(names)})" for names in function.parameters)
        raise UsageError(f"{where} must take {wanted}, then keyword-only options; it takes ({ast.unparse(arguments)})")
    several = signature.positional[:1] == ("group",) or function.key.startswith("rl.relabel.")
    if signature.yields and not several:
        raise UsageError(f"{where} is a generator, because it has 'yield' in it: give the value with 'return'")
    check_options(where, function.options, arguments, _options_of_the_other(function, found.functions))
    return found.text


def parameters_of(function: UserFunction, file: Path) -> tuple[str, ...]:
    """Names of the positional parameters that the function takes in ``file``, a copy. Raises UsageError."""
    return definitions_in(function.key, file).signature(function.key, function.name).positional


def options_for(function: UserFunction, file: Path) -> dict[str, Any]:
    """Those of its options that the function itself takes: start and step of an environment share one table."""
    own = definitions_in(function.key, file).signature(function.key, function.name).options
    return {name: value for name, value in function.options.items() if name in own}


def _options_of_the_other(function: UserFunction, found: Mapping[str, Signature]) -> list[str]:
    """Start and step of an environment share one table of options: each of them must know what is in it."""
    other = {"start": "step", "step": "start"}.get(function.name, "") if "environment" in function.key else ""
    return found[other].options if other in found else []


def check_user_files(config: Config) -> None:
    """Check every function that the configuration names, its options too. Raises UsageError."""
    for function in named_functions(config):
        check_function(function)


def keep_user_files(config: Config, run: RunFolder, *, replace: bool = False) -> None:
    """Copy the files into RUN/code with their hashes. A file must not have changed since the run began.

    ``replace``: accept changed files. Raises UsageError when a file has changed, and like `check_function`.
    """
    check_user_files(config)
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


def checked_copy(function: UserFunction, run: RunFolder) -> Path:
    """The run's copy of the function's file. Raises SophiaError when it is missing or was changed."""
    from sophia_mcore.store.lineage import file_digest  # here: slow to import

    path = function.copy_in(run)
    if function.built_in:
        return path
    index = read_json(run.code / INDEX) or {}
    if not path.is_file() or function.key not in index:
        raise SophiaError(f"{path}: the run has no copy of {function.reference}; start it with `sophia run`")
    if file_digest(path) != index[function.key]["sha256"]:
        raise SophiaError(f"{path}: is not the file that the run was started with")
    return path


def load_function(config: Config, run: RunFolder, key: str) -> Callable[..., Any] | None:
    """Import the function of setting ``key`` from the run's copy and bind its options. None if the setting names none.

    Runs the file's code. Raises SophiaError when the copy is missing, was changed, or cannot be imported; so does the
    function, with its name and line, when the user's code raises something.
    """
    function = next((one for one in user_functions(config) if one.key == key), None)
    if function is None:
        return None
    path = checked_copy(function, run)
    module_name = "sophia_user_" + "_".join((*key.split("."), path.stem))
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise SophiaError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise SophiaError(f"{function.reference}: cannot be imported ({type(error).__name__}: {error})") from error
    own = partial(getattr(module, function.name), **function.options)

    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return own(*arguments, **options)
        except Exception as error:  # whatever the user's code raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            where = f"line {lines[-1]}: " if lines else ""
            raise SophiaError(f"{function.reference}: {where}{type(error).__name__}: {error}") from error

    return called
