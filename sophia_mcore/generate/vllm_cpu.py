"""What vLLM's CPU build needs around it. Nothing here acts on a GPU machine.

``prepare_process`` is called at the very top of a worker, before vLLM and torch are imported: vLLM is steered through
environment variables, and this is the one place where the project sets any.
"""

from __future__ import annotations

import os
from importlib import metadata

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",  # a run tells nobody about itself
    "HF_HUB_OFFLINE": "1",  # models are directories; nothing is fetched by surprise
    "TOKENIZERS_PARALLELISM": "false",  # a forking process with tokenizer threads warns at every request
}
_ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: no second import of torch
    "TORCHDYNAMO_DISABLE": "1",  # compiling costs minutes and runs at 20-140 tokens/s meanwhile
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # no NUMA binding: containers often hide the topology
    "VLLM_CPU_ATTN_SPLIT_KV": "0",  # split among threads, a sequence's last bits depend on what is sampled beside it
}


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a CPU build. Imports nothing heavy."""
    try:
        metadata.version("vllm-cpu")
        return True
    except metadata.PackageNotFoundError:
        pass
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False


def prepare_process(threads: int | None = None) -> None:
    """Set what vLLM reads from the environment; a value that the user has set stays.

    ``threads``: of the CPU build. torch reads it when it is imported, so a later call with another number does nothing.
    """
    on_cpu = {**_ON_CPU, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    for name, value in {**_ALWAYS, **(on_cpu if is_cpu_build() else {})}.items():
        os.environ.setdefault(name, value)
