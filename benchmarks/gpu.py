"""What training steps of the full-size models take on one GPU, beside a bare loop of the same model: one command, nine minutes at most.

    python benchmarks/gpu.py [--minutes 9] [--steps 8] [--only NAME ...] [--again] [--tiny] [--dir DIR]

Sizes are those published, weights and inputs are drawn on the device: no file is fetched. Each case is a stage of a recipe of `configs/`,
trained by plait's own loop (loss, precision, checkpointing, optimizer, guards) and by a bare one (autocast, fused AdamW, clipping), each
in a process of its own, so that memory is its own and one that fails costs itself alone. Told are samples, tokens and FLOPs a second, the
share of the device's peak (MFU), peak memory beside that of `plait plan`, graphs compiled after warm-up, and how long a checkpoint of the
state holds training up beside one written on the spot (`save`, where the state is small enough for the disk).

What is done is kept in DIR/gpu.jsonl (benchmarks/results), and the table is printed after each case: a run that is ended goes on where it
stopped, by the same command. `--again` measures anew. `--tiny` takes tiny models, and needs no GPU: it checks this script.
"""

import argparse
import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plait.assembly.configuration import open_config
from plait.assembly.model import ModelBundle
from plait.config.resolved import StageView
from plait.data.loading.loader import StepBatch
from plait.data.loading.micro_batch import MicroBatch
from plait.data.order import SampleId
from plait.engine import blocks, flops, optim
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.saver import Saver
from plait.engine.compilation import choice
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop
from plait.engine.loss import Loss, sums_of, weights_of
from plait.engine.monitoring.signals import Signals
from plait.engine.parallel.distributed import Ranks, to_device
from plait.engine.precision import TYPES, autocast, set_precision
from plait.engine.state import State
from plait.families.planning import planner
from plait.training.features import stage_features
from plait.training.planning.forecast import forecast
from plait.training.planning.hardware import Hardware, gpu_of
from plait.training.planning.meta_model import meta_bundle

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GB = 1e9
WARM = 3
"""Steps that are not timed: allocations, compiling, moments."""
SAVED = 20e9
"""Bytes of the largest state that is saved: two checkpoints have to fit the disk."""
DRAWN = ("x0", "noise", "text", "image")
"""Inputs that are drawn from a normal distribution; other floating-point ones, such as weights of a loss, stay."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage of a recipe. `picture`: width and height in pixels of nanodit's pictures, whose latents are given."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    stage: str | None = None
    picture: tuple[int, int] | None = None


def batch_of(rows: int) -> tuple[str, ...]:
    return f"train.global_batch={rows}", f"train.micro_batch={rows}"


COMPILED, UNCACHED = "distributed.compile=true", "data.feature_cache=off"
CASES = (
    Case("theworld 1 projection", "theworld/stages", (*batch_of(16), COMPILED, UNCACHED), "projection"),
    Case("theworld 1 cached", "theworld/stages", (*batch_of(16), COMPILED, "data.feature_cache=on"), "projection"),
    Case("theworld 2 vision", "theworld/stages", (*batch_of(8), COMPILED, UNCACHED), "vision"),
    Case("theworld 3 language", "theworld/stages", (*batch_of(8), COMPILED, UNCACHED), "language"),
    Case("nanodit 28/1024, 256 tokens", "nanodit/production", (*batch_of(256), COMPILED), None, (256, 256)),
    Case("nanodit 28/1024, 1024 tokens", "nanodit/production", (*batch_of(64), COMPILED), None, (512, 512)),
    Case("nanodit 28/1024, 1014 tokens", "nanodit/production", (*batch_of(64), COMPILED), None, (416, 624)),
    Case("nanodit 18/768, 256 tokens", "nanodit/medium", (*batch_of(256), COMPILED), None, (256, 256)),
    Case("molmo 7B captioner", "molmo/captioner", (*batch_of(4), COMPILED)),
    Case("molmo 1B captioner", "molmo/captioner", (*batch_of(4), "model.language=olmoe")),
)
_SMALL = "preset=tiny", "model.base=tiny", *batch_of(2)
TINY = (
    Case("theworld 1 projection", "theworld/stages", (*_SMALL, "train.precision=fp32", UNCACHED), "projection"),
    Case("theworld 1 cached", "theworld/stages", (*_SMALL, "data.feature_cache=on"), "projection"),
    Case("theworld 3 language", "theworld/stages", (*_SMALL, UNCACHED), "language"),
    Case(
        "nanodit",
        "nanodit/production",
        ("model.size=null", "model.depth=2", "model.hidden=64", "model.heads=2", *batch_of(2)),
        picture=(128, 128),
    ),
    Case("molmo captioner", "molmo/captioner", ("preset=debug", *batch_of(2))),
)


def resolved_stage(case: Case, folder: Path) -> tuple[Any, StageView]:
    """The configuration of a case, and its stage."""
    settings = [*case.settings, f"run={folder / 'run'}", f"data.cache={folder / 'cache'}"]
    resolved = open_config(ROOT / "configs" / f"{case.recipe}.yaml", settings)
    return resolved, next(view for view in resolved.stages if case.stage in (None, view.name))


def materialise(bundle: ModelBundle, device: torch.device) -> None:
    """Draw the weights of a model on the meta device on `device`, in bfloat16 until a stage says which train."""
    for value in bundle.model.parameters():
        if value.is_floating_point():
            value.data = value.data.to(torch.bfloat16)
    buffers = {name: value.clone() for name, value in bundle.model.named_buffers() if not value.is_meta}
    bundle.model.to_empty(device=device)
    with torch.no_grad():
        for part in bundle.model.modules():
            if isinstance(part, PreTrainedModel):
                part.apply(part._init_weights)  # the frequencies of rotary positions and the like, which no file holds
        for name, value in bundle.model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])
            elif name.endswith("position_ids"):
                value.copy_(torch.arange(value.shape[-1]).expand_as(value))
        torch.manual_seed(0)
        for name, value in bundle.model.named_parameters():
            if value.ndim > 1:
                value.normal_(0, 0.02)
            else:
                value.fill_(float(name.endswith("weight")))


def drawn(batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The batch of usual shapes, its zeros replaced by drawn words, pixels and latents."""
    random = torch.Generator().manual_seed(seed)
    made = dict(batch)
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            continue
        if name in ("ids", "labels"):
            words = torch.randint(1, 200, value.shape, generator=random)
            made[name] = words.where(value == 0, value)
        elif value.dtype == torch.uint8:
            made[name] = torch.randint(256, value.shape, generator=random, dtype=torch.uint8)
        elif name in DRAWN and value.is_floating_point():
            made[name] = torch.randn(value.shape, generator=random)
    return made


