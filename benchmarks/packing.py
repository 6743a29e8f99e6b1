"""What packing saves, with logits of supervised positions alone: samples per CPU second, forward and backward, of the same NLVR samples.

The peer is what a plain loop does: rows padded, and the cross-entropy of the logits of all positions. Models, samples and lengths are those
of the tiny recipes of theworld and molmo (towers, connector and projector included). Rounds take all layouts in turn, so that a busy
machine slows all alike. The shards are those in nlvr/ of the folder PLAIT_DATA, or of the recipes. `memory` measures how much a row of
theworld's tiny model holds, by its length.

    python benchmarks/packing.py nlvr [SAMPLES] [MICRO_BATCH] [ROUNDS] [WORDS of the heads] [FAMILY ...]
    python benchmarks/packing.py memory [LENGTHS ...]
"""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from plait.assembly.configuration import open_config
from plait.assembly.data import data_seed, open_training
from plait.assembly.model import ModelBundle, build_model
from plait.data.loading.loader import Loader
from plait.engine import optim
from plait.engine.parallel.distributed import Ranks
from plait.families.molmo.config import DEBUG, LANGUAGES
from plait.nn.losses import IGNORED

RECIPES = {"theworld": Path("configs/theworld/tiny-nlvr.yaml"), "molmo": Path("configs/molmo/debug-multitask.yaml")}
MORE = {"theworld": "model.tiny.positions=32768", "molmo": "from=null"}  # rows as long as are measured; no run to begin from
DATA = Path(os.environ.get("PLAIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")).resolve() / "nlvr"
HEADS = {"theworld": "gemma.model.language_model.embed_tokens.weight", "molmo": "language.lm_head.weight"}
LAYOUTS = {"padded to 128, all logits": "to_128", "padded, all logits": "longest", "padded": "longest", "packed": "none"}


def shards(recipe: Path) -> list[str]:
    """Settings that have a recipe read its shards from DATA. Exits where there are none."""
    if not sorted(DATA.glob("train-*.tar")):
        files = "tar shards of Cornell NLVR (v1), <key>.png and <key>.json with sentence, label and boxes, are not part of the repository"
        sys.exit(f"no train-*.tar in {DATA}: {files}; PLAIT_DATA names the folder that has nlvr/")
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
    entries = [(split, i, entry) for split in ("train", "validation") for i, entry in enumerate(data[split]) if "path" in entry]
    return [f"data.{split}.{i}.path={DATA / Path(entry['path']).name}" for split, i, entry in entries]


def opened(folder: Path, family: str, micro_batch: int, words: int | None = None) -> tuple[ModelBundle, Any, Any]:
    """The model of a recipe, with what it trains, its configuration and its view. `words` of its head, or as many as in the recipe."""
    said = [f"run={folder / family}", f"train.micro_batch={micro_batch}", f"train.global_batch={micro_batch}"]
    said += [f"model.tiny.vocabulary={words}"] if words and family == "theworld" else []
    resolved = open_config(RECIPES[family], [*said, MORE[family], *shards(RECIPES[family])])
    LANGUAGES[DEBUG]["vocab_size"] = words or LANGUAGES[DEBUG]["vocab_size"]  # of molmo, which has no setting for it
    built = build_model(resolved.config, folder / family, Ranks(0, 1, torch.device("cpu")))
    trained = optim.select(built.family.components(built.model), resolved.stages[0].config.trainable, built.family.never_trained)
    optim.freeze(built.model, trained)
    return built, resolved.config, resolved.stages[0]


def micro_batches(built: ModelBundle, config: Any, view: Any, samples: int, pad: str) -> list[Any]:
    """The micro-batches of the first samples of NLVR in a layout."""
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"train": [s for s in config.data.train if s.source != "scenes"]})}
    )
    data = open_training(config)
    inputs = built.family.Inputs(built.section, built.assets, max_tokens=config.data.max_tokens, pad=pad, train=True)
    size = config.train.micro_batch
    with Loader(
        data.sources, data.order(view), inputs, seed=data_seed(view), micro_batch=size, workers=0, stop_step=samples // size
    ) as loader:
        return [micro.batch for step in loader for micro in step.micro]


