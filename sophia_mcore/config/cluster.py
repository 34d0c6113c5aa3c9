"""Settings of `sophia submit`. The resources of the jobs are in slurm/*.sbatch and in the cluster's env file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from sophia_mcore.config.base import NonNegative, Positive, Section


class Cluster(Section):
    """A run on Slurm."""

    env_file: Path = Path("slurm/env/cluster.env")  # copy one of slurm/env/*.example and edit it
    scripts: Path = Path("slurm")  # the folder of the .sbatch files
    unit_attempts: PositiveInt = 3  # a work unit that fails this often is skipped, and its phase fails at the end
    max_restarts: int = Field(default=10, ge=0)  # restarts of a job after preemption, a time limit or a lost node
    max_excluded_nodes: int = Field(default=4, ge=0)  # unhealthy nodes that one job may exclude
    canary_seconds: Positive = 60.0  # time limit for writing and reading a small file on the shared filesystem
    join_seconds: Positive = 600.0  # time limit for the start of all ranks
    allreduce_floor_gb_per_second: NonNegative = 0.0  # training stops at a lower bus bandwidth; 0: only measured
