"""What training steps of the full-size models take on one GPU, beside a bare loop of the same model: one command, nine minutes at most.

    python benchmarks/gpu.py [--minutes 9] [--box 150] [--steps 8] [--only NAME ...] [--again] [--tiny] [--dir DIR]

Sizes are those published, weights and inputs are drawn on the device: no file is fetched. Each case is a stage of a recipe of `configs/`,
trained by plait's own loop (loss, precision, checkpointing, optimizer, guards) and by a bare one (autocast, fused AdamW, clipping), each
in a process of its own, so that memory is its own and one that fails costs itself alone. Told are samples, tokens and FLOPs a second, the
share of the device's peak (MFU), peak memory beside that of `plait plan`, graphs compiled after warm-up, and how long a checkpoint of the
state holds training up beside one written on the spot (`save`, where the state is small enough for the disk).

Settings are those of the recipe, with as many samples as fill the device by `plait plan`, and blocks recomputed where only so a useful
number fits. A process has `--box` seconds: what it has measured until then is kept, one that has nothing is a line of the table, and so is
one out of memory, once a half and a quarter of the samples did not fit either. The cases that matter most come first, by plait's loop.
After the timed steps three more are profiled; DIR/gpu-profiles has the kernels of each case by their time, and the largest stand below the
table for a case that misses its goal: its MFU, its samples a second, or 0.97 of the bare loop.

What is done is kept in DIR/gpu.jsonl (benchmarks/results), with device, driver and versions, and the table is printed after each case: a
run that is ended goes on where it stopped, by the same command, and tries again what failed once all else is done. Rows of another device
(name or memory), torch or configuration (steps aside) stay in the file, are not in the table, and are measured anew, as all are by
`--again`. The exit code is 1 if a case failed. `--tiny` takes tiny models, and needs no GPU: it checks this script.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from transformers import PreTrainedModel

from plait import __version__
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
from plait.engine.micro_batch import Exceeded, ExceededAlone
from plait.engine.monitoring.signals import Signals
from plait.engine.parallel.distributed import Ranks, to_device
from plait.engine.precision import TYPES, autocast, set_precision
from plait.engine.state import State
from plait.families.planning import planner
from plait.files import write_whole
from plait.training.features import stage_features
from plait.training.planning.forecast import forecast
from plait.training.planning.hardware import GPUS, Hardware, gpu_of
from plait.training.planning.meta_model import meta_bundle
from plait.training.stage_plan import installed_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GB = 1e9
WARM = 3
"""Steps that are not timed: allocations, compiling, moments."""
PROFILED = 3
"""Steps after the timed ones, under the profiler."""
OF_BARE = 0.97
"""Share of the bare loop's speed that is the goal of all cases."""
SHORTEST_S = 45.0
"""Seconds below which no process is begun on a GPU: models of this size would not reach their steps."""
HALVINGS = 2
OUT_OF_MEMORY, NOT_DONE = "out of memory", "not done"
SAVED = 20e9
"""Bytes of the largest state that is saved: two checkpoints have to fit the disk."""
DRAWN = ("x0", "noise", "text", "image")
"""Inputs that are drawn from a normal distribution; other floating-point ones, such as weights of a loss, stay."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage of a recipe. `picture`: width and height in pixels of nanodit's pictures, whose latents are given.

    `fits`: samples and settings by GB of the device, of the largest number that it has. `mfu`, `rate` (samples a second): goals.
    `first`: one that matters most.
    """

    name: str
    recipe: str
    fits: Mapping[int, tuple[int, tuple[str, ...]]]
    settings: tuple[str, ...] = ()
    stage: str | None = None
    picture: tuple[int, int] | None = None
    mfu: float | None = None
    rate: float | None = None
    first: bool = False

    def on(self, memory_gb: float, halved: int = 0) -> "Case":
        """The case on a device, with its samples halved so many times."""
        known = [gb for gb in self.fits if gb <= memory_gb] or [min(self.fits)]
        rows, more = self.fits[max(known)]
        bucket = () if self.picture is None else ("data.train.0.options.buckets=[{}x{}]".format(*self.picture),)  # for plait plan
        return dataclasses.replace(self, settings=(*self.settings, *bucket, *more, *batch_of(max(1, rows >> halved))))


