"""A process that runs functions of a user's own: ``python -m sophia_mcore.environments.worker LIFE_FD``.

The first line of standard input says which; the files are imported, and then every line is a call. Replies are lines of
JSON on standard output, which the user's code does not get: what it prints goes nowhere. The process ends when the
other end of LIFE_FD closes, as it does when the parent dies, and by SIGPROF when a call takes too much CPU time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from sophia_mcore.environments import codec
from sophia_mcore.environments.types import Ask, Episode, Target, Turn
from sophia_mcore.pretrained.family import Message
from sophia_mcore.records import Question

_LINE = 300  # characters of an error
_MOST_BYTES = 256 << 20  # of an answer as JSON: images of an ask, above all
_FROZEN: tuple[type, ...] = (Ask, Episode, Message, Question, Target, Turn)


def main() -> None:
    """Import, then answer calls until standard input ends."""
    calls, replies = _own_streams()
    _end_with(int(sys.argv[1]))
    job = json.loads(calls.readline())
    limit = job["memory_mib"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def reply(message: bytes) -> None:
        replies.write(message + b"\n")
        replies.flush()

    for one in _FROZEN:
        _say_that_it_is_frozen(one)

    modules: dict[str, ModuleType] = {}
    functions: dict[str, Callable[..., Any]] = {}
    paths: dict[str, str] = {}
    for function in job["functions"]:
        reply(_line(importing=function["reference"]))
        signal.setitimer(signal.ITIMER_PROF, job["import_seconds"])
        try:
            path = function["path"]
            if path not in modules:
                modules[path] = _imported(path, f"sophia_user_{len(modules)}")
            functions[function["key"]] = getattr(modules[path], function["name"])
            paths[function["key"]] = path
        except BaseException as error:  # whatever the user's code raises, an exit too
            reply(_line(failed=said(error, path)))
            return
    signal.setitimer(signal.ITIMER_PROF, 0)
    reply(_line(ready=True))
    for line in calls:
        call = json.loads(line)
        # the kernel ends the process when the CPU time is over, whatever the function does
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        try:
            answer = _line(value=_KINDS[call["kind"]](functions[call["key"]], call))
            if len(answer) > _MOST_BYTES:
                size, most = len(answer) >> 20, _MOST_BYTES >> 20
                raise codec.BadValueError(f"gave {size:,} MiB as JSON, and {most} are the most")
        except codec.BadValueError as error:
            answer = _line(error=str(error)[:_LINE])
        except BaseException as error:
            answer = _line(error=said(error, paths[call["key"]]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(answer)


def _line(**message: Any) -> bytes:
    return json.dumps(message).encode()


def _own_streams() -> tuple[Any, Any]:
    """Standard input and output for this module alone; the user's code reads nothing and prints into nothing."""
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    reading, writing = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    os.dup2(reading, 0)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    return calls, replies


def _end_with(descriptor: int) -> None:
    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say_that_it_is_frozen(kind: type) -> None:
    """Python's own words for a frozen class with slots are about something else where a property is set."""

    def refuse(self: object, name: str, *value: object) -> None:
        raise AttributeError(f"{kind.__name__}.{name} cannot be changed: what a function is given stays as it is")

    kind.__setattr__ = kind.__delattr__ = refuse  # type: ignore[assignment]


def _imported(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def said(error: BaseException, path: str) -> str:
    """An exception on one line, with the last line of the user's file that it went through."""
    if isinstance(error, SystemExit):
        text = f"called exit({error.code if error.code is not None else ''})"
    elif isinstance(error, MemoryError):
        text = "ran out of memory (functions.memory_limit_mib)"
    else:
        first = (str(error).splitlines() or [""])[0]
        text = f"{type(error).__name__}: {codec.without_addresses(first)}" if first else type(error).__name__
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{text[:_LINE]} (line {lines[-1]})" if lines else text[:_LINE]


# ---- what a call is: arguments from JSON, the function, its checked result as JSON


def _start(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    question, images = codec.question_of(call["question"]), codec.bytes_of(call["images"])
    return codec.step_json(function(question, images, call["seed"], **call["options"]))


def _step(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    return codec.step_json(function(call["state"], codec.reply_of(call["reply"]), *_images(call), **call["options"]))


def _images(call: Mapping[str, Any]) -> list[Any]:
    return [codec.bytes_of(call["images"])] if "images" in call else []


def _reward(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    episode, question = codec.episode_of(call["episode"]), codec.question_of(call["question"])
    return codec.score(function(episode, question, *_images(call), **call["options"]), len(episode.policy_turns))


def _group(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    group = tuple(codec.episode_of(one) for one in call["group"])
    value = function(group, codec.question_of(call["question"]), *_images(call), **call["options"])
    return codec.group_scores(value, len(group))


def _ask(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    value = function(codec.episode_of(call["episode"]), codec.question_of(call["question"]), **call["options"])
    return None if value is None else codec.ask_json(value)


def _weigh(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    group = tuple(codec.episode_of(one) for one in call["group"])
    return codec.weights_json(function(group, **call["options"]), [len(one.policy_turns) for one in group])


def _relabel(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    episode, question = codec.episode_of(call["episode"]), codec.question_of(call["question"])
    targets = function(episode, question, **call["options"])
    return codec.targets_json(targets, codec.images_of(episode, question))


_KINDS: dict[str, Callable[[Callable[..., Any], Mapping[str, Any]], Any]] = {
    "start": _start, "step": _step, "reward": _reward, "group": _group, "ask": _ask, "weigh": _weigh,
    "relabel": _relabel,
}  # fmt: skip


if __name__ == "__main__":
    main()
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
    os._exit(0)  # threads and exit handlers of the user's code have no say
