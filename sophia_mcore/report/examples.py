"""The browser of single examples: image -> captions with rewards -> trajectories with verdicts, the kept one marked.

The page holds them in blocks that it unpacks when they are looked at, and an index with what the filters ask.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sophia_mcore.config.schema import Config, Reward
from sophia_mcore.errors import SophiaError
from sophia_mcore.evaluate.results import answer_type
from sophia_mcore.records import BROKEN, Caption, Kept, Question, Trajectory, Verdict
from sophia_mcore.report.pictures import allowance, picture
from sophia_mcore.report.reading import Problems, columns, read_json, records, rewarded
from sophia_mcore.score.candidates import caption_rewards
from sophia_mcore.score.reward import Candidate, passes
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.store.shards import read_metadata, shard_files

BLOCK_SIZE = 50
FLAGS = ("kept", "none", "wrong", "broken", "rewarded", "captions", "verifiers", "peer")  # bit i of an example's flags
_MAX_TEXT = 20_000  # characters of one text in the page; the store has it whole
_MIN_TEXT = 300
_ALL_TEXTS = 60_000_000  # characters of all trajectories in the page: many are cut shorter each


@dataclass
class Browser:
    """What the page needs: ``index`` (columns), and per block the packed examples and its images as data URLs."""

    index: dict[str, Any]
    blocks: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.index["flags"])


def browser(run: RunFolder, rounds: list[int], limit: int, config: Config, problems: Problems) -> Browser:
    """The first ``limit`` questions of the rounds (shared evenly) with all that was made of them."""
    questions = records(run.questions_file, Question, problems)
    shown: list[dict[str, Any]] = []
    share = limit // max(1, len(rounds))
    for index in rounds:
        shown += _round_examples(run.round(index), index, questions[:share], config, problems)
    return in_blocks(shown, FLAGS, run, problems)


def in_blocks(
    shown: list[dict[str, Any]], names: Sequence[str], run: RunFolder, problems: Problems, share: float = 1.0
) -> Browser:
    """The browser of entries that have "flags" (taken out of them), "type", "round" and "images".

    ``names``: of the flags' bits. ``share``: of the room that a page has for pictures.
    """
    types = sorted({entry["type"] for entry in shown})
    result = Browser(
        {
            "block": BLOCK_SIZE,
            "names": list(names),
            "flags": [entry.pop("flags") for entry in shown],
            "types": types,
            "type": [types.index(entry["type"]) for entry in shown],
            "round": [entry["round"] for entry in shown],
        }
    )
    blocks = [shown[start : start + BLOCK_SIZE] for start in range(0, len(shown), BLOCK_SIZE)]
    wanted = [sorted({digest for example in block for digest in example["images"]}) for block in blocks]
    most = int(share * allowance(sum(map(len, wanted))))
    store = _open_images(run, problems)
    unreadable: list[str] = []
    for block, digests in zip(blocks, wanted, strict=True):
        result.blocks.append(pack(block))
        result.images.append(in_script(_pictures(store, digests, most, unreadable) if store is not None else {}))
    if unreadable:
        problems.add(f"{len(unreadable)} images cannot be shown: {unreadable[0]}")
    return result


def _open_images(run: RunFolder, problems: Problems) -> ImageStore | None:
    try:
        return ImageStore(run.images)
    except SophiaError as error:
        problems.add(str(error))
        return None


def _round_examples(
    folder: RoundFolder, index: int, questions: list[Question], config: Config, problems: Problems
) -> list[dict[str, Any]]:
    captions = _captions(folder, problems)
    names = ["trajectory_id", "question_id", "caption_id", "verdict", "extracted"]
    columns_of_verdicts = columns(folder.verdicts, Verdict, names, problems, lambda _, text: text[:500])
    verdicts = {row[0]: row for row in zip(*columns_of_verdicts.values(), strict=True)}
    candidates = (Candidate(row[0], row[1], row[2], 0, False, row[3]) for row in verdicts.values())
    rewards = caption_rewards(config, rewarded(config, folder, candidates, problems))
    kept = {k.trajectory_id for k in records(folder.kept_file, Kept, problems)}
    trajectories = _trajectories(folder, kept, verdicts, problems)
    changes = read_json(folder.verdict_changes_file) or {}
    opinion = read_json(folder.second_opinion_file) or {}
    disputed = _by_id(changes, "old"), _by_id(opinion, "peer")
    shown = []
    for question in questions:
        made = []
        for caption_id, text in captions.get(question.images, ()):
            answers = trajectories.get((question.id, caption_id), [])
            for answer in answers:
                for name, said in zip(("before", "peer"), disputed, strict=True):
                    if answer["id"] in said:
                        answer[name] = said[answer["id"]]
            made.append({"text": text, "reward": rewards.get((question.id, caption_id)), "trajectories": answers})
        shown.append(
            {
                "id": question.id,
                "round": index,
                "question": cut(question.question, _MAX_TEXT),
                "options": [cut(option, _MAX_TEXT) for option in question.options],
                "answer": cut(question.answer, _MAX_TEXT),
                "type": answer_type(question),
                "source": question.source,
                "images": list(question.images),
                "captions": made,
                "flags": _flags(made, config.reward),
            }
        )
    return shown


def _by_id(found: dict[str, Any], name: str) -> dict[str, str]:
    """Verdicts of another verifier on the trajectories that a file lists as examples."""
    return {str(e.get("id")): str(e.get(name)) for e in found.get("examples", []) if isinstance(e, dict)}


def _captions(folder: RoundFolder, problems: Problems) -> dict[tuple[str, ...], list[tuple[str, str]]]:
    """(id, text) of the captions of each image set, in the order of k."""
    found = columns(folder.captions, Caption, ["images", "index", "id", "text"], problems, _limit(_MAX_TEXT))
    captions: dict[tuple[str, ...], list[tuple[int, str, str]]] = defaultdict(list)
    for images, position, caption, text in zip(*found.values(), strict=True):
        captions[tuple(images)].append((position, caption, text))
    return {images: [(name, text) for _, name, text in sorted(made)] for images, made in captions.items()}


def _trajectories(
    folder: RoundFolder, kept: set[str], verdicts: dict[str, tuple[str, ...]], problems: Problems
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    limit = min(_MAX_TEXT, max(_MIN_TEXT, _ALL_TEXTS // max(1, _rows(folder))))
    names = ["id", "question_id", "caption_id", "index", "text", "tokens", "finish_reason"]
    found = columns(folder.trajectories, Trajectory, names, problems, _limit(limit))
    made: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for name, question, caption, position, text, tokens, finish in zip(*found.values(), strict=True):
        verdict = verdicts.get(name)
        trajectory = {
            "id": name,
            "text": text,
            "tokens": tokens,
            "finish": finish,
            "verdict": verdict[3] if verdict else "",
            "extracted": verdict[4] if verdict else "",
        }
        if name in kept:
            trajectory["kept"] = True
        made[question, caption].append((position, trajectory))
    return {pair: [t for _, t in sorted(rows, key=lambda row: row[0])] for pair, rows in made.items()}


def _rows(folder: RoundFolder) -> int:
    rows = 0
    for shard in shard_files(folder.trajectories) if folder.trajectories.is_dir() else ():
        try:
            rows += read_metadata(shard)["rows"]
        except SophiaError:
            continue  # named when its rows are read
    return rows


def _flags(captions: list[dict[str, Any]], config: Reward) -> int:
    made = [t for caption in captions for t in caption["trajectories"]]
    judged = [t for t in made if t["verdict"]]
    rewards = [caption["reward"] for caption in captions if caption["reward"] is not None]
    kept = any("kept" in t for t in made)
    holds = {
        "kept": kept,
        "none": not kept,
        "wrong": bool(judged) and all(t["verdict"] != "correct" for t in judged),
        "broken": any(t["verdict"] in BROKEN for t in judged),
        "rewarded": any(
            passes(caption["reward"] or 0.0, config)
            and any(t["verdict"] not in ("correct", "") for t in caption["trajectories"])
            for caption in captions
        ),
        "captions": bool(rewards) and min(rewards) == 0 and max(rewards) == 1,
        "verifiers": any("before" in t for t in made),
        "peer": any("peer" in t for t in made),
    }
    return sum(1 << bit for bit, name in enumerate(FLAGS) if holds[name])


def _limit(characters: int) -> Callable[[str, str], str]:
    return lambda name, text: cut(text, characters) if name == "text" else text


def cut(text: str, most: int) -> str:
    """``text``, shortened to its head and tail (the answer is at the end) with a note on the omitted part."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]} [... {left_out:,} more characters in the store ...] {text[-half:]}"


def _pictures(store: ImageStore, digests: list[str], most: int, unreadable: list[str]) -> dict[str, tuple[str, str]]:
    """(data URL, original size or "") by digest."""
    found = {}
    for digest in digests:
        try:
            found[digest] = picture(store.get(digest), most)
        except (SophiaError, OSError, KeyError) as error:
            unreadable.append((str(error).splitlines() or ["unreadable"])[0])
    return found


def pack(value: object) -> str:
    """JSON, gzipped, base64: no character of it can end a script block, and it is small."""
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), compresslevel=6, mtime=0)).decode()


def in_script(value: object) -> str:
    """JSON that is safe inside a script element: it cannot end the element or open a comment."""
    return json.dumps(value).replace("<", "\\u003c")
