"""Everything one rank needs for training a round, built from the run folder: model, optimizer, batches, checkpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from sophia_mcore.batch.loader import Loader
from sophia_mcore.batch.samples import Sample, from_mixture, image_digests
from sophia_mcore.batch.store_samples import StoreSamples, from_store
from sophia_mcore.batch.tokenize import load_tokenizer
from sophia_mcore.config.schema import Config, Mixture, Objective
from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import SophiaError
from sophia_mcore.model import lvlm
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.chat import Chat
from sophia_mcore.pretrained.families import image_processor
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RoundFolder, RunFolder
from sophia_mcore.train.caption_samples import caption_samples
from sophia_mcore.train.checkpoint import Checkpoints
from sophia_mcore.train.checkpoint_folder import list_checkpoints
from sophia_mcore.train.optim import build_optimizer, wrap_ddp
from sophia_mcore.weights.load import load_hf

PAIRS = "pairs"  # source of the samples of train.data


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rank's part of the training of one round."""

    config: Config
    folder: RoundFolder
    groups: Groups
    backend: Backend
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    loader: Loader
    checkpoints: Checkpoints
    captions: Loader | None  # of captions whose log-probs the sampling engine has recorded

    @property
    def reports(self) -> bool:
        """Whether this rank speaks for its row of the data-parallel group: it has the losses, once each."""
        groups = self.groups
        return groups.is_last_stage and groups.tensor_rank == 0 and groups.context_rank == 0


def build_job(
    config: Config, run: RunFolder, round_index: int, groups: Groups, backend: Backend, *, from_policy: bool = False
) -> Job:
    """Read the samples, build the model and fill it with the policy's weights, unless a checkpoint will do that.

    ``from_policy``: with the policy's weights in any case.

    Raises SophiaError or UsageError: nothing to train on, a policy that is missing or damaged, an impossible layout.
    """
    folder = run.round(round_index)
    policy = run.starting_policy(round_index, config.models.policy)
    spec = ModelSpec.from_model_dir(policy)
    loader = _loader(config, run, folder, policy, groups)
    chunks = lvlm.build(spec, config, groups, backend)
    if from_policy or not list_checkpoints(folder.checkpoints):
        load_hf(chunks, policy, spec, groups)
    wrapped = wrap_ddp(
        chunks,
        config.train,
        overlap=backend.kind == "cuda",
        fp8_weights=config.train.fp8 != "none" and config.fp8.primary_weights,
    )
    return Job(
        config=config,
        folder=folder,
        groups=groups,
        backend=backend,
        chunks=wrapped,
        optimizer=build_optimizer(wrapped, config.train),
        loader=loader,
        captions=_caption_loader(config, run, folder, policy, groups),
        checkpoints=Checkpoints(
            folder.checkpoints, config.train.keep_checkpoints, asynchronous=config.train.save_asynchronously
        ),
    )


def _loader(config: Config, run: RunFolder, folder: RoundFolder, policy: Path, groups: Groups) -> Loader:
    store = _samples(config, run, folder, policy)
    dist.barrier()  # rank 0 has stored the images of the further data
    loader = _loader_of(store.samples, config, run, policy, groups)
    recorded = config.objective.behaviour == "recorded"
    return loader.with_logprobs(store.behaviour or None, store.rollout or None, stored=recorded)


def _caption_loader(config: Config, run: RunFolder, folder: RoundFolder, policy: Path, groups: Groups) -> Loader | None:
    samples = caption_samples(config, folder) if config.train.data is None else []
    if not samples:
        return None
    plain = config.model_copy(
        update={"batch": config.batch.model_copy(update={"mixtures": ()}), "objective": Objective()}
    )
    try:
        return _loader_of(samples, plain, run, policy, groups)
    except SophiaError:  # none fits into a row: nothing to compare, which is no reason not to train
        return None


def _loader_of(samples: list[Sample], config: Config, run: RunFolder, policy: Path, groups: Groups) -> Loader:
    return Loader(
        samples,
        config,
        Chat.from_model_dir(policy),
        load_tokenizer(policy),
        image_processor(policy, config.batch.max_tiles),
        ImageStore(run.images),
        groups.data_rank,
        groups.data_size,
        load_pixels=groups.is_first_stage,
    )


def _samples(config: Config, run: RunFolder, folder: RoundFolder, policy: Path) -> StoreSamples:
    """What there is to learn from, and the log-probs of its responses that the objective wants."""
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
    store = from_store(config, run, folder, policy, long_thinking=long_thinking)
    store.samples.extend(further)
    return store
