"""What a training step of the full-size theworld takes on one GPU: memory, time, samples and FLOP/s, of stages 1 and 3 of its recipe.

    python benchmarks/gpu_theworld.py [--tiny] [--steps N] [--text N] [--stages projection,language] [--a.b=value ...]

The sizes are those published, the weights drawn on the device, the pictures noise: no file is fetched. Everything else is the recipe
(configs/theworld/stages.yaml, changed by the dotted settings) and plait's own engine: loop, loss, precision, checkpointing, optimizer.
`--tiny` takes the tiny model, and needs no GPU. One warm-up step counts the FLOPs; the steps after it are timed together.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from plait.assembly.configuration import open_config
from plait.config.resolved import StageView
from plait.data.loading.loader import StepBatch
from plait.data.loading.micro_batch import MicroBatch
from plait.data.order import SampleId
from plait.engine import blocks, flops, optim
from plait.engine.flops import Flops, Meter
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop
from plait.engine.monitoring.signals import Signals
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import TYPES, set_precision
from plait.engine.state import State
from plait.families.theworld import family, towers
from plait.families.theworld.config import Config
from plait.families.theworld.inputs import NO_LATENTS
from plait.families.theworld.loss import Loss
from plait.families.theworld.model import TheWorld
from plait.families.theworld.pretrained import hub
from plait.families.theworld.sequence import Kind, Row, pad_rows
from plait.families.theworld.world import WorldProjector, tokens_per_frame
from plait.nn.losses import IGNORED

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "theworld" / "stages.yaml"
GB = 1e9
PROMPT = 16  # tokens of the recipe's question in its chat format, about
EMBEDDING_RMS = 0.02


class CountedLoss(Loss):
    """The family's loss, with the FLOPs of each forward pass and of the backward pass that it calls for, while `counting`."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.counting, self.flops = True, 0.0

    def sums(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.counting:
            return super().sums(model, batch)
        with Flops() as counter:
            found = super().sums(model, batch)
        self.flops += counter.total
        return found


def build(section: Config, device: torch.device) -> TheWorld:
    """The model of the published sizes with weights drawn on the device, in bfloat16 until a stage says which train."""
    if section.base == "tiny":
        return family.build(section, Path(), seed=0).to(device)
    assert section.world is not None
    torch.manual_seed(0)
    with torch.device(device):
        gemma = Gemma3ForConditionalGeneration(towers.gemma_config(section)).to(torch.bfloat16)
        encoder = hub.random(towers.encoder_settings(section, section.world), section.world.image_size).to(torch.bfloat16)
        projector = WorldProjector(section.world, encoder.grid, gemma.config.get_text_config().hidden_size)
        projector.match_embedding_scale(EMBEDDING_RMS)
    return TheWorld(gemma, encoder, projector).to(device)


def micro_batch(section: Config, rows: int, text: int, seed: int) -> dict[str, Any]:
    """Rows as the recipe's: a question of 16 tokens around picture and world, then `text` supervised tokens; pictures of noise."""
    assert section.world is not None
    random = torch.Generator().manual_seed(seed)
    side, image_tokens = towers.image_sizes(towers.gemma_config(section))
    vocabulary = towers.gemma_config(section).get_text_config().vocab_size
    world_tokens = tokens_per_frame(section.world, towers.encoder_grid(section, section.world))
    runs = [(Kind.TEXT, 1), (Kind.WORLD_START, 1), (Kind.WORLD, world_tokens), (Kind.WORLD_END, 1)]
    runs += [(Kind.TEXT, PROMPT), (Kind.IMAGE, image_tokens), (Kind.TEXT, 1 + text)]
    kinds = torch.cat([torch.full((length,), int(kind)) for kind, length in runs])
    listed = []
    for _ in range(rows):
        ids = torch.randint(vocabulary, (len(kinds),), generator=random)
        labels = ids.where(torch.arange(len(kinds)) >= len(kinds) - text, IGNORED)
        listed.append(Row(ids, kinds, labels))
    batch = pad_rows(listed, pad_id=0)
    size = section.world.image_size
    batch["pixels"] = torch.randint(256, (rows, 3, side, side), generator=random, dtype=torch.uint8)
    batch["frames"] = torch.randint(256, (rows, 3, size, size), generator=random, dtype=torch.uint8)
    counts = {"frame_counts": [1] * rows, "latent_counts": [0] * rows}
    return {**batch, **counts, "latents": NO_LATENTS, "cut": torch.zeros(rows, dtype=torch.int64)}


def step_batch(step: int, settings: Any, section: Config, text: int) -> StepBatch:
    """One step's micro-batches."""
    rows, whole = settings.train.micro_batch or settings.train.global_batch, settings.train.global_batch
    cuts = [range(first, min(first + rows, whole)) for first in range(0, whole, rows)]
    micros = [
        MicroBatch(micro_batch(section, len(cut), text, seed=step * whole + cut.start), [SampleId(0, i, step) for i in cut], False)
        for cut in cuts
    ]
    return StepBatch(step, micros, [], 0.0)


def measure(view: StageView, model: TheWorld, section: Config, device: torch.device, steps: int, text: int) -> dict[str, Any]:
    """Train a stage of the recipe for 1 + `steps` steps; its figures."""
    settings, ranks = view.config, Ranks(0, 1, device)
    trained = optim.select(family.components(model), settings.trainable, family.never_trained)
    names = {name for part in trained.values() for name in part}
    blocks.checkpoint_and_compile(family.blocks(model), settings.distributed)
    set_precision(model, names, settings.train.precision)
    state, loss = State(model), CountedLoss(section)
    state.begin(trained, settings.optim, settings.seed)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    batches = [step_batch(step, settings, section, text) for step in range(1 + steps)]
    with tempfile.TemporaryDirectory() as folder, blocks.compiling(settings.distributed):
        quarantine = Quarantine(Path(folder) / "quarantine.jsonl", settings.guard.max_bad_fraction)
        loop = Loop(
            stage=view.name,
            state=state,
            loss=loss,
            config=settings,
            ranks=ranks,
            quarantine=quarantine,
            hooks=[],
            stop=Signals(),
            mark=lambda part: None,
            sources=["photos"],
            skipped=frozenset(),
            spikes=None,
            meter=Meter(device, settings.train.precision),
        )
        loop.run(batches[:1], 1 + steps)
        loss.counting = False
        elapsed = timed(loop, batches[1:], 1 + steps, device)
    state.pause()
    return {
        "trained": sum(value.numel() for part in trained.values() for value in part.values()),
        "tokens": batches[0].micro[0].batch["ids"].shape[1],
        "memory": torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "step_s": elapsed / steps,
        "samples_per_s": settings.train.global_batch * steps / elapsed,
        "flops": loss.flops,
        "flops_per_s": loss.flops * steps / elapsed,
    }


def timed(loop: Loop, batches: Sequence[StepBatch], stop: int, device: torch.device) -> float:
    """Seconds for these steps, with all that the device was given done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    loop.run(batches, stop)
    wait()
    return time.perf_counter() - began


def line(name: str, found: Mapping[str, Any], at_most: float | None) -> str:
    """A row of the table."""
    used = f"{100 * found['flops_per_s'] / at_most:.1f} %" if at_most else "peak of this device unknown"
    return (
        f"| {name} | {found['trained'] / 1e6:.1f} M | {found['tokens']} | {found['memory'] / GB:.2f} GB | {found['step_s']:.3f} s | "
        f"{found['samples_per_s']:.2f} | {found['flops'] / 1e12:.4g} | {found['flops_per_s'] / 1e12:.4g} | {used} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true", help="the tiny model: checks this script without a GPU")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after one that is not")
    parser.add_argument("--text", type=int, default=48, help="supervised tokens per sample")
    parser.add_argument("--stages", default="projection,language", help="names of the recipe's stages, in its order")
    asked, overrides = parser.parse_known_args(arguments)
    if asked.tiny:
        overrides = ["--preset=tiny", "--model.base=tiny", *overrides]
    resolved = open_config(RECIPE, overrides)
    section = Config.model_validate(resolved.config.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    model = build(section, device)
    values = sum(value.numel() for value in model.parameters())
    print(
        f"{values / GB:.4f} B parameters, random, on {name}; torch {torch.__version__}; settings {' '.join(overrides) or 'of the recipe'}"
    )
    columns = ("stage", "trained", "tokens", "peak memory", "step", "samples/s", "TFLOP per step", "TFLOP/s", "MFU")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    views = [view for view in resolved.stages if view.name in asked.stages.split(",")]
    for view in views:
        at_most = flops.peak(name, TYPES[view.config.train.precision].products)
        print(line(view.name, measure(view, model, section, device, asked.steps, asked.text), at_most), flush=True)


if __name__ == "__main__":
    main()
