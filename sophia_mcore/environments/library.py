"""The functions of one configuration, ready to be called: built-in ones here, the user's own in killable processes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sophia_mcore.config.functions import ASKING, RewardTerm
from sophia_mcore.config.schema import Config
from sophia_mcore.environments import codec, rewards
from sophia_mcore.environments.codec import BadValueError
from sophia_mcore.environments.pool import FunctionPool, Outcome, Spec, Watch
from sophia_mcore.environments.types import Ask, Episode, Reply, Step
from sophia_mcore.records import Question
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.user_files import UserFunction, checked_copy, named_functions, options_for, parameters_of

_PACKAGE = "sophia_mcore.environments"
# Built-in functions that need no other process: they end, and need no memory to speak of.
_AT_ONCE = ("correct", "equal", "length_among_right", "step", "start", "own_successes")


@dataclass(frozen=True, slots=True)
class Callee:
    """A function, how it is called, and where it runs: ``local`` None: in a process of the pool."""

    function: UserFunction
    options: Mapping[str, Any]
    parameters: tuple[str, ...]
    local: Callable[..., Any] | None = None

    @property
    def takes_images(self) -> bool:
        """Whether it wants the question's images."""
        return "images" in self.parameters

    @property
    def of_group(self) -> bool:
        """Whether it judges all answers to a question together."""
        return self.parameters[:1] == ("group",)

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{self.function.key}: {self.function.reference}"


@dataclass(frozen=True, slots=True)
class Term:
    """A term of the reward: the settings, the function, and the one that says what a helper is asked."""

    settings: RewardTerm
    reward: Callee
    ask: Callee | None

    @property
    def label(self) -> str:
        """What it is called."""
        return self.settings.label


Listener = Callable[[Callee, str, tuple[Any, ...], Outcome], None]  # function, kind of call, arguments, what came


