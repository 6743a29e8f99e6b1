"""Host memory and time of a start from a directory of safetensors, by one process and by two ranks of a node.

    OMP_NUM_THREADS=1 python benchmarks/start_memory.py

A Gemma 3 of random weights in bfloat16 is saved by transformers, and the world encoder in its published size in float32 by diffusers. Fresh
processes build the model as a run does and take the hash of each parameter; a thread looks every 2 ms at the memory that is theirs alone
(RssAnon: mapped files, which the system may drop, apart), less what the process had before.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn
from transformers import Gemma3ForConditionalGeneration
from transformers.utils import logging

from plait.assembly.model import hashes
from plait.engine.parallel import distributed
from plait.families.theworld import family, towers
from plait.families.theworld.config import COSMOS, Config
from plait.families.theworld.pretrained import published

SIZES = {"hidden": 1280, "layers": 12, "heads": 8, "kv_heads": 4, "head_dim": 160, "mlp": 5120, "vocabulary": 65_536}
RANKS = (1, 2)


class Peak(threading.Thread):
    """The most memory of this process, bytes, while it is watched."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most, self.done = own_memory(), 0, False

    def run(self) -> None:
        while not self.done:
            self.most = max(self.most, own_memory() - self.before)
            time.sleep(0.002)


def own_memory() -> int:
    """Bytes that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def one_rank(folder: str, world: str) -> None:
    """Build as a rank does, and print its figures as JSON. `world`: on or off."""
    section = Config.model_validate({"base": f"{folder}/gemma", "world": {"source": f"{folder}/wan"} if world == "on" else False})
    logging.disable_progress_bar()
    with distributed.join("cpu") as group:
        group.barrier()
        peak, began, used = Peak(), time.perf_counter(), time.process_time()
        peak.start()
        model = family.build(section, Path(), seed=0)
        found = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        used = time.process_time()
        hashes(model)
        found["hash_s"] = time.process_time() - used
        peak.done = True
        peak.join()
        sizes = {"encoder": size(model.world) if isinstance(model.world, nn.Module) else 0, "model": size(model)}
        print(json.dumps({**found, "peak": peak.most, **sizes}))


def size(module: nn.Module) -> int:
    """Bytes of its parameters."""
    return sum(value.numel() * value.element_size() for value in module.parameters())


def measure(folder: str, ranks: int, world: str) -> list[dict[str, float]]:
    """Figures of each rank, in fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    command = [sys.executable, __file__, folder, world]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        config = towers.gemma_config(Config.model_validate({"base": "tiny", "tiny": SIZES}))
        Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(f"{folder}/gemma")
        AutoencoderKLWan.from_config(published.encoder(COSMOS)).save_pretrained(f"{folder}/wan")
        print("| world | ranks | rank | model, GB | of it the encoder | own memory at most, GB | wall, s | processor, s | hashes, s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for world in ("off", "on"):
            for ranks in RANKS:
                for rank, found in enumerate(measure(folder, ranks, world)):
                    memory = " | ".join(f"{found[name] / 1e9:.2f}" for name in ("model", "encoder", "peak"))
                    times = " | ".join(f"{found[name]:.1f}" for name in ("wall_s", "cpu_s", "hash_s"))
                    print(f"| {world} | {ranks} | {rank} | {memory} | {times} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        one_rank(*sys.argv[1:])
    else:
        main()
