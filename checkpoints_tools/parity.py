"""Recompute a reference file's outputs and gradients with the Megatron model on gloo ranks, at any layout, in fp32.

The file's format: tests' fixtures (README, section on numerics): `pixel_values`, `vit.*`, `projector.*`,
`sample{i}.*` (ids, labels, logits, hidden states), `batch.loss`, `grad.<parameter>` and `gradrows.<parameter>` with the
original release's parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sophia_mcore.batch.samples import IGNORE
from sophia_mcore.config.schema import Batch, Config, Data, Models, Objective, Parallel, Run, Source, Train
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.model import lvlm
from sophia_mcore.model.images import Grid, Pixels, rows_of
from sophia_mcore.model.names import Shard, canonical_parameters
from sophia_mcore.model.vision import kind_of
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.parallel.context import ContextCut
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.parallel.layout import check_layout
from sophia_mcore.parallel.local import run_layout
from sophia_mcore.pretrained.spec import Layout, ModelSpec
from sophia_mcore.weights.load import load_hf
from sophia_mcore.weights.tables import resolve, spelled

Part = tuple[str, Shard, Tensor]
Answer = tuple[dict[str, Tensor], dict[int, Tensor], list[Part]]  # outputs, {data rank: loss}, gradients of one rank
INPUTS = {"pixel_values", "image_grid_thw", "input_ids", "labels", "attention_mask", "position_ids", "cu_seqlens"}
FROZEN = ("vision.", "projector.")  # parameters that `Setup.frozen` leaves as they are


@dataclass(frozen=True, slots=True)
class Setup:
    """How the gradients are computed. Outputs do not depend on it."""

    data: int = 1  # data-parallel size; the samples are dealt out to the replicas
    packed: bool = True  # samples share rows; False: a row for each
    recompute: Literal["none", "selective", "full"] = "none"
    frozen: bool = False  # tower and projector have no gradients, and theirs are not compared


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a reference: ids, labels (unshifted) [L], positions [..., L], and which of the file's pictures."""

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    pictures: range


def check(model_dir: Path, reference_file: Path, parallel: Parallel, setup: Setup = Setup()) -> dict[str, Any]:
    """{"outputs": {name: relative error}, "gradients": {...}, "max", "not_compared"} of a reference file's tensors.

    "not_compared": names that are neither compared nor inputs. The file's positions are inputs. Raises UsageError when
    a file is missing or the layout does not fit the model, SophiaError when the reference does not belong to it.
    """
    tensors = read(reference_file)
    spec = ModelSpec.from_model_dir(model_dir)
    check_layout(spec, parallel)
    words = tensors["sample0.logits"].shape[-1] if "sample0.logits" in tensors else 0
    if words != spec.language.vocab_size:
        raise SophiaError(f"{reference_file}: its logits have {words} words, {model_dir} {spec.language.vocab_size}")
    if spec.image_token_id is None:
        spec = replace(spec, image_token_id=image_token_of(tensors))
    found: dict[str, Tensor] = {}
    losses: dict[int, Tensor] = {}
    parts: list[Part] = []
    for outputs, loss, own in run_layout(
        _compute, parallel, spec, model_dir, tensors, setup, data=setup.data, timeout=1200.0
    ):
        found, losses, parts = found | outputs, losses | loss, parts + own
    found["batch.loss"] = torch.stack(list(losses.values())).sum()
    gradients = join_parts(parts)
    left_out = {n: v for n, v in gradients.items() if setup.frozen and n.startswith(FROZEN)}
    slopes = dict(_gradient_errors(tensors, original_names(gradients, spec), original_names(left_out, spec)))
    outputs = {n: relative(found[n], v) for n, v in tensors.items() if n in found}
    if not outputs:
        raise SophiaError(f"{reference_file}: holds nothing that could be compared")
    rest = sorted(n for n in tensors if n not in found and n.rpartition(".")[2] not in INPUTS and n[:4] != "grad")
    largest = max([*outputs.values(), *slopes.values()])
    return {"outputs": outputs, "gradients": slopes, "max": largest, "not_compared": rest}


def relative(value: Tensor, wanted: Tensor) -> float:
    """|value - wanted| / |wanted| (Frobenius norms, in float64); where wanted is 0, |value|. inf if not finite."""
    if value.numel() != wanted.numel():
        return math.inf
    value, wanted = value.double().flatten(), wanted.double().flatten()
    scale = wanted.norm()
    error = float((value - wanted).norm() / scale) if scale > 0 else float(value.norm())
    return error if math.isfinite(error) else math.inf  # nothing is larger than not a number


