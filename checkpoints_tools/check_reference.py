#!/usr/bin/env python3
"""Recompute a reference file's outputs and gradients with the Megatron model, on gloo ranks, at any layout.

Prints one JSON line {"outputs": {name: relative error}, "gradients": {...}, "max"}; exit code 1 above --tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import SophiaError, run_command


def size(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, help="Hugging Face folder, either layout")
    parser.add_argument("reference", type=Path, help="safetensors file with the reference's tensors")
    parser.add_argument("--tp", type=size, default=1, help="tensor parallel size")
    parser.add_argument("--pp", type=size, default=1, help="pipeline parallel size")
    parser.add_argument("--cp", type=size, default=1, help="context parallel size")
    parser.add_argument("--sp", action="store_true", help="sequence parallelism (with --tp above 1)")
    parser.add_argument("--vpp", type=size, help="interleaved parts of a pipeline stage")
    parser.add_argument("--first", type=size, metavar="LAYERS", help="language layers of the first pipeline stage")
    parser.add_argument("--last", type=size, metavar="LAYERS", help="language layers of the last pipeline stage")
    parser.add_argument("--dp", type=size, default=1, help="data parallel size: who computes which sample's gradients")
    parser.add_argument("--unpacked", action="store_true", help="gradients with a row for each sample")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none", help="of activations")
    parser.add_argument("--frozen", action="store_true", help="no gradients of tower and projector")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative error that passes")
    options = parser.parse_args()

    def work() -> None:
        from parity import Setup, check  # the module beside this file

        layout = Parallel(
            tensor=options.tp, pipeline=options.pp, context=options.cp, sequence_parallel=options.sp,
            virtual_pipeline=options.vpp, layers_on_first_stage=options.first, layers_on_last_stage=options.last,
        )  # fmt: skip
        setup = Setup(options.dp, not options.unpacked, options.recompute, options.frozen)
        result = check(options.model_dir, options.reference, layout, setup)
        print(json.dumps(result), flush=True)
        if not result["max"] <= options.tolerance:
            raise SophiaError(f"the largest relative error is {result['max']:.3g}, above {options.tolerance:g}")

    return run_command("check_reference", work)


if __name__ == "__main__":
    sys.exit(main())
