"""What a rank really allocates while it trains, for comparison with `sophia plan`."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sophia_mcore.model import lvlm
from sophia_mcore.train.checkpoint import METADATA
from sophia_mcore.train.optim import build_optimizer, wrap_ddp
from tests.support import layouts


class LiveBytes(TorchDispatchMode):
    """`now`: bytes of all storages that were made while it is on and still exist; `most`: the highest of these.

    ``before``: tensors whose storages were there already.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._before:
            return
        if key in self._sizes:
            self._resize(key, storage.nbytes())
            return
        self._sizes[key] = 0
        self._resize(key, storage.nbytes())
        weakref.finalize(storage, self._gone, key)

    def _resize(self, key: int, size: int) -> None:
        self.now += size - self._sizes[key]
        self.most = max(self.most, self.now)
        self._sizes[key] = size

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def nbytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def allocations(groups: Any, backend: Any, spec: Any, config: Any, rows: list[layouts.Row]) -> dict[str, int]:
    """Bytes by part on this rank after one real optimizer step on its share of ``rows``.

    kept: the highest sum, at the end of any forward, of what then waits for a backward (outputs included).
    saving: the most that gathering the optimizer's state for a checkpoint takes.
    """
    waiting = 0
    chunks = lvlm.build(spec, config, groups, backend)
    layouts.fill(chunks, spec)
    wrapped = wrap_ddp(chunks, config.train)
    optimizer = build_optimizer(wrapped, config.train)
    mine = rows[groups.data_rank :: groups.data_size]
    held = [t for c in chunks for p in c.parameters() for t in (p, getattr(p, "main_grad", p))]
    inputs = [t for row in mine for t in vars(row).values() if torch.is_tensor(t)]
    mode = LiveBytes([*held, *inputs])

    def step(data: Any, model: Any) -> Any:
        nonlocal waiting
        output, loss = layouts.forward_step(data, model, groups)
        waiting = max(waiting, mode.now)
        return output, loss

    for chunk in wrapped:
        chunk.zero_grad_buffer()
    run = partial(
        get_forward_backward_func(),
        forward_step_func=step,
        data_iterator=[iter(mine) for _ in wrapped] if len(wrapped) > 1 else iter(mine),
        model=wrapped,
        num_microbatches=len(mine),
        seq_length=rows[0].input_ids.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    with mode:
        run()
    optimizer.step()
    states = getattr(optimizer, "chained_optimizers", [optimizer])
    weights = nbytes(p.data for c in chunks for p in c.parameters())
    gradients = nbytes(b.grad_data for c in wrapped for b in c.buffers)
    known = {p.untyped_storage().data_ptr() for c in chunks for p in c.parameters()}
    state = [
        t
        for o in states
        for p, values in o.optimizer.state.items()
        for t in (p.data, *values.values())
        if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in known and t.numel() > 1
    ]
    groups_of = [group["params"] for o in states for group in o.optimizer.param_groups]
    there = [*tree_leaves([[dict(o.optimizer.state) for o in states], groups_of]), *held]
    there += [t for c in wrapped for b in c.buffers for t in (b.grad_data, b.param_data)]
    saving = []
    for _ in range(3):  # the least: the first gather held one tensor more in 2 of 240 measurements, later ones never
        mode = LiveBytes(t for t in there if torch.is_tensor(t))
        model = {f"model{i}": c.module.sharded_state_dict(metadata=dict(METADATA)) for i, c in enumerate(wrapped)}
        with mode:
            optimizer.sharded_state_dict(model, is_loading=False, metadata=dict(METADATA))
        saving.append(mode.most)
    return {
        "saving": min(saving),
        "weights": weights,
        "gradients": gradients,
        "optimizer": nbytes(iter(state)),
        "kept": waiting,
    }
