"""torch's dtypes by safetensors' names. A module of its own, so that a cast needs no model and no megatron-core."""

from __future__ import annotations

import torch

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
