"""The terms of the reward: which are for a question, their values for a group of episodes, and the weighted total."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sophia_mcore.config.functions import Only, RewardTerm
from sophia_mcore.environments.codec import BadValueError
from sophia_mcore.environments.library import Library, Term
from sophia_mcore.environments.places import placed, require_helper
from sophia_mcore.environments.types import Ask, Episode, Turn
from sophia_mcore.errors import UsageError
from sophia_mcore.records import Question, VerdictName
from sophia_mcore.verify.comparing import exact
from sophia_mcore.verify.rules import known_type, rule_for

Value = float | list[float] | None  # of an episode; a list: of each turn of the policy
Said = tuple[str, VerdictName, str]  # a helper's reply, its verdict as an answer, what was extracted
AskHelper = Callable[[str, Sequence[Ask], Sequence[Question]], Sequence[Said]]
Images = Callable[[Question], tuple[bytes, ...]]


@dataclass(slots=True)
class Judged:
    """An episode with the values of the terms that are for its question; ``broken``: why it has none."""

    episode: Episode
    values: dict[str, Value] = field(default_factory=dict)
    broken: str = ""


def types_of(question: Question) -> set[str]:
    """Names of the question's answer type: the data's, ours, and the one that grading infers where there is none."""
    given = question.answer_type.strip().casefold()
    found = {given, known_type(given)}
    if not question.answer_type:
        try:
            rule = rule_for(question.source)
            found.add(exact.prepare(question.answer, "", question.options, rule).type)
        except Exception:  # a strange answer has no type
            found.add("untyped")
    return found - {""}


def applies(only: Only | None, question: Question) -> bool:
    """Whether a term is for the question."""
    if only is None:
        return True
    if only.source and question.source not in only.source:
        return False
    wanted = {name.strip().casefold() for name in only.answer_type}
    return not wanted or bool(wanted & types_of(question))


def require_terms(terms: Sequence[RewardTerm], questions: Iterable[Question], *, whole: bool = True) -> None:
    """Raise UsageError for a question without a term, and for a term without a question: nobody would notice later.

    ``whole`` False: there are further questions, so that a term may still have one.
    """
    listed = list(questions)
    unused = {term.label for term in terms}
    for question in listed:
        found = {term.label for term in terms if applies(term.only, question)}
        if not found:
            kinds = " or ".join(sorted(types_of(question))) or "untyped"
            raise UsageError(
                f"rewards: no term is for question {question.id!r} (answer type {kinds}, source {question.source!r}): "
                "its answers would never be judged"
            )
        unused -= found
    if unused and listed and whole:
        types = sorted({kind for question in listed for kind in types_of(question)})
        sources = sorted({question.source for question in listed})
        only = next(term.only for term in terms if term.label == min(unused))
        meant = _meant(only, types, sources)
        raise UsageError(
            f"rewards.{min(unused)}: only = ... fits none of the {len(listed)} questions ({meant}"
            f"answer types: {', '.join(types[:12])}; sources: {', '.join(map(repr, sources[:8]))})"
        )


def _meant(only: Only | None, types: Sequence[str], sources: Sequence[str]) -> str:
    pairs = [(name.strip().casefold(), types) for name in only.answer_type] if only else []
    pairs += [(name, sources) for name in only.source] if only else []
    for name, known in pairs:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if near and near[0] != name:
            return f"did you mean {near[0]!r}? "
    return ""


def weighted(values: Mapping[str, Value], terms: Sequence[RewardTerm]) -> float | None:
    """The total of an episode; None when a term that is for its question has not judged it."""
    parts = per_turn(values, terms, 1)
    return None if parts is None else math.fsum(parts)


def per_turn(values: Mapping[str, Value], terms: Sequence[RewardTerm], turns: int) -> list[float] | None:
    """The weighted reward of each of the ``turns``; a value of the whole episode belongs to the last one.

    None as in ``weighted``. With ``turns`` 1 everything belongs to it.
    """
    weights = {term.label: term.weight for term in terms}
    used = {label: value for label, value in values.items() if label in weights}
    if not used or any(value is None for value in used.values()):
        return None
    sums: list[list[float]] = [[] for _ in range(turns)]
    for label, value in used.items():
        if isinstance(value, list):
            for place, one in enumerate(value):
                sums[min(place, turns - 1)].append(weights[label] * one)
        else:
            assert value is not None
            sums[-1].append(weights[label] * value)
    return [math.fsum(one) for one in sums]


def fingerprint(terms: Sequence[RewardTerm]) -> str:
    """Names what the stored values are of: all settings of the terms but their weights."""
    values = [term.model_dump(mode="json", exclude={"weight"}) | {"name": term.label} for term in terms]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def as_json(values: Mapping[str, Value]) -> str:
    """For a column of a record."""
    return json.dumps(dict(values), allow_nan=False)


def from_json(text: str) -> dict[str, Value]:
    """As ``as_json`` gave it; "" has no values."""
    found: dict[str, Value] = json.loads(text) if text else {}
    return found


def judge(
    library: Library,
    groups: Sequence[tuple[Question, Sequence[Episode]]],
    *,
    images: Images,
    ask_helper: AskHelper,
) -> list[list[Judged]]:
    """The values of all terms for each group of episodes (the answers to one question), in order.

    A function that fails makes its episode broken, a function of groups every episode of the group. Broken episodes
    and those in which the policy has said nothing are not judged.
    """
    found = [
        (question, [Judged(one, broken="" if one.policy_turns else "the policy was never asked") for one in episodes])
        for question, episodes in groups
    ]
    for term in library.terms:
        chosen = [
            (question, [one for one in group if not one.broken and one.episode.status != "broken"])
            for question, group in found
            if applies(term.settings.only, question)
        ]
        chosen = [(question, group) for question, group in chosen if group]
        if term.ask is not None:
            _ask(library, term, chosen, ask_helper)
        _score(library, term, chosen, images)
    return [group for _, group in found]


def _ask(library: Library, term: Term, chosen: Sequence[tuple[Question, list[Judged]]], ask_helper: AskHelper) -> None:
    """Let the term's helper speak about every episode that it is asked about."""
    assert term.ask is not None
    pairs = [(one, question) for question, group in chosen for one in group]
    asks: dict[str, list[tuple[Judged, Question, Ask]]] = {}
    outcomes = library.ask(term, [(one.episode, question) for one, question in pairs])
    for (one, question), outcome in zip(pairs, outcomes, strict=True):
        if outcome.error:
            one.broken = outcome.error
        elif outcome.value is not None:
            try:
                require_helper(outcome.value.to, library.helpers)
                ask = placed(outcome.value)
            except BadValueError as error:
                one.broken = f"{term.ask.where}: {error}"
                continue
            asks.setdefault(ask.to, []).append((one, question, ask))
    for name, wanted in asks.items():
        replies = ask_helper(name, [ask for _, _, ask in wanted], [question for _, question, _ in wanted])
        for (one, _, ask), (text, verdict, extracted) in zip(wanted, replies, strict=True):
            turn = Turn(to=name, text=text, messages=ask.messages, verdict=verdict, extracted=extracted)
            one.episode = replace(one.episode, turns=(*one.episode.turns, turn))


def _score(library: Library, term: Term, chosen: Sequence[tuple[Question, list[Judged]]], images: Images) -> None:
    alive = [(question, [one for one in group if not one.broken]) for question, group in chosen]
    alive = [(question, group) for question, group in alive if group]
    seen = images if term.reward.takes_images else _no_images
    asked = [(question, seen(question), [one.episode for one in group]) for question, group in alive]
    for (_, group), outcomes in zip(alive, library.score(term, asked), strict=True):
        for one, outcome in zip(group, outcomes, strict=True):
            if outcome.error:
                one.broken = outcome.error
                continue
            value: Value = outcome.value
            one.values[term.label] = value
            known = math.fsum(value) if isinstance(value, list) else value
            one.episode = replace(one.episode, scores={**one.episode.scores, term.label: known})


def _no_images(question: Question) -> tuple[bytes, ...]:
    return ()
