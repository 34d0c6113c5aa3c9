"""What this lane is made of: real Python files, and replacements that say so."""

from __future__ import annotations

import sys

import pytest


def test_the_replacements_say_what_they_are() -> None:
    if "tests.cuda_path.stand_in" not in sys.modules:
        pytest.skip("CUDA PATH NOT TESTED: no Transformer Engine in this process; `make test-cuda-path` runs it")
    import transformer_engine
    from megatron.core.extensions.transformer_engine import HAVE_TE

    from tests.cuda_path import shim, stand_in

    assert HAVE_TE and transformer_engine.__version__ == "2.20.2"
    assert transformer_engine.__file__.startswith(str(stand_in.SITE))
    extension = sys.modules["transformer_engine_torch"]
    assert "computes nothing" in (extension.__doc__ or "") and "computes nothing" in repr(extension.quantize)
    assert "no kernel" in shim.WHAT
    before = stand_in.CALLS["quantize"]
    extension.quantize(1)
    assert stand_in.CALLS["quantize"] == before + 1, "a kernel that is asked for leaves a mark"
