"""A real Slurm on this machine: one controller, four nodes with eight false GPUs each, up in about a second.

Needs root and Debian's slurm-wlm and munge. Each node is a slurmd in mount and host name namespaces of its own, so that
every node has its name and its /dev/shm, and can be shown another filesystem than the others.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

NODES = ("node1", "node2", "node3", "node4")
_NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "unshare")

_CONFIGURATION = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=15
SlurmctldTimeout=10
MessageTimeout=10
TCPTimeout=2
KillWait=5
UnkillableStepTimeout=10
ReturnToService=2
JobRequeue=1
MinJobAge=7200
MaxArraySize=1001
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
GresTypes=gpu
"""
_NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.1.{number} Port={port} CPUs=16 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:h100:8 State=UNKNOWN"
)
_PARTITIONS = """
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
"""


def missing() -> str | None:
    """Why a cluster cannot be started here, and what would help; None when it can."""
    absent = [
        name for name in _NEEDED if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if absent:
        return f"no {', '.join(absent)}: apt-get install -y --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "a Slurm with several nodes on one machine needs root"
    return None


class Cluster:
    """``with Cluster(folder) as cluster:`` starts it and leaves nothing running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.small = folder / "small"  # a filesystem of a few MiB that all nodes share
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = {**kept, "SLURM_CONF": str(self.configuration), "PATH": path}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self._write_configuration()
        folder = self.folder
        self.small.mkdir()
        self.command("mount", "-t", "tmpfs", "-o", "size=16m", "none", str(self.small))
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._start(
            *("munged", "--foreground", "--force", f"--socket={folder}/munge.sock", f"--key-file={key}"),
            *(
                f"--pid-file={folder}/munged.pid",
                f"--log-file={folder}/munged.log",
                f"--seed-file={folder}/munged.seed",
            ),
        )
        wait_for(lambda: (folder / "munge.sock").exists(), "munged", 10)
        self._start("slurmctld", "-D", "-i", "-f", str(self.configuration))
        for name in NODES:
            self.start_node(name)
        wait_for(lambda: self.sinfo().count("idle") == len(NODES), "four idle nodes", 90)
        return self

    def __exit__(self, *_: object) -> None:
        self.command("scancel", "--user=root", check=False)  # jobs before daemons, else their steps are orphaned
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and self.command("squeue", "-h", check=False).strip():
            time.sleep(0.1)
        for daemon in [*self._nodes.values(), *reversed(self._daemons)]:
            daemon.terminate()
        for daemon in [*self._nodes.values(), *self._daemons]:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._processes(lambda environment: True):
            process.kill()
        self.command("umount", "--lazy", str(self.small), check=False)

    def command(self, *arguments: str, check: bool = True, **options: object) -> str:
        """Run a command of Slurm's; returns what it printed."""
        done = subprocess.run(
            arguments, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}"
        return done.stdout

    def sinfo(self) -> list[str]:
        """The state of every node, in order."""
        return self.command("sinfo", "-h", "-N", "-p", "batch", "-o", "%T", check=False).split()

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node; it comes back into service by itself."""
        private = self.folder / name
        private.mkdir(exist_ok=True)
        hosts = "127.0.0.1 localhost\n" + "".join(f"127.0.1.{i} {node}\n" for i, node in enumerate(NODES, 1))
        (private / "hosts").write_text(hosts)
        hidden = private / "hidden"  # a path in here is hidden from this node by an empty folder
        script = (
            'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount -t tmpfs -o size=2g none /dev/shm && '
            'if [ -e "$2/hidden" ]; then while read -r path; do mount -t tmpfs none "$path"; done < "$2/hidden"; fi && '
            'exec slurmd -D -N "$1" -f "$3"'
        )
        assert not hidden.is_symlink()
        with open(private / "out", "ab") as out:
            self._nodes[name] = subprocess.Popen(
                ["unshare", "-um", "bash", "-c", script, "bash", name, str(private), str(self.configuration)],
                env={**self.environment, "PATH": self.environment["PATH"]},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill_node(self, name: str) -> None:
        """What a power cut does: slurmd and every process of its jobs are gone at once."""
        self._nodes[name].kill()
        self._nodes[name].wait()
        for process in self._processes(lambda environment: environment.get("SLURMD_NODENAME") == name):
            process.kill()
        for process in psutil.process_iter(["name", "cmdline"]):
            if process.info["name"] == "slurmstepd" and self._belongs_to(process, name):
                process.kill()

    def memory(self, name: str) -> Path:
        """The /dev/shm of a node that runs."""
        return Path(f"/proc/{self._nodes[name].pid}/root/dev/shm")

    def restart_node(self, name: str, hide: tuple[Path, ...] = ()) -> None:
        """Stop the slurmd of a node and start it again, with ``hide`` shown to it as empty folders."""
        self._nodes[name].terminate()
        self._nodes[name].wait(10)
        hidden = self.folder / name / "hidden"
        hidden.unlink(missing_ok=True)
        if hide:
            hidden.write_text("".join(f"{path}\n" for path in hide))
        self.start_node(name)

    def _belongs_to(self, process: psutil.Process, name: str) -> bool:
        """Whether a step daemon is one of this node: its host name namespace is that of no other node."""
        try:
            return str(self.folder) in Path(f"/proc/{process.pid}/mountinfo").read_text() and (
                f"{self.folder}/{name}/hosts" in Path(f"/proc/{process.pid}/mountinfo").read_text()
            )
        except OSError:
            return False

    def _processes(self, chosen: Callable[[dict[str, str]], bool]) -> list[psutil.Process]:
        """Processes of jobs of this cluster whose environment is ``chosen``."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            own = environment.get("SLURM_CONF") == str(self.configuration) and "SLURM_JOB_ID" in environment
            if own and chosen(environment):
                found.append(process)
        return found

    def _start(self, *arguments: str) -> None:
        with open(self.folder / f"{arguments[0]}.out", "ab") as out:
            daemon = subprocess.Popen(arguments, env=self.environment, stdout=out, stderr=out, start_new_session=True)
        self._daemons.append(daemon)

    def _write_configuration(self) -> None:
        for name in ("state", "spool", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        port = 14_000 + os.getpid() % 400 * 10  # several sessions may test at a time
        nodes = [_NODE.format(name=name, number=i, port=port + i) for i, name in enumerate(NODES, 1)]
        head = _CONFIGURATION.format(port=port, folder=self.folder, host=os.uname().nodename)
        self.configuration.write_text(head + "\n".join(nodes) + _PARTITIONS)
        gres = "NodeName=node[1-4] Name=gpu Type=h100 File=/dev/tty[0-7] AutoDetect=off\n"
        (self.folder / "gres.conf").write_text(gres)


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Look ten times a second until ``condition()`` holds; fails naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


if __name__ == "__main__":  # python tests/slurm/cluster.py FOLDER: a cluster to try things on, until interrupted
    import sys

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Cluster(Path(sys.argv[1]).resolve()) as started:
        print(f"export SLURM_CONF={started.configuration}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
