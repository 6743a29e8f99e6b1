"""The Molmo guide's two launch scripts: what their names and words stand for. Their flags are in dotted_flags.py.

molmo/captioner MODEL: debug, qwen2_7b, qwen2_72b, olmo_1024_preview, olmoe, or any causal language model by Hub name or directory.
molmo/multitask MIXTURE CHECKPOINT: a mixture by name or file, or debug; a captioner's RUN, RUN/step15000, RUN/latest, or other weights.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.config import signed
from plait.config.nodes import COMMAND_LINE, Node, from_plain, merge, nest
from plait.config.reading import read
from plait.config.translation import TranslatedKey
from plait.errors import PlaitError, command
from plait.files import expanded

CAPTIONER, MULTITASK = "molmo/captioner", "molmo/multitask"
SCRIPTS = {CAPTIONER: ("MODEL",), MULTITASK: ("MIXTURE", "CHECKPOINT")}
"""The names of the words that follow each script."""
WORDS = "words"  # of the tree that `open_script` makes
DEBUG = "debug"
MODELS = (DEBUG, "qwen2_7b", "qwen2_72b", "olmo_1024_preview", "olmoe")
"""What the guide calls the language models; debug is a tiny random one."""
INHERITED = (
    *("language", "language_revision", "vision_backbone", "vision_source", "vision_revision"),
    *("connector_hidden", "overlap", "max_crops", "preprocessing", "default_style"),
)
"""Keys of the captioner's `model:` section that a multitask run, which starts from its weights, inherits."""
_SCENES = {"size": [48, 48], "objects": [1, 2], "supersample": 2}
_TASKS = {CAPTIONER: ["caption"], MULTITASK: ["count", "colour", "shape", "exists", "point"]}


def open_script(name: str, words: Sequence[str]) -> Node:
    """Return a tree of nodes that holds a launch script's `words`, the arguments after its name, as a dialect's `translate` takes it.

    `name`: molmo/captioner or molmo/multitask. Raises PlaitError for a wrong number of words.
    """
    wanted = " ".join(SCRIPTS[name])
    if len(words) != len(SCRIPTS[name]):
        given = f"got {' '.join(words)}" if words else "got none"
        raise PlaitError(f"{name} takes {wanted}, {given}: {command('train', name)} {wanted} [--flag=value ...]")
    return Node({WORDS: from_plain(list(words), Node(None, COMMAND_LINE, path=WORDS))}, name)


def translate_words(script: str, words: Sequence[str]) -> tuple[Node, str, list[TranslatedKey]]:
    """Return (tree of the settings that a script's words stand for, name of their preset, a row for each word).

    `script`: molmo/captioner or molmo/multitask. A row says which setting a word became. Raises PlaitError for an unknown model.
    """
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
    return from_plain(layer, Node(None, why, label=why))


def _captioner(model: str) -> tuple[Node, dict[str, Any], list[TranslatedKey]]:
    """Return the tree of the captioner's word, the settings of its model, and the row of the word."""
    if model not in MODELS and "/" not in model:
        near = difflib.get_close_matches(model, MODELS, 1)
        hint = (
            f"did you mean {near[0]}?" if near else f"known: {', '.join(MODELS)}; another language model is named owner/name or ./directory"
        )
        raise PlaitError(f"{COMMAND_LINE}: {CAPTIONER} has no model {model!r}: {hint}")
    leaf = Node(model, COMMAND_LINE, path="MODEL")
    row = TranslatedKey("MODEL", model, "model.language", "")
    return Node({"model": Node({"language": leaf}, CAPTIONER)}, CAPTIONER), {"language": model}, [row]


def _multitask(mixture: str, start: str) -> tuple[Node, dict[str, Any], list[TranslatedKey]]:
    """Return the tree of the multitask run's words, the settings that it shares with its captioner, and the rows of the words."""
    shared = _model_of(start)
    note = "its model is shared" if shared else "no run of plait is there: taken for qwen2_7b with openai"
    tree = _assumed({"model": shared}, f"captioner {start}") if shared else Node({}, MULTITASK)
    tree = merge(tree, nest(("from",), Node(start, COMMAND_LINE, path="CHECKPOINT")))
    data = TranslatedKey("MIXTURE", mixture, "data.train.0.source" if mixture == DEBUG else "data.mixture", "")
    return tree, shared, [data, TranslatedKey("CHECKPOINT", start, "from", note)]


def _model_of(spec: str) -> dict[str, Any]:
    """Return the model settings in the configuration of the captioner's run; none where `spec` is not a run.

    It may be published weights, or a mistake, for which training has its own error.
    """
    path = expanded(spec.partition("@")[0])
    written = next((file for folder in (path, *list(path.parents)[:2]) if (file := signed.settings_of(folder)) is not None), None)
    model = read(written).value.get("model") if written else None
    if model is None or not isinstance(model.value, dict):
        return {}
    return {key: model.value[key].value for key in INHERITED if key in model.value}


def _data(script: str, word: str, small: bool) -> dict[str, Any]:
    """Return the sections of data, length and evaluation: dense captions, the mixture, or generated scenes for `debug`."""
    if word == DEBUG:
        scenes = [{"source": "scenes", "options": {**_SCENES, "tasks": _TASKS[script]}}]
        sections: dict[str, Any] = {"data": {"train": scenes, "validation": scenes}}
    elif script == CAPTIONER:
        train, held_out = ([{"source": "dataset", "name": name}] for name in ("pixmo_cap_with_transcripts", "pixmo_cap"))
        sections = {"data": {"train": train, "validation": held_out}}
    else:
        sections = {"data": {"mixture": word}}
    every = 100 if small else 1000
    sections["checkpoint"] = {"every_steps": every}
    if "validation" in sections["data"]:
        sections["evaluate"] = [{"bench": "loss", "every_steps": every, "samples": 64 if small else 2048, "batch": 16 if small else 4}]
    if small:
        sections["train"] = {"steps": 300, "global_batch": 16}
    elif script == CAPTIONER:
        sections["train"] = {"steps": 22_300}
    return sections
