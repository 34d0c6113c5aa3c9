"""The typed configuration of a run. An unknown key, a wrong type or an impossible value is an error.

Defaults are the paper's numbers (arXiv 2507.16814, marked [P]) or our choice where the paper has none ([C]).
Relative paths are relative to the working directory. Names end in their unit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from sophia_mcore.config.base import Fraction, HttpAddress, NonNegative, OpenFraction, Positive, Section
from sophia_mcore.config.cluster import Cluster
from sophia_mcore.config.engines import Engine, OpenAIEngine, Sampling, TransformersEngine, VllmEngine
from sophia_mcore.config.functions import Functions, Helper, RewardTerm, check_helpers, check_terms
from sophia_mcore.config.objective import Objective
from sophia_mcore.config.precision import Fp8, Fp8Check
from sophia_mcore.config.rl import Rl
from sophia_mcore.config.sources import Columns, Source
from sophia_mcore.config.stages import Stage, check_stages
from sophia_mcore.errors import UsageError

__all__ = [  # sections of other files that are found here too
    "Columns", "Engine", "Fp8", "Fp8Check", "Objective", "OpenAIEngine", "Rl", "Sampling", "Section", "Source",
    "TransformersEngine", "VllmEngine",
]  # fmt: skip


class Run(Section):
    """Where the run lives and how often the round is repeated."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    folder: Path
    seed: int = Field(default=0, ge=0)
    rounds: PositiveInt = 1  # [P] 1; further rounds start again with the trained policy


def _marked_path(given: Any) -> Any:
    """Keep "./" at the start of a path: without it, the path could be taken for a name on the hub."""
    return Path.cwd() / given if isinstance(given, str) and given.startswith(("./", "../")) else given


HelperName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ModelFolder = Annotated[Path, BeforeValidator(_marked_path)]


class Models(Section):
    """Folders of the two models in Hugging Face's layout, or their names on the hub (pretrained.hub)."""

    policy: ModelFolder
    reasoner: ModelFolder | None = None  # None is allowed only if the reasoning engine is an endpoint


class Environments(Section):
    """Python of each environment. vLLM, Megatron and ModelOpt need different versions of packages."""

    trainer: Path | None = None  # None: the interpreter that runs this command
    rollout: Path | None = Path(".venv-vllm/bin/python")
    quantizer: Path | None = Path(".venv-modelopt/bin/python")


class Data(Section):
    """Questions that the round samples from."""

    questions: tuple[Source, ...] = ()  # at least one, unless evaluate.only
    max_bad_rows: int = Field(default=0, ge=0)  # more bad rows than this stop the run
    max_image_pixels: PositiveInt = 100_000_000
    made_by: str = ""  # what makes the files of questions and pairs; said where one is missing

    @model_validator(mode="after")
    def _with_images(self) -> Data:
        if any(source.text_only for source in self.questions):
            raise ValueError(
                "columns.images = []: a round describes images; questions without them belong to rl.questions, "
                "rl.validation or evaluate.questions"
            )
        return self


class Captions(Section):
    """On-policy seeing: the policy describes each image set without seeing the question."""

    per_image: PositiveInt = 8  # [P] K
    sampling: Sampling = Sampling()
    prompt_file: Path | None = None  # None: the shipped describe prompt
    images_per_unit: PositiveInt = 64  # size of one work unit
    engine: Engine = VllmEngine()


class Fresh(Section):
    """The policy's own answers to the questions, for objective.fresh_share. They use the engine of the captions.

    They are sampled at temperature 1 and top-p 1, so that their log-probs are the policy's.
    """

    per_question: PositiveInt = 8
    max_tokens: PositiveInt = 16_384
    questions_per_unit: PositiveInt = 32


class Reasoning(Section):
    """Off-policy reasoning: a text-only model answers from a caption."""

    per_caption: PositiveInt = 8  # [P] N
    # trajectories of a caption in each wave (the last repeats), after which a caption that cannot pass gets no more;
    # None: all N at once
    waves: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    sampling: Sampling = Sampling()
    prompt_file: Path | None = None  # None: the shipped simulate-seeing prompt
    questions_per_unit: PositiveInt = 32
    engine: Engine = VllmEngine()


