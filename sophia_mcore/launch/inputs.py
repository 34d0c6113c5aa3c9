"""Checks the user's files that later phases read. Runs before the first phase, so that a typo wastes no rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sophia_mcore.benchmarks.rows import read_any
from sophia_mcore.benchmarks.table import benchmark_named
from sophia_mcore.config.schema import Config, Engine, Mixture, Source, VllmEngine
from sophia_mcore.data.columns import Row
from sophia_mcore.data.preview import looked_at
from sophia_mcore.data.prompt_images import Prompts, all_prompts, check_number
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.data.sources import on_the_hub
from sophia_mcore.errors import SophiaError

if TYPE_CHECKING:
    from sophia_mcore.pretrained.spec import ModelSpec

MADE_BY = "data.made_by"
_ROWS = 20  # rows that are read to check a source of held-out questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input of the user that the setting ``key`` names and that ``phases`` read.

    ``look`` checks it and returns a short description for the user, or raises SophiaError.
    """

    key: str
    phases: tuple[str, ...]
    look: Callable[[], str]


def inputs_of(config: Config) -> list[Input]:
    """All inputs of the user, except models, training questions and user functions, which are checked elsewhere."""
    return [
        *_questions(config),
        *_prompts(config),
        *_judge(config),
        *_pairs(config),
        *_held_out(config),
        *_tokenizers(config),
        *_images(config),
    ]


def policy_images(config: Config, folder: Path | None = None) -> Callable[[int, int], object] | None:
    """A function that raises SophiaError for images of a width and height that the policy cannot take.

    ``folder``: where the policy is, if its setting is a name on the hub. None: nothing is trained, or the policy's
    folder is not here yet. Raises SophiaError for a model that cannot be trained, and for image settings that
    contradict each other: this costs nothing, while questions may take long.
    """
    policy = folder or config.models.policy
    if config.evaluate.only or not (policy / "config.json").is_file():
        return None
    from sophia_mcore.pretrained.families import size_check  # here: slow to import
    from sophia_mcore.pretrained.spec import ModelSpec, require_image_token

    require_image_token(policy, ModelSpec.from_model_dir(policy))
    check_engine_layouts(config, policy)
    return size_check(policy, config.batch)


def check_engine_layouts(config: Config, policy: Path) -> None:
    """Refuse a model folder in a layout that the run's own engines cannot load. Folders that are not here pass."""
    from sophia_mcore.pretrained.families import check_engine_layout  # here: slow to import

    loaded: list[tuple[Path | None, Engine]] = []
    if config.evaluate.only or (config.evaluate.questions and config.evaluate.evaluate_base):
        loaded.append((policy, config.evaluate.engine))
    if (
        not config.evaluate.only and config.train.data is None
    ):  # later rounds sample from exports, which have the engines' layout
        loaded += [(policy, config.captions.engine), (config.models.reasoner, config.reasoning.engine)]
    for folder, engine in loaded:
        if engine.kind != "openai" and folder is not None and (folder / "config.json").is_file():
            check_engine_layout(folder)


def trained_spec(config: Config) -> ModelSpec | None:
    """The policy's spec, from its folder or the table of released models; None: in neither, or nothing is trained.

    Raises UsageError for a model that cannot be trained.
    """
    from sophia_mcore.pretrained.released import spec_of  # here: slow to import

    return None if config.evaluate.only else spec_of(config.models.policy)


def _prompts(config: Config) -> list[Input]:
    answering = ("evaluate", "train", *(("captions",) if config.objective.fresh_share else ()))
    judging = ("score", *answering)
    judge = config.score.judge
    rows: list[tuple[str, str, Path | None, tuple[str, ...], tuple[str, ...]]] = [
        ("captions.prompt_file", "describe", config.captions.prompt_file, (), ("captions",)),
        (
            *("reasoning.prompt_file", "simulate_seeing", config.reasoning.prompt_file),
            *(("caption", "question"), ("reasoning",)),
        ),
        ("batch.long_thinking_prompt_file", "long_thinking", config.batch.long_thinking_prompt_file, (), answering),
    ]
    if judge is not None:
        needs = ("response",)
        rows += [
            ("score.judge.judge_prompt_file", "judge", judge.judge_prompt_file, needs, judging),
            ("score.judge.extract_prompt_file", "extract_answer", judge.extract_prompt_file, needs, judging),
        ]
    return [
        Input(key=key, phases=phases, look=partial(_prompt, key, name, path, needs))
        for key, name, path, needs, phases in rows
        if path is not None
    ]


def _prompt(key: str, name: str, path: Path, needs: tuple[str, ...]) -> str:
    load_prompt(name, path, needs)
    return f"{path}"


def _judge(config: Config) -> list[Input]:
    if config.score.judge is None:
        return []
    folder = config.score.judge.cache_folder

    def look() -> str:
        if folder.exists() and not folder.is_dir():
            raise SophiaError(f"score.judge.cache_folder: {folder} is a file, not a folder")
        return str(folder)

    return [Input(key="score.judge.cache_folder", phases=("score", "evaluate"), look=look)]


