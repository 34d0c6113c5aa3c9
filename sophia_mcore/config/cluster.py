"""Settings of `sophia submit`. The resources of the jobs are in slurm/*.sbatch and in the cluster's env file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from sophia_mcore.config.base import NonNegative, Positive, Section


class Cluster(Section):
    """A run on Slurm."""

    env_file: Path = Path("slurm/env/cluster.env")  # copy one of slurm/env/*.example and edit it
    scripts: Path = Path("slurm")  # the folder of the .sbatch files
    unit_attempts: PositiveInt = 3  # a work unit that fails so often is left out, and its phase fails in the end
    max_restarts: int = Field(default=10, ge=0)  # of one job, after preemption, a time limit or a lost node
    max_excluded_nodes: int = Field(default=4, ge=0)  # unhealthy nodes that one job may leave behind
    canary_seconds: Positive = 60.0  # within which the shared filesystem must take and return a file
    join_seconds: Positive = 600.0  # within which all ranks must meet before training
    allreduce_floor_gb_per_second: NonNegative = 0.0  # bus bandwidth below which training is refused; 0: only measured