class Judge(Section):
    """A language model that judges free-text answers that are not literally the gold answer."""

    base_url: HttpAddress = "http://127.0.0.1:8000/v1"
    model_name: str
    api_key_variable: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key
    timeout_seconds: Positive = 120.0
    max_retries: int = Field(default=5, ge=0)
    concurrency: PositiveInt = 16
    max_tokens: PositiveInt = 2048  # room for a judge that thinks first
    extract: bool = False  # also ask it for the final answer if no rule finds one
    cache_folder: Path = Path("judge_cache")  # replies by content, shared by runs
    judge_prompt_file: Path | None = None
    extract_prompt_file: Path | None = None


class Score(Section):
    """Verification of final answers in worker processes that can be killed."""

    workers: PositiveInt = 2
    timeout_seconds: Positive = 1.0  # CPU-seconds of one comparison
    memory_limit_mib: PositiveInt = 2048
    trajectories_per_unit: PositiveInt = 4096
    max_broken_share: Fraction = 0.05  # more timeouts + errors than this stop the phase
    second_opinions: NonNegativeInt = 500  # verdicts of a round that math-verify also checks, for the report; 0: none
    judge: Judge | None = None


class Reward(Section):
    """Visual reward and selection (eqs. 4-6)."""

    alpha: OpenFraction = 0.75  # [P] strict: a caption passes iff its reward > alpha
    keep: PositiveInt = 1  # [P] the n shortest per question
    use_visual_reward: bool = True  # False: ablation "no visual reward"
    select: Literal["shortest", "random"] = "shortest"  # "random": ablation "no shortest rule"
    require_correct: bool = True  # False: ablation "random trajectories of D"
    at_least: float = 1.0  # with [[rewards]]: the total R(y) that a kept trajectory has at least (eq. 6: R(y) = 1)
    broken: Literal["not_correct", "left_out"] = "not_correct"  # how timeouts and errors enter a caption's mean


class Mixture(Section):
    """Further training data beside the kept trajectories (supervised: weight 1)."""

    path: Path  # JSONL: {"id", "question", "response", "images": [paths]}
    images_folder: Path | None = None
    name: str
    share: OpenFraction  # share of the samples of each global batch


class Batch(Section):
    """Tokenization, images and packing."""

    sequence_length_tokens: PositiveInt = 32_768
    max_tiles: PositiveInt = 12  # InternVL dynamic tiling; the checkpoint's own limit wins if lower
    min_pixels: PositiveInt | None = None  # of a resized image (Qwen-VL); the narrower of this and the checkpoint's own
    max_pixels: PositiveInt | None = None  # likewise
    long_thinking_prompt_file: Path | None = None
    default_system_prompt: str | None = None  # None: the chat template's own
    mixtures: tuple[Mixture, ...] = ()

    @model_validator(mode="after")
    def _pixels(self) -> Batch:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels = {self.min_pixels} is above max_pixels = {self.max_pixels}")
        return self


