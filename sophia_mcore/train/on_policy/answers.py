"""The rollouts of a batch as the trainer needs them: the sampled tokens themselves, never encoded text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.samples import AUXILIARY, FRESH
from sophia_mcore.batch.store_samples import recorded_logprobs
from sophia_mcore.batch.tokenize import TokenizedSample, end_token, special_tokens, without_special_tokens
from sophia_mcore.config.functions import RewardTerm
from sophia_mcore.config.rl import Rl
from sophia_mcore.environments.codec import messages_of
from sophia_mcore.environments.terms import as_json, fingerprint, from_json
from sophia_mcore.environments.types import POLICY
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.chat import Message, plain, user_text
from sophia_mcore.pretrained.family import ImageSize
from sophia_mcore.records import BROKEN, Question, Rollout
from sophia_mcore.rl.batches import Batch
from sophia_mcore.rl.groups import Graded
from sophia_mcore.rl.rethink import waits
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.shards import read_metadata, read_shard, unit_shard

_CACHED_PROMPTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A rollout without its text. ``token_ids`` begin with ``given`` tokens that were not sampled here."""

    graded: Graded
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]  # of the sampled tokens, in the engine; empty for a rethinking
    prompt_hash: str
    version: int
    batch: int
    given: int = 0
    parent: str = ""
    trigger: str = ""
    waits: bool = False  # whether the text has a word of doubt
    prompt: str = ""  # JSON of what was asked; "": the question as it stands
    weight: float | None = None  # of a target that is imitated, where it has one of its own
    learned: NDArray[np.bool_] | None = None  # of a target: which of its tokens are learned

    @property
    def imitated(self) -> bool:
        """Whether it is an auxiliary sample: a rethinking, or a target of a relabelling."""
        return bool(self.parent) or self.weight is not None

    @property
    def id(self) -> str:
        return self.graded.id


def read_rollouts(
    batches: Iterable[Batch], units: Iterable[str], lag: int, terms: Sequence[RewardTerm] = ()
) -> list[Sampled]:
    """The policy's turns in the finished ``units`` (ids) of a batch and its further draws.

    ``terms``: of the reward; none where it is the verdict alone. Raises SophiaError for a shard that is damaged, an
    answer without a log-prob for each token, one of a version that the batch does not allow, or one that was scored
    with other terms.
    """
    wanted, fingerprinted = set(units), fingerprint(terms) if terms else ""
    found = []
    for batch in batches:
        for unit in batch.units:
            if unit.id in wanted:
                path = unit_shard(batch.folder, unit.id)
                scored = read_metadata(path)["metadata"].get("rewards")  # None: by the verdict alone
                rows = [row for row in read_shard(path, Rollout) if row.asked == POLICY]
                if terms and not (scored == fingerprinted or (scored is None and _verdict_alone(terms))):
                    raise SophiaError(
                        f"{path}: was scored with other terms of [[rewards]]; only their weights may change: begin "
                        "another run.folder"
                    )
                if terms and scored is None:
                    rows = _by_verdict(rows, terms[0].label)
                found += [_sampled(row, lag) for row in rows]
    return found


def _verdict_alone(terms: Sequence[RewardTerm]) -> bool:
    """Whether the verdict is the only term, whatever its weight."""
    return [term.function for term in terms] == ["correct"] and terms[0].only is None


def _by_verdict(rows: Sequence[Rollout], label: str) -> list[Rollout]:
    """Answers that were scored by the verdict alone, with its value as that of the term ``label``."""
    scored = any(row.scores for row in rows)  # of several turns the last one has the value
    return [
        replace(row, scores=as_json({label: None if row.verdict in BROKEN else float(row.verdict == "correct")}))
        if row.scores or not scored
        else row
        for row in rows
    ]


def _sampled(row: Rollout, lag: int) -> Sampled:
    if not row.batch - lag <= row.version <= row.batch:
        raise SophiaError(
            f"rollout {row.id}: sampled by version {row.version}, but with rl.lag = {lag} batch {row.batch} is for "
            f"versions {max(0, row.batch - lag)} to {row.batch}"
        )
    return Sampled(
        graded=Graded(
            id=row.id,
            question_id=row.question_id,
            index=row.index,
            verdict=row.verdict,
            truncated=row.finish_reason == "length",
            tokens=len(row.token_ids) - row.given,
            turn=row.turn,
            scores=from_json(row.scores),
            status=row.status,
            why=row.why,
        ),
        token_ids=np.array(row.token_ids, np.int32),
        logprobs=_logprobs(row),
        prompt_hash=row.prompt_hash,
        version=row.version,
        batch=row.batch,
        given=row.given,
        parent=row.parent,
        trigger=row.trigger,
        waits=waits(row.text) > 0,
        prompt=row.prompt,
    )


def _logprobs(row: Rollout) -> NDArray[np.float32]:
    """Of the sampled tokens; none of a rethinking, whose first tokens were sampled elsewhere."""
    if row.parent or not row.token_ids:
        return np.zeros(0, np.float32)
    sampled = replace(row, token_ids=row.token_ids[row.given :]) if row.given else row
    return recorded_logprobs(sampled, "the on-policy stage")


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: NDArray[np.int32]
    hash: str
    images: tuple[str, ...]
    sizes: tuple[ImageSize, ...]


