"""The fork harness of the distributed tests: megatron-core is imported here, once, for all ranks of all tests."""

from __future__ import annotations

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401
import torch

from sophia_mcore.parallel.local import RankError, run, run_layout

torch.set_num_threads(1)

__all__ = ["RankError", "run", "run_layout"]