class Given:
    """A family's side of the loader, for batches that are there."""

    def encode(self, sample: Any, key: int) -> Any:
        return sample

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        return dict(examples[0])


def micro_batches(view: StageView, bundle: ModelBundle, case: Case) -> list[tuple[dict[str, Any], int]]:
    """The micro-batches of a step, and their numbers of samples: the same in every step."""
    config, family = view.config, planner(view.config.family)
    assert family is not None, f"{config.family} tells no usual shapes"
    whole, rows = config.train.global_batch, config.train.micro_batch or config.train.global_batch
    sizes = [min(rows, whole - first) for first in range(0, whole, rows)]
    shapes = [family.assumed_batch(bundle.section, samples=size, tokens=config.data.max_tokens, picture=case.picture) for size in sizes]
    return [(drawn(batch, seed=i), size) for i, (batch, size) in enumerate(zip(shapes, sizes, strict=True))]


@dataclasses.dataclass
class Setting:
    """What both loops train: the model of a stage on its device, its loss and its micro-batches."""

    view: StageView
    bundle: ModelBundle
    loss: Loss
    state: State
    micro: list[tuple[dict[str, Any], int]]
    device: torch.device
    meter: flops.Meter
    collate: Callable[[Any], dict[str, Any]]


@contextlib.contextmanager
def prepared(case: Case, device: torch.device, folder: Path) -> Iterator[Setting]:
    """Build the case's model on the device as its stage trains it."""
    resolved, view = resolved_stage(case, folder)
    view = choice.decide(view, Ranks(0, 1, device), None) if view.config.distributed.compile == "auto" else view
    bundle = meta_bundle(resolved.config, folder / "assets")
    micro = micro_batches(view, bundle, case)
    materialise(bundle, device)
    trained = optim.select(bundle.components(), view.config.trainable, bundle.family.never_trained)
    set_precision(bundle.model, {name for part in trained.values() for name in part}, view.config.train.precision)
    state, loss = State(bundle.model), bundle.loss()
    state.begin(trained, view.config.optim, view.config.seed)
    stored = None
    if view.config.data.feature_cache != "off":
        stored = stage_features.of_stage(view.config, bundle, loss, Ranks(0, 1, device), (10**6, 1))
        assert stored is not None, "nothing of this stage is frozen"
    inputs = Given() if stored is None else stored.inputs(Given())
    loss = loss if stored is None else stored.loss
    meter = flops.Meter(device, view.config.train.precision)
    try:
        rest = bundle.family.recomputed(bundle.model)
        with blocks.changed(bundle.blocks, view.config.distributed, meter, recomputed=rest):
            yield Setting(view, bundle, loss, state, micro, device, meter, lambda batch: inputs.collate([batch]))
    finally:
        if stored is not None:
            stored.close()


