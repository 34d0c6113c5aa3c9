"""Everything one rank needs for training a round, built from the run folder: model, optimizer, batches, checkpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from sophia_mcore.batch.caption_samples import caption_samples
from sophia_mcore.batch.loader import Loader
from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.samples import Sample, from_mixture, image_digests
from sophia_mcore.batch.store_samples import StoreSamples, from_store
from sophia_mcore.config.schema import Config, Mixture, Objective
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import SophiaError
from sophia_mcore.model import lvlm
from sophia_mcore.objective.losses import OwnTerm
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RoundFolder
from sophia_mcore.store.user_files import load_function
from sophia_mcore.train.checkpoint import Checkpoints
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from sophia_mcore.train.optim import build_optimizer, wrap_ddp
from sophia_mcore.weights.load import load_hf

PAIRS = "pairs"  # source of the samples of train.data


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's part of a training: what an update needs beside its micro batches."""

    config: Config
    groups: Groups
    backend: Backend
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    checkpoints: Checkpoints
    steps: int  # updates in all, which the learning rate depends on
    own_term: OwnTerm | None = None  # the user's function, where objective.loss names one

    @property
    def reports(self) -> bool:
        """Whether this rank speaks for its row of the data-parallel group: it has the losses, once each."""
        groups = self.groups
        return groups.is_last_stage and groups.tensor_rank == 0 and groups.context_rank == 0


@dataclass(frozen=True, kw_only=True)
class RoundJob(Job):
    """The training of one round."""

    folder: RoundFolder
    loader: Loader
    captions: Loader | None  # of captions whose log-probs the sampling engine has recorded


def build_job(round_: Round, groups: Groups, backend: Backend, *, from_policy: bool = False) -> RoundJob:
    """Read the samples, build the model and fill it with the policy's weights, unless a checkpoint will do that.

    ``from_policy``: with the policy's weights in any case.

    Raises SophiaError or UsageError: nothing to train on, a policy that is missing or damaged, an impossible layout.
    """
    config, folder = round_.config, round_.folder
    own_term = load_function(config, round_.run, "objective.loss")
    spec = ModelSpec.from_model_dir(round_.policy)
    reader = Reader.of_round(round_)
    loader = _loader(round_, reader, groups)
    chunks = lvlm.build(spec, config, groups, backend)
    if from_policy or not list_checkpoints(folder.checkpoints):
        load_hf(chunks, round_.policy, spec, groups)
    wrapped = wrap_ddp(chunks, config.train)
    return RoundJob(
        config=config,
        folder=folder,
        groups=groups,
        backend=backend,
        chunks=wrapped,
        optimizer=build_optimizer(wrapped, config.train, config.fp8.recipe if config.fp8.native else None),
        loader=loader,
        steps=loader.steps,
        captions=_caption_loader(round_, reader, groups),
        checkpoints=Checkpoints(
            folder.checkpoints, config.train.keep_checkpoints, asynchronous=config.train.save_asynchronously
        ),
        own_term=own_term,
    )


def _loader(round_: Round, reader: Reader, groups: Groups) -> Loader:
    config = round_.config
    store = _samples(round_)
    dist.barrier()  # rank 0 has stored the images of the further data
    loader = _loader_of(store.samples, config, reader, groups)
    recorded = config.objective.behaviour == "recorded"
    return loader.with_logprobs(store.behaviour or None, store.rollout or None, stored=recorded)


def _caption_loader(round_: Round, reader: Reader, groups: Groups) -> Loader | None:
    config = round_.config
    samples = caption_samples(config, round_.folder) if config.train.data is None else []
    if not samples:
        return None
    plain = config.model_copy(
        update={"batch": config.batch.model_copy(update={"mixtures": ()}), "objective": Objective()}
    )
    try:
        return _loader_of(samples, plain, reader, groups)
    except SophiaError:  # none fits into a row: nothing to compare, which is no reason not to train
        return None


def _loader_of(samples: list[Sample], config: Config, reader: Reader, groups: Groups) -> Loader:
    return Loader(samples, config, reader, groups.data_rank, groups.data_size, load_pixels=groups.is_first_stage)


def _samples(round_: Round) -> StoreSamples:
    """What there is to learn from, and the log-probs of its responses that the objective wants."""
    config, run = round_.config, round_.run
    long_thinking = load_prompt("long_thinking", config.batch.long_thinking_prompt_file)
    add_images = ImageStore(run.images).add_many if dist.get_rank() == 0 else image_digests

    def supervised(mixture: Mixture) -> list[Sample]:
        return from_mixture(
            mixture,
            add_images,
            long_thinking=long_thinking,
            default_system=config.batch.default_system_prompt,
            max_image_pixels=config.data.max_image_pixels,
        )

    further = [sample for mixture in config.batch.mixtures for sample in supervised(mixture)]
    if config.train.data is not None:
        pairs = supervised(Mixture(path=config.train.data, name=PAIRS, share=0.5))
        return StoreSamples([*pairs, *further], Counter(), {}, {})
    store = from_store(config, run, round_.folder, round_.policy, long_thinking=long_thinking)
    store.samples.extend(further)
    return store