def all_logits(family: str) -> Callable[[ModelBundle, Any], Tensor]:
    """The loss of a batch from the logits of every position."""

    def theworld(built: ModelBundle, batch: Any) -> Tensor:
        model: Any = built.model
        logits_BLV = model.logits(model.hidden(model.embed(batch), batch))[:, :-1]
        return F.cross_entropy(logits_BLV.flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")

    def molmo(built: ModelBundle, batch: Any) -> Tensor:
        model: Any = built.model
        logits_NV = model.logits(model.hidden(model.embed(batch), batch)).flatten(0, 1).float()
        weight_N = batch["loss_weights"].flatten()
        loss = (F.cross_entropy(logits_NV, batch["labels"].flatten(), reduction="none") * weight_N).sum()
        return loss + built.section.z_loss * (logits_NV.logsumexp(-1).square() * weight_N).sum()

    return theworld if family == "theworld" else molmo


def own_loss(built: ModelBundle, batch: Any) -> Tensor:
    """The loss as a run computes it."""
    loss = built.family.Loss(built.section)
    return sum((loss.coefficients[name] * value for name, value in loss.sums(built.model, batch).items()), torch.zeros(()))


def seconds(built: ModelBundle, batches: list[Any], loss: Callable[[ModelBundle, Any], Tensor]) -> float:
    """CPU seconds of forward and backward of all micro-batches; the gradients are left there."""
    built.model.zero_grad()
    began = time.process_time()
    for batch in batches:
        loss(built, batch).backward()
    return time.process_time() - began


def gradient(built: ModelBundle) -> Tensor:
    """All gradients, one after the other."""
    return torch.cat([value.grad.flatten() for value in built.model.parameters() if value.grad is not None])


def nlvr(samples: int = 128, micro_batch: int = 32, rounds: int = 5, words: int | None = None, *families: str) -> None:
    """Print the table of some families, or of both."""
    print("| family | layout | samples per CPU second | ratio | gradient, relative difference |\n|---|---|---|---|---|")
    for family in families or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            built, config, view = opened(Path(folder), family, micro_batch, words)
            built.model.train()
            batches = {name: micro_batches(built, config, view, samples, pad) for name, pad in LAYOUTS.items()}
        losses = {name: all_logits(family) if name.endswith("all logits") else own_loss for name in LAYOUTS}
        turns = [{name: seconds(built, batches[name], losses[name]) for name in LAYOUTS} for _ in range(rounds)]
        gradients = {}
        for name in LAYOUTS:
            seconds(built, batches[name], losses[name])
            gradients[name] = gradient(built)
        plain = gradients["padded, all logits"]
        lengths = [n for batch in batches["padded"] for n in built.family.Loss(built.section).by_sample(batch)["tokens"].tolist()]
        head = built.model.get_parameter(HEADS[family]).shape[0]
        print(f"{family}: a head of {head:,} words, {len(lengths)} samples")
        print(f"{family}: {min(lengths):.0f} to {max(lengths):.0f} tokens, median {median(lengths):.0f}")
        for name in LAYOUTS:
            ratios = [turn["padded, all logits"] / turn[name] for turn in turns]
            rate = len(lengths) / median(turn[name] for turn in turns)
            apart = float((gradients[name] - plain).norm() / plain.norm())
            spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {family}, {head:,} words | {name} | {rate:.1f} | {spread} | {apart:.1e} |")


def long_row(length: int, pad: str = "none") -> float:
    """Train a step on a row of `length` tokens, a picture and text; return the peak MB of the process beyond those of a row of 256."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "png")
    text = {"role": "assistant", "content": " ".join(["a red square left of a blue circle"] * length)}
    sample = {
        "id": "0",
        "images": [picture.getvalue()],
        "messages": [{"role": "user", "content": "<image> What is it?"}, text],
        "fields": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        built, _, _ = opened(Path(folder), "theworld", 1)
        peaks = []
        for tokens in (256, length):
            inputs = built.family.Inputs(built.section, built.assets, max_tokens=tokens, pad=pad, train=True)
            own_loss(built, inputs.collate([inputs.encode(sample, 0)])).backward()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return peaks[1] - peaks[0]


def memory(*lengths: int) -> None:
    """Print the peak memory of rows of these lengths, each in a process of its own, and the slope between them."""
    before: tuple[int, float] | None = None
    for length in lengths or (1024, 2048, 4096, 8192, 16384):
        code = f"import torch; torch.set_num_threads(1); from benchmarks.packing import long_row; print(long_row({length}))"
        held = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])
        slope = "" if before is None else f"{1e3 * (held - before[1]) / (length - before[0]):.1f} kB per token"
        print(f"| {length:,} | {held:,.0f} MB | {slope} |")
        before = length, held


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"nlvr": nlvr, "memory": memory}[sys.argv[1]](*(int(word) if word.isdecimal() else word for word in sys.argv[2:]))  # type: ignore[operator]
