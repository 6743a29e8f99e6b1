"""The shouting dialect: a flat configuration file whose keys are in capitals."""

from plait.config.nodes import Node, merge, nest, plain, wrap
from plait.config.reading import Override
from plait.config.translation import Dialect, Translation
from plait.errors import PlaitError

PATHS = {"STEPS": "train.steps", "SPEED": "optim.lr", "SENTENCES": "data.train.0.path"}


def recognise(tree, own):
    return any(key in PATHS for key in tree.value)


def translate(tree, overrides, path, own):
    ours, rows = wrap({"family": "words", "preset": "tiny"}, Node(None, str(path), label="default of the shouting dialect")), []
    for key, node in tree.value.items():
        if key not in PATHS:
            raise PlaitError(f"{node.place}: {key} is not a key of the shouting dialect: known: {', '.join(PATHS)}")
        value = wrap([{"source": "jsonl", "path": node.value}], node) if key == "SENTENCES" else node
        ours = merge(ours, nest(PATHS[key].split("."), value))
        rows.append((key, plain(node), PATHS[key], ""))
    left = [Override(tuple(PATHS.get(".".join(over.path), ".".join(over.path)).split(".")), over.text) for over in overrides]
    return Translation(ours, left, rows)


DIALECT = Dialect("shouting", recognise, translate)