def read(file: Path) -> dict[str, Tensor]:
    """Tensors of a reference file."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise UsageError(f"{file}: not a safetensors file ({error})") from None


def image_token_of(tensors: dict[str, Tensor]) -> int:
    """Id of the image token: the one whose place in `inputs_embeds` holds the first feature of the projector."""
    first = tensors["projector.output"][0, 0]
    distance = (tensors["sample0.inputs_embeds"] - first).norm(dim=-1)
    if distance.min() > 1e-3 * first.norm():
        raise SophiaError("the reference's first sample has no image token; add a tokenizer to the model folder")
    return int(tensors["sample0.input_ids"][distance.argmin()])


def pictures_of(tensors: dict[str, Tensor]) -> Pixels:
    """All pictures of a reference; without `image_grid_thw` every row of pixels is one."""
    grids = tensors.get("image_grid_thw")
    return Pixels.of(tensors["pixel_values"], grids if grids is None else [(h, w) for _, h, w in grids.tolist()])


def samples(tensors: dict[str, Tensor], spec: ModelSpec) -> Iterator[Sample]:
    """The reference's samples; pictures are used up in the order of the samples."""
    tokens = [tokens_of(spec, grid) for grid in pictures_of(tensors).grids]
    used = number = 0
    while (ids := tensors.get(f"sample{number}.input_ids")) is not None:
        wanted, end = int(torch.eq(ids, spec.image_token_id or -1).sum()), used
        while sum(tokens[used:end]) < wanted:
            end += 1
        positions = tensors.get(f"sample{number}.position_ids", torch.arange(len(ids)))
        yield Sample(ids, tensors[f"sample{number}.labels"], positions, range(used, end))
        used, number = end, number + 1


def tokens_of(spec: ModelSpec, grid: Grid) -> int:
    """Image tokens of a picture."""
    return kind_of(spec).tokens(spec.vision, spec.projector, rows_of(grid))


def shown(pictures: Pixels, some: Sequence[int], spec: ModelSpec) -> dict[str, Any]:
    """Arguments of the model for some of the pictures."""
    starts = [0, *accumulate(map(rows_of, pictures.grids))]
    grids = [pictures.grids[number] for number in some]
    return {
        "pixel_values": torch.cat([pictures.values[:0], *(pictures.values[starts[n] : starts[n + 1]] for n in some)]),
        "picture_grids": grids,
        "feature_index": torch.arange(sum(tokens_of(spec, grid) for grid in grids)),
    }


def _compute(
    groups: Groups, backend: Backend, spec: ModelSpec, model_dir: Path, tensors: dict[str, Tensor], setup: Setup
) -> Answer:
    """One rank: the outputs that it holds whole, the loss of its replica, its parts of the gradients."""
    chunks: list[Any] = lvlm.build(spec, _config(groups.parallel, setup), groups, backend)
    load_hf(chunks, model_dir, spec, groups)
    outputs: dict[str, Tensor] = {}
    pictures, found = pictures_of(tensors), list(samples(tensors, spec))
    if chunks[0].pre_process:
        outputs |= _image_outputs(chunks[0], pictures)
    for number, sample in enumerate(found):
        hidden = _sample_outputs(chunks, sample, pictures)
        outputs |= {f"sample{number}.{name}": value for name, value in hidden.items()}
    rows = _rows(found, pictures, chunks[0], setup)
    loss, parts = _gradients(chunks, rows, sum(int((s.labels[1:] != IGNORE).sum()) for s in found))
    return outputs, {} if loss is None else {groups.data_rank: loss}, parts


def _config(parallel: Parallel, setup: Setup) -> Config:
    """fp32; the other sections are not used."""
    unused = Path("unused")
    return Config(
        run=Run(name="reference", folder=unused),
        models=Models(policy=unused, reasoner=unused),
        data=Data(questions=(Source(kind="jsonl", path="unused"),)),
        parallel=parallel,
        train=Train(
            dtype="float32", train_vision_tower=not setup.frozen, train_projector=not setup.frozen,
            recompute=setup.recompute,
        ),
        batch=Batch(sequence_length_tokens=parallel.row_multiple()),
        objective=Objective(),
    )  # fmt: skip


