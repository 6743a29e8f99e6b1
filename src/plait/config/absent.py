"""Leave out of a configuration the components (named parts of a model) that its `model:` section switches off, as in a baseline.

A stage that then trains nothing is left out as well: `--model.world=off` works with any list of stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from plait.config.nodes import Node, node_at
from plait.config.resolved import StageView
from plait.config.sections.adapters import component_of
from plait.errors import PlaitError


def without_absent(tree: Node, views: Sequence[StageView], absent: Mapping[str, str]) -> tuple[Node, list[str]]:
    """Return `tree` without the settings that name a component in `absent`, and a line of text for each that is left out.

    `absent`: {component: the setting that switches it off, as "model.world is off"}. `views`: the stages of the tree, validated. Raises
    PlaitError where no stage is left that trains anything.
    """
    lines: list[str] = []
    empty = [view for view in views if view.config.trainable and not _present(view.config.trainable, absent)]
    if len(empty) == len(views):
        named = ", ".join(dict.fromkeys(item for view in views for item in view.config.trainable))
        why = _reasons(empty[0].config.trainable, absent)
        cure = "name other components, or measure the model untrained: plait eval --base CONFIG --bench NAME"
        raise PlaitError(f"{_location(tree)}: trainable names {named}, and {why}: nothing would train; {cure}")
    for view in views:
        trainable = view.config.trainable
        gone = [item for item in trainable if _component(item) in absent]
        if view in empty:
            lines.append(f"stage {view.name} is left out: it trains {', '.join(trainable)}, and {_reasons(trainable, absent)}")
        elif gone:
            lines.append(f"stage {view.name} trains without {', '.join(gone)}: {_reasons(gone, absent)}")
    lost = dict.fromkeys(name for view in views for name in view.config.optim.components if component_of(name) in absent)
    lines += [f"optim.components.{name} is left out: {absent[component_of(name)]}" for name in lost]
    adapted = dict.fromkeys(name for view in views for name in view.config.adapters if name in absent)
    lines += [f"adapters.{name} is left out: {absent[name]}" for name in adapted]
    plain = dict.fromkeys((entry.bench, entry.ablate) for view in views for entry in view.config.evaluate if entry.ablate in absent)
    lines += [f"evaluate: {bench} is measured without ablate={ablate}: {absent[str(ablate)]}" for bench, ablate in plain]
    if not lines:
        return tree, []
    tree = _pruned(tree, absent)
    stages = node_at(tree, ("stages",))
    if stages is not None and isinstance(stages.value, list) and stages.value:
        left = {view.index for view in empty}
        kept = [_pruned(stage, absent) for number, stage in enumerate(stages.value, 1) if number not in left]
        tree = replace(tree, value={**tree.value, "stages": replace(stages, value=kept)})
    return tree, lines


def _component(item: str) -> str:
    """Return the component of an item of `trainable`, such as "vision" of "vision:layers.3" and of "vision.lora"."""
    return component_of(item.partition(":")[0])


def _present(trainable: Sequence[str], absent: Mapping[str, str]) -> list[str]:
    return [item for item in trainable if _component(item) not in absent]


def _reasons(trainable: Sequence[str], absent: Mapping[str, str]) -> str:
    return " and ".join(dict.fromkeys(absent[_component(item)] for item in trainable if _component(item) in absent))


def _location(tree: Node) -> str:
    paths: list[tuple[str | int, ...]] = [("stages", 0, "trainable"), ("trainable",)]
    return next((node for path in paths if (node := node_at(tree, path)) is not None), tree).location


def _pruned(node: Node, absent: Mapping[str, str]) -> Node:
    """Return a run's or a stage's mapping without absent components, wherever it names components."""
    value = dict(node.value)
    adapters = value.get("adapters")
    if adapters is not None and isinstance(adapters.value, dict):
        value["adapters"] = replace(adapters, value={name: child for name, child in adapters.value.items() if name not in absent})
    trainable, optim = value.get("trainable"), value.get("optim")
    if trainable is not None and isinstance(trainable.value, list):
        kept = [item for item in trainable.value if _component(str(item.value)) not in absent]
        value["trainable"] = replace(trainable, value=kept)
    components = node_at(node, ("optim", "components"))
    if optim is not None and components is not None and isinstance(components.value, dict):
        left = {name: child for name, child in components.value.items() if component_of(name) not in absent}
        value["optim"] = replace(optim, value={**optim.value, "components": replace(components, value=left)})
    evaluate = value.get("evaluate")
    if evaluate is not None and isinstance(evaluate.value, list):
        value["evaluate"] = replace(evaluate, value=_measured(evaluate.value, absent))
    return replace(node, value=value)


def _measured(entries: Sequence[Node], absent: Mapping[str, str]) -> list[Node]:
    """Return the entries of `evaluate` without the ablation of absent components; not those whose bench another entry measures too."""
    kept = list[Node]()
    for entry in entries:
        ablate = node_at(entry, ("ablate",))
        if ablate is None or str(ablate.value) not in absent:
            kept.append(entry)
            continue
        bench = node_at(entry, ("bench",))
        alike = [other for one in entries if one is not entry and (other := node_at(one, ("bench",))) is not None]
        if bench is None or bench.value not in [other.value for other in alike]:
            kept.append(replace(entry, value={name: child for name, child in entry.value.items() if name != "ablate"}))
    return kept
