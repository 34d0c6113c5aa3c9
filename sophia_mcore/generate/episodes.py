"""Episodes of the on-policy stage: what is asked of the policy in each wave, and the rows that come of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from sophia_mcore.batch.samples import image_digests
from sophia_mcore.config.engines import Engine, Sampling, too_many_images
from sophia_mcore.config.schema import Config
from sophia_mcore.environments.codec import messages_json
from sophia_mcore.environments.helpers import HelperReply, Helpers
from sophia_mcore.environments.library import Library
from sophia_mcore.environments.play import Live, Played, play
from sophia_mcore.environments.rows import episode_of
from sophia_mcore.environments.terms import Judged, Said, Value, as_json, judge
from sophia_mcore.environments.types import POLICY, Ask, Reply
from sophia_mcore.generate.answers import question_images
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.helpers import open_helpers
from sophia_mcore.generate.phase import sampled_fields
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.records import Question, Rollout, rollout_id
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.questions import stage_engine
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.score.grading import grade_item
from sophia_mcore.score.terms import graded_replies
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import seed_for
from sophia_mcore.verify.grade import Grader

Requests = list[Request]


@dataclass(slots=True, kw_only=True)
class Row:
    """An episode with what was sampled for it: by place among its turns."""

    live: Live
    index: int
    sampled: dict[int, tuple[Request, Completion]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Plays and judges. ``engine``: settings of what answers; ``system``: the stage's own system message."""

    config: Config
    engine: Engine
    questions: Mapping[str, Question]
    system: str
    images: ImageStore
    grader: Grader
    library: Library
    helpers: Helpers

    def waves(
        self, items: Sequence[str], batch: int, version: int, digest: str, renderer: Renderer
    ) -> Generator[Requests, Sequence[Completion], list[Rollout]]:
        """Play ``rl.group`` episodes about each question: yields the requests of a wave, is sent their completions."""
        rl, seed = self.config.on_policy, self.config.run.seed
        rows = [
            Row(
                live=Live(
                    question=self.questions[item],
                    images=question_images(self.questions[item], self.images),
                    seed=seed_for(seed, "rl", "environment", batch, item, index),
                ),
                index=index,
            )
            for item in items
            for index in range(rl.group)
        ]
        yield from self.play(rows, lambda row, ask: self._request(row, ask, batch, renderer), renderer)
        return self._rollouts(rows, batch, version, digest, renderer)

    def play(
        self, rows: Sequence[Row], request_of: Callable[[Row, Ask], Request], renderer: Renderer
    ) -> Generator[Requests, Sequence[Completion], None]:
        """Play the episodes of ``rows`` to their ends and note there what was sampled; waves as in ``waves``."""
        game = play(
            self.library,
            [row.live for row in rows],
            system=self.system,
            max_turns=self.config.on_policy.max_turns,
            helpers=self.helpers.names,
            ask_helper=self._replies,
            unfit=lambda ask: self._unfit(ask, renderer),
        )
        wave = next(game, None)
        while wave is not None:
            requests = [request_of(rows[place], ask) for place, ask in wave]
            completions = yield requests
            for (place, _), request, completion in zip(wave, requests, completions, strict=True):
                rows[place].sampled[len(rows[place].live.turns)] = request, completion
            try:
                wave = game.send([Reply(one.text, one.finish_reason) for one in completions])
            except StopIteration:
                wave = None

    def _replies(self, name: str, asks: Sequence[Ask]) -> list[Reply]:
        return [Reply(one.text, one.finish_reason) for one in self.helpers.ask(name, asks)]

    def _unfit(self, ask: Ask, renderer: Renderer) -> str:
        """Why the policy cannot be asked this: the prompt is too long to be answered and trained on, "" if it can."""
        longest = self.config.batch.sequence_length_tokens
        if self.engine.kind == "vllm":
            longest = min(longest, self.engine.max_model_length_tokens or longest)
        if too_many := too_many_images(self.engine, len(ask.images)):
            return too_many
        given = renderer.tokenizer.encode(ask.prefill, add_special_tokens=False).ids if ask.prefill else []
        found = renderer.render(Request(messages=ask.messages, images=ask.images, sampling=Sampling(), seed=0))
        tokens = len(found.ids) + len(given)
        return f"a prompt of {tokens} tokens, where {longest} are the most" if tokens >= longest else ""

    def _request(self, row: Row, ask: Ask, batch: int, renderer: Renderer) -> Request:
        rl, seed, item, turn = self.config.on_policy, self.config.run.seed, row.live.question.id, len(row.live.turns)
        given = renderer.tokenizer.encode(ask.prefill, add_special_tokens=False).ids if ask.prefill else []
        return Request(
            messages=ask.messages,
            images=ask.images,
            sampling=Sampling(max_tokens=min(rl.max_tokens, ask.max_tokens or rl.max_tokens)),
            seed=seed_for(seed, "rl", batch, item, row.index, "turn", turn)
            if turn
            else rollout_seed(seed, batch, item, row.index),
            continue_ids=tuple(given),
            no_image_tokens=True,
        )

    # ---- rows

    def _rollouts(
        self, rows: Sequence[Row], batch: int, version: int, digest: str, renderer: Renderer
    ) -> list[Rollout]:
        shown = [image for row in rows for one in row.live.turns for image in one.ask.images]
        if shown:
            self.images.add_many(dict.fromkeys(shown))
        found: list[Rollout] = []
        for row in rows:
            live = row.live
            known: dict[str, Any] = {"index": row.index, "batch": batch, "version": version}
            known |= {"question_id": live.question.id, "status": live.status, "why": live.why}
            for turn, one in enumerate(live.turns):
                name = rollout_id(live.question.id, batch, row.index, turn)
                fields = self._sampled(row, turn, one, digest, renderer)
                fields |= {"prompt": prompt_json(one.ask), "step_rewards": _json(one.rewards)}
                found.append(Rollout(id=name, turn=turn, asked=one.ask.to, **known, **fields, **_UNGRADED))
            if not live.policy_turns:
                name = rollout_id(live.question.id, batch, row.index, len(live.turns))
                status = {"status": "broken", "why": live.why or "the policy was never asked"}
                nothing = {**NOTHING, "seed": live.seed, "model_digest": digest}
                found.append(Rollout(id=name, turn=len(live.turns), **(known | status), **nothing, **_UNGRADED))
        graded = [one for one in found if one.asked == POLICY and one.token_ids]
        items = [grade_item(self.questions[one.question_id], one.id, one.text) for one in graded]
        grades = {grade.id: grade for grade in self.grader.grade_many(items)}
        found = [
            replace(one, verdict=grades[one.id].verdict, extracted=grades[one.id].extracted)
            if one.id in grades
            else one
            for one in found
        ]
        return self.rewarded(found)

    @staticmethod
    def _sampled(row: Row, turn: int, one: Played, digest: str, renderer: Renderer) -> dict[str, Any]:
        if turn not in row.sampled:
            return _said(HelperReply(one.reply.text, one.reply.finish_reason))
        request, completion = row.sampled[turn]
        return sampled_fields(request, completion, digest) | {
            "token_ids": (*request.continue_ids, *completion.token_ids),
            "text": renderer.whole_answer(request, completion),
            "given": len(request.continue_ids),
        }

    # ---- rewards

    def rewarded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rows with the values of the reward's terms, and what helpers have said about each episode."""
        groups: dict[str, dict[int, list[Rollout]]] = {}
        for one in rollouts:
            if not one.parent:
                groups.setdefault(one.question_id, {}).setdefault(one.index, []).append(one)
        asked = [
            (self.questions[item], [episode_of(turns, self.questions[item]) for turns in group.values()])
            for item, group in groups.items()
        ]
        judged = judge(self.library, asked, images=self._images_of, ask_helper=self._opinions)
        changed: dict[str, Rollout] = {}
        more: list[Rollout] = []
        for group, found in zip(groups.values(), judged, strict=True):
            for turns, episode in zip(group.values(), found, strict=True):
                changed |= {row.id: row for row in _with_scores(turns, episode)}
                more += self._said_about(turns, episode)
        return [changed.get(one.id, one) for one in rollouts] + more

    def _images_of(self, question: Question) -> tuple[bytes, ...]:
        return question_images(question, self.images)

    def _opinions(self, name: str, asks: Sequence[Ask], questions: Sequence[Question]) -> list[Said]:
        return graded_replies(self.grader, questions, self.helpers.ask(name, asks))

    def _said_about(self, turns: Sequence[Rollout], one: Judged) -> list[Rollout]:
        first, place = turns[0], max(turn.turn for turn in turns) + 1
        return [
            Rollout(
                id=rollout_id(first.question_id, first.batch, first.index, place + number),
                turn=place + number,
                asked=turn.to,
                question_id=first.question_id,
                index=first.index,
                batch=first.batch,
                version=first.version,
                status=first.status,
                why=first.why,
                prompt=_json({"messages": messages_json(turn.messages), "images": list(turn.images)}),
                verdict=turn.verdict,
                extracted=turn.extracted,
                **_said(HelperReply(turn.text, "stop")),
            )
            for number, turn in enumerate(one.episode.turns[len(turns) :])
        ]


