"""Compare an export with its model: a process of its own loads it, and both are asked the same."""

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from plait.assembly.adapters import peft_directory, quantised
from plait.assembly.adapters.layers import Adapters
from plait.assembly.model import ModelBundle
from plait.commands.actions.export_check import load
from plait.config.schema import RunConfig, SourceEntry
from plait.config.sections.adapters import SUFFIX
from plait.data.sources.open import open_source
from plait.engine.precision import autocast
from plait.errors import PlaitError, first_names, printable
from plait.families.module_contracts import Check
from plait.keys import rng

_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far logits may be apart, over their spread, by the widest dtype of the weights: sums are added in another order."""
_CLOSE_HALF = 0.05
_LEVELS, _SHARE = 1, 0.01
"""Pictures: of 255 levels, by how many values may differ, and what share of them."""
_REASON_LENGTH = 400  # characters
_PICTURES, _TOKENS = 3, 24
_KEYS = {"missing_keys": "lacks", "unexpected_keys": "holds, of no use,", "mismatched_keys": "has, of another shape,"}


def check(bundle: ModelBundle, config: RunConfig, folder: Path, wanted: Check) -> list[str]:
    """Load the export in `folder` in a fresh process, and return lines on how equal it is to the model of `bundle`.

    `config`: of its run; `wanted`: what the family says of the layout. Raises PlaitError with the first thing that differs, and where the
    export cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="plait-check-") as name:
        work = Path(name)
        device = next(bundle.model.parameters()).device
        weights = {key: load.digest(value) for key, value in wanted.weights(bundle.model, bundle.section, bundle.assets).items()}
        inputs = bundle.inputs(config, train=False)
        asked = wanted.asked(inputs, _pictures(work))
        with torch.no_grad(), autocast(config.train.precision if wanted.autocast else "fp32", device):
            expected = [wanted.results(bundle.model, inputs, question) for question in asked]
        settings = json.loads(json.dumps(wanted.settings(bundle.model, inputs)))
        bundle.model.to("cpu")
        request = {"library": wanted.library, "trust": wanted.trust, "register": wanted.register, "device": str(device), "asked": asked}
        told, arrays = _loaded(folder, request, work)
        told["weights"] = {key: value for key, value in told["weights"].items() if not (wanted.unused and re.match(wanted.unused, key))}
        bundle.model.to(device)
    without = "" if wanted.register else ", without plait"
    for key, value in settings.items():
        if told["settings"].get(key) != value:
            raise _fault(folder, f"its {key} is {str(told['settings'].get(key))[:200]}, and the model's {str(value)[:200]}")
    lines = [f"{wanted.library} loads {folder} in a process of its own{without}: {_same_weights(folder, told, weights)}"]
    dtypes = [getattr(torch, digest.partition(" ")[0]) for digest in weights.values()]
    close = _CLOSE.get(max(dtypes, key=lambda dtype: dtype.itemsize), _CLOSE_HALF)
    compare = _same_pictures if "pictures" in expected[0] else _same_answers
    return [*lines, compare(folder, told, arrays, expected, close)]


