"""Why nothing was kept: the three most frequent reasons of a round, each with one example."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Caption, Question, Trajectory, Verdict
from sophia_mcore.report.pictures import picture
from sophia_mcore.report.reading import Problems, columns, records, rewarded
from sophia_mcore.score.candidates import caption_rewards
from sophia_mcore.score.reward import Candidate, reason_to_drop
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RoundFolder, RunFolder

SHOWN = 3
_END = 1_500  # characters of a response's end, where its answer stands
_IMAGE_BYTES = 400_000
_SAYS = {
    "wrong": "The answer that was read is not the question's answer.",
    "no_answer": "No answer could be read: the response names none in the form that was asked for.",
    "truncated": "The response was cut off at reasoning.sampling.max_tokens before its answer.",
    "caption_reward": "The answer is right, but too few answers to this caption are: it is not above reward.alpha.",
    "timeout": "Comparing the answers took longer than score.timeout_seconds.",
    "error": "The verifier, or the judge, failed on this answer.",
    "reward": "The weighted total of [[rewards]] is below reward.at_least.",
    "not_judged": "A term of [[rewards]] has no value for this answer, or its function failed.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """``share``: of all trajectories of the round. ``image``: a data URL, or "" where it cannot be shown."""

    name: str
    says: str
    count: int
    share: float
    question: str
    answer: str
    image: str
    caption: str
    response: str
    extracted: str


def nothing_kept(run: RunFolder, config: Config, index: int, problems: Problems) -> list[Reason]:
    """The worst reasons of a round whose every trajectory was judged and dropped; [] for any other round."""
    folder = run.round(index)
    names = ["trajectory_id", "question_id", "caption_id", "verdict", "extracted"]
    rows = columns(folder.verdicts, Verdict, names, problems)
    finish = columns(folder.trajectories, Trajectory, ["id", "finish_reason"], problems)
    ended = dict(zip(*finish.values(), strict=True))
    if not ended or len(rows["verdict"]) < len(ended) or folder.kept_file.is_file():
        return []
    candidates = [
        Candidate(t, q, c, 0, ended.get(t) == "length", v)
        for t, q, c, v in zip(*(rows[name] for name in names[:4]), strict=True)
    ]
    candidates = rewarded(config, folder, candidates, problems)
    if len(candidates) < len(ended):
        return []
    rewards = caption_rewards(config, candidates)
    reasons = [reason_to_drop(candidate, rewards, config.reward) for candidate in candidates]
    if not all(reasons):
        return []  # some would be kept: the phase has not come that far
    said = dict(zip(rows["trajectory_id"], rows["extracted"], strict=True))
    found = []
    for name, count in Counter(reasons).most_common(SHOWN):
        example = candidates[reasons.index(name)]
        shown = _example(run, folder, example, problems)
        says = _SAYS.get(name, "It does not qualify.")
        found.append(Reason(name, says, count, count / len(reasons), **shown, extracted=said[example.id][:500]))
    return found


def _example(run: RunFolder, folder: RoundFolder, example: Candidate, problems: Problems) -> dict[str, Any]:
    question = next((q for q in records(run.questions_file, Question, problems) if q.id == example.question_id), None)
    captions = columns(folder.captions, Caption, ["id", "text"], problems, lambda _, text: text[:_END])
    responses = columns(folder.trajectories, Trajectory, ["id", "text"], problems, lambda _, text: text[-_END:])
    return {
        "question": question.question[:_END] if question else example.question_id,
        "answer": question.answer[:_END] if question else "",
        "image": _image(run, question, problems) if question and question.images else "",
        "caption": dict(zip(*captions.values(), strict=True)).get(example.caption_id, ""),
        "response": dict(zip(*responses.values(), strict=True)).get(example.id, ""),
    }


def _image(run: RunFolder, question: Question, problems: Problems) -> str:
    try:
        return picture(ImageStore(run.images).get(question.images[0]), _IMAGE_BYTES)[0]
    except (SophiaError, OSError, KeyError) as error:
        problems.add(f"an image cannot be shown: {(str(error).splitlines() or ['unreadable'])[0]}")
        return ""
