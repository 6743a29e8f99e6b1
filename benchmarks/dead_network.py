"""What a network that swallows everything costs a run with W&B and alerts, in processor time, which other programs disturb little.

    python benchmarks/dead_network.py [--seconds 60]

A server on loopback, a process of its own, takes every connection and never answers; W&B (the package itself, online) and alerts through
apprise, one every five seconds, talk to it. Told are: the processor time of the trainer for a recorded step, with and without them (the
median of 3,000); and the share of one core that the processes beside the run take once they have started, while ten rows a second come.
Together they bound what a step can become slower, on a machine without a core to spare. Figures go to
benchmarks/results/dead_network.json. That weights and rows are the same is held by tests/training/test_black_hole.py.
"""

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from plait.config.sections.alert import Alert
from plait.config.sections.track import Wandb
from plait.engine.monitoring.alerts import Alerts
from plait.engine.monitoring.beside import process, trackers
from plait.engine.monitoring.beside.shown import KeptPictures
from plait.engine.monitoring.tracking import Tracker
from plait.files import write_json
from plait.training.launch import descendants

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dead_network.json"
START_S, ROWS = 25.0, 3000
ROW = {f"figure/{number}": 1.0 * number for number in range(40)}
SERVER = "import sys; from tests import loopback\nwith loopback.swallowing() as port: print(port, flush=True); sys.stdin.read()"


@contextlib.contextmanager
def dead_network() -> Iterator[int]:
    """Point W&B and $ALERT_URL at a server that never answers; yield the server's process id."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        hole = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        with mock.patch.dict(os.environ, hole | {"ALERT_URL": f"json://127.0.0.1:{port}/x"}):
            yield server.pid


def microseconds(tracker: Tracker) -> float:
    """Return the median processor time of a recorded step in this process."""
    took = []
    for step in range(ROWS):
        row = {**ROW, "step": step}
        began = time.process_time()
        tracker.advance(row)
        tracker.row(row)
        took.append(1e6 * (time.process_time() - began))
    return statistics.median(took)


def processor_s(pids: list[int]) -> float:
    """Return the processor time that processes have taken."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    process.CLOSE_TIMEOUT_S = 1.0
    with tempfile.TemporaryDirectory() as place, dead_network() as server:
        alone, run = Path(place) / "alone", Path(place) / "run"
        alone.mkdir()
        run.mkdir()
        alerts = Alerts(run, Alert(urls=["$ALERT_URL"], on=["plateau"]))
        tracker = Tracker(run, [KeptPictures(run), trackers.wandb_mirror(run, Wandb(project="dead"), {}, "abc123")], alerts=alerts)
        alerts.tell("plateau", "the first")
        time.sleep(START_S)
        beside = [pid for pid in descendants(os.getpid()) if pid != server]
        start_s, began = processor_s(beside), time.monotonic()
        step = 0
        while (passed := time.monotonic() - began) < seconds:
            step += 1
            tracker.row({**ROW, "step": step})
            if step % 50 == 0:
                alerts.tell("plateau", f"step {step}")
            time.sleep(0.1)
        share = (processor_s(beside) - start_s) / passed
        of_a_row = {"alone": microseconds(Tracker(alone, [])), "with both": microseconds(tracker)}
        tracker.close()
        alerts.process.close()
    figures = {
        "command": f"python benchmarks/dead_network.py --seconds {seconds:g}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "trainer_us_per_recorded_step": of_a_row,
        "processes": {"count": len(beside), "start_processor_s": start_s, "share_of_a_core": share},
    }
    write_json(RESULTS, figures)
    print(figures)


if __name__ == "__main__":
    main()
