"""What a stage takes of the host's memory: copies of its state for background saves, moments, and weights that nothing computes with.

Not counted: Python and torch, the data (workers, prefetched batches), and pages of files, which go when others need the memory.
"""

from dataclasses import dataclass

from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.engine.parallel import hosted
from plait.engine.parallel.memory_estimate import Layout, ParameterCounts, Storage, moments
from plait.engine.precision import TYPES
from plait.training.planning.checkpoint_size import StageCheckpoints


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the host's memory. `copies`: of a rank that writes, kept from its first save on; None: not known."""

    copies: int | None
    writers: int
    """How many ranks write, and keep copies: those that share one copy of sharded weights, else rank 0 alone."""
    unused: int
    """Of each rank: weights that stay on the host, as no forward pass uses them."""
    moments: int
    """Of each rank: the optimizer's, with `optim.offload`."""


def of_stage(
    bundle: ModelBundle,
    config: RunConfig,
    checkpoints: StageCheckpoints | None,
    layout: Layout,
    state: tuple[ParameterCounts, Storage],
) -> HostMemory:
    """Return what a stage takes under `layout`. `checkpoints`: the stage's; None: not known. `state`: how many values, and their bytes."""
    names, parameters = hosted.names(bundle.model), dict(bundle.model.named_parameters())
    unused = sum(parameters[name].numel() for name in names) * TYPES[config.train.precision].frozen.itemsize
    kept = moments(state[0], layout, state[1]) if config.optim.offload else 0
    if not config.checkpoint.async_save:
        return HostMemory(0, 0, unused, kept)
    return HostMemory(None if checkpoints is None else -(-checkpoints.tensors // layout.shards), layout.shards, unused, kept)
