"""The records that phases pass to each other: one frozen type per arrow of the flow.

    Question -> Caption -> Trajectory -> Verdict -> Kept            (the reasoner answers; a later phase grades)
    Question -> Answer = Trajectory with its verdict                (the policy answers; graded at once)

Every record is a row of a Parquet shard (``sophia_mcore.store``); field names are column names.
Identifiers are strings that contain the identifiers of their parents, so lineage can be read without a join:

    question   "train-17"
    image set  "3f2a..."                 sha256 of the image, or of the joined digests of several images
    caption    "3f2a9c0d1e2f3a4b.k2"     first 16 digits of the image set, caption index k
    trajectory "train-17.3f2a9c0d1e2f3a4b.k2.n5", or "train-17.n5" where there is no caption
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

VerdictName = Literal["correct", "wrong", "no_answer", "timeout", "error"]
BROKEN: frozenset[VerdictName] = frozenset({"timeout", "error"})  # verdicts that say nothing of the answer
FinishReason = Literal["stop", "length"]
TrajectorySource = Literal["reasoner", "policy"]

# How a text holds its thought: <think>...</think>, then the answer. Some tokenizers call the tags special; to us they
# are text.
THOUGHT, END_OF_THOUGHT = "<think>", "</think>"


def with_thought(thought: str, answer: str) -> str:
    """The text of an answer whose thought is given apart.

    >>> with_thought("2+3=5.", "It is 5.")
    '<think>\\n2+3=5.\\n</think>\\n\\nIt is 5.'
    """
    return f"{THOUGHT}\n{thought}\n{END_OF_THOUGHT}\n\n{answer}"


def after_thought(text: str) -> str:
    """What follows the last thought; the whole text if no thought ends in it.

    >>> after_thought("<think>2+3=5.</think>It is 5."), after_thought("It is 5.")
    ('It is 5.', 'It is 5.')
    """
    return text.rpartition(END_OF_THOUGHT)[2]


def image_set_id(images: tuple[str, ...]) -> str:
    """Identifier of an ordered set of image digests. For one image it is the digest itself.

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
    """Identifier of trajectory number ``index`` (n), which answers a question from a caption ("": from the image).

    >>> trajectory_id("train-17", "3f2a9c0d1e2f3a4b.k2", 5), trajectory_id("train-17", "", 5)
    ('train-17.3f2a9c0d1e2f3a4b.k2.n5', 'train-17.n5')
    """
    return ".".join((question_id, *([caption] if caption else []), f"n{index}"))


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
    benchmark: str = ""  # a name of benchmarks.toml; "": an ordinary question
    details: str = ""  # JSON of a benchmark's question: index, prompts, golds, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Fields of every sampled text: the text, how it ended, and how it was sampled."""

    text: str
    token_ids: tuple[int, ...]  # tokens of the sampling model, with the end token if it was sampled
    token_logprobs: tuple[float, ...]  # natural log, under the sampling distribution; () if the engine gives none
    logprob_sum: float  # sum of token_logprobs; nan if unknown
    finish_reason: FinishReason
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    model_digest: str  # sha256 over the model's weights and config (store.lineage)
    prompt_hash: str  # sha256 of the rendered prompt
    opened: str = ""  # the chat template's beginning of the answer ("<think>"); in ``text``, not in ``token_ids``


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption(Sampled):
    """The policy's description of an image set, made without the question (on-policy seeing).

    Example: id "3f2a9c0d1e2f3a4b.k2", text "The image shows first 3, second 7, third 2, fourth 9."
    """

    id: str
    images: tuple[str, ...]
    index: int  # k in [0, K)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Sampled):
    """An answer to a question: by the reasoner from a caption (off-policy reasoning), or by the policy from the image.

    Example: id "train-17.3f2a9c0d1e2f3a4b.k2.n5", source "reasoner",
    text "<think>first 3, third 2. 3+2=5.</think>The answer is \\boxed{5}."
    """

    id: str
    question_id: str
    caption_id: str = ""  # "": the model saw the image
    index: int  # n in [0, N) of its question and caption
    source: TrajectorySource = "reasoner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Trajectory):
    """A trajectory that was graded when it was sampled. ``verdict`` and ``extracted`` are as in ``Verdict``.

    The policy's answers to evaluation questions are of this type, and so are its answers that objectives learn from.
    Example: id "train-17.n5", source "policy", verdict "correct", extracted "5".
    """

    source: TrajectorySource = "policy"
    verdict: VerdictName
    extracted: str
    # only for answers to benchmark questions:
    settled_by: str = ""  # how it was scored: "rules", "llm", or "none" (only a judge could score it)
    credit: float = -1.0  # share of its parts that are right; -1: not scored by parts
    direct: bool = False  # VLMEvalKit's rules can read the answer without a language model


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(Answer):
    """The policy's answer in a batch of the on-policy stage, sampled by one version of the policy.

    The first ``given`` of ``token_ids`` were not sampled for this answer: in a rethinking they are the first try and
    the trigger. ``token_logprobs`` are of the sampled tokens only. ``model_digest`` is that of the version.
    Example: id "train-17.b12.n3", version 12; its rethinking has id "train-17.b12.n3.r" and parent "train-17.b12.n3".

    In an environment of several turns each turn is a row, with the id "train-17.b12.n3.t1" but for the first of all.
    A turn whose ``asked`` is not the policy is a helper's reply, and is never trained on.
    """

    batch: int
    version: int
    parent: str = ""  # id of the answer that this one continues; "": it continues none
    trigger: str = ""  # trigger after the first try: questioning, verification or correction
    given: int = 0
    turn: int = 0  # place among all turns of the episode
    asked: str = "policy"  # or a helper
    prompt: str = ""  # JSON {"messages", "images"} of what was asked; "": the question as it stands
    status: str = "done"  # of the episode: "cut_off" by a limit, or "broken"
    why: str = ""  # the reason of a status that is not "done"
    scores: str = ""  # JSON: values of the reward's terms for this turn; those of a whole episode are at its last turn
    step_rewards: str = ""  # JSON: what the environment's step has said of this turn


def rollout_id(question_id: str, batch: int, index: int, turn: int = 0) -> str:
    """Identifier of the answer number ``index`` to a question in a batch of the on-policy stage.

    >>> rollout_id("train-17", 12, 3), rollout_id("train-17", 12, 3, turn=1)
    ('train-17.b12.n3', 'train-17.b12.n3.t1')
    """
    return f"{question_id}.b{batch}.n{index}" + (f".t{turn}" if turn else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verifier's result for one trajectory. Outcome reward = 1 iff verdict is "correct" (eq. 4).

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
class Terms:
    """What the terms of the reward say of one answer, where the reward is not the verdict alone.

    ``values`` is JSON: the value of each term that is for the question, null where it has not judged. ``broken``: why
    the answer has no values. Example: values '{"correct": 1.0, "format": 0.0}'.
    """

    trajectory_id: str
    question_id: str
    caption_id: str
    values: str
    broken: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A trajectory whose dataset reward is 1 (eq. 6), with everything that training needs.

    Example: question_id "train-17", caption_reward 0.875, response = the trajectory's text.
    """

    trajectory_id: str
    question_id: str
    caption_id: str
    images: tuple[str, ...]
    question: str
    response: str
    token_count: int  # length in the reasoner's tokens, by which the shortest is selected
    outcome: float  # R(y), eq. 4
    caption_reward: float  # R(c), eq. 5