def batch_of(rows: int) -> tuple[str, ...]:
    return f"train.global_batch={rows}", f"train.micro_batch={rows}"


UNCACHED, CACHED = ("data.feature_cache=off",), ("data.feature_cache=on",)
PLAIN = ("distributed.activation_checkpointing=none",)
PURE = ("train.precision=pure_bf16",)
"""Of what does not fit 80 GB with weights in float32: as fast, but not as exact."""
CASES = (  # samples: of `plait plan`, within 95 % of the memory; none recomputed where enough of them fit so
    Case("theworld 1 projection", "theworld/stages", {80: (20, ()), 141: (40, ())}, UNCACHED, "projection", rate=20, first=True),
    Case("theworld 1 cached", "theworld/stages", {80: (20, ()), 141: (40, ())}, CACHED, "projection", rate=35, first=True),
    Case("theworld 3 language", "theworld/stages", {80: (64, PURE), 141: (64, ())}, UNCACHED, "language", mfu=0.45, first=True),
    Case("molmo 7B captioner", "molmo/captioner", {80: (4, PURE), 141: (4, ())}, mfu=0.45, first=True),
    Case(
        "nanodit 28/1024, 256 tokens",
        "nanodit/production",
        {80: (112, ()), 141: (224, ())},
        PLAIN,
        picture=(256, 256),
        rate=500,
        first=True,
    ),
    Case("theworld 2 vision", "theworld/stages", {80: (7, ()), 141: (15, ())}, UNCACHED, "vision"),
    Case("nanodit 28/1024, 1024 tokens", "nanodit/production", {80: (28, ()), 141: (56, ())}, PLAIN, picture=(512, 512)),
    Case("nanodit 28/1024, 1014 tokens", "nanodit/production", {80: (28, ()), 141: (56, ())}, PLAIN, picture=(416, 624)),
    Case("nanodit 18/768, 256 tokens", "nanodit/medium", {80: (256, ()), 141: (448, ())}, PLAIN, picture=(256, 256)),
    Case("molmo 1B captioner", "molmo/captioner", {80: (4, PURE), 141: (4, ())}, ("model.language=olmoe",)),
)
_SMALL = "preset=tiny", "model.base=tiny"
_TWO = {0: (2, ())}
TINY = (
    Case("theworld 1 projection", "theworld/stages", _TWO, (*_SMALL, "train.precision=fp32", *UNCACHED), "projection", first=True),
    Case("theworld 1 cached", "theworld/stages", _TWO, (*_SMALL, *CACHED), "projection", first=True),
    Case("theworld 3 language", "theworld/stages", _TWO, (*_SMALL, *UNCACHED), "language", mfu=0.45, first=True),
    Case(
        "nanodit",
        "nanodit/production",
        _TWO,
        ("model.size=null", "model.depth=2", "model.hidden=64", "model.heads=2"),
        picture=(128, 128),
        first=True,
    ),
    Case("molmo captioner", "molmo/captioner", _TWO, ("preset=debug",), mfu=0.45, first=True),
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


def pinned(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch in pinned memory, as the loader hands it over for a GPU."""
    return {name: value.pin_memory() if device.type == "cuda" and isinstance(value, Tensor) else value for name, value in batch.items()}


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
    micro = [(pinned(batch, device), size) for batch, size in micro_batches(view, bundle, case)]
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


def device_gb(device: torch.device) -> float:
    """The memory of a device in GB; 0 of the CPU."""
    return torch.cuda.get_device_properties(device).total_memory / GB if device.type == "cuda" else 0.0


def settled(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


Tell = Callable[[Mapping[str, Any]], None]
"""Takes figures as soon as they are there."""


def by_plait(given: Setting, steps: int, folder: Path, tell: Tell, profile: Path) -> None:
    """Train by plait's loop; tell seconds per step, FLOPs of one, the kernels of some more steps, and what saves take."""
    config, counted, marks = given.view.config, list[float](), list[tuple[float, int]]()

    def note(state: State, row: dict[str, Any]) -> None:
        counted.append(row.get("tflop_per_s", 0.0) * 1e12 * config.train.global_batch / row["samples_per_s"])

    def batches() -> Iterator[StepBatch]:
        for step in range(WARM + steps + PROFILED):
            if step == WARM:
                marks.append((settled(given.device), blocks.graphs()))
            if step == WARM + steps:
                ended, (began, graphs) = settled(given.device), marks[0]
                tell({"step_s": (ended - began) / steps, "flops": max(counted), "recompiled": blocks.graphs() - graphs})
                tell({"memory": most_allocated(given.device)})
                profiler.start()
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
    profiler = torch.profiler.profile()
    loop.run(batches(), WARM + steps + PROFILED)
    settled(given.device)
    profiler.stop()
    tell(kernels(profiler, given.device, profile))
    tell(saved(given, folder))


def most_allocated(device: torch.device) -> int | None:
    """The most bytes that were allocated on a GPU so far; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def kernels(profiler: torch.profiler.profile, device: torch.device, path: Path) -> dict[str, Any]:
    """Write what was profiled as a table; seconds of a step in kernels (on the CPU in operations), and in the five that take most."""
    averages, cuda = profiler.key_averages(), device.type == "cuda"
    path.parent.mkdir(parents=True, exist_ok=True)
    order = f"self_{'cuda' if cuda else 'cpu'}_time_total"
    path.write_text(averages.table(sort_by=order, row_limit=40, max_name_column_width=90), encoding="utf-8")
    spent = dict[str, float]()
    for each in averages:
        if not cuda:
            spent[each.key] = each.self_cpu_time_total
        elif each.device_type != DeviceType.CPU and not each.is_user_annotation:  # a kernel, not the operation that begins it
            spent[each.key] = each.self_device_time_total
    largest = sorted(spent.items(), key=lambda item: -item[1])[:5]
    return {"kernels_s": sum(spent.values()) / 1e6 / PROFILED, "kernels": [(name[:60], us / 1e6 / PROFILED) for name, us in largest]}


def by_hand(given: Setting, steps: int, folder: Path, tell: Tell, profile: Path) -> None:
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
    tell({"step_s": (settled(given.device) - began) / steps})
    tell({"memory": most_allocated(given.device)})


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


def planned(case: Case, device: str, folder: Path) -> int | None:
    """The peak memory in bytes that `plait plan` tells for the case."""
    resolved, view = resolved_stage(case, folder)
    gpu = next((each for each in GPUS.values() if each.device == device), gpu_of("H200"))
    (stage,) = forecast(resolved, meta_bundle(resolved.config, folder / "assets"), Hardware(gpu, 1), only=view.name)
    return stage.chosen.peak


LOOPS = {"plait": by_plait, "bare": by_hand}


def about(device: torch.device) -> dict[str, Any]:
    """The device and the versions of what runs on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {name: version for name, version in installed_versions().items() if name in ("python", "transformers", "diffusers")}
    versions |= {"plait": __version__, "torch": torch.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["triton"] = importlib.metadata.version("triton")
    told: dict[str, Any] = {"device": name, "memory_gb": device_gb(device), "versions": versions, "cpus": os.cpu_count()}
    if device.type == "cuda":
        told |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": driver()}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    with contextlib.suppress(OSError):
        told["commit"] = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    return told


def device_here() -> tuple[str, float]:
    """The name and the GB of the device, asked in a process of its own: one that asks holds memory of a GPU until it ends."""
    code = "import torch; p = torch.cuda.get_device_properties(0); print(p.total_memory, p.name)"
    if not torch.cuda.is_available():
        return "cpu", 0.0
    size, _, name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().partition(" ")
    return name, int(size) / GB


def digest(case: Case, memory_gb: float) -> str:
    """What a case trains, and how, on such a device: equal for rows that may stand in one table. Its number of steps is not in it."""
    _, view = resolved_stage(case.on(memory_gb), Path("unused"))
    config = view.config.model_dump(mode="json", include={"family", "model", "trainable", "adapters", "train", "optim", "distributed"})
    for length in ("steps", "epochs", "samples", "plateau"):
        config["train"].pop(length)
    data = view.config.data.model_dump(mode="json", include={"max_tokens", "pad", "pack_tokens", "feature_cache"})
    return hashlib.sha256(json.dumps([config, data, case.picture], sort_keys=True).encode()).hexdigest()[:12]


def identity(case: Case, device: tuple[str, float]) -> dict[str, Any]:
    """What two rows of a case have in common that may stand in one table."""
    name, memory_gb = device
    return {"device": name, "gb": round(memory_gb), "torch": torch.__version__, "digest": digest(case, memory_gb)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the file; a line that is torn, or no row, is told and left out."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"case": row["case"], "loop": row["loop"]})
        except (ValueError, TypeError, LookupError):
            print(f"{path}: line {number} is no row of this benchmark and is left out: {line[:60]!r}", file=sys.stderr)
    return rows


def head(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line about what the rows of a table were measured on; several values where they differ."""

    def each(value: Callable[[Mapping[str, Any]], Any]) -> str:
        return " or ".join(dict.fromkeys(str(found) for row in rows if (found := value(row)) is not None))

    names = dict.fromkeys(name for row in rows for name in row.get("versions", {}))
    parts = [each(lambda row: row.get("device")), *[f"{gb} GB" for gb in [each(lambda row: row.get("gb") or None)] if gb]]
    for name, value in (("driver", lambda row: row.get("driver")), ("CUDA", lambda row: row.get("cuda"))):
        parts += [f"{name} {found}" for found in [each(value)] if found]
    for name in names:
        parts.append(f"{name} {each(lambda row, name=name: row.get('versions', {}).get(name))}")
    return ", ".join([*parts, *[f"commit {found}" for found in [each(lambda row: row.get("commit"))] if found]])


def driver() -> str | None:
    """The version of the GPU's driver and its limits of power and clock, as nvidia-smi tells them; None without it."""
    words = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def measure(case: Case, loop: str, steps: int, tell: Tell, profile: Path) -> None:
    """Train a case by one of the loops; tell its figures, each as soon as it is there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = about(device)
    tell(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with prepared(case, device, folder) as given:
            tokens = sum(float(weights_of(given.loss, batch).get("tokens", 0)) for batch, _ in given.micro)
            train, distributed = given.view.config.train, given.view.config.distributed
            tell({"samples": train.global_batch, "tokens": tokens, "precision": train.precision, "compiled": distributed.compile})
            tell({"recomputed": distributed.activation_checkpointing})
            tell({"at_most": flops.peak(machine["device"], TYPES[train.precision].products)})
            LOOPS[loop](given, steps, folder, tell, profile)
        if loop == "plait":
            tell({"planned": planned(case, machine["device"], folder)})


def fault(error: BaseException) -> str:
    """One line about what ended a case."""
    if isinstance(error, torch.OutOfMemoryError | Exceeded | ExceededAlone | MemoryError) or "out of memory" in str(error).lower():
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


COLUMNS = (
    "case",
    "step",
    "samples/s",
    "bare",
    "ratio",
    "tokens/s",
    "TFLOP/s",
    "MFU",
    "peak, of plan",
    "recompiled",
    "save behind, on the spot",
)


def table(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the table, of what is there, and below it what is known of the cases that miss their goals."""
    by = {(row["case"], row["loop"]): row for row in rows}
    missed = []
    yield from (line for line in [head(rows), ""] if rows)
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for case in cases:
        ours, bare = by.get((case.name, "plait")), by.get((case.name, "bare"), {})
        if ours is None or ours.get("cut"):
            continue
        cells = cells_of(ours, bare) if "step_s" in ours else [str(ours["error"])]
        yield "| " + " | ".join([case.name, *cells, *[""] * (len(COLUMNS) - 1 - len(cells))]) + " |"
        missed += [f"{case.name} ({name}): {row['error']}" for name, row in (("plait", ours), ("bare", bare)) if "error" in row]
        missed += [told] if "step_s" in ours and (told := why_slow(case, ours, bare)) else []
    yield from missed


def why_slow(case: Case, ours: Mapping[str, Any], bare: Mapping[str, Any]) -> str | None:
    """What a case spends its time with that misses a goal; None for one that does not."""
    goals = []
    share = ours["flops"] / ours["step_s"] / ours["at_most"] if ours.get("at_most") else None
    if case.mfu is not None and share is not None and share < case.mfu:
        goals.append(f"MFU {share:.1%}, not {case.mfu:.0%}")
    if case.rate is not None and (rate := ours["samples"] / ours["step_s"]) < case.rate:
        goals.append(f"{rate:.3g} samples/s, not {case.rate:g}")
    if bare.get("step_s", 0) / ours["step_s"] < OF_BARE and "step_s" in bare:
        goals.append(f"{bare['step_s'] / ours['step_s']:.2f} of the bare loop, not {OF_BARE:g}")
    if not goals:
        return None
    if "kernels" not in ours:
        return f"{case.name}: {' and '.join(goals)}; not profiled"
    spent = ", ".join(f"{seconds / ours['step_s']:.0%} {name}" for name, seconds in ours["kernels"])
    busy = f"kernels take {ours['kernels_s'] / ours['step_s']:.0%} of a step: {spent}"
    return f"{case.name}: {' and '.join(goals)}; {busy} (gpu-profiles/{file_name(case)})"


def file_name(case: Case) -> str:
    """The name of the file of a case's profile."""
    return re.sub(r"[^\w]+", "-", case.name) + ".txt"


def cells_of(ours: Mapping[str, Any], bare: Mapping[str, Any]) -> list[str]:
    """A row of the table, of a case that plait's loop trained; `bare` may be empty."""
    step_s, per_second = ours["step_s"], ours["flops"] / ours["step_s"]
    planned_gb = f", {ours['planned'] / GB:.3g}" if ours.get("planned") else ""
    state = f"state of {ours['state'] / GB:.0f} GB" if "state" in ours else ""
    flags = ["" if ours["compiled"] else "not compiled", "" if ours["recomputed"] == "none" else "recomputed"]
    return [
        ", ".join(filter(None, [f"{ours['samples']} samples", ours["precision"], *flags])),
        f"{ours['samples'] / step_s:.4g}",
        *([f"{bare['samples'] / bare['step_s']:.4g}", f"{bare['step_s'] / step_s:.2f}"] if "step_s" in bare else ["", ""]),
        f"{ours['tokens'] / step_s:,.0f}" if ours["tokens"] else "",
        f"{per_second / 1e12:.4g}",
        f"{100 * per_second / ours['at_most']:.1f} %" if ours.get("at_most") else "",
        f"{ours['memory'] / GB:.1f} GB{planned_gb}" if ours.get("memory") else "",
        str(ours["recompiled"]),
        f"{ours['save_behind_s']:.2f} s, {ours['save_s']:.2f}" if "save_s" in ours else state,
    ]


def run(case: Case, loop: str, asked: argparse.Namespace, seconds: float, halved: int) -> dict[str, Any]:
    """Measure one case by one loop in a process of its own; what went wrong stands in `error`.

    Its samples are halved `halved` times, as they were for the other loop, and again where memory runs out.
    """
    ends = time.monotonic() + seconds
    while True:
        row = once(case, loop, asked, ends - time.monotonic(), halved)
        fewer = row.get("error") == OUT_OF_MEMORY and "step_s" not in row and halved < HALVINGS
        if not fewer or ends - time.monotonic() < shortest(asked):
            return row
        halved += 1


def shortest(asked: argparse.Namespace) -> float:
    """The seconds that a process is worth to be begun for."""
    return 1.0 if asked.tiny else SHORTEST_S


def once(case: Case, loop: str, asked: argparse.Namespace, seconds: float, halved: int) -> dict[str, Any]:
    """Run the process; what it told until it ended, or was ended after `seconds` with all that it began."""
    words = [sys.executable, __file__, "--case", case.name, "--loop", loop, f"--steps={asked.steps}", f"--halved={halved}"]
    words += [f"--dir={asked.dir}", *["--tiny"] * asked.tiny]
    ended = None
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # no pipes: workers that compile may hold them open
        with subprocess.Popen(words, stdout=out, stderr=err, start_new_session=True) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                ended = f"{NOT_DONE} in {seconds:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it began, which would hold memory of the GPU
        out.seek(0)
        err.seek(0)
        printed, errors = out.read(), err.read()
    row: dict[str, Any] = {"case": case.name, "loop": loop, "halved": halved}
    for line in printed.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row |= json.loads(line) if line.startswith("{") else {}
    if ended is None and "error" not in row and (process.returncode or "step_s" not in row):
        lines = errors.strip().splitlines()
        ended = f"ended by signal {-process.returncode}" if process.returncode < 0 else lines[-1][:200] if lines else "it told no figures"
    return row | ({"error": ended} if ended else {})


def told_by(case: Case, asked: argparse.Namespace) -> None:
    """Measure a case in this process and print its figures as lines of JSON, the last of them what went wrong."""
    chosen = case.on(device_gb(torch.device("cuda" if torch.cuda.is_available() else "cpu")), asked.halved)
    try:
        measure(
            chosen,
            asked.loop,
            asked.steps,
            lambda figures: print(json.dumps(figures), flush=True),
            asked.dir / "gpu-profiles" / file_name(case),
        )
    except (RuntimeError, MemoryError, Exceeded, ExceededAlone) as error:  # of anything else the last line of its traceback is told
        traceback.print_exc()
        print(json.dumps({"error": fault(error)}), flush=True)


def waiting(cases: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> list[tuple[Case, str]]:
    """What is to be measured, in order: the cases that matter most, by plait's loop and then by the other; what was tried comes last."""
    turns = [(case, loop) for first in (True, False) for loop in LOOPS for case in cases if case.first == first]
    by = {(row["case"], row["loop"]): row for row in rows}
    left = [turn for turn in turns if "step_s" not in by.get((turn[0].name, turn[1]), {})]
    return sorted(left, key=lambda turn: (turn[0].name, turn[1]) in by)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=9.0, help="at most; the same command goes on")
    parser.add_argument("--box", type=float, default=150.0, help="seconds of one case by one loop, at most")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, after three that are not")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names hold one of these")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--tiny", action="store_true", help="tiny models: checks this script without a GPU")
    parser.add_argument("--dir", type=Path, default=RESULTS, help="where gpu.jsonl lies")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--loop", choices=tuple(LOOPS), help=argparse.SUPPRESS)
    parser.add_argument("--halved", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    cases = TINY if asked.tiny else CASES
    if asked.case:
        told_by(next(case for case in cases if case.name == asked.case), asked)
        return
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: --tiny checks this script without one")
    if unknown := [word for word in asked.only if not any(word in case.name for case in cases)]:
        parser.error(f"no case is named {', '.join(unknown)}; there are {', '.join(case.name for case in cases)}")
    chosen = [case for case in cases if not asked.only or any(word in case.name for word in asked.only)]
    asked.dir.mkdir(parents=True, exist_ok=True)
    sys.exit(measure_all(chosen, asked))


def measure_all(cases: Sequence[Case], asked: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the table after each, and say what is left; 1 if a case failed."""
    path, ends = asked.dir / ("gpu-tiny.jsonl" if asked.tiny else "gpu.jsonl"), time.monotonic() + 60 * asked.minutes
    device = device_here()
    known = {case.name: identity(case, device) for case in cases}
    others, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for row in read_rows(path):
        same = row["case"] in known and not row.get("replaced") and row | known[row["case"]] == row
        (rows if same and not asked.again else others).append(row | ({"replaced": True} if same and asked.again else {}))
    shown = False
    for case, loop in waiting(cases, rows):
        left = ends - time.monotonic()
        if left < shortest(asked):
            break
        halved = next((other.get("halved", 0) for other in rows if other["case"] == case.name and "step_s" in other), 0)
        row = run(case, loop, asked, min(left, asked.box), halved) | known[case.name]
        cut = "step_s" not in row and left < asked.box and row["error"].startswith(NOT_DONE)
        if cut:  # by the end of all, and no fault of its own: the next command begins with others
            earlier = [other for other in rows if (other["case"], other["loop"]) == (case.name, loop)]
            row = earlier[0] if earlier else known[case.name] | {"case": case.name, "loop": loop, "cut": True}
        rows = [*(other for other in rows if (other["case"], other["loop"]) != (case.name, loop)), row]
        write_whole(path, "".join(json.dumps(each) + "\n" for each in [*others, *rows]).encode())
        if cut:
            break
        print(*table(cases, rows), "", sep="\n", flush=True)
        shown = True
    if not shown:
        print(*table(cases, rows), "", sep="\n", flush=True)
    if apart := sum(row["case"] in known and not row.get("replaced") for row in others):
        print(f"{apart} rows of another device, torch or configuration are in {path.name} and not in this table")
    if unfinished := len(waiting(cases, rows)):
        without = " without --again" if asked.again else ""
        print(f"{unfinished} of {len(cases) * len(LOOPS)} are left: the same command{without} goes on with them")
    return int(any("step_s" not in row and "error" in row for row in rows))


if __name__ == "__main__":
    main()