def settled(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def by_plait(given: Setting, steps: int, folder: Path) -> dict[str, Any]:
    """Train by plait's loop; seconds per step, FLOPs of one, and what saves take."""
    config, counted, marks = given.view.config, list[float](), list[tuple[float, int]]()

    def note(state: State, row: dict[str, Any]) -> None:
        counted.append(row.get("tflop_per_s", 0.0) * 1e12 * config.train.global_batch / row["samples_per_s"])

    def batches() -> Iterator[StepBatch]:
        for step in range(WARM + steps):
            if step == WARM:
                marks.append((settled(given.device), blocks.graphs()))
            micros = [MicroBatch(given.collate(batch), [SampleId(0, i, step) for i in range(size)], False) for batch, size in given.micro]
            yield StepBatch(step, micros, [], 0.0)

    loop = Loop(
        stage=given.view.name,
        state=given.state,
        loss=given.loss,
        config=config,
        ranks=Ranks(0, 1, given.device),
        quarantine=Quarantine(folder / "quarantine.jsonl", config.guard.max_bad_fraction),
        hooks=[note],
        stop=Signals(),
        mark=lambda part: None,
        sources=["drawn"],
        skipped=frozenset(),
        spikes=None,
        meter=given.meter,
    )
    loop.run(batches(), WARM + steps)
    ended, (began, graphs) = settled(given.device), marks[0]
    found = {"step_s": (ended - began) / steps, "flops": max(counted), "recompiled": blocks.graphs() - graphs}
    return found | saved(given, folder)


def by_hand(given: Setting, steps: int, folder: Path) -> dict[str, Any]:
    """Train as one writes it by hand: autocast, backward of each micro-batch, clipping, fused AdamW."""
    config, loss, model = given.view.config, given.loss, given.bundle.model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=config.optim.betas, weight_decay=config.optim.weight_decay, fused=True)
    micro_weights = [weights_of(loss, batch) for batch, _ in given.micro]
    totals = {name: sum(float(weights[name]) for weights in micro_weights) for name in loss.coefficients}

    def step() -> None:
        for batch, _ in given.micro:
            moved = to_device(given.collate(batch), given.device)
            with autocast(config.train.precision, given.device):
                sums = sums_of(loss, model, moved)
            torch.stack([loss.coefficients[name] * sums[name] / max(totals[name], 1e-9) for name in loss.coefficients]).sum().backward()
        nn.utils.clip_grad_norm_(trained, config.train.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM):
        step()
    began = settled(given.device)
    for _ in range(steps):
        step()
    return {"step_s": (settled(given.device) - began) / steps}


def saved(given: Setting, folder: Path) -> dict[str, float]:
    """Seconds that a checkpoint of the state holds training up: written behind it, the second time, and on the spot. {} if too large."""
    groups = given.state.tensors()
    size = sum(value.nbytes for tensors in groups.values() for value in tensors.values())
    found: dict[str, float] = {"state": size}
    if size > SAVED or 3 * size > shutil.disk_usage(folder).free:
        return found
    for name, background in (("save_behind_s", True), ("save_s", False)):
        (folder / name).mkdir()
        saver = Saver(background, Ranks(0, 1, given.device), lambda part: None)
        for step in (1, 2):  # the first allocates the memory of the copies
            began = settled(given.device)
            copied = saver.save(checkpoint.folder_of(folder / name, 1, "only", step), groups, {"state": {"step": step}}, keep=1)
            copied()  # at once, where training first has the next forward and backward pass
            found[name] = settled(given.device) - began
            saver.wait()
        shutil.rmtree(folder / name)
    return found


def planned(case: Case, folder: Path) -> int | None:
    """The peak memory in bytes that `plait plan` tells for the case."""
    resolved, view = resolved_stage(case, folder)
    (stage,) = forecast(resolved, meta_bundle(resolved.config, folder / "assets"), Hardware(gpu_of("H200"), 1), only=view.name)
    return stage.chosen.peak


