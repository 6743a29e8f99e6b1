"""A SLURM cluster of two nodes on machines of namespaces: munged, slurmctld on a machine of its own, and a slurmd on each node."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cluster_parts.machines import Machine, call, network, wait_for

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
CONFIG = """
ClusterName=plait
SlurmctldHost=control({control})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MpiDefault=none
SwitchType=switch/none
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def install() -> str | None:
    """Install SLURM from the distribution's packages unless it is there. Returns why that cannot be done, or None."""
    if all(shutil.which(program) for program in PROGRAMS):
        return None
    if shutil.which("apt-get") is None:
        return "SLURM is not installed, and this is no Debian or Ubuntu whose package slurm-wlm could be"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return None


class Cluster:
    """The running cluster. `nodes`: its two machines; `control`: the one of slurmctld, from which jobs are submitted."""

    def __init__(self, folder: Path, machines: list[Machine]) -> None:
        self.folder, (self.control, *self.nodes) = folder, machines
        self.log = folder / "daemons.log"
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": os.environ["PATH"]}
        self._write()

    def _write(self) -> None:
        lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=8 RealMemory=4000 Gres=gpu:2 State=UNKNOWN" for node in self.nodes]
        names = ",".join(node.name for node in self.nodes)
        text = CONFIG.format(folder=self.folder, control=self.control.address, nodes="\n".join(lines), names=names)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        for path in ("state", "munge", *(f"{node.name}/spool" for node in self.nodes)):
            (self.folder / path).mkdir(parents=True, mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def start(self) -> None:
        """Start munged, slurmctld and both slurmd; wait until both nodes are idle."""
        munge = self.folder / "munge"
        files = [f"--{name}={munge / name}" for name in ("socket", "key-file", "log-file", "pid-file", "seed-file")]
        files = [item.replace(f"{munge}/key-file", f"{munge}/key") for item in files]
        self.control.start(["munged", "--foreground", "--force", "--num-threads=1", *files], self.log)
        wait_for((munge / "socket").exists, 20, "munged")
        self.control.start(["slurmctld", "-D", "-i"], self.log, **self.environment)
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: self.states() == ["IDLE", "IDLE"], 60, "both nodes to be idle")

    def start_node(self, node: Machine) -> None:
        """Start slurmd on a machine."""
        node.start(["slurmd", "-D", "-N", node.name], self.log, **self.environment)

    def states(self) -> list[str]:
        """Return the state of each node, such as IDLE."""
        return [self._field(self.ask("scontrol", "show", "node", node.name), "State") for node in self.nodes]

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands on the control machine and return what it prints; "" where it fails."""
        out = self.folder / "asked"
        out.unlink(missing_ok=True)
        self.control.start(command, out, **self.environment).wait(60)
        return out.read_text()

    def submit(self, options: list[str], script: Path, arguments: list[str], **environment: str) -> int:
        """Submit a batch script and return the job's number."""
        out = self.folder / "submitted"
        out.unlink(missing_ok=True)
        process = self.control.start(
            ["sbatch", "--parsable", *options, str(script), *arguments], out, **{**self.environment, **environment}
        )
        process.wait(60)
        text = out.read_text().strip()
        if process.returncode or not text.splitlines()[-1].isdecimal():
            raise RuntimeError(f"sbatch: {text}")
        return int(text.splitlines()[-1])

    def job(self, number: int) -> dict[str, str]:
        """Return what SLURM says of a job: JobState, ExitCode, Restarts and others."""
        text = self.ask("scontrol", "show", "job", str(number))
        return {item.partition("=")[0]: item.partition("=")[2] for item in text.split() if "=" in item}

    def finish(self, number: int, limit_s: float) -> dict[str, str]:
        """Wait until a job has ended for good, and return what SLURM says of it."""
        busy = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
        deadline = time.monotonic() + limit_s
        while (job := self.job(number)).get("JobState", "PENDING") in busy:
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {number} is still {job.get('JobState')} ({job.get('Reason')}) after {limit_s:g} s")
            time.sleep(1)
        return job

    @staticmethod
    def _field(text: str, name: str) -> str:
        return next((item.partition("=")[2] for item in text.split() if item.startswith(f"{name}=")), "")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a SLURM cluster of two nodes; at the end its daemons, jobs and namespaces are gone."""
    with network(folder, ["control", "node1", "node2"]) as machines:
        running = Cluster(folder, machines)
        running.start()
        yield running


def version() -> str:
    """Return SLURM's version, such as "slurm-wlm 22.05.8"."""
    return call("slurmd", "-V").strip()