def check_adapters(adapters: Adapters, trained: Collection[str], folder: Path) -> list[str]:
    """Load the adapters in `folder` with peft, in a fresh process, over their model; return lines on how equal they are.

    `trained`: names of parameters that ever were. Raises PlaitError as `check` does, and for adapters of no language model of transformers.
    """
    used, lines = peft_directory.trained_components(adapters, trained), []
    for component in used:
        prefix, model = peft_directory.root_of(adapters.model, list(adapters.layers[component]))
        if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
            raise PlaitError(f"--check peft: the adapters of {component} are in {type(model).__name__}, no language model of transformers")
        names = [name for name in adapters.components[component + SUFFIX] if name in adapters.names]
        parameters = dict(adapters.model.named_parameters())
        weights = {f"base_model.model.{name.removeprefix(prefix)}": load.digest(parameters[name].detach().float()) for name in names}
        own = folder / component if len(used) > 1 else folder
        with tempfile.TemporaryDirectory(prefix="plait-check-") as name, _alone(adapters, component):
            work = Path(name)
            _write_base(adapters, model, prefix, work / "base")
            vocabulary = model.config.get_text_config().vocab_size
            ids = torch.from_numpy(rng("check", component).integers(0, vocabulary, (2, _TOKENS)))
            with torch.no_grad():
                ours = model(input_ids=ids.to(model.device)).logits.float().cpu()
            request = {"library": "peft", "trust": False, "register": None, "device": str(model.device), "base": str(work / "base")}
            told, arrays = _loaded(own, {**request, "asked": ids.tolist()}, work)
        same = _same_weights(own, told, weights)
        close = _CLOSE.get(max((value.dtype for value in model.parameters()), key=lambda dtype: dtype.itemsize), _CLOSE_HALF)
        spread, apart = float(ours.std()), float((arrays["logits"] - ours).abs().max())
        if not apart <= close * spread:
            raise _fault(own, f"logits are up to {apart:.3g} apart, of a spread of {spread:.3g}")
        lines.append(f"peft loads {own} over {type(model).__name__} in a process of its own, without plait: {same}")
        lines.append(f"logits of {ids.numel()} positions are within {apart:.2g} (their spread is {spread:.3g})")
    return lines


@contextlib.contextmanager
def _alone(adapters: Adapters, component: str) -> Iterator[None]:
    """Have the adapters of one component in use alone, as a directory of them is loaded; those of the others as before at the end."""
    others = [layer for name, part in adapters.layers.items() if name != component for layer in part.values() if not layer.disable_adapters]
    for layer in others:
        layer.enable_adapters(False)
    yield
    for layer in others:
        layer.enable_adapters(True)


def _write_base(adapters: Adapters, model: PreTrainedModel, prefix: str, folder: Path) -> None:
    """Write a part of the adapters' model without them, `prefix` being what its names begin with; what is in 4 bits, as it computes."""
    folder.mkdir()
    settings = copy.deepcopy(model.config)
    settings.architectures = [type(model).__name__]
    settings.save_pretrained(folder)
    layers = {name: layer.get_base_layer() for part in adapters.layers.values() for name, layer in part.items()}
    whole = {f"{name}.weight": quantised.restored(layer) for name, layer in layers.items() if not layer.weight.is_floating_point()}
    weights = {}
    for name, value in model.named_parameters():
        if (full := prefix + name) not in adapters.names:
            weights[name] = (whole[full].weight if full in whole else value).detach().cpu().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pictures(work: Path) -> list[Path]:
    """Write a few drawn pictures, and return their files."""
    drawn = open_source(SourceEntry(source="scenes", limit=_PICTURES, options={"size": [96, 64]}), seed=0)
    paths = [work / f"{number}.png" for number in range(_PICTURES)]
    for number, path in enumerate(paths):
        path.write_bytes(drawn[number]["images"][0])
    return paths