LOOPS = {"plait": by_plait, "bare": by_hand}


def measure(case: Case, loop: str, steps: int) -> dict[str, Any]:
    """Train a case by one of the loops; its figures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with prepared(case, device, folder) as given:
            found = LOOPS[loop](given, steps, folder)
            tokens = sum(float(weights_of(given.loss, batch).get("tokens", 0)) for batch, _ in given.micro)
            train = given.view.config.train
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        plan = planned(case, folder) if loop == "plait" else None
    most = flops.peak(on, TYPES[train.precision].products)
    about = {"case": case.name, "loop": loop, "device": on, "torch": torch.__version__, "samples": train.global_batch, "tokens": tokens}
    return about | {"at_most": most, "memory": memory, "planned": plan} | found


COLUMNS = "case", "samples/s", "bare", "ratio", "tokens/s", "TFLOP/s", "MFU", "peak, of plan", "recompiled", "save behind, on the spot"


def table(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the table, of what is there."""
    by = {(row["case"], row["loop"]): row for row in rows}
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for case in cases:
        ours, bare = by.get((case.name, "plait")), by.get((case.name, "bare"), {})
        if ours is None:
            continue
        cells = [next((row["error"] for row in (ours, bare) if "error" in row), "")]
        if not cells[0]:
            cells = cells_of(ours, bare)
        yield "| " + " | ".join([case.name, *cells, *[""] * (len(COLUMNS) - 1 - len(cells))]) + " |"


def cells_of(ours: Mapping[str, Any], bare: Mapping[str, Any]) -> list[str]:
    """A row of the table, of a case that plait's loop trained; `bare` may be empty."""
    step_s, per_second = ours["step_s"], ours["flops"] / ours["step_s"]
    planned_gb = f", {ours['planned'] / GB:.3g}" if ours["planned"] else ""
    return [
        f"{ours['samples'] / step_s:.4g}",
        *([f"{bare['samples'] / bare['step_s']:.4g}", f"{bare['step_s'] / step_s:.2f}"] if bare else ["", ""]),
        f"{ours['tokens'] / step_s:,.0f}" if ours["tokens"] else "",
        f"{per_second / 1e12:.4g}",
        f"{100 * per_second / ours['at_most']:.1f} %" if ours["at_most"] else "",
        f"{ours['memory'] / GB:.1f} GB{planned_gb}" if ours["memory"] else "",
        str(ours["recompiled"]),
        f"{ours['save_behind_s']:.2f} s, {ours['save_s']:.2f}" if "save_s" in ours else f"state of {ours['state'] / GB:.0f} GB",
    ]


def run(case: Case, loop: str, asked: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Measure one case by one loop in a process of its own; what went wrong stands in `error`."""
    words = [sys.executable, __file__, "--case", case.name, "--loop", loop, f"--steps={asked.steps}", *["--tiny"] * asked.tiny]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"case": case.name, "loop": loop, "error": f"not done in {seconds:.0f} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    lines = done.stderr.strip().splitlines()
    return {"case": case.name, "loop": loop, "error": lines[-1][:200] if lines else f"ended by {done.returncode}"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=9.0, help="at most; the same command goes on")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, after three that are not")
    parser.add_argument("--only", nargs="*", default=[], help="cases whose names hold one of these")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--tiny", action="store_true", help="tiny models: checks this script without a GPU")
    parser.add_argument("--dir", type=Path, default=RESULTS, help="where gpu.jsonl lies")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--loop", choices=tuple(LOOPS), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    cases = TINY if asked.tiny else CASES
    if asked.case:
        print(json.dumps(measure(next(case for case in cases if case.name == asked.case), asked.loop, asked.steps)))
        return
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: --tiny checks this script without one")
    chosen = [case for case in cases if not asked.only or any(part in case.name for part in asked.only)]
    path, ends = asked.dir / ("gpu-tiny.jsonl" if asked.tiny else "gpu.jsonl"), time.monotonic() + 60 * asked.minutes
    asked.dir.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() and not asked.again else []
    rows = [row for row in kept if "error" not in row]
    for case in chosen:
        for loop in LOOPS:
            left = ends - time.monotonic()
            if any(row["case"] == case.name and row["loop"] == loop for row in rows) or left < 10:
                continue
            rows.append(run(case, loop, asked, left))
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(*table(chosen, rows), "", sep="\n", flush=True)
    if time.monotonic() > ends - 10:
        print("time is up: the same command goes on")


if __name__ == "__main__":
    main()
