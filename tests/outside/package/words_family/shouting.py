"""The shouting dialect: a flat configuration file whose keys are in capitals."""

from plait.config.nodes import Node, from_plain, merge, nest, to_plain
from plait.config.reading import Override
from plait.config.translation import Dialect, TranslatedKey, Translation
from plait.errors import PlaitError

PATHS = {"STEPS": "train.steps", "SPEED": "optim.lr", "SENTENCES": "data.train.0.path"}
"""Where plait has the value of each key."""


def recognise(tree, own):
    return any(key in PATHS for key in tree.value)


def translate(tree, overrides, path, own):
    ours = from_plain({"family": "words", "preset": "tiny"}, Node(None, str(path), label="default of the shouting dialect"))
    rows = []
    for key, node in tree.value.items():
        if key not in PATHS:
            raise PlaitError(f"{node.location}: {key} is not a key of the shouting dialect: known: {', '.join(PATHS)}")
        if key == "SENTENCES":
            layer = nest(["data", "train"], from_plain([{"source": "jsonl", "path": node.value}], node))
        else:
            layer = nest(PATHS[key].split("."), node)
        ours = merge(ours, layer)
        rows.append(TranslatedKey(key, to_plain(node), PATHS[key], ""))
    return Translation(ours, [_in_our_names(override) for override in overrides], rows)


def _in_our_names(override):
    """Return an override of the command line, `--STEPS=9` or `--train.steps=9`, by plait's path."""
    name = ".".join(override.path)
    return Override(tuple(PATHS.get(name, name).split(".")), override.text)


DIALECT = Dialect("shouting", recognise, translate)
