"""The Molmo guide's two launch scripts: what their names and words choose. Their flags are dotted_flags.py's.

molmo/captioner MODEL: debug, qwen2_7b, olmoe, or any causal language model by Hub name or directory.
molmo/multitask MIXTURE CHECKPOINT: a mixture by name or file, or debug; a captioner's RUN, RUN/step15000, RUN/latest, or other weights.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.config.nodes import COMMAND_LINE, Node, merge, nest, wrap
from plait.config.reading import read
from plait.errors import PlaitError

CAPTIONER, MULTITASK = "molmo/captioner", "molmo/multitask"
SCRIPTS = {CAPTIONER: ("MODEL",), MULTITASK: ("MIXTURE", "CHECKPOINT")}
WORDS = "words"  # of the tree that `open_script` makes
DEBUG = "debug"
MODELS = (DEBUG, "qwen2_7b", "olmoe")
INHERITED = (
    *("language", "language_revision", "vision_backbone", "vision_source", "vision_revision"),
    *("connector_hidden", "overlap", "max_crops", "default_style"),
)
"""Of the captioner's `model:` section, what the multitask run shares with it."""
_SCENES = {"size": [48, 48], "objects": [1, 2], "supersample": 2}
_TASKS = {CAPTIONER: ["caption"], MULTITASK: ["count", "colour", "shape", "exists", "point"]}
Row = tuple[str, Any, str | None, str]


def open_script(name: str, words: Sequence[str]) -> Node:
    """Make the tree of a launch script and its words. Raises PlaitError for a wrong number of words."""
    wanted = " ".join(SCRIPTS[name])
    if len(words) != len(SCRIPTS[name]):
        given = f"got {' '.join(words)}" if words else "got none"
        raise PlaitError(f"{name} takes {wanted}, {given}: plait train {name} {wanted} [--flag=value ...]")
    return Node({WORDS: wrap(list(words), Node(None, COMMAND_LINE, path=WORDS))}, name)


def chosen(script: str, words: Sequence[str]) -> tuple[Node, str, list[Row]]:
    """The tree that a script and its words stand for, the preset that it lies on, and a row for each word."""
    stage = script.partition("/")[2]
    tree, shared, rows = _captioner(words[0]) if script == CAPTIONER else _multitask(*words)
    small = shared.get("language") == DEBUG
    preset = DEBUG if small else stage
    title = re.sub(r"\.(ya?ml|json)$", "", Path(words[0]).name)
    layer: dict[str, Any] = {"family": "molmo", "preset": preset, "run": f"runs/molmo-{stage}-{title}", **_data(script, words[0], small)}
    if small:
        layer["model"] = {"response_residual_dropout" if script == CAPTIONER else "residual_dropout": 0.1}
    return merge(_assumed(layer, script), tree), preset, rows


def _assumed(layer: dict[str, Any], why: str) -> Node:
    return wrap(layer, Node(None, why, label=why))


def _captioner(model: str) -> tuple[Node, dict[str, Any], list[Row]]:
    if model not in MODELS and "/" not in model:
        near = difflib.get_close_matches(model, MODELS, 1)
        hint = (
            f"did you mean {near[0]}?" if near else f"known: {', '.join(MODELS)}; another language model is named owner/name or ./directory"
        )
        raise PlaitError(f"{COMMAND_LINE}: {CAPTIONER} has no model {model!r}: {hint}")
    leaf = Node(model, COMMAND_LINE, path="MODEL")
    return Node({"model": Node({"language": leaf}, CAPTIONER)}, CAPTIONER), {"language": model}, [("MODEL", model, "model.language", "")]


def _multitask(mixture: str, start: str) -> tuple[Node, dict[str, Any], list[Row]]:
    shared = _model_of(start)
    note = "its model is shared" if shared else "no run of plait is there: taken for qwen2_7b with openai"
    tree = _assumed({"model": shared}, f"captioner {start}") if shared else Node({}, MULTITASK)
    tree = merge(tree, nest(("from",), Node(start, COMMAND_LINE, path="CHECKPOINT")))
    rows: list[Row] = [("MIXTURE", mixture, "data.train.0.source" if mixture == DEBUG else "data.mixture", "")]
    return tree, shared, [*rows, ("CHECKPOINT", start, "from", note)]


def _model_of(spec: str) -> dict[str, Any]:
    """What the captioner's run says of its model; nothing where `spec` is no run (published weights, or a mistake that training names)."""
    path = Path(spec.partition("@")[0]).expanduser()
    home = next((one for one in (path, *list(path.parents)[:2]) if (one / "config.yaml").is_file()), None)
    model = read(home / "config.yaml").value.get("model") if home else None
    if model is None or not isinstance(model.value, dict):
        return {}
    return {key: model.value[key].value for key in INHERITED if key in model.value}


def _data(script: str, word: str, small: bool) -> dict[str, Any]:
    """Dense captions for the captioner, the mixture for the multitask run, drawn scenes for `debug`; budgets; held-out loss."""
    if word == DEBUG:
        scenes = [{"source": "scenes", "options": {**_SCENES, "tasks": _TASKS[script]}}]
        found: dict[str, Any] = {"data": {"train": scenes, "validation": scenes}}
    elif script == CAPTIONER:
        captions = [{"source": "dataset", "name": "pixmo_cap"}]
        found = {"data": {"train": captions, "validation": captions}}
    else:
        found = {"data": {"mixture": word}}
    every = 100 if small else 1000
    found["checkpoint"] = {"every_steps": every}
    if "validation" in found["data"]:
        found["evaluate"] = [{"bench": "loss", "every_steps": every, "samples": 64 if small else 2048, "batch": 16 if small else 4}]
    if small:
        found["train"] = {"steps": 300, "global_batch": 16}
    elif script == CAPTIONER:
        found["train"] = {"steps": 22_300}
    return found
