"""The browser of single examples: image -> captions with rewards -> trajectories with verdicts, the kept one marked."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections import defaultdict
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Caption, Kept, Question, Trajectory, Verdict
from sophia_mcore.score.reward import visual_rewards
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, shard_files

_THUMBNAIL_PIXELS = 384
_MAX_TEXT = 20_000  # longer texts are cut in the page; the store has them whole


def examples(run: RunFolder, limit: int, round_index: int = 0) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The first ``limit`` questions with all that was made of them, and their images as data URLs by digest."""
    if not run.questions_file.is_file():
        return [], {}
    questions = read_shard(run.questions_file, Question)[:limit]
    folder = run.round(round_index)
    captions: dict[tuple[str, ...], list[Caption]] = defaultdict(list)
    for caption in _read(folder.captions, Caption):
        captions[caption.images].append(caption)
    trajectories: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for trajectory in _read(folder.trajectories, Trajectory):
        trajectories[trajectory.question_id, trajectory.caption_id].append(trajectory)
    verdicts = {verdict.trajectory_id: verdict for verdict in _read(folder.verdicts, Verdict)}
    rewards = visual_rewards(verdicts.values())
    kept_file = folder.kept_file
    kept = {k.trajectory_id for k in read_shard(kept_file, Kept)} if kept_file.is_file() else set()
    shown = []
    for question in questions:
        made = [
            {
                "text": _cut(caption.text),
                "reward": rewards.get((question.id, caption.id)),
                "trajectories": [
                    _trajectory(t, verdicts.get(t.id), t.id in kept)
                    for t in sorted(trajectories[question.id, caption.id], key=lambda t: t.index)
                ],
            }
            for caption in sorted(captions.get(question.images, ()), key=lambda c: c.index)
        ]
        shown.append(
            {
                "id": question.id,
                "question": _cut(question.question),
                "answer": question.answer,
                "type": question.answer_type,
                "images": list(question.images),
                "captions": made,
            }
        )
    return shown, _thumbnails(run, {digest for question in questions for digest in question.images})


def _read(folder: Any, record_type: type) -> list[Any]:
    """All whole shards of a folder; a damaged one is left out, for a report must not die of it."""
    try:
        return list(read_folder(folder, record_type)) if folder.is_dir() else []
    except SophiaError:
        found: list[Any] = []
        for shard in shard_files(folder):
            try:
                found += read_shard(shard, record_type)
            except SophiaError:
                continue
        return found


def _trajectory(trajectory: Trajectory, verdict: Verdict | None, kept: bool) -> dict[str, Any]:
    return {
        "text": _cut(trajectory.text),
        "tokens": len(trajectory.token_ids),
        "finish": trajectory.finish_reason,
        "verdict": verdict.verdict if verdict else "",
        "extracted": verdict.extracted[:500] if verdict else "",
        "kept": kept,
    }


def _cut(text: str) -> str:
    left_out = len(text) - _MAX_TEXT
    return text if left_out <= 0 else f"{text[:_MAX_TEXT]} ... [{left_out:,} more characters in the store]"


def _thumbnails(run: RunFolder, digests: set[str]) -> dict[str, str]:
    from sophia_mcore.data.images import decode

    store, urls = ImageStore(run.images), {}
    for digest in sorted(digests):
        try:
            image = decode(store.get(digest))
        except (SophiaError, OSError, KeyError):
            continue
        image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        buffer = io.BytesIO()
        if max(image.size) <= 64:
            image.save(buffer, "PNG", optimize=True)
            kind = "png"
        else:
            image.save(buffer, "JPEG", quality=80)
            kind = "jpeg"
        urls[digest] = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return urls


def pack(value: object) -> str:
    """JSON, gzipped, base64: no character of it can end a script block, and it is small."""
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), mtime=0)).decode()
