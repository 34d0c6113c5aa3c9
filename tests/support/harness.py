"""The fork harness of the distributed tests.

megatron-core is imported and the compiled packer is loaded here, once, for all ranks of all tests.
"""

from __future__ import annotations

import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401
import torch

from sophia_mcore.batch.pack import pack
from sophia_mcore.parallel.local import RankError, run, run_layout

torch.set_num_threads(1)
pack([1], 1)  # numba takes longer to load it than a test's training takes

__all__ = ["RankError", "run", "run_layout"]
