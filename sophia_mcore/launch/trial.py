"""`sophia check --try N`: functions of rewards and environments at work on a few questions, without any model.

Every question is played twice, in fresh processes and in another order, with the same replies of a stand-in for the
policy. A function that says something else the second time is named: a resumed stage could not be replayed with it.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.config.engines import too_many_images
from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.environments import terms
from sophia_mcore.environments.library import Callee, Library
from sophia_mcore.environments.play import Live, Played, play
from sophia_mcore.environments.pool import Outcome, Watch
from sophia_mcore.environments.types import Ask, Episode, Reply, Turn
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.reward_questions import asked_sources, question_of
from sophia_mcore.records import Question, VerdictName
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.store.signatures import hint
from sophia_mcore.store.user_files import keep_user_files

GROUP = 4
_Asked = tuple[Question, tuple[bytes, ...]]
Seen = dict[tuple[str, str, str], Outcome]  # by the function's name, the kind of call, and a hash of the arguments


@dataclass(slots=True)
class _Tried:
    """What came of playing the questions once; ``judged`` has an entry for each of ``lives``, in order."""

    seen: Seen = field(default_factory=dict)
    lives: list[Live] = field(default_factory=list)
    judged: list[terms.Judged] = field(default_factory=list)
    targets: dict[str, int] = field(default_factory=dict)  # of each relabelling


class Waiting:
    """Tells ``say`` what is waited for, every ``seconds``; of quick functions nothing is said."""

    def __init__(self, say: Callable[[str], object], seconds: float = 5.0) -> None:
        self._say, self._seconds, self._last = say, seconds, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._say(f"waiting for {what}; {done} of {total} calls are done")


def try_functions(config: Config, count: int, watch: Watch | None = None) -> Iterator[str]:
    """Play ``count`` questions twice; says what came out, line by line. ``watch`` is told what is waited for.

    Raises SophiaError naming a function that differs, fails, or takes too long (at its first call that does), or when
    there is no question to play.
    """
    asked = list(_questions(config, count))
    questions = [question for question, _ in asked]
    if not questions:
        raise SophiaError(f"--try: the sources of {asked_sources(config)[0]} have no good row to play")
    with tempfile.TemporaryDirectory(prefix="sophia-try-") as folder:
        run = RunFolder(Path(folder))
        keep_user_files(config, run)
        first = _once(config, run, asked, watch)
        _stop_if_broken(first)
        again = config.model_copy(update={"functions": config.functions.model_copy(update={"workers": 1})})
        second = _once(again, run, asked[::-1], watch)
    for key, outcome in first.seen.items():
        other = second.seen.get(key)
        if other is not None and other != outcome:
            raise SophiaError(
                f"{key[0]} is not deterministic: called twice with the same arguments it gave "
                f"{_shown(outcome)}, then {_shown(other)}"
            )
    yield from _summary(config, questions, first)


def _stop_if_broken(tried: _Tried) -> None:
    failed = [outcome.error for outcome in tried.seen.values() if outcome.error]
    if failed:
        raise SophiaError(f"{len(failed)} of {len(tried.seen)} calls failed, such as: {failed[0]}")
    broken = [
        live.why or one.broken
        for live, one in zip(tried.lives, tried.judged, strict=True)
        if live.status == "broken" or one.broken
    ]
    if broken:
        raise SophiaError(f"{len(broken)} of {len(tried.lives)} episodes are broken, such as: {broken[0]}")


def _summary(config: Config, questions: Sequence[Question], tried: _Tried) -> Iterator[str]:
    episodes = tried.judged
    turns = sum(len(one.episode.policy_turns) for one in episodes)
    yield (
        f"tried {len(questions)} questions x {GROUP} episodes twice, {turns} turns of a stand-in for the policy, "
        f"{len(tried.seen)} calls: every function said the same both times"
    )
    for term in config.reward_terms:
        values = [one.values[term.label] for one in episodes if term.label in one.values]
        known = [sum(value) if isinstance(value, list) else value for value in values if value is not None]
        mean = f"mean {sum(known) / len(known):.3f}, from {min(known):g} to {max(known):g}" if known else "no value"
        yield f"  {term.label} (weight {term.weight:g}): {mean}; judged {len(known)} of {len(values)}"
        yield from _doubts(term, len(known), len(values), tried)
    for name, count in tried.targets.items():
        yield f"  {name}: {count} targets of {len(episodes)} episodes"
    cut = [live.why for live in tried.lives if live.status == "cut_off"]
    if cut:
        yield f"  {len(cut)} of {len(episodes)} episodes were cut off, such as: {cut[0]}"


def _doubts(term: RewardTerm, known: int, asked: int, tried: _Tried) -> Iterator[str]:
    """What a term says is allowed, and hardly what was meant."""
    if not asked:
        yield f"  warning: rewards.{term.label} is for none of these questions (only = ...)"
    elif not known:
        yield (
            f"  warning: rewards.{term.label} has judged nothing: an answer without a value leaves its group, so that "
            "nothing would be learned"
        )
    if term.function == "step" and asked:
        name, said = (
            str(term.options["name"]),
            {key for one in tried.lives for turn in one.turns for key in turn.rewards},
        )
        if name not in said:
            near = hint(name, sorted(said), "they said")
            yield f"  warning: rewards.{term.label}: no step has said {name!r} ({near})"


def _questions(config: Config, count: int) -> Iterator[_Asked]:
    rows = (row for source in asked_sources(config)[1] for row in read_any(source) if not row.problems)
    for row in islice(rows, count):
        images = tuple(_bytes(image) for image in row.images)
        digests = tuple(hashlib.sha256(image).hexdigest() for image in images)
        yield question_of(row, digests), images


def _bytes(image: bytes | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise SophiaError(f"{image}: cannot be read ({error.strerror})") from None


def _once(config: Config, run: RunFolder, asked: Sequence[_Asked], watch: Watch | None) -> _Tried:
    images = {question.id: files for question, files in asked}
    tried = _Tried()

    def listen(callee: Callee, kind: str, arguments: tuple[Any, ...], outcome: Outcome) -> None:
        tried.seen[callee.where, kind, hashlib.sha256(repr(arguments).encode()).hexdigest()] = outcome

    stage = config.rl is not None
    with Library(config, run, stage=stage, listener=listen, watch=watch, patient=False) as library:
        groups = []
        for question, files in asked:
            lives = _lives(config, library, question, files)
            tried.lives += lives
            groups.append((question, [_episode(question, index, live) for index, live in enumerate(lives)]))
        judged = terms.judge(library, groups, images=lambda question: images[question.id], ask_helper=_said_by_a_helper)
        tried.judged = [one for group in judged for one in group]
        whole = [
            [one.episode for one in group if not one.broken and one.episode.status != "broken"] for group in judged
        ]
        if library.own_weigh is not None:
            library.weigh([group for group in whole if len(group) > 1])
        pairs = [(one, question) for (question, _), group in zip(groups, whole, strict=True) for one in group]
        for callee in library.relabels:
            outcomes = library.relabel(callee, pairs)
            tried.targets[callee.where] = sum(len(one.value) for one in outcomes if not one.error)
    return tried


def _lives(config: Config, library: Library, question: Question, images: tuple[bytes, ...]) -> list[Live]:
    """The episodes about a question, played to their ends with the stand-in's replies."""
    if config.rl is None or config.rl.one_turn:
        asked = Ask.user(question.question, images)
        lives = [Live(question=question, images=images, seed=0) for _ in range(GROUP)]
        for index, live in enumerate(lives):
            live.turns.append(Played(asked, _reply(question, index, 0)))
        return lives
    lives = [
        Live(question=question, images=images, seed=seed_for(config.run.seed, "try", question.id, index))
        for index in range(GROUP)
    ]
    game = play(
        library,
        lives,
        system=load_prompt(config.rl.prompt, None),
        max_turns=config.rl.max_turns,
        helpers=list(config.helpers),
        ask_helper=lambda name, asks: [Reply(_helper_says(question)) for _ in asks],
        unfit=lambda ask: too_many_images(config.on_policy.engine, len(ask.images)),
    )
    wave = next(game, None)
    while wave is not None:
        replies = [_reply(question, place, lives[place].policy_turns) for place, _ in wave]
        try:
            wave = game.send(replies)
        except StopIteration:
            wave = None
    return lives


