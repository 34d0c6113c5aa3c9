"""One frozen type per arrow of the flow.

    Question -> Caption -> Trajectory -> Verdict -> Kept            (a training round)
    Question -> Answer                                              (an evaluation)

Every record is a row of a Parquet shard (``sophia_mcore.store``); field names are column names.
Identifiers are plain strings built from their parents, so lineage can be read without a join:

    question   "train-17"
    image set  "3f2a..."                 sha256 of the image, or of the digests joined when there are several
    caption    "3f2a9c0d1e2f3a4b.k2"     first 16 digits of the image set, caption index k
    trajectory "train-17.3f2a9c0d1e2f3a4b.k2.n5"
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

VerdictName = Literal["correct", "wrong", "no_answer", "timeout", "error"]
FinishReason = Literal["stop", "length"]


def image_set_id(images: tuple[str, ...]) -> str:
    """Identifier of an ordered set of image digests: the digest itself when there is one.

    >>> image_set_id(("ab12",))
    'ab12'
    """
    if len(images) == 1:
        return images[0]
    return hashlib.sha256("\n".join(images).encode()).hexdigest()


def caption_id(images: tuple[str, ...], index: int) -> str:
    """Identifier of caption number ``index`` (k) of an image set."""
    return f"{image_set_id(images)[:16]}.k{index}"


def trajectory_id(question_id: str, caption: str, index: int) -> str:
    """Identifier of trajectory number ``index`` (n) that answers a question from a caption."""
    return f"{question_id}.{caption}.n{index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one or several images, with its verified answer.

    >>> Question(id="train-17", question="Add the first and third digit.", answer="5",
    ...          answer_type="integer", images=("3f2a",), source="digits").answer
    '5'
    """

    id: str
    question: str
    answer: str
    answer_type: str = ""  # "" lets the grader infer it
    images: tuple[str, ...] = ()  # sha256 of each image file, in order; bytes are in the store's images
    options: tuple[str, ...] = ()  # texts of a multiple choice question, in order
    source: str = ""  # name of the dataset the row came from


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What every sampled text carries: the text, how it ended, and where it came from."""

    text: str
    token_ids: tuple[int, ...]  # the sampling model's own tokens, end token included when sampled
    token_logprobs: tuple[float, ...]  # natural log, under the sampling distribution; () if the engine has none
    logprob_sum: float  # sum of token_logprobs; nan if unknown
    finish_reason: FinishReason
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    model_digest: str  # sha256 over the model's weights and config (store.lineage)
    prompt_hash: str  # sha256 of the rendered prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption(Sampled):
    """What the policy says it sees: image set -> text, without the question (on-policy seeing).

    Example: id "3f2a9c0d1e2f3a4b.k2", text "The image shows first 3, second 7, third 2, fourth 9."
    """

    id: str
    images: tuple[str, ...]
    index: int  # k in [0, K)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Sampled):
    """What the reasoner answers from a caption and the question (off-policy reasoning).

    Example: id "train-17.3f2a9c0d1e2f3a4b.k2.n5",
    text "<think>first 3, third 2. 3+2=5.</think>The answer is \\boxed{5}."
    """

    id: str
    question_id: str
    caption_id: str
    index: int  # n in [0, N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verifier's word on one trajectory. Outcome reward = 1 iff verdict is "correct" (eq. 4).

    Example: trajectory_id "train-17.3f2a9c0d1e2f3a4b.k2.n5", verdict "correct", extracted "5".
    """

    trajectory_id: str
    question_id: str
    caption_id: str
    verdict: VerdictName
    extracted: str  # the final answer found in the text, "" if none
    answer_type: str  # the type the grader used, given or inferred
    seconds: float
    verifier: str  # name
    verifier_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A trajectory whose dataset reward is 1 (eq. 6), joined with all that training needs of it.

    Example: question_id "train-17", caption_reward 0.875, response = the trajectory's text.
    """

    trajectory_id: str
    question_id: str
    caption_id: str
    images: tuple[str, ...]
    question: str
    response: str
    token_count: int  # length in the reasoner's tokens, the length that the shortest rule compares
    outcome: float  # R(y), eq. 4
    caption_reward: float  # R(c), eq. 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Sampled):
    """The policy's own answer to an evaluation question, with its verdict."""

    id: str  # f"{question_id}.n{index}"
    question_id: str
    index: int
    verdict: VerdictName
    extracted: str
