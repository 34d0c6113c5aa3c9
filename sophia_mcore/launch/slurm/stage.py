"""Runs the on-policy stage as one Slurm job with a task per node. The first nodes train, the others only sample.

With ``rl.placement`` "colocated" every node does both. Further engines may join and leave at any time
(slurm/rl_engines.sbatch), since they need only the run folder.
"""

from __future__ import annotations

import os
import shlex
import sys

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.environments import interpreter
from sophia_mcore.launch.resources import processes_per_node, stage_shape, training_shape
from sophia_mcore.launch.slurm.health import LostProcess
from sophia_mcore.launch.stage import LostTrainerError, Node, make_ready, supervise
from sophia_mcore.phase import SlurmTask
from sophia_mcore.store.layout import Round


def run_on_node(round: Round, task: SlurmTask) -> None:
    """Run this node's part of the stage. Raises LostProcess when the trainer was lost, so that the job is requeued."""
    config = round.config
    wanted = stage_shape(config).nodes
    if task.node_count != wanted:
        raise UsageError(f"{task.node_count} nodes allocated, but [parallel] and rl.rollout_nodes need {wanted}")
    make_ready(config, round.run, first_node=task.node_index == 0)
    try:
        supervise(config, round.run, node_of(config, task, os.environ.get("PYTHON_ROLLOUT", "")), signals=False)
    except LostTrainerError as error:
        raise LostProcess(str(error)) from None


def node_of(config: Config, task: SlurmTask, rollout_python: str = "") -> Node:
    """The processes of the task's node. ``rollout_python``: the env file's PYTHON_ROLLOUT; "": the configuration's."""
    rl, nodes = config.on_policy, training_shape(config).nodes or 1
    trains = task.node_index < nodes
    join = f"is_host={int(task.node_index == 0)},join_timeout={config.cluster.join_seconds:.0f}"
    torchrun = (
        *(f"--nnodes={nodes}", f"--nproc-per-node={processes_per_node(config)}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={task.head}:{task.port}", f"--rdzv-conf={join}"),
        f"--rdzv-id={task.job_id}-{task.restart}",
    )
    samples = rl.placement == "colocated" or not trains or not rl.rollout_nodes
    return Node(
        torchrun=torchrun if trains else None,
        engines=rl.engines if samples else 0,
        trainer_python=(sys.executable,),
        engine_python=tuple(shlex.split(rollout_python)) or (interpreter(config.environments.rollout),),
        restarts_trainer=False,
    )
