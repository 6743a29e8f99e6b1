"""Kills of a run and of the process that mirrors it, during an upload; each time another machine goes on from what is at the address.

    pip install 'moto[server]' s3fs
    python benchmarks/mirror_kills.py [--kills 20] [--rate 2e6] [--steps 1500]

An S3 server (moto's, a process of its own) stands behind a proxy that passes on so many bytes a second. A small run of two stages mirrors
its checkpoints there. When the second or third checkpoint is on its way, trainer and process are killed and the machine's disk is lost; the
next machine has the same command and an empty disk. What is at the address is looked at after each kill: the newest checkpoint is brought
and verified. The run that got to its end is compared with one that nobody killed. Figures go to benchmarks/results/mirror_kills.json.
"""

import argparse
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.hub_pushes import RECIPE  # noqa: E402
from plait.assembly.configuration import open_config  # noqa: E402
from plait.commands.actions.publishing import mirror, restore  # noqa: E402
from plait.commands.actions.publishing.mirror import Store  # noqa: E402
from plait.engine.checkpoints import checkpoint, integrity  # noqa: E402
from plait.files import write_json  # noqa: E402
from plait.training.launch import descendants  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "mirror_kills.json"
LIMIT_S = 120.0


class Proxy(threading.Thread):
    """Passes connections on to `port`, what is sent at `rate` bytes a second; counts uploads of optimizer states as they begin."""

    def __init__(self, port: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.to, self.rate, self.begun = port, rate, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        """Accept connections."""
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.to))
            threading.Thread(target=self.passed, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.passed, args=(server, client, False), daemon=True).start()

    def passed(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        """Pass on one direction of a connection."""
        try:
            while body := source.recv(1 << 14):
                if up and body.startswith(b"PUT ") and b"moments.safetensors" in body.partition(b"\r\n")[0]:
                    self.begun += 1
                if up:
                    time.sleep(len(body) / self.rate)
                target.sendall(body)
        except OSError:
            pass
        for end in (source, target):
            end.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def life(words: list[str], proxy: Proxy, wait_for: int, chance: random.Random) -> bool:
    """Run a machine until so many checkpoints were begun, and a moment longer, then kill it all; return whether it came to its end."""
    before, began = proxy.begun, time.monotonic()
    with (Path(tempfile.gettempdir()) / "mirror_kills.log").open("ab") as log:
        trainer = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    while proxy.begun < before + wait_for and trainer.poll() is None and time.monotonic() - began < LIMIT_S:
        time.sleep(0.02)
    time.sleep(0.5 * chance.random())
    if trainer.poll() is not None:
        return True
    for process in [*descendants(trainer.pid), trainer.pid]:
        os.kill(process, 9)
    trainer.wait()
    return False


def brought(recipe: Path, address: str, folder: Path) -> int | None:
    """Bring what is at the address as another machine would; return the step of the checkpoint, None where there is none yet."""
    shutil.rmtree(folder, ignore_errors=True)
    restore.from_mirror(open_config(recipe, [f"run={folder}", f"checkpoint.mirror={address}"]), restart=False, fresh=False)
    found = checkpoint.published(folder)
    assert not found or not integrity.verify(found[0])
    return checkpoint.step_of(found[0]) if found else None


def measured(work: Path, kills: int, rate: float, steps: int) -> dict[str, Any]:
    """Kill so often, and compare the runs that came to their ends with one that nobody killed."""
    recipe, chance, port = work / "recipe.yaml", random.Random(0), free_port()
    recipe.write_text(RECIPE.format(steps=steps).replace("every_steps: 1, keep: 0", "every_steps: 50, keep: 2"), encoding="utf-8")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = Proxy(port, rate)
    proxy.start()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"})
    time.sleep(8)
    store = Store("s3://bucket/warm")
    store.system.mkdir("bucket")
    plain = [sys.executable, "-m", "plait", "train", str(recipe)]
    killed, complete, finished, came, machine = 0, 0, [], list[int | None](), 0
    while killed < kills or not finished:
        address, machine = f"s3://bucket/run-{len(finished)}", machine + 1
        words = [*plain, f"--run={work / f'machine-{machine}'}", f"--checkpoint.mirror={address}"]
        wait_for = chance.choice([2, 3]) if killed < kills else 1 << 30
        if life(words, proxy, wait_for, chance):
            finished.append(work / f"machine-{machine}")
            continue
        killed += 1
        listed = Store(address).list()
        torn = {path.rpartition("/")[0] for path in listed if path.startswith("stage-")} - set(mirror.complete(listed))
        complete += not torn
        came.append(brought(recipe, address, work / "look"))
        shutil.rmtree(work / f"machine-{machine}")
        sys.stdout.write(f"kill {killed}: step {came[-1]}, {len(torn)} half there\n")
        sys.stdout.flush()
    subprocess.run([*plain, f"--run={work / 'whole'}"], check=True, stdout=subprocess.DEVNULL)
    server.kill()
    whole, differ = checkpoint.published(work / "whole")[0], 0
    for run in finished:
        for group in ("weights", "moments"):
            one, other = (integrity.locate(found).tensors(group) for found in (whole, checkpoint.published(run)[0]))
            differ += one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one)
    return {
        "kills": killed,
        "during_an_upload": killed - complete,
        "without_a_start": came.count(None),
        "runs": len(finished),
        "differ": differ,
    }


def main() -> None:
    """Measure, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e6, help="bytes a second")
    parser.add_argument("--steps", type=int, default=1500, help="of each of the two stages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        told = measured(Path(work), options.kills, options.rate, options.steps)
    told |= {"rate": options.rate, "steps": 2 * options.steps, "machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    write_json(RESULTS, told)
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