class Parallel(Section):
    """Megatron layout. Data parallel size = processes / (tensor x pipeline x context)."""

    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    virtual_pipeline: PositiveInt | None = None  # model chunks per pipeline rank
    context: PositiveInt = 1
    sequence_parallel: bool = False
    processes: PositiveInt | None = None  # None: tensor x pipeline x context
    processes_per_node: PositiveInt | None = None  # None: all on one node
    layers_on_first_stage: PositiveInt | None = None  # language layers beside the vision tower
    layers_on_last_stage: PositiveInt | None = None

    @property
    def model_ranks(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.processes or self.model_ranks

    @property
    def sequence_multiple(self) -> int:
        """The length of every packed sequence is a multiple of this: context parallelism makes 2 x CP equal slices."""
        return 2 * self.context if self.context > 1 else 1

    def row_multiple(self, fp8: bool = False) -> int:
        """The length of a row is a multiple of this: sequence parallelism divides a rank's slices by TP, and FP8
        products need multiples of 16 tokens on each rank."""
        per_rank = (self.tensor if self.sequence_parallel else 1) * (16 if fp8 else 1)
        return math.lcm(self.sequence_multiple, self.context * per_rank)


class Train(Section):
    """Optimisation. Steps = `steps`, or `epochs` over the kept set."""

    steps: PositiveInt | None = None
    epochs: Positive = 1.0  # used when steps is not given
    data: Path | None = None  # JSONL of question-answer pairs in place of trajectories, which are then not sampled
    global_batch_samples: PositiveInt = 512  # [P]
    learning_rate: Positive = 2e-5  # [P]
    final_learning_rate_fraction: Fraction = 0.25  # [P] cosine to 1/4
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: NonNegative = 0.05  # [P]
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    clip_gradient_norm: Positive = 1.0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    train_vision_tower: bool = False  # [P]
    train_projector: bool = False  # [C]
    distributed_optimizer: bool = True
    recompute: Literal["none", "selective", "full"] = "none"
    save_every_steps: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    save_asynchronously: bool = False  # write checkpoints during training (needs host memory for one copy)
    measure_samples: PositiveInt = 256  # kept trajectories whose log-prob is measured before and after
    # steps between measurements of the gradient's norm by term of the loss (right, wrong, further data); 0: never
    term_gradients_every_steps: int = Field(default=100, ge=0)
    # nats, 99th percentile; warn if log-probs of trainer and sampling engine for the policy's captions differ more
    warn_rollout_gap: Positive = 0.2
    threads_per_process: PositiveInt | None = None  # CPU only
    distributed_timeout_seconds: Positive = 1800.0


class Export(Section):
    """Megatron checkpoint -> Hugging Face directory."""

    shard_size_mib: PositiveInt = 5000


class Protocol(Section):
    """One way to answer the evaluation questions. pass_at_1 in report.json is that of the first protocol."""

    name: str
    sampling: Sampling
    samples: PositiveInt = 1
    prompt: Literal["paper", "vlmevalkit"] = "paper"  # whose prompts benchmark questions get
    scoring: Literal["paper", "vlmevalkit"] = "paper"  # whose rules extract and judge answers to benchmark questions


PAPER_PROTOCOL = Protocol(name="paper", sampling=Sampling(temperature=1.0, top_p=0.8, max_tokens=16_384))
GREEDY_PROTOCOL = Protocol(name="greedy", sampling=Sampling(temperature=0.0, max_tokens=16_384))
VLMEVALKIT_PROTOCOL = Protocol(
    name="vlmevalkit",
    sampling=Sampling(temperature=0.0, max_tokens=16_384),
    prompt="vlmevalkit",
    scoring="vlmevalkit",
)


class Evaluate(Section):
    """pass@1 on held-out questions before and after training, computed by the same code."""

    questions: tuple[Source, ...] = ()
    protocols: tuple[Protocol, ...] = (PAPER_PROTOCOL,)  # [P]
    engine: Engine = VllmEngine()
    evaluate_base: bool = True
    questions_per_unit: PositiveInt = 128
    only: bool = False  # True: no rounds, only evaluate models.policy (`sophia benchmark`)


class Track(Section):
    """MLflow or TensorBoard beside metrics.jsonl. Secrets (tokens) come from MLflow's own environment variables."""

    enabled: bool = True
    to: tuple[Literal["mlflow", "tensorboard"], ...] = ("mlflow",)
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "sophia"
    timeout_seconds: Positive = 5.0


class Config(Section):
    """A whole run."""

    run: Run
    models: Models
    data: Data = Data()
    environments: Environments = Environments()
    captions: Captions = Captions()
    fresh: Fresh = Fresh()
    reasoning: Reasoning = Reasoning()
    score: Score = Score()
    reward: Reward = Reward()
    rewards: tuple[RewardTerm, ...] = ()  # terms of the reward; none: "correct" with weight 1
    functions: Functions = Functions()
    helpers: dict[HelperName, Helper] = Field(default_factory=dict)  # by a name of your own
    batch: Batch = Batch()
    parallel: Parallel = Parallel()
    objective: Objective = Objective()
    train: Train = Train()
    fp8: Fp8 = Fp8()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    track: Track = Track()
    cluster: Cluster = Cluster()
    rl: Rl | None = None  # the on-policy stage (`sophia rl`)
    stages: tuple[Stage, ...] | None = None  # several stages, one after another (docs/stages.md)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        check_stages(self.stages)
        if not self.data.questions and not self.evaluate.only:
            raise ValueError("data.questions: required key is missing")
        if self.evaluate.only and not self.evaluate.questions:
            raise ValueError("evaluate.only needs evaluate.questions")
        if not self.evaluate.only and self.models.reasoner is None and self.reasoning.engine.kind != "openai":
            raise ValueError("models.reasoner is missing (needed unless reasoning.engine.kind is 'openai')")
        p = self.parallel
        if p.world_size % p.model_ranks:
            raise ValueError(
                f"parallel.processes = {p.processes} is not a multiple of tensor x pipeline x context = {p.model_ranks}"
            )
        if p.sequence_parallel and p.tensor == 1:
            raise ValueError("parallel.sequence_parallel needs parallel.tensor > 1")
        if self.objective.correction != "none" and not self.objective.fresh_share:
            raise ValueError(
                f"objective.correction = {self.objective.correction!r} weighs trajectories that the policy itself has "
                "sampled; the stored ones are the reasoner's: set it to 'none', or set objective.fresh_share"
            )
        if self.objective.fresh_share and self.train.data is not None:
            raise ValueError("objective.fresh_share excludes train.data, which replaces all trajectories")
        if sum(m.share for m in self.batch.mixtures) + self.objective.fresh_share >= 1.0:
            raise ValueError("batch.mixtures and objective.fresh_share: the shares must sum to less than 1")
        if self.objective.kl or self.objective.normalization == "fixed":
            key = "kl" if self.objective.kl else "normalization = 'fixed'"
            raise ValueError(f"objective.{key} belongs to the on-policy stage: rl.objective.{key}")
        if self.reasoning.waves is not None and self.objective.trajectories == "all":
            raise ValueError(
                "reasoning.waves leaves out trajectories that cannot be kept, but objective "
                f"{self.objective.loss.name!r} learns from all K x N (objective.trajectories = 'all'): remove "
                "reasoning.waves, or learn from 'kept'"
            )
        check_terms(self.rewards)
        if self.reasoning.waves is not None and not self.verdict_alone:
            raise ValueError(
                "reasoning.waves stops sampling by verdicts, but [[rewards]] has other terms: remove reasoning.waves"
            )
        check_helpers(self.rewards, self.helpers)
        if self.rl is not None:
            self.rl.check_run(self.data.questions, self.evaluate.questions, self.batch.sequence_length_tokens)
            self.rl.check_nodes(self.parallel.world_size, self.parallel.processes_per_node)
        return self

    @property
    def verdict_alone(self) -> bool:
        """Whether the reward is the verdict, as in the paper."""
        return all(one == RewardTerm(function="correct", name=one.name) for one in self.rewards)

    @property
    def reward_terms(self) -> tuple[RewardTerm, ...]:
        """The terms of the reward; by default the verdict alone."""
        return self.rewards or (RewardTerm(function="correct"),)

    @property
    def on_policy(self) -> Rl:
        """The section [rl]. Raises UsageError when the configuration has none."""
        if self.rl is None:
            raise UsageError("the configuration has no [rl] section: docs/on_policy.md shows one")
        return self.rl

    def rl_view(self) -> Config:
        """This configuration with objective, optimisation and steps of [rl], as the on-policy trainer reads it."""
        rl = self.on_policy
        train = self.train.model_copy(
            update={
                **rl.train.model_dump(exclude={"save_every_batches"}),
                "steps": rl.batches * rl.updates_per_batch,
                "data": None,
                "global_batch_samples": rl.samples_per_update,
                "save_every_steps": rl.train.save_every_batches * rl.updates_per_batch,
            }
        )
        batch = self.batch.model_copy(update={"mixtures": ()})
        objective = rl.objective.model_copy(update={"fixed_tokens": rl.objective.fixed_tokens or rl.max_tokens})
        return self.model_copy(update={"objective": objective, "train": train, "batch": batch})