@torch.no_grad()
def _image_outputs(model: Any, pictures: Pixels) -> dict[str, Tensor]:
    """Tower and projector; the projector's output through the path that shares the pictures between ranks."""
    stages = kind_of(model.spec).stages(model.vision, model.projector, pictures.values, pictures.grids)
    return {**stages, "projector.output": model.encode_images(pictures.values, pictures.grids)[:, 0]}


@torch.no_grad()
def _sample_outputs(chunks: list[Any], sample: Sample, pictures: Pixels) -> dict[str, Tensor]:
    """Logits and hidden states of one unpacked sample, padded on the right to what the layout needs."""
    length, parallel = len(sample.input_ids), chunks[0].groups.parallel
    padded = _round_up(length, parallel.row_multiple())
    inputs = {
        "input_ids": nn.functional.pad(sample.input_ids, (0, padded - length))[None],
        "position_ids": nn.functional.pad(sample.positions, (0, padded - length)).unsqueeze(-2),
        **shown(pictures, sample.pictures, chunks[0].spec),
    }
    seen: dict[str, Tensor] = {}
    with ExitStack() as watched:
        for model in chunks:
            watched.enter_context(_watched(model, padded, seen))
        again = _together(parallel)  # the same row several times, where one alone is no schedule
        reports = _run(chunks, [inputs] * again, lambda logits: (logits.sum(), torch.tensor(1), logits), True)
    if reports:
        seen["logits"] = reports[0][0]
    seen = {name: value[:length] for name, value in seen.items()}
    if reports:
        logits, labels = seen["logits"][:-1], sample.labels[1:]
        seen["nll_all"] = nn.functional.cross_entropy(logits, sample.input_ids[1:])
        seen["nll_labels"] = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    return seen