class Library:
    """A context manager that owns the processes. One thread at a time.

    ``listener`` is told of every call; ``watch`` and ``patient`` are those of ``FunctionPool``. Raises SophiaError when
    the run has no copy of a file, or another one.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        *,
        stage: bool = True,
        listener: Listener | None = None,
        watch: Watch | None = None,
        patient: bool = True,
    ) -> None:
        self._run, self._listener = run, listener
        self.helpers = tuple(config.helpers)
        self._specs: list[Spec] = []
        wanted = ("rewards.", "rl.environment.", "rl.weigh", "rl.relabel.") if stage else ("rewards.",)
        callees = {one.key: self._callee(one) for one in named_functions(config) if one.key.startswith(wanted)}
        self.terms = tuple(self._term(term, callees) for term in config.reward_terms)
        self.environment = {name: callees.get(f"rl.environment.{name}") for name in ("start", "step")}
        self.own_weigh = callees.get("rl.weigh")
        self.relabels = tuple(callees[key] for key in sorted(callees) if key.startswith("rl.relabel."))
        self._pool = FunctionPool(self._specs, config.functions, watch=watch, patient=patient)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    # ---- opening

    def _callee(self, function: UserFunction) -> Callee:
        path = checked_copy(function, self._run)
        local = None
        if function.built_in and function.name in _AT_ONCE:
            local = getattr(importlib.import_module(f"{_PACKAGE}.{path.stem}"), function.name)
        else:
            spec = Spec(key=function.key, path=str(path), name=function.name, reference=function.reference)
            self._specs.append(spec)
        return Callee(function, options_for(function, path), parameters_of(function, path), local)

    def _term(self, term: RewardTerm, callees: Mapping[str, Callee]) -> Term:
        reward, ask = callees[f"rewards.{term.label}"], callees.get(f"rewards.{term.label}.ask")
        if term.function in ASKING:
            ask = replace(reward, local=getattr(rewards, f"{term.function}_ask"))
        return Term(term, reward, ask)

    # ---- calling

    def start(self, asked: Sequence[tuple[Question, tuple[bytes, ...], int]]) -> list[Outcome]:
        """The first Step of an episode about each question with these images and seed."""
        callee = self._of_environment("start")
        calls = [
            ((question, images, seed), {"question": question, "images": images, "seed": seed})
            for question, images, seed in asked
        ]
        return self._call(callee, "start", calls, _step_of)

    def step(self, asked: Sequence[tuple[Any, Reply, tuple[bytes, ...]]]) -> list[Outcome]:
        """The next Step of each episode, from its state, the reply and the images of its question."""
        callee = self._of_environment("step")
        calls = []
        for state, reply, images in asked:
            more: tuple[Any, ...] = (images,) if callee.takes_images else ()
            values = {"state": state, "reply": {"text": reply.text, "finish_reason": reply.finish_reason}}
            calls.append(((state, reply, *more), values | ({"images": images} if more else {})))
        return self._call(callee, "step", calls, _step_of)

    def ask(self, term: Term, asked: Sequence[tuple[Episode, Question]]) -> list[Outcome]:
        """What the term asks a helper about each episode: an Ask, or None."""
        assert term.ask is not None
        calls = [((episode, question), {"episode": episode, "question": question}) for episode, question in asked]
        return self._call(term.ask, "ask", calls, lambda value: value if value is None else codec.ask_of(value))

    def score(
        self, term: Term, asked: Sequence[tuple[Question, tuple[bytes, ...], Sequence[Episode]]]
    ) -> list[list[Outcome]]:
        """The term's value for each episode of each group: a number, a list of one per turn of the policy, or None."""
        callee = term.reward
        if callee.of_group:
            calls = [self._scored(callee, tuple(group), question, images) for question, images, group in asked]
            outcomes = self._call(callee, "group", calls, lambda value: value)
            return [
                [Outcome(None, one.error) for _ in group] if one.error else [Outcome(value) for value in one.value]
                for one, (_, _, group) in zip(outcomes, asked, strict=True)
            ]
        calls = [
            self._scored(callee, episode, question, images) for question, images, group in asked for episode in group
        ]
        values = iter(self._call(callee, "reward", calls, lambda value: value))
        return [[next(values) for _ in group] for _, _, group in asked]

    @staticmethod
    def _scored(
        callee: Callee, what: Episode | tuple[Episode, ...], question: Question, images: tuple[bytes, ...]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        more: tuple[Any, ...] = (images,) if callee.takes_images else ()
        name = "episode" if isinstance(what, Episode) else "group"
        return (what, question, *more), {name: what, "question": question} | ({"images": images} if more else {})

    def weigh(self, groups: Sequence[Sequence[Episode]]) -> list[Outcome]:
        """What the user's own weighing says of each group: [advantage, kl] of every policy turn of every episode."""
        assert self.own_weigh is not None
        calls = [((tuple(group),), {"group": tuple(group)}) for group in groups]
        return self._call(self.own_weigh, "weigh", calls, lambda value: value)

    def relabel(self, callee: Callee, asked: Sequence[tuple[Episode, Question]]) -> list[Outcome]:
        """The targets (as JSON, `codec.targets_json`) that a relabelling makes of each episode."""
        calls = [((episode, question), {"episode": episode, "question": question}) for episode, question in asked]
        return self._call(callee, "relabel", calls, lambda value: value)

    def _of_environment(self, name: str) -> Callee:
        callee = self.environment[name]
        assert callee is not None
        return callee

    def _call(
        self,
        callee: Callee,
        kind: str,
        calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
        decode: Callable[[Any], Any],
    ) -> list[Outcome]:
        """``calls``: positional arguments, and the same by name. An error begins with the function's name."""
        if callee.local is not None:
            found = [_locally(callee, kind, arguments) for arguments, _ in calls]
        else:
            lines = [
                {"key": callee.function.key, "kind": kind, "options": dict(callee.options)} | _json(values)
                for _, values in calls
            ]
            found = [one if one.error else Outcome(decode(one.value)) for one in self._pool.run(lines)]
        found = [Outcome(None, f"{callee.where}: {one.error}") if one.error else one for one in found]
        if self._listener is not None:
            for (arguments, _), outcome in zip(calls, found, strict=True):
                self._listener(callee, kind, arguments, outcome)
        return found


def _locally(callee: Callee, kind: str, arguments: tuple[Any, ...]) -> Outcome:
    assert callee.local is not None
    try:
        value = callee.local(*arguments, **callee.options)
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {error}")
    try:
        if kind == "reward":
            value = codec.score(value, len(arguments[0].policy_turns))
        elif kind == "relabel":
            value = codec.targets_json(value, codec.images_of(*arguments))
    except BadValueError as error:
        return Outcome(None, str(error))
    return Outcome(value)


def _step_of(value: Mapping[str, Any]) -> Step:
    ask: Ask | None = None if value["ask"] is None else codec.ask_of(value["ask"])
    return Step(value["state"], ask, value["rewards"])


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Question):
            found[name] = codec.question_json(value)
        elif isinstance(value, Episode):
            found[name] = codec.episode_json(value)
        elif name == "group":
            found[name] = [codec.episode_json(one) for one in value]
        elif name == "images":
            found[name] = codec.bytes_json(value)
        else:
            found[name] = value
    return found