NOTHING: dict[str, Any] = {
    "text": "", "token_ids": (), "token_logprobs": (), "logprob_sum": 0.0, "finish_reason": "stop", "temperature": 1.0,
    "top_p": 1.0, "max_tokens": 0, "seed": 0, "model_digest": "", "prompt_hash": "",
}  # fmt: skip
_UNGRADED: dict[str, Any] = {"verdict": "no_answer", "extracted": ""}


def _said(reply: HelperReply) -> dict[str, Any]:
    """Fields of a helper's reply: its tokens are nobody's concern."""
    return {**NOTHING, "text": reply.text, "finish_reason": reply.finish_reason}


def prompt_json(ask: Ask) -> str:
    """What was asked, for a column: messages, and the digests of the images."""
    return _json({"messages": messages_json(ask.messages), "images": image_digests(ask.images)})


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), allow_nan=False) if value else ""


def _with_scores(turns: Sequence[Rollout], one: Judged) -> list[Rollout]:
    """Each turn of the policy with its own values; those of the whole episode are at the last one."""
    own = [turn for turn in turns if turn.asked == POLICY]
    if one.broken and turns[0].status != "broken":
        return [replace(turn, status="broken", why=one.broken) for turn in turns]
    found = []
    for place, turn in enumerate(own):
        values: dict[str, Value] = {}
        for label, value in one.values.items():
            if isinstance(value, list):
                values[label] = value[place]
            elif place == len(own) - 1:
                values[label] = value
        found.append(replace(turn, scores=as_json(values) if values else ""))
    return found


def open_episodes(
    config: Config, run: RunFolder, questions: Mapping[str, Question], grader: Grader, opened: ExitStack
) -> Episodes | None:
    """What plays and judges episodes, with its processes and helpers; None where an answer and its verdict are all."""
    if config.on_policy.one_turn and config.verdict_alone:
        return None
    return make_episodes(config, run, questions, stage_engine(config, run), grader, opened)


def make_episodes(
    config: Config,
    run: RunFolder,
    questions: Mapping[str, Question],
    engine: Engine,
    grader: Grader,
    opened: ExitStack,
) -> Episodes:
    """As ``open_episodes``, whatever the reward and the environment are. ``engine``: what answers."""
    return Episodes(
        config=config,
        engine=engine,
        questions=questions,
        system=system_prompt(config),
        images=ImageStore(run.images),
        grader=grader,
        library=opened.enter_context(Library(config, run)),
        helpers=opened.enter_context(open_helpers(config, run)),
    )
