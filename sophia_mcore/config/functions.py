"""Settings that choose functions: rewards, the environment, how turns are weighed, what is imitated, helpers.

Each function is built in, by its name, or the user's own, ``FILE.py:FUNCTION`` (an environment: ``FILE.py``).
docs/own_reward.md is the tutorial, `sophia_mcore.environments` has what they are given and return.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, PositiveInt, field_validator, model_validator

from sophia_mcore.config.base import Fraction, NonNegative, Positive, Section
from sophia_mcore.config.engines import Engine, Sampling, VllmEngine
from sophia_mcore.config.losses import Option

REWARDS = (
    "correct", "format", "equal", "length_among_right", "iou", "consistent", "judge", "step",
)  # fmt: skip
ASKING = {"judge": "judge", "consistent": "reader"}  # built-in rewards that ask a helper, by default the one named
ENVIRONMENTS = ("single", "again")
WEIGHS = ("episode", "turn", "return")
RELABELS = ("own_successes",)
_FUNCTION = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_NAME = re.compile(r"[A-Za-z_]\w*")


class Named(NamedTuple):
    """A function by its name: ``file`` None: built in."""

    file: Path | None
    function: str


def named(text: str, known: Sequence[str], what: str) -> Named:
    """Parts of ``text``. Raises ValueError when it is neither one of ``known`` nor ``FILE.py:FUNCTION``."""
    if match := _FUNCTION.fullmatch(text):
        return Named(Path(match[1]), match[2])
    if text in known:
        return Named(None, text)
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {what} {text!r} ({hint}valid: {', '.join(known)}, or FILE.py:FUNCTION of your own)")


class _Chosen(Section):
    """A function and its options; the name alone may stand for it."""

    function: str
    options: dict[str, Option] = Field(default_factory=dict)  # the function's keyword-only parameters

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"function": given} if isinstance(given, str) else given


class Only(Section):
    """Which questions a reward is for: by answer type, by source, or both."""

    answer_type: tuple[str, ...] = ()  # names of answer types, as the data give them or as grading infers them
    source: tuple[str, ...] = ()  # names of data sources

    @field_validator("*", mode="before")
    @classmethod
    def _one_name(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given


class RewardTerm(Section):
    """A term of the reward: the total is the sum of weight x value over the terms that are for the question."""

    function: str  # built in, or FILE.py:FUNCTION of your own
    name: str = ""  # what the term is called in metrics and the report; "": the function's name
    weight: float = 1.0  # negative: what the function counts is unwanted
    options: dict[str, Option] = Field(default_factory=dict)  # the function's keyword-only parameters
    only: Only | None = None  # none: for every question
    ask: str = ""  # FILE.py:FUNCTION that says what a helper is asked about the episode before the reward is computed

    @model_validator(mode="after")
    def _names(self) -> RewardTerm:
        named(self.function, REWARDS, "reward")
        if self.ask:
            if not _FUNCTION.fullmatch(self.ask):
                raise ValueError(f"ask = {self.ask!r} is not FILE.py:FUNCTION")
            if named(self.function, REWARDS, "reward").file is None:
                raise ValueError(f"ask belongs to a function of your own; {self.function!r} asks by itself")
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(f"name = {self.name!r} must consist of letters, digits and underscores")
        return self

    @property
    def label(self) -> str:
        """What the term is called."""
        return self.name or self.function.rpartition(":")[2]


class EnvironmentChoice(_Chosen):
    """What the policy's answers meet: one turn ("single"), two attempts ("again"), or a file of your own."""

    function: str = "single"  # built in, or FILE.py with the functions start and step

    @field_validator("function")
    @classmethod
    def _known(cls, text: str) -> str:
        if text in ENVIRONMENTS or text.endswith(".py"):
            return text
        near = difflib.get_close_matches(text.lower(), ENVIRONMENTS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        valid = f"valid: {', '.join(ENVIRONMENTS)}, or FILE.py with the functions start and step"
        raise ValueError(f"unknown environment {text!r} ({hint}{valid})")

    @property
    def file(self) -> Path | None:
        """The user's own file; None: built in."""
        return Path(self.function) if self.function.endswith(".py") else None


class Weigh(_Chosen):
    """What each turn of the policy is worth, compared with its group."""

    function: str = (
        "episode"  # "episode": the sum of its rewards; "turn": its own; "return": its own and all later ones
    )

    @field_validator("function")
    @classmethod
    def _known(cls, text: str) -> str:
        named(text, WEIGHS, "weigh")
        return text

    @model_validator(mode="after")
    def _no_options(self) -> Weigh:
        if self.function in WEIGHS and self.options:
            raise ValueError(f"{self.function!r} has no options (got {', '.join(self.options)})")
        return self


class Relabel(_Chosen):
    """What to imitate from an episode: an auxiliary term of negative log-likelihood with its own denominator."""

    function: str  # built in, or FILE.py:FUNCTION of your own
    weight: NonNegative = 0.05  # of the term

    @field_validator("function")
    @classmethod
    def _known(cls, text: str) -> str:
        named(text, RELABELS, "relabel")
        return text


class Helper(Section):
    """A model that is asked and never trained: a judge, a reader, a perceiver, a simulator. Replies are cached."""

    model: Path | None = None  # folder; none only where the engine is an endpoint
    engine: Engine = VllmEngine()
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=1024)

    @model_validator(mode="after")
    def _has_a_model(self) -> Helper:
        if self.model is None and self.engine.kind != "openai":
            raise ValueError("model: required key is missing (unless engine.kind is 'openai')")
        return self


class Functions(Section):
    """Limits of the processes that run functions of your own."""

    workers: PositiveInt = 2  # processes
    timeout_seconds: Positive = 5.0  # CPU-seconds of one call; five times as much by the clock
    memory_limit_mib: PositiveInt = 4096  # of one process
    max_broken_share: Fraction = 0.05  # of a batch's (a round's) episodes whose functions fail; more stop the work


def check_terms(terms: Sequence[RewardTerm]) -> None:
    """Raise ValueError when two terms are called the same, or all weights are 0."""
    labels = [term.label for term in terms]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise ValueError(f"rewards: two terms are called {twice!r}: give them different names (name = ...)")
    if terms and all(term.weight == 0.0 for term in terms):
        raise ValueError("rewards: all weights are 0, so that no answer is better than another")


def check_helpers(terms: Sequence[RewardTerm], helpers: Mapping[str, Helper]) -> None:
    """Raise ValueError for a helper that is called as the policy is, or a reward whose helper is missing."""
    if "policy" in helpers:
        raise ValueError("helpers.policy: the policy itself is called so")
    for term in terms:
        if term.function not in ASKING:
            continue
        name = term.options.get("helper", ASKING[term.function])
        if name not in helpers:
            near = difflib.get_close_matches(str(name), helpers, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"rewards: {term.label} asks the helper {name!r}, but there is no [helpers.{name}]{hint}")
