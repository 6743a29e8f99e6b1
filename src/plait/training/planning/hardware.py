"""The GPUs that `plait plan --gpu` knows, and where a run is planned to run.

Told are how many ranks there are, with how much memory and speed each.
"""

import difflib
from dataclasses import dataclass

import torch

from plait.config.schema import Distributed
from plait.engine import flops
from plait.engine.parallel import strategy
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.strategy import Place
from plait.engine.precision import TYPES
from plait.errors import PlaitError

UTILISATION = 0.35
"""Share of the peak rate that a step is taken to reach: vision-language trainers report 30 to 43 %."""
SPARE = 0.95
"""Part of a device's memory that a run can have; the rest is the driver's and the libraries'."""
_NODE = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU. `device`: its name as torch tells it and the table of peak rates has it; `memory`: bytes that are surely there."""

    device: str
    memory: float


GPUS = {
    "A100-40GB": Gpu("NVIDIA A100-SXM4-40GB", 40e9),
    "A100": Gpu("NVIDIA A100-SXM4-80GB", 80e9),
    "H100": Gpu("NVIDIA H100 80GB HBM3", 80e9),
    "H100-PCIE": Gpu("NVIDIA H100 PCIe", 80e9),
    "H200": Gpu("NVIDIA H200", 141e9),
    "L40S": Gpu("NVIDIA L40S", 47e9),
    "RTX4090": Gpu("NVIDIA GeForce RTX 4090", 24e9),
}
"""By the names that `--gpu` takes."""


def gpu_of(name: str) -> Gpu:
    """Return the GPU of a name, in any case. Raises PlaitError, listing the known ones, for another."""
    known = {each.lower(): each for each in GPUS}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, 1)
        raise PlaitError(f"--gpu {name!r} is not known: {f'did you mean {known[near[0]]}? ' if near else ''}known: {', '.join(GPUS)}")
    return GPUS[known[name.lower()]]


@dataclass(frozen=True)
class Hardware:
    """What a run is planned for: `ranks` ranks with a GPU each, 8 to a node. `gpu` None: they share the machine at hand."""

    gpu: Gpu | None
    ranks: int

    def place(self, settings: Distributed) -> Place:
        """Return where a stage with these settings runs. Raises PlaitError if `distributed.shard_size` does not fit the ranks."""
        return Place(self.ranks, strategy.shard_group(settings, self.ranks, min(self.ranks, _NODE)), self.memory(settings))

    def memory(self, settings: Distributed) -> float:
        """Return the bytes of memory of one rank: `distributed.memory_gb` if it is set, the GPU's, or this machine's share."""
        if self.gpu is not None and settings.memory_gb is None:
            return self.gpu.memory
        device = torch.device("cuda", 0) if torch.cuda.is_available() and settings.device != "cpu" else torch.device("cpu")
        return strategy.memory_of(settings, Ranks(0, self.ranks, device))

    def flop_per_s(self, precision: str) -> float | None:
        """Return the FLOP/s that one GPU is taken to reach at `precision`. None: no GPU is named, or its peak is not known."""
        peak = None if self.gpu is None else flops.peak(self.gpu.device, TYPES[precision].products)
        return None if peak is None else peak * UTILISATION
