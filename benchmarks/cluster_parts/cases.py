"""What is tried on the cluster, a function per case: each returns what it saw, and raises RuntimeError where that is not what must be."""

import json
import os
import re
import signal
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cluster_parts.machines import Machine, cable, wait_for
from cluster_parts.slurm import Cluster
from plait.commands.prove import compare
from plait.engine.monitoring import beats

ROOT = Path(__file__).resolve().parents[2]
SAVED = 75


@dataclass
class Setting:
    """What the cases share. `straight`: the run of two ranks on one machine that all others are compared with."""

    cluster: Cluster
    folder: Path
    config: Path
    straight: Path
    python: Path
    """The interpreter that `python` means on all machines."""

    def run(self, name: str) -> Path:
        """Return a run directory that all machines see."""
        return self.folder / "runs" / name

    def environment(self) -> dict[str, str]:
        """Return what a user's shell has: this repository and its Python."""
        path = f"{self.python.parent}:{os.environ['PATH']}"
        own = {"PYTHONPATH": str(ROOT / "src"), "PLAIT_CACHE": str(self.folder / "cache")}
        return {"PATH": path, "HOME": os.environ.get("HOME", "/root"), "OMP_NUM_THREADS": "1", **own}

    def submit(self, name: str, *options: str) -> int:
        """Submit launch/slurm.sbatch with the resources of this small cluster; the file itself is as it is shipped."""
        resources = ["--gpus-per-node=1", "--cpus-per-task=1", "--mem=0", f"--output={self.log(name)}", *options]
        arguments = [str(self.config), f"--run={self.run(name)}"]
        return self.cluster.submit(resources, ROOT / "launch" / "slurm.sbatch", arguments, **self.environment())

    def train_straight(self) -> None:
        """Train the straight run on a machine of the cluster. Raises RuntimeError if it fails."""
        command = [str(self.python), "-m", "plait", "train", str(self.config), f"--run={self.straight}", "--nproc=2"]
        log = self.log(self.straight.name)
        code = self.cluster.control.start(command, log, **self.environment()).wait()
        require(code == 0, f"the straight run ended with exit code {code}: {tail(log)}")

    def lasting(self, seconds: float) -> "Setting":
        """Return a setting whose runs last at least so long at the speed of the straight run, which has as many steps then."""
        rows = [json.loads(line) for line in (self.straight / "metrics.jsonl").read_text().splitlines()]
        step_s = statistics.median(row["step_s"] for row in rows if "step_s" in row)
        recipe = yaml.safe_load(self.config.read_text())
        steps = recipe["stages"][-1]["train"]
        steps["steps"] = max(steps["steps"], int(seconds / step_s))
        config = self.folder / "lasting.yaml"
        config.write_text(yaml.safe_dump(recipe, sort_keys=False))
        longer = replace(self, config=config, straight=self.run("lasting-straight"))
        longer.train_straight()
        return longer

    def log(self, name: str) -> Path:
        """Return the file with what a job or machine printed."""
        return self.folder / f"{name}.log"

    def at(self, name: str, step: int, limit_s: float = 240) -> None:
        """Wait until a run is past a step on its first rank."""
        wait_for(lambda: step_of(self.run(name)) >= step, limit_s, f"step {step} of {name}: {tail(self.log(name))}")

    def equal(self, name: str) -> None:
        """Raise RuntimeError unless a run ended at the bits of the straight one."""
        divergence = compare.divergence(compare.runs(self.straight, self.run(name)))
        require(divergence is None, f"{name} is not the straight run: {divergence}")


def step_of(run: Path) -> int:
    """Return the step that a run's first rank has done, -1 before any."""
    now = beats.read(run, 0)
    return int(now["step"]) if now else -1


def tail(log: Path, lines: int = 6) -> str:
    """Return the end of a log."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(nothing printed)"


def require(happened: bool, what: str) -> None:
    """Raise RuntimeError, which ends the case, unless something holds."""
    if not happened:
        raise RuntimeError(what)


def quiet(log: Path) -> None:
    """Raise RuntimeError if a log has a traceback."""
    require("Traceback" not in log.read_text(errors="replace"), f"a traceback in {log.name}: {tail(log, 30)}")


def submit(setting: Setting) -> dict[str, Any]:
    """A job of two nodes runs to its end, at the straight run's bits; neither node knows a name of the other."""
    job = setting.cluster.finish(setting.submit("submit", "--time=10"), 400)
    require(job["JobState"] == "COMPLETED", f"the job is {job['JobState']}: {tail(setting.log('submit'))}")
    setting.equal("submit")
    return {"nodes": job["NodeList"], "bits": "equal", "names": "unknown to each other"}