def _pairs(config: Config) -> list[Input]:
    found = [(f"batch.mixtures {mixture.name}", mixture) for mixture in config.batch.mixtures]
    if config.train.data is not None:
        found.append(("train.data", Mixture(path=config.train.data, name="pairs", share=0.5)))
    limit = config.data.max_image_pixels
    return [
        Input(key=key, phases=("train",), look=partial(_mixture, key, mixture, limit, config.data.made_by))
        for key, mixture in found
    ]


def _mixture(key: str, mixture: Mixture, max_image_pixels: int, made_by: str) -> str:
    from sophia_mcore.batch.samples import check_mixture  # here: slow to import

    _require_made(key, str(mixture.path), made_by)
    try:
        return f"{mixture.path}, {check_mixture(mixture, max_image_pixels):,} samples"
    except SophiaError as error:
        raise type(error)(f"{key}: {error}") from None


def _questions(config: Config) -> list[Input]:
    """Files of questions for which the configuration says what makes them."""
    made_by = config.data.made_by
    found = [("data.questions", one) for one in config.data.questions if config.train.data is None]
    found += [("rl.questions", one) for one in (config.rl.questions if config.rl else ())]
    found += [("rl.validation", one) for one in (config.rl.validation if config.rl else ())]
    found += [("evaluate.questions", one) for one in config.evaluate.questions]
    rows = [(key, one.path) for key, one in found if made_by and not on_the_hub(one)]

    def look() -> str:
        for key, path in rows:
            _require_made(key, path, made_by)
        return made_by

    return [Input(key=MADE_BY, phases=("questions",), look=look)] if rows else []


def _require_made(key: str, path: str, made_by: str) -> None:
    if made_by and not Path(path).exists():
        raise SophiaError(f"{key}: {path}: no such file; what makes it: {made_by}")


def _held_out(config: Config) -> list[Input]:
    refuse_size = cache(partial(policy_images, config))  # the policy's files are read once for all sources
    return [
        Input(
            key=f"evaluate.questions {source.name or source.path}",
            phases=("questions",),
            look=partial(_rows_as_asked, source, config, refuse_size),
        )
        for source in config.evaluate.questions
        if not on_the_hub(source)  # a data set on the hub is not checked here
    ] + [
        Input(key=f"benchmark {source.benchmark}", phases=("questions",), look=partial(_known, source.benchmark))
        for source in config.evaluate.questions
        if source.benchmark
    ]


def _known(benchmark: str) -> str:
    return benchmark_named(benchmark).title


def first_rows(source: Source, config: Config, refuse_size: Callable[[int, int], object] | None) -> str:
    """Read the first rows as the questions phase does; returns the path. Raises SophiaError if too many are bad.

    ``refuse_size``: from ``policy_images``.
    """
    limit = config.data.max_image_pixels
    found = [(row.number, looked_at(row, limit, refuse_size)[1]) for row in islice(read_any(source), _ROWS)]
    bad = [(number, problems[0]) for number, problems in found if problems]
    if len(bad) > config.data.max_bad_rows:
        raise SophiaError(f"{source.path}: row {bad[0][0]}: {bad[0][1]}")
    return source.path


def _rows_as_asked(
    source: Source, config: Config, refuse_size: Callable[[], Callable[[int, int], object] | None]
) -> str:
    return first_rows(source, config, refuse_size())


_ASKING = {
    "captions.engine": ("captions",),
    "rl.engine": ("rl-select", "rl"),
    "evaluate.engine": ("evaluate", "rl-evaluate"),
}


def _images(config: Config) -> list[Input]:
    """A number of images that the user has set for an engine; without one it follows from the questions."""
    return [
        Input(
            key=f"{one.key}.max_images_per_prompt",
            phases=_ASKING[one.key],
            look=partial(_number, one),
        )
        for one in all_prompts(config)
        if isinstance(one.engine, VllmEngine) and one.engine.max_images_per_prompt is not None
    ]


def _number(prompts: Prompts) -> str:
    said = check_number(prompts, _readable)
    uncounted = not prompts.file.is_file() and any(map(on_the_hub, prompts.sources))
    return f"{said} (what is on the hub is not counted before it is here)" if uncounted else said


def _readable(source: Source) -> Iterator[Row]:
    """Rows of a source that is here; what is wrong with one that is not is said elsewhere."""
    if not on_the_hub(source):
        with suppress(SophiaError):
            yield from read_any(source)


def _tokenizers(config: Config) -> list[Input]:
    """``objective.behaviour = "recorded"`` needs policy and reasoner to have the same tokenizer.

    Missing model folders are not reported here, since the checks of the models report them.
    """
    if config.objective.behaviour != "recorded" or config.train.data is not None:
        return []
    policy, reasoner = config.models.policy, config.models.reasoner

    def look() -> str:
        from sophia_mcore.batch.store_samples import require_same_tokenizer

        if reasoner is None or all((folder / "tokenizer.json").is_file() for folder in (policy, reasoner)):
            require_same_tokenizer(policy, reasoner)
        return f"{policy}, {reasoner}"

    return [Input(key="objective.behaviour", phases=("train",), look=look)]
