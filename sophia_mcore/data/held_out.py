"""Held-out questions that are trained on: texts and images are compared, because a copy may have another name."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.records import Question
from sophia_mcore.store.shards import read_shard

Contents = dict[tuple[str, tuple[str, ...]], str]


def contents(file: Path | None) -> Contents:
    """The id of each question, by its text and the digests of its images; empty if there is no such file."""
    if file is None or not file.is_file():
        return {}
    return {(question.question, question.images): question.id for question in read_shard(file, Question)}


def shared(name: str, ours: Contents, held_out: str, theirs: Contents) -> tuple[str, bool]:
    """Which questions of the set ``held_out`` the set ``name`` has too.

    Returns a sentence without its end ("" if there are none), and whether they are all.

    >>> shared("data", {("2+2?", ()): "a"}, "exam", {("2+2?", ()): "b", ("1+1?", ()): "c"})
    ('data: 1 of the 2 questions of exam are there too, with the same text and images, such as b', False)
    """
    found = [question for content, question in theirs.items() if content in ours]
    if not found:
        return "", False
    line = f"{name}: {len(found):,} of the {len(theirs):,} questions of {held_out} are there too, with the same "
    return f"{line}text and images, such as {found[0]}", len(found) == len(theirs)
