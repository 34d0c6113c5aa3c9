"""The work of a round: questions, lengths, pictures, and the packed rows of the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.plan.memory import Row, picture_of
from sophia_mcore.plan.pictures import Pictures
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.pretrained.family import ImageLimits, Picture, Shown
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.score.early_stop import Rule, waves_of

PAPER_QUESTIONS = 80_000  # arXiv 2507.16814: about 80K questions
_MOST = 1e12  # of anything that can be given
_QUANTILES = 400
_FILL = 0.98  # of a packed row; the packer of batch.pack stays within 0.5% of the volume bound, the last row is ragged


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lognormal token counts between `least` and `limit`; `spread` is the standard deviation of the logarithm."""

    mean: float
    spread: float
    limit: int
    least: int = 1

    def values(self, count: int = _QUANTILES) -> list[float]:
        """``count`` evenly spread quantiles, in ascending order."""
        normal = NormalDist()
        shift = math.log(self.mean) - self.spread**2 / 2
        points = (normal.inv_cdf((i + 0.5) / count) for i in range(count))
        return [min(self.limit, max(float(self.least), math.exp(shift + self.spread * z))) for z in points]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A round's work. Lengths in tokens; `pictures` is the mean number of a question."""

    questions: int
    assumed: tuple[str, ...]  # which numbers were assumed, for the reader
    captions: int  # K
    trajectories: int  # N
    prompt_tokens: float
    pictures: float
    picture: Picture  # the mean of what is shown
    sizes_vary: bool
    caption: Lengths
    response: Lengths
    kept: float  # share of the questions that keep a trajectory
    sampled: float = 1.0  # share of the K x N trajectories that are sampled (reasoning.waves)
    sequence_length: int
    global_batch: int
    steps: int

    @cached_property
    def _samples(self) -> list[tuple[float, float]]:
        """(whole length, response length) of training samples; the loader drops those longer than a row."""
        fixed = self.prompt_tokens + self.pictures * self.picture.tokens
        whole = [(fixed + length, length) for length in self.response.values()]
        return [pair for pair in whole if pair[0] <= self.sequence_length]

    @property
    def mean_tokens(self) -> float:
        """Mean length of a training sample."""
        return sum(length for length, _ in self._samples) / len(self._samples)

    @property
    def rows_per_step(self) -> int:
        """Packed rows of a global batch."""
        return math.ceil(self.global_batch * self.mean_tokens / (self.sequence_length * _FILL))

    @property
    def step_tokens(self) -> float:
        """Tokens of a global batch, padding not counted."""
        return self.global_batch * self.mean_tokens

    def row(self) -> Row:
        """The mean packed row."""
        if not self._samples:
            raise UsageError(
                f"batch.sequence_length_tokens = {self.sequence_length} is shorter than the images and the prompt of "
                f"one sample ({self.prompt_tokens + self.pictures * self.picture.tokens:.0f} tokens)"
            )
        count = self.sequence_length * _FILL / self.mean_tokens
        return Row(
            tokens=self.sequence_length,
            squares=count * sum(length**2 for length, _ in self._samples) / len(self._samples),
            targets=count * sum(response for _, response in self._samples) / len(self._samples),
            pictures=count * self.pictures,
            picture=self.picture if self.sizes_vary else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What a configuration cannot tell; None: a default that the output names."""

    questions: int | None = None
    response_tokens: float | None = None
    caption_tokens: float | None = None
    tiles: float | None = None
    image_tokens: float | None = None
    kept: float | None = None
    accuracy: float | None = None
    pictures: Pictures | None = None  # what the data shows; `image_tokens` and `tiles` come before it
    limits: ImageLimits | None = None  # of the policy's folder and the run; None: the run's alone


def sampled_share(accuracy: float, rule: Rule, waves: Sequence[range]) -> float:
    """Expected share of a caption's N trajectories that are sampled in ``waves``, where ``accuracy`` of all are right.

    A caption is mostly right or mostly wrong: its own share of right answers is drawn from Beta(accuracy, 1 -
    accuracy), so that outcomes are beta-binomial. Trajectories that are cut within a wave are not counted as saved.
    """
    right, wrong = max(accuracy, 1e-9), max(1.0 - accuracy, 1e-9)
    total = 0.0
    for wave in waves:
        before = wave.start
        alive = sum(
            math.comb(before, w) * math.exp(_log_beta(wrong + w, right + before - w) - _log_beta(wrong, right))
            for w in range(min(rule.fatal, before + 1))
        )
        total += len(wave) * min(1.0, alive)
    return total / rule.per_caption


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def response_lengths(limit: int, given: Assumptions) -> Lengths:
    """Of long answers of at most ``limit`` tokens; the mean is assumed where it is not given."""
    spread = 0.9  # as the benchmark of batch.pack draws its lengths
    return Lengths(mean=given.response_tokens or min(3000.0, 0.5 * limit), spread=spread, limit=limit)


def workload(config: Config, spec: ModelSpec, given: Assumptions) -> Workload:
    """The round of a configuration.

    Raises:
        UsageError: an assumption that is not positive or a share above 1, or a row too short for one sample.
    """
    for name in ("questions", "response_tokens", "caption_tokens", "image_tokens", "kept"):
        value = getattr(given, name)
        if value is not None and not 0 < value <= _MOST:  # also refuses nan
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be positive and at most {_MOST:.0e}")
    if given.tiles is not None and not 0 <= given.tiles <= _MOST:
        raise UsageError(f"--tiles {given.tiles}: must be from 0 to {_MOST:.0e}")
    if given.kept is not None and given.kept > 1:
        raise UsageError(f"--kept {given.kept}: a share of the questions, at most 1")
    if given.accuracy is not None and not 0 <= given.accuracy <= 1:
        raise UsageError(f"--accuracy {given.accuracy}: a share of the trajectories, from 0 to 1")
    limits = [source.limit for source in config.data.questions]
    listed = sum(limit for limit in limits if limit is not None) if all(limits) else None
    known = given.questions or listed
    response = response_lengths(config.reasoning.sampling.max_tokens, given)
    caption_limit = config.captions.sampling.max_tokens
    caption = given.caption_tokens or min(600.0, 0.5 * caption_limit)
    vary = spec.family is not None and spec.family.tokens_vary
    shown = _shown(config, spec, given)
    picture, about = _picture(spec, shown, given) if vary else (picture_of(spec), "")
    pictures, about_pictures = _pictures(spec, shown, given)
    kept = given.kept or 0.5
    questions = known or PAPER_QUESTIONS
    accuracy = 0.5 if given.accuracy is None else given.accuracy
    waves = waves_of(config.reasoning.waves or (), config.reasoning.per_caption) if config.reasoning.waves else []
    rule = Rule(config.reward, config.reasoning.per_caption)
    assumed = [
        *([] if known else [f"{PAPER_QUESTIONS:,} questions (the paper's; --questions)"]),
        *(
            []
            if given.response_tokens
            else [f"trajectories of {response.mean:,.0f} tokens on average (--response-tokens)"]
        ),
        *([] if given.caption_tokens else [f"captions of {caption:,.0f} tokens (--caption-tokens)"]),
        *(text for text in (about_pictures, about) if text),
        *([] if given.kept else [f"{kept:.0%} of the questions keep a trajectory (--kept)"]),
        *([f"{accuracy:.0%} of the trajectories are right (--accuracy)"] if waves and given.accuracy is None else []),
    ]
    samples = questions * kept * config.reward.keep
    share = 1.0 - sum(mixture.share for mixture in config.batch.mixtures)
    batch = config.train.global_batch_samples
    made = Workload(
        questions=questions,
        assumed=tuple(assumed),
        captions=config.captions.per_image,
        trajectories=config.reasoning.per_caption,
        prompt_tokens=min(300.0, 0.25 * config.batch.sequence_length_tokens),
        pictures=pictures,
        picture=picture,
        sizes_vary=vary,
        caption=Lengths(mean=caption, spread=0.5, limit=caption_limit),
        response=response,
        kept=kept,
        sampled=sampled_share(accuracy, rule, waves) if waves else 1.0,
        sequence_length=config.batch.sequence_length_tokens,
        global_batch=batch,
        steps=config.train.steps or math.ceil(config.train.epochs * samples / share / batch),
    )
    made.row()
    return made


def _shown(config: Config, spec: ModelSpec, given: Assumptions) -> Shown:
    """What an image is assumed to be, within the limits of the run and of the policy's folder."""
    if spec.family is None:
        return Shown(pictures=0.0, fewest=0, most=0)
    return spec.family.shown(spec.vision, spec.projector, given.limits or image_limits(config.batch))


def _pictures(spec: ModelSpec, shown: Shown, given: Assumptions) -> tuple[float, str]:
    """Pictures per question, and what was assumed about them."""
    if spec.family is None:
        return 0.0, ""
    if given.tiles is not None:
        return given.tiles, ""
    if given.pictures is None:
        return shown.pictures, f"{_count(shown.pictures, spec)} per question (--tiles)"
    count = len(given.pictures.tokens) / given.pictures.rows
    where = f"the first {given.pictures.rows} rows of the data; --tiles"
    return count, f"{_count(count, spec)} per question ({where})"


def _count(pictures: float, spec: ModelSpec) -> str:
    """So many pictures, in the family's word for them."""
    assert spec.family is not None
    name, count = spec.family.picture_name, f"{pictures:.3g}"
    return f"{count} {name.removesuffix('s') if count == '1' else name}"


def _picture(spec: ModelSpec, shown: Shown, given: Assumptions) -> tuple[Picture, str]:
    """The mean picture of the data's sizes, or of lognormal ones, and what was assumed about them.

    Attention grows with the square of a picture's tokens, so the mean is taken over sizes and not of one mean size.
    """
    sizes: Sequence[float] = given.pictures.tokens if given.pictures and not given.image_tokens else ()
    limits = f"{shown.fewest:,} to {shown.most:,}" if shown.fewest > 1 else f"at most {shown.most:,}"
    about = f"the first {len(sizes)} images of the data" if sizes else limits
    if not sizes:
        mean = given.image_tokens or max(shown.fewest, min(1000.0, 0.5 * shown.most))
        sizes = Lengths(mean=mean, spread=0.6, limit=shown.most, least=shown.fewest).values(50)
    parts = [picture_of(spec, tokens) for tokens in sizes]

    def average(values: list[float]) -> float:
        return sum(values) / len(values)

    patches = average([part.patches for part in parts])
    found = Picture(
        pixels=average([part.pixels for part in parts]),
        patches=patches,
        seen=average([part.patches * part.seen for part in parts]) / patches,
        tokens=average([part.tokens for part in parts]),
        rows=average([part.rows for part in parts]),
    )
    told = f"images of {found.tokens:,.0f} tokens, {about} (--image-tokens)"
    return found, "" if given.image_tokens else told