def _reply(question: Question, index: int, turn: int) -> Reply:
    """The stand-in's reply: by turns a right answer with a thought, a wrong one, a bare answer and a cut off one."""
    texts = (
        f"<think>I look at it.</think>The answer is \\boxed{{{question.answer}}}.",
        "<think>I look at it, and once more.</think>The answer is \\boxed{no idea}.",
        question.answer,
        "I look at it and see",
    )
    kind = (index + turn) % len(texts)
    return Reply(texts[kind], "length" if kind == 3 else "stop")


def _verdict(question: Question, reply: Reply) -> VerdictName:
    return "no_answer" if reply.finish_reason == "length" else "correct" if question.answer in reply.text else "wrong"


def _episode(question: Question, index: int, live: Live) -> Episode:
    turns = tuple(
        Turn(
            to=one.ask.to,
            text=one.reply.text,
            messages=one.ask.messages,
            images=tuple(hashlib.sha256(image).hexdigest() for image in one.ask.images),
            tokens=len(one.reply.text.split()) + 1,
            finish_reason=one.reply.finish_reason,
            verdict=_verdict(question, one.reply),
            extracted=question.answer,
            rewards=one.rewards,
        )
        for one in live.turns
    )
    name = f"{question.id}.try.n{index}"
    return Episode(id=name, question_id=question.id, index=index, turns=turns, status=live.status)


def _helper_says(question: Question) -> str:
    return f"The answer is \\boxed{{{question.answer}}}.\nScore: 5"


def _said_by_a_helper(name: str, asks: Sequence[Ask], questions: Sequence[Question]) -> list[terms.Said]:
    return [(_helper_says(question), "correct", question.answer) for question in questions]


def _shown(outcome: Outcome) -> str:
    text = outcome.error or " ".join(repr(outcome.value).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
