"""Which column of a known dataset holds what. Dots lead into lists and objects: ``conversations.0.value``, or
``conversations.human.value`` for the first turn of a speaker."""

from __future__ import annotations

from dataclasses import dataclass

from sophia_mcore.config.schema import Columns


@dataclass(frozen=True, slots=True)
class Preset:
    """Columns of a dataset, and a pattern whose first group is the answer inside the answer column's text."""

    columns: Columns
    answer_pattern: str | None = None


PRESETS: dict[str, Preset] = {
    "default": Preset(Columns()),
    # Zhiqiang007/MathV360K: id (not unique over its parts), image (path), conversations [human, gpt] in LLaVA's form;
    # the short answers read "The answer is B".
    "mathv360k": Preset(
        Columns(
            images=("image",),
            question=("conversations.human.value",),
            answer=("conversations.gpt.value",),
            answer_type=(),
            options=(),
            id=(),
        ),
        answer_pattern=r"(?is)(?:the answer is|answer)\s*:?\s*(.+?)\s*\.?\s*$",
    ),
    # TIGER-Lab/ViRL39K: qid, question (with <image> tags), answer in \boxed{}, image (list of paths), category, source.
    # Unpack its images and use kind = "parquet": in a folder with both, `datasets` sees only the image files.
    "virl39k": Preset(Columns(images=("image", "images"), answer_type=(), options=(), id=("qid",))),
}
