"""What a task of each phase takes: GPUs, processes, nodes. Pure, from the configuration."""

from __future__ import annotations

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError


def gpus_per_task(config: Config, phase: str) -> int:
    """GPUs that one task of the phase uses: an engine's tensor parallel size, or a node's training processes."""
    if phase == "train":
        return processes_per_node(config)
    engines = {"captions": config.captions.engine, "reasoning": config.reasoning.engine}
    engine = engines.get(phase, config.evaluate.engine if phase == "evaluate" else None)
    if engine is None or engine.kind == "openai":
        return 0
    return engine.tensor_parallel if engine.kind == "vllm" else 1


def processes_per_node(config: Config) -> int:
    """Training processes on each node."""
    return config.parallel.processes_per_node or config.parallel.world_size


def training_nodes(config: Config) -> int:
    """Nodes of the training. Raises UsageError when they cannot all run the same number of processes."""
    processes, on_node = config.parallel.world_size, processes_per_node(config)
    if processes % on_node:
        raise UsageError(
            f"parallel.processes = {processes} is not a multiple of parallel.processes_per_node = {on_node}"
        )
    return processes // on_node