@contextmanager
def _watched(model: Any, length: int, seen: dict[str, Tensor]) -> Iterator[None]:
    """While open, hidden states of whole rows go to `seen` under the reference's names."""
    cut = ContextCut([0, length], model.groups.context, torch.device("cpu"))

    def keep(name: str, hidden: Tensor) -> None:
        if model.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=model.tp_group)
        seen[name] = cut.join(hidden, 0)[:, 0].clone()

    decoder = model.language.decoder
    hooks = []
    if model.pre_process:
        hooks.append(
            decoder.register_forward_pre_hook(
                lambda _, args, kwargs: keep("inputs_embeds", kwargs["hidden_states"]), with_kwargs=True
            )
        )
        # the first is called before image features of further levels are added, the other behind
        for name, before in (("hidden_after_layer0", True), ("hidden_into_layer1", False)):
            hooks.append(
                decoder.layers[0].register_forward_hook(
                    lambda _, args, out, name=name: keep(name, out[0]), prepend=before
                )
            )
    if model.post_process:
        norm = decoder.final_layernorm
        hooks.append(norm.register_forward_hook(lambda _, args, out: keep("hidden_final_norm", out)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _together(parallel: Parallel) -> int:
    """Interleaved stages run a multiple of this number of micro batches."""
    return parallel.pipeline if parallel.virtual_pipeline else 1


def _rows(found: list[Sample], pictures: Pixels, model: Any, setup: Setup) -> list[dict[str, Any]]:
    """Arguments of the model for the rows of this replica: all of one length, some perhaps without a sample."""
    groups: Groups = model.groups
    own = _round_up(1 if setup.packed else -(-len(found) // setup.data), _together(groups.parallel))
    dealt = [range(row, len(found), own * setup.data) for row in range(own * setup.data)]
    multiple = groups.parallel.sequence_multiple
    lengths = [_round_up(len(sample.input_ids), multiple) for sample in found]
    length = _round_up(max(sum(lengths[n] for n in row) for row in dealt), groups.parallel.row_multiple())
    rows = []
    for row in dealt[groups.data_rank * own :][:own]:
        ids, targets = torch.zeros(1, length, dtype=torch.long), torch.full((1, length), IGNORE)
        positions = torch.zeros(*found[0].positions.shape[:-1], length, dtype=torch.long)
        boundaries = [0, *accumulate(lengths[n] for n in row)]
        for number, start in zip(row, boundaries, strict=False):
            sample, end = found[number], start + len(found[number].input_ids)
            positions[..., start:end] = sample.positions
            ids[0, start:end] = sample.input_ids
            targets[0, start : end - 1] = sample.labels[1:]
        boundaries = [*(boundaries[:-1] or [0]), length]  # the last sample's padding ends the row
        inputs = {
            "input_ids": ids,
            "position_ids": positions.unsqueeze(-2),
            **shown(pictures, [picture for number in row for picture in found[number].pictures], model.spec),
            "targets": targets,
        }
        rows.append(inputs | ({"packed_seq_params": _packed(boundaries)} if setup.packed else {}))
    return rows


def _packed(boundaries: list[int]) -> PackedSeqParams:
    ends, longest = torch.tensor(boundaries, dtype=torch.int32), max(b - a for a, b in pairwise(boundaries))
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def _gradients(chunks: list[Any], rows: list[dict[str, Any]], tokens: int) -> tuple[Tensor | None, list[Part]]:
    """This replica's part of the token mean over all samples (last stage only), and the gradients of the mean.

    Parameters without a gradient stand for it themselves.
    """

    def loss(scores: lvlm.Scores) -> tuple[Tensor, Tensor, Tensor]:
        mean = -scores.logprobs.sum() / tokens
        return mean, torch.zeros((), dtype=torch.int), mean.detach().clone()

    wrapped = []
    for model in chunks:
        # the loss is a mean already: nothing is left for the schedule to divide by
        model.config.finalize_model_grads_func = lambda model, tokens, **rest: finalize_model_grads(model, None, **rest)
        ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
        wrapped.append(DistributedDataParallel(model.config, ddp, model))
        wrapped[-1].zero_grad_buffer()
    reports = _run(wrapped, rows, loss, False)
    parts = [(n, s, getattr(p, "main_grad", p)) for n, p, s in canonical_parameters(chunks, chunks[0].spec)]
    return (torch.stack(reports).sum() if reports else None), parts


def _run(chunks: list[Any], rows: list[dict[str, Any]], loss: Callable[..., Any], forward_only: bool) -> Any:
    """Micro batches through the pipeline; what `loss` reports of each, on the last stage."""

    def step(inputs: Iterator[dict[str, Any]], chunk: nn.Module) -> Any:
        return chunk(**next(inputs)), loss

    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(rows) for _ in chunks],
        model=chunks,
        num_microbatches=len(rows),
        seq_length=rows[0]["input_ids"].shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )


def join_parts(parts: list[Part]) -> dict[str, Tensor]:
    """Global tensors by canonical name from the parts of all ranks (copies: the first); padding rows dropped."""
    by_name: dict[str, dict[int, tuple[Shard, Tensor]]] = {}
    for name, shard, value in parts:
        by_name.setdefault(name, {}).setdefault(shard.rank, (shard, value))
    joined = {}
    for name, ranks in by_name.items():
        shard, value = ranks[0]
        if shard.axis is not None:
            blocks = [ranks[rank][1].chunk(shard.blocks, shard.axis) for rank in range(shard.size)]
            value = torch.cat([rank[block] for block in range(shard.blocks) for rank in blocks], shard.axis)
        joined[name] = value[: len(value) - shard.padding]
    return joined


def original_names(tensors: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """The same tensors under a release's names, in every layout and spelling of the family, and in its cut."""
    renamed: dict[str, Tensor] = {}
    layouts: set[Layout] = {"hf"} if spec.family is None else set(spec.family.model_types.values())
    for layout in layouts:
        for entry in resolve(spec, layout):
            if entry.name not in tensors:
                continue
            places: dict[int, list[Tensor]] = {}
            for block in entry.op.blocks() if len(entry.sources) > 1 else ():
                places.setdefault(block.source, []).append(tensors[entry.name].narrow(0, block.start, block.length))
            parts = {source.name: torch.cat(places[number]) for number, source in enumerate(entry.sources) if places}
            parts = parts or {entry.sources[0].name: tensors[entry.name]}
            for spelling in spec.family.spellings if spec.family is not None and layout == "hf" else ((),):
                renamed |= {spelled(name, spelling): value for name, value in parts.items()}
    return renamed


def _gradient_errors(
    tensors: dict[str, Tensor], gradients: dict[str, Tensor], left_out: Collection[str]
) -> Iterator[tuple[str, float]]:
    """Relative errors of `grad.*` (whole tensors) and `gradrows.*` (some rows of the tensor as a matrix)."""
    for name, wanted in tensors.items():
        kind, _, parameter = name.partition(".")
        if kind not in ("grad", "gradrows") or name.endswith(".ids") or parameter in left_out:
            continue
        if parameter not in gradients:
            raise SophiaError(f"the reference has a gradient of {parameter}, which the model does not have")
        value = gradients[parameter]
        if kind == "gradrows":
            value = value.flatten(1)[tensors[f"{name}.ids"]]
        yield name, relative(value, wanted)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