def time_limit(setting: Setting) -> dict[str, Any]:
    """The job gets USR1 before its time limit, saves, goes back into the queue by itself and ends at the straight run's bits."""
    setting = setting.lasting(150)  # SLURM looks at time limits once or twice a minute
    number = setting.submit("time-limit", "--time=30", "--signal=B:USR1@100")
    setting.at("time-limit", 1)
    ran = setting.cluster.job(number)["RunTime"].split(":")
    minutes = 60 * int(ran[0]) + int(ran[1])
    setting.cluster.ask("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes + 1}")  # less than 100 s are left
    wait_for(lambda: int(setting.cluster.job(number).get("Restarts", 0)) >= 1, 240, f"the requeue: {tail(setting.log('time-limit'))}")
    stopped = step_of(setting.run("time-limit"))
    setting.cluster.ask("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    job = setting.cluster.finish(number, 400)
    log = setting.log("time-limit").read_text()
    require(job["JobState"] == "COMPLETED", f"the job is {job['JobState']}: {tail(setting.log('time-limit'))}")
    stops = log.count("Exited with exit code 75")
    require("stopped by SIGUSR1" in log and stops == 2 * int(job["Restarts"]), f"no stop with 75: {log[-800:]}")
    quiet(setting.log("time-limit"))
    setting.equal("time-limit")
    steps = step_of(setting.run("time-limit"))
    row = {"steps": steps, "saved at step": stopped, "task exit codes at the stop": [SAVED, SAVED]}
    return row | {"requeued": int(job["Restarts"]), "bits": "equal"}


def node_failure(setting: Setting, head: bool = False) -> dict[str, Any]:
    """A node loses its power: SLURM requeues the job, which goes on when the node is back, from the newest intact checkpoint."""
    name = "head-lost" if head else "node-failure"
    node = setting.cluster.nodes[0 if head else 1]
    number = setting.submit(name, "--time=20")
    setting.at(name, 20)
    node.fail()
    began = time.monotonic()
    wait_for(lambda: int(setting.cluster.job(number).get("Restarts", 0)) >= 1, 120, f"the requeue: {tail(setting.log(name))}")
    requeued_s = time.monotonic() - began
    node.boot()
    setting.cluster.start_node(node)
    job = setting.cluster.finish(number, 400)
    require(job["JobState"] == "COMPLETED", f"the job is {job['JobState']}: {tail(setting.log(name))}")
    setting.equal(name)
    return {"node": node.name, "requeued after s": round(requeued_s), "bits": "equal"}


def head_failure(setting: Setting) -> dict[str, Any]:
    """The same with the node where ranks meet and the batch script runs."""
    return node_failure(setting, head=True)


def scancel(setting: Setting) -> dict[str, Any]:
    """A cancelled job saves, is not requeued, and leaves nothing running; the same command continues it to the straight run's bits."""
    number = setting.submit("scancel", "--time=20")
    setting.at("scancel", 12)
    setting.cluster.ask("scancel", str(number))
    job = setting.cluster.finish(number, 120)
    require(job["JobState"] == "CANCELLED" and job["Restarts"] == "0", f"the job is {job['JobState']}")
    wait_for(lambda: not running(setting.cluster.nodes, "plait"), 60, "the ranks to end")
    saved = max(int(path.name.removeprefix("step-")) for path in setting.run("scancel").glob("stage-*/step-*"))
    at = step_of(setting.run("scancel"))
    require(saved == at, f"saved at step {saved}, but the run was at {at}: {tail(setting.log('scancel'))}")
    quiet(setting.log("scancel"))
    again = setting.cluster.finish(setting.submit("scancel", "--time=10"), 400)
    require(again["JobState"] == "COMPLETED", f"the job is {again['JobState']}: {tail(setting.log('scancel'))}")
    setting.equal("scancel")
    return {"saved at step": saved, "requeued": 0, "bits after the next job": "equal"}


def two_jobs(setting: Setting) -> dict[str, Any]:
    """Two jobs of two nodes each on the same nodes at once: ports and stores of their own, and both end at the straight run's bits."""
    names = ("job-a", "job-b")
    numbers = [setting.submit(name, "--time=15") for name in names]
    wait_for(lambda: all(step_of(setting.run(name)) > 0 for name in names), 240, "both jobs to train at once")
    together = {setting.cluster.job(number)["JobState"] for number in numbers}
    require(together == {"RUNNING"}, f"the jobs do not run together: {together}")
    for name, number in zip(names, numbers, strict=True):
        job = setting.cluster.finish(number, 500)
        require(job["JobState"] == "COMPLETED", f"{name} is {job['JobState']}: {tail(setting.log(name))}")
        setting.equal(name)
    return {"jobs": 2, "on": "the same two nodes", "bits": "both equal"}


def by_hand(setting: Setting, name: str, **environment: str) -> list[Any]:
    """Start launch/two-node.sh on both machines, without SLURM; return the processes."""
    head, other = setting.cluster.nodes
    given = {**setting.environment(), "HEAD": head.address, "GPUS": "1", **environment}
    command = [str(ROOT / "launch" / "two-node.sh"), str(setting.config), f"--run={setting.run(name)}"]
    return [machine.start(command, setting.log(f"{name}-{machine.name}"), **given) for machine in (head, other)]


def two_node(setting: Setting) -> dict[str, Any]:
    """By hand, where each machine's own name is 127.0.1.1; one machine is asked to stop, and both end with 75."""
    with own_name_is_loopback(setting):
        processes = by_hand(setting, "by-hand")
        wait_for(lambda: step_of(setting.run("by-hand")) >= 12, 240, f"step 12: {tail(setting.log('by-hand-node1'))}")
        for pid in pids(setting.cluster.nodes[1], "plait.training.torchrun"):
            os.kill(pid, signal.SIGTERM)
        codes = [process.wait(120) for process in processes]
        require(codes == [SAVED, SAVED], f"exit codes {codes}: {tail(setting.log('by-hand-node1'))}")
        for node in setting.cluster.nodes:
            quiet(setting.log(f"by-hand-{node.name}"))
        codes = [process.wait(400) for process in by_hand(setting, "by-hand")]
        require(codes == [0, 0], f"exit codes {codes}: {tail(setting.log('by-hand-node1'))}")
    setting.equal("by-hand")
    return {"own name": "127.0.1.1", "exit codes of a stop asked of one": [SAVED, SAVED], "bits": "equal"}


def taken_port(setting: Setting) -> dict[str, Any]:
    """By hand, a second run at the same port: refused in one line, and the first goes on undisturbed."""
    first = by_hand(setting, "first")
    wait_for(lambda: step_of(setting.run("first")) >= 5, 240, f"step 5: {tail(setting.log('first-node1'))}")
    second = by_hand(setting, "second")
    code = second[0].wait(120)
    line = tail(setting.log("second-node1"), 1)
    require(code == 1 and "is taken on this machine" in line, f"exit code {code}: {line}")
    second[1].send_signal(signal.SIGKILL)
    for pid in pids(setting.cluster.nodes[1], str(setting.run("second"))):
        os.kill(pid, signal.SIGKILL)
    codes = [process.wait(400) for process in first]
    require(codes == [0, 0], f"exit codes {codes}: {tail(setting.log('first-node1'))}")
    setting.equal("first")
    return {"second": line, "first": "bits equal"}


def head_unplugged(setting: Setting) -> dict[str, Any]:
    """By hand, the head's cable is pulled: the other machine ends with one line and exit code 1; the same commands continue."""
    processes = by_hand(setting, "unplugged")
    head, other = setting.cluster.nodes
    wait_for(lambda: step_of(setting.run("unplugged")) >= 20, 240, f"step 20: {tail(setting.log('unplugged-node1'))}")
    cable(head, plugged=False)
    began = time.monotonic()
    try:
        code = processes[1].wait(400)
        took_s = time.monotonic() - began
    finally:
        cable(head, plugged=True)
    line = tail(setting.log(f"unplugged-{other.name}"), 1)
    require(code == 1 and "has not answered" in line, f"exit code {code}: {tail(setting.log('unplugged-node2'), 12)}")
    head.fail()
    head.boot()
    setting.cluster.start_node(head)
    codes = [process.wait(400) for process in by_hand(setting, "unplugged")]
    require(codes == [0, 0], f"exit codes {codes}: {tail(setting.log('unplugged-node1'))}")
    setting.equal("unplugged")
    return {"the other machine ends after s": round(took_s), "with exit code": code, "its line": line, "bits after the next start": "equal"}


def unknown_name(setting: Setting) -> dict[str, Any]:
    """By hand, the head is given by a name that the other machine does not know: one line there, after the time limit for names."""
    processes = by_hand(setting, "unknown", HEAD="node1")
    began = time.monotonic()
    codes = [processes[1].wait(150)]
    line = tail(setting.log("unknown-node2"), 1)
    for pid in pids(setting.cluster.nodes[0], str(setting.run("unknown"))):
        os.kill(pid, signal.SIGKILL)
    codes.append(processes[0].wait(60))
    require(codes[0] == 1 and re.search("the name 'node1' is not known on node2", line) is not None, f"exit code {codes}: {line}")
    return {"after s": round(time.monotonic() - began), "line": line}


class own_name_is_loopback:
    """While inside, each machine's /etc/hosts gives its own name 127.0.1.1, as Debian's and Ubuntu's installers do."""

    def __init__(self, setting: Setting) -> None:
        self.nodes = setting.cluster.nodes

    def __enter__(self) -> None:
        for node in self.nodes:
            node.hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n")

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.hosts.write_text("127.0.0.1 localhost\n")


def pids(machine: Machine, words: str) -> list[int]:
    """Return the process ids, outside, of a machine's processes whose command line has these words."""
    found = []
    space = os.readlink(f"/proc/{machine._pid()}/ns/pid")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words in line and os.readlink(path / "ns" / "pid") == space and "nsenter" not in line:
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def running(machines: list[Machine], words: str) -> list[int]:
    """Return the processes of machines whose command line has these words."""
    return [pid for machine in machines for pid in pids(machine, f"-m {words}")]


CASES = {
    "submit": submit,
    "time limit": time_limit,
    "scancel": scancel,
    "two jobs on one node": two_jobs,
    "node failure": node_failure,
    "head lost (SLURM)": head_failure,
    "two-node.sh, own name 127.0.1.1": two_node,
    "a port that is taken": taken_port,
    "head lost (by hand)": head_unplugged,
    "a name that does not resolve": unknown_name,
}
