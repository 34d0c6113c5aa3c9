"""Processes, nodes and GPUs that training takes, from the configuration alone."""

from __future__ import annotations

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.phase import Shape


def processes_per_node(config: Config) -> int:
    """Number of training processes on each node."""
    return config.parallel.processes_per_node or config.parallel.world_size


def training_shape(config: Config) -> Shape:
    """Nodes of training and GPUs on each, one per process. Raises UsageError if the nodes' numbers would differ."""
    processes, on_node = config.parallel.world_size, processes_per_node(config)
    if processes % on_node:
        raise UsageError(
            f"parallel.processes = {processes} is not a multiple of parallel.processes_per_node = {on_node}"
        )
    return Shape(gpus=on_node, nodes=processes // on_node)


def stage_shape(config: Config) -> Shape:
    """Nodes of the on-policy stage (training nodes and sampling nodes together) and GPUs on each of them.

    Raises UsageError like ``training_shape``.
    """
    rl, training = config.on_policy, training_shape(config)
    assert training.nodes is not None
    engines = rl.engines * rl.engine.gpus
    both_on_one = rl.placement == "separate" and not rl.rollout_nodes
    gpus = training.gpus + engines if both_on_one else max(training.gpus, engines)
    return Shape(gpus=gpus, nodes=training.nodes + rl.rollout_nodes)