def _loaded(folder: Path, request: Mapping[str, Any], work: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the process that loads the export says, and its tensors. Raises PlaitError where it cannot load it, or ask it."""
    register = request["register"]
    given = {"folder": str(folder.absolute()), "out": str(work), **request}
    (work / "request.json").write_text(json.dumps(given), encoding="utf-8")
    environment = {**os.environ, "HF_MODULES_CACHE": str(work / "modules")} | ({} if register else {"PYTHONPATH": ""})
    command = [sys.executable, "-P", str(load.__file__), str(work / "request.json")]
    done = _run(command, environment)
    try:
        told: dict[str, Any] = json.loads((work / "results.json").read_bytes())
    except (OSError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        told = {"error": f"its process ended with code {done.returncode}: {last}"}
    if "error" in told:
        reason = printable(" ".join(str(told["error"]).split()))[:_REASON_LENGTH]
        raise PlaitError(f"{folder} is no export to pass on: {request['library']} cannot load and ask it: {reason}")
    return told, load_file(work / "results.safetensors")


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL)


def _fault(folder: Path, what: str) -> PlaitError:
    return PlaitError(f"{folder} is no export to pass on: {what}")


def _same_weights(folder: Path, told: Mapping[str, Any], weights: Mapping[str, str]) -> str:
    """Return a line that all weights are equal. Raises PlaitError with those that are not."""
    for kind, verb in _KEYS.items():
        if told[kind]:
            raise _fault(folder, f"it {verb} {len(told[kind])} of the weights: {first_names(told[kind])}")
    theirs: Mapping[str, str] = told["weights"]
    if names := sorted(weights.keys() ^ theirs.keys()):
        raise _fault(folder, f"it has {len(theirs)} weights, the model {len(weights)}; they differ in {first_names(names)}")
    parts = {name: (weights[name].rsplit(" ", 1), theirs[name].rsplit(" ", 1)) for name in weights}
    for what, place in (("dtypes or shapes", 0), ("values", 1)):
        if names := [name for name, (own, other) in parts.items() if own[place] != other[place]]:
            first = parts[names[0]]
            example = f" ({first[1][0]}, in the model {first[0][0]})" if place == 0 else ""
            raise _fault(folder, f"{len(names)} of {len(weights)} weights have other {what}: {first_names(names)}{example}")
    return f"all {len(weights)} weights are equal, bit for bit"


def _same_answers(
    folder: Path, told: Mapping[str, Any], arrays: Mapping[str, Tensor], expected: Sequence[Mapping[str, Any]], close: float
) -> str:
    """Return a line on prompts, logits and greedy answers. Raises PlaitError with the first that differs."""
    worst = spread = 0.0
    ties = 0
    for number, own in enumerate(expected):
        ids, logits = arrays[f"ids.{number}"], arrays[f"logits.{number}"]
        if not torch.equal(ids, own["ids"].cpu()):
            raise _fault(folder, f"prompt {number + 1} becomes other tokens: {_tokens(ids)}, in plait {_tokens(own['ids'])}")
        ours = own["logits"].float().cpu()
        spread, apart = float(ours.std()), float((logits - ours).abs().max())
        if not apart <= close * spread:
            raise _fault(folder, f"logits of prompt {number + 1} are up to {apart:.3g} apart, of a spread of {spread:.3g}")
        worst = max(worst, apart)
        if told["answers"][number] != own["answer"]:
            gap = float(arrays[f"gaps.{number}"].min())
            if gap > 2 * close * spread:
                said = f"{told['answers'][number][:80]!r}, in plait {own['answer'][:80]!r}"
                raise _fault(folder, f"the greedy answer to prompt {number + 1} is {said}")
            ties += 1
    note = f", {ties} of them but for two words that are equally likely within rounding" if ties else ""
    return (
        f"{len(expected)} prompts: the same tokens, logits within {worst:.2g} (their spread is {spread:.3g}), the same greedy answers{note}"
    )


def _same_pictures(
    folder: Path, told: Mapping[str, Any], arrays: Mapping[str, Tensor], expected: Sequence[Mapping[str, Any]], close: float
) -> str:
    """Return a line on pictures. Raises PlaitError with the first that differ."""
    total = most = 0
    for number, own in enumerate(expected):
        ours, theirs = own["pictures"], arrays[f"pictures.{number}"]
        if ours.shape != theirs.shape:
            raise _fault(folder, f"call {number + 1} draws pictures {tuple(theirs.shape)}, plait {tuple(ours.shape)}")
        apart = (ours.int() - theirs.int()).abs()
        share, largest = float((apart > 0).float().mean()), int(apart.max())
        if largest > _LEVELS or share > _SHARE:
            raise _fault(folder, f"{share:.0%} of the values of the pictures of call {number + 1} differ, by up to {largest} of 255")
        total, most = total + len(ours), max(most, largest)
    how = "equal, byte for byte" if most == 0 else f"equal to {most} of 255 in at most {_SHARE:.0%} of their values"
    return f"{total} pictures of the same seeds are {how}"


def _tokens(ids: Tensor) -> str:
    return f"{ids.numel()}, {ids.flatten().tolist()[:12]} ..."