class Tokens:
    """Makes samples of rollouts. The prompt is built as the engine builds it, and their hashes are compared."""

    def __init__(self, reader: Reader, questions: Mapping[str, Question], system: str, longest: int, rl: Rl) -> None:
        self._reader, self._questions, self._system, self._longest, self._rl = reader, questions, system, longest, rl
        self._special = sorted({*special_tokens(reader.tokenizer), reader.chat.image_token})
        self._image_token = reader.tokenizer.token_to_id(reader.chat.image_token)
        self._prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._make_prompt)

    def unfit(self, answer: Sampled) -> str | None:
        """Why the answer cannot be trained on, so that it leaves its group before the mean is formed; None: it can.

        Raises SophiaError when it answers another prompt than the trainer would put in front of it.
        """
        if not len(answer.token_ids):
            return "empty"
        prompt = self._prompt(answer.graded.question_id, answer.prompt)
        if prompt.hash != answer.prompt_hash:
            raise SophiaError(
                f"rollout {answer.id}: its engine has sent another prompt than the trainer reads: "
                "chat template, prompt file or question have changed since"
            )
        if self._image_token in answer.token_ids:
            return "image_token"
        return "too_long" if len(prompt.ids) + len(answer.token_ids) > self._longest else None

    def sample(self, answer: Sampled, weight: float, kl: float = 0.0) -> TokenizedSample:
        """The answer behind its prompt: a target of weight ``weight``, or, where it is imitated, an auxiliary one."""
        prompt = self._prompt(answer.graded.question_id, answer.prompt)
        return TokenizedSample(
            id=answer.id,
            source="rollouts",
            input_ids=np.concatenate([prompt.ids, answer.token_ids]),
            prompt_tokens=len(prompt.ids) + self._not_learned(answer),
            images=prompt.images,
            image_sizes=prompt.sizes,
            weight=weight if answer.weight is None else answer.weight,
            kind=AUXILIARY if answer.imitated else FRESH,
            kl=kl,
            learned=answer.learned,
        )

    def target(self, value: Mapping[str, Any], number: int) -> Sampled | None:
        """A target of a relabelling (as `own` has written it) of batch ``number``; None where it cannot be used.

        Its text is encoded here, behind the prompt as the policy is asked it, and an end token follows.
        """
        tokenizer, pieces = self._reader.tokenizer, []
        for text, learned in value["pieces"]:
            clean = without_special_tokens(plain(text), self._special)
            ids = tokenizer.encode(clean, add_special_tokens=False).ids
            pieces += [(token, learned) for token in ids]
        pieces.append((end_token(tokenizer, self._reader.chat), value["pieces"][-1][1]))
        prompt = json.dumps({"messages": value["messages"], "images": value["images"]})
        try:
            made = self._prompt(value["question_id"], prompt)
        except SophiaError:  # an image that is not stored, or in another place than the messages say
            return None
        if len(made.ids) + len(pieces) > self._longest:
            return None
        graded = Graded(
            id=value["id"], question_id=value["question_id"], index=0, verdict="no_answer", truncated=False,
            tokens=len(pieces),
        )  # fmt: skip
        return Sampled(
            graded=graded,
            token_ids=np.array([token for token, _ in pieces], np.int32),
            logprobs=np.zeros(0, np.float32),
            prompt_hash=made.hash,
            version=number,
            batch=number,
            prompt=prompt,
            weight=value["weight"],
            learned=np.array([learned for _, learned in pieces], np.bool_),
        )

    def continuation(self, answer: Sampled) -> str:
        """Text of the sampled tokens behind the trigger."""
        return self._reader.tokenizer.decode(answer.token_ids[answer.given :].tolist(), skip_special_tokens=True)

    def _not_learned(self, answer: Sampled) -> int:
        """Tokens that move to the prompt's side: a prefill; the first try (rl.rethink.learn = "from_trigger")."""
        if not answer.parent:
            return answer.given
        if self._rl.rethink.learn == "all":
            return 0
        trigger = getattr(self._rl.rethink, answer.trigger)
        return answer.given - len(self._reader.tokenizer.encode(trigger, add_special_tokens=False).ids)

    def _make_prompt(self, question_id: str, asked: str) -> _Prompt:
        question = self._questions.get(question_id)
        if question is None:
            raise SophiaError(f"a rollout answers question {question_id!r}, which is not among the stage's questions")
        reader, images = self._reader, question.images
        user = user_text(plain(question.question), len(question.images))
        messages = [Message("system", self._system), Message("user", user)]
        if asked:
            value = json.loads(asked)
            messages, images = list(messages_of(value["messages"])), tuple(value["images"])
        sizes = tuple(reader.image_size(digest) for digest in images)
        clean = [Message(one.role, without_special_tokens(one.text, self._special)) for one in messages]
        text = reader.chat.render(clean, add_generation_prompt=True)
        expanded = reader.chat.expand(text, [size.tokens for size in sizes], question_id)
        ids = np.array(reader.tokenizer.encode(expanded).ids, np.int32)
        return _Prompt(ids, prompt_hash(text), images, sizes)
