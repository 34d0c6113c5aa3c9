"""Questions whose trajectories are known beforehand, sampled by an imitated engine in any order and at any pace."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.schema import Reward
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.phase import Asked
from sophia_mcore.generate.waves import WavesUnit
from sophia_mcore.records import Trajectory, VerdictName
from sophia_mcore.score.early_stop import Cut, Rule, waves_of
from sophia_mcore.score.reward import Candidate, select, visual_rewards
from sophia_mcore.store.units import Unit


@dataclass(frozen=True)
class World:
    """Candidates by id; ids are "q0.k1.n2"."""

    candidates: Mapping[str, Candidate]
    questions: int
    captions: int
    per_caption: int

    def kept(self, reward: Reward, stored: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """Ids and caption rewards of the kept set, from all candidates or from what was stored."""
        chosen = list(self.candidates.values()) if stored is None else [self.candidates[name] for name in stored]
        rewards = visual_rewards(chosen, reward.broken, self.per_caption)
        kept = select(chosen, rewards, reward, seed=3).kept
        return [(name, rewards[self.candidates[name].question_id, self.candidates[name].caption_id]) for name in kept]


def make_world(
    rng: random.Random, questions: int, captions: int, per_caption: int, *, right: float, longest: int = 9
) -> World:
    """Verdicts of all kinds; lengths from a small range, so that ties are frequent."""
    candidates = {}
    for q in range(questions):
        for k in range(captions):
            chance = min(1.0, max(0.0, rng.gauss(right, 0.3)))
            for n in range(per_caption):
                name = f"q{q}.k{k}.n{n}"
                length, truncated = rng.randint(1, longest), rng.random() < 0.05
                verdict: VerdictName = "correct" if rng.random() < chance else rng.choice(["wrong", "no_answer"])
                if rng.random() < 0.05:
                    verdict = rng.choice(["timeout", "error"])
                if truncated:
                    length, verdict = longest + 1, "no_answer"
                candidates[name] = Candidate(name, f"q{q}", f"k{k}", length, truncated, verdict)
    return World(candidates, questions, captions, per_caption)


def unit_of(world: World, reward: Reward, waves: Sequence[int], *, cuts: bool = True) -> WavesUnit:
    """The whole world as one work unit."""

    def asked(q: int, k: int, n: int) -> Asked[Trajectory]:
        name = f"q{q}.k{k}.n{n}"
        request = Request(messages=(), sampling=Sampling(), seed=n)
        return Asked(request, partial(Trajectory, id=name, question_id=f"q{q}", caption_id=f"k{k}", index=n), name)

    def grade(trajectories: Sequence[Trajectory]) -> list[VerdictName]:
        return [world.candidates[one.id].verdict for one in trajectories]

    per_caption = world.per_caption
    questions = [
        {f"k{k}": [asked(q, k, n) for n in range(per_caption)] for k in range(world.captions)}
        for q in range(world.questions)
    ]
    items = tuple(f"q{q}" for q in range(world.questions))
    rule = Rule(reward, per_caption)
    return WavesUnit(Unit("0", items), questions, "d" * 64, grade, rule, waves_of(waves, per_caption), cuts=cuts)


def ids_by_place(world: World) -> list[str]:
    """The id of each place of ``unit_of``."""
    return list(world.candidates)


def sample(
    world: World, unit: WavesUnit, rng: random.Random, places: int, *, cuts: bool = True
) -> tuple[list[str], int]:
    """What the unit stores, and the tokens that were sampled for it.

    Requests join when places are free, verdicts come early or late, and running ones are looked at after each step.
    """
    names, running, jobs, tokens = ids_by_place(world), dict[int, int](), [], 0
    promptness = rng.choice([0.05, 0.5, 1.0])
    while (outcome := unit.outcome()) is None:
        idle = not running
        if not jobs and (job := unit.job()) is not None:
            jobs.append(job)
        if jobs and (idle or rng.random() < promptness):
            unit.settle(jobs.pop()())
        for place, _ in unit.ready(places - len(running)):
            running[place] = 0
        for place in list(running):
            running[place] += 1
            tokens += 1
            candidate = world.candidates[names[place]]
            if running[place] == candidate.length:
                del running[place]
                unit.take(place, _completion(candidate))
        if cuts:
            for place in unit.cut(lambda place: running[place]):
                del running[place]
    assert not running
    return [record.id for record in outcome[0]], tokens


def cuts_of(unit: WavesUnit) -> dict[str, Cut]:
    """What the unit's metadata says of captions that were cut."""
    outcome = unit.outcome()
    assert outcome is not None
    cut = outcome[1]["early_stop"]["cut"]
    return {name: Cut((one["bar"][0], one["bar"][1]), frozenset(one["captions"])) for name, one in cut.items()}


def _completion(candidate: Candidate) -> Completion:
    return Completion(
        text="",
        token_ids=(1,) * candidate.length,
        token_logprobs=(-0.5,) * candidate.length,
        finish_reason="length" if candidate.truncated else "stop",
        prompt_text="",
    )
