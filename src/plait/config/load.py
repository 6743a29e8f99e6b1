"""From a file and a command line to one validated configuration per stage, each value with its origin.

Values come from, in rising order: defaults, preset, file, stage, command line. Mappings merge, lists replace.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from plait.config import reading, secrets
from plait.config.conflicts import conflicts
from plait.config.messages import Problem, complain, explain, kinds, report
from plait.config.nodes import COMMAND_LINE, Node, at, claims, dotted, find, leaves, merge, nest, plain, wrap
from plait.config.reading import Override
from plait.config.resolved import Resolved, StageView, dump
from plait.config.schema import (
    RunConfig,
    Stage,
)
from plait.config.source_rules import SourceRules
from plait.config.translation import Dialect, Translation
from plait.errors import PlaitError

DEFAULT = "default"
_STAGED = frozenset(Stage.model_fields) - {"name"}
ModelConfig = Callable[[str], type[BaseModel]]
Preset = Callable[[str, str], Path]


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    model_config: ModelConfig,
    preset: Preset,
    sources: Mapping[str, SourceRules],
    dialects: Sequence[Dialect] = (),
    words: Sequence[str] = (),
) -> Resolved:
    """Read, translate, merge and check the configuration at `path`. Raises PlaitError, one line, for any fault of it.

    `sources`: the kinds of source that there are, by name. `words`: those of a launch script, which `path` then names in place of a file.
    """
    path = Path(path)
    commands = [Override.parse(text) for text in overrides]
    file = _read(path, words, dialects)
    secrets.refuse(file)
    spoken = _translate(dialects, file, commands, path, tuple(field.alias or name for name, field in RunConfig.model_fields.items()))
    family = _chosen(spoken.tree, spoken.overrides, "family")
    section = _section(family, model_config) if family else None
    tree = _with_preset(spoken.tree, spoken.overrides, preset)
    for command in sorted(spoken.overrides, key=lambda one: one.path[0] == "stages"):  # a stage's own override wins over a general one
        tree = _override(tree, command, section)
    run = at(tree, ("run",))
    if run is None or run.value is None:
        tree = merge(tree, Node({"run": Node(f"runs/{path.stem}", DEFAULT, path="run")}, tree.file, tree.line))
    config, views = _validated(tree, section, sources)
    origins = {dotted(leaf): _origin(tree, leaf) for leaf, _ in leaves(dump(config))}
    return Resolved(config, views, origins, spoken.rows, spoken.warnings, reading.write_yaml(dump(config)), spoken.asked)


def _read(path: Path, words: Sequence[str], dialects: Sequence[Dialect]) -> Node:
    """Read the mapping in a file, or make that of a launch script with its words."""
    for dialect in dialects:
        if dialect.open_script is not None and path.as_posix() in dialect.scripts:
            return dialect.open_script(path.as_posix(), words)
    return reading.read(path)


def _translate(dialects: Sequence[Dialect], tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """Put `tree` into plait's names: translated if a dialect recognises it, else as it is. `own` are plait's top-level keys."""
    for dialect in dialects:
        if dialect.recognise(tree, own):
            return dialect.translate(tree, overrides, path, own)
    return Translation(tree, overrides)


def _with_preset(tree: Node, overrides: Sequence[Override], preset: Preset) -> Node:
    """`tree` over the preset that it, or the command line, names."""
    name = _chosen(tree, overrides, "preset")
    family = _chosen(tree, overrides, "family")
    if name is None or family is None:
        return tree
    try:
        file = preset(str(family.value), str(name.value))
    except PlaitError as error:
        raise PlaitError(f"{name.place}: {error}") from None
    below = reading.read(file)
    secrets.refuse(below)
    if "preset" in below.value:
        raise PlaitError(f"{below.value['preset'].place}: a preset cannot stand on another preset")
    return merge(_labelled(below, f"preset {name.value}"), tree)


def _labelled(node: Node, label: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _labelled(child, label) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_labelled(child, label) for child in value]
    return replace(node, value=value, label=label)


def _chosen(tree: Node, overrides: Sequence[Override], key: str) -> Node | None:
    """The text at the top-level `key`, the command line first; None where there is none or where it is no text."""
    for command in reversed(overrides):
        if command.path == (key,) and command.text not in ("", "null", "~"):
            return Node(command.text, COMMAND_LINE, path=key)
    node = at(tree, (key,))
    return node if node is not None and isinstance(node.value, str) else None


def _section(family: Node, model_config: ModelConfig) -> type[BaseModel]:
    try:
        return model_config(str(family.value))
    except PlaitError as error:
        raise PlaitError(f"{family.place}: {error}") from None


def _override(tree: Node, command: Override, section: type[BaseModel] | None) -> Node:
    """`command` over the base, and over every stage that says something else."""
    leaf = Node(None, COMMAND_LINE, path=dotted(command.path))
    layer = nest(command.path, wrap(_value(command, section), leaf))
    tree = merge(tree, layer)
    stages = at(tree, ("stages",))
    if command.path[0] not in _STAGED or stages is None or not isinstance(stages.value, list):
        return tree
    return merge(tree, replace(layer, value={"stages": replace(stages, value=[_over_stage(one, command, layer) for one in stages.value])}))


def _over_stage(stage: Node, command: Override, layer: Node) -> Node:
    return merge(stage, layer) if isinstance(stage.value, dict) and claims(stage, command.path) else stage


def _value(command: Override, section: type[BaseModel] | None) -> Any:
    """The typed-in text as a value: as it stands where only text can be meant, else as YAML."""
    path = command.path
    if path[0] == "stages" and len(path) > 3:
        path = path[2:]
    wanted = kinds(section, path[1:]) if path[0] == "model" and section else kinds(RunConfig, path)
    quoted = len(command.text) > 1 and command.text[0] == command.text[-1] and command.text[0] in "'\""
    if wanted and set(wanted) <= {str, type(None)} and not quoted and command.text not in ("null", "~", ""):
        return command.text
    try:
        return reading.scalar(command.text)
    except yaml.YAMLError:
        name = dotted(command.path)
        raise PlaitError(f"{COMMAND_LINE}: the value of {name} is not YAML: quote it, as in --{name}=\"'...'\"") from None


def _validated(tree: Node, section: type[BaseModel] | None, sources: Mapping[str, SourceRules]) -> tuple[RunConfig, tuple[StageView, ...]]:
    """The base and the view of each stage, or every problem they have."""
    problems: list[Problem] = []
    config = _checked(tree, section, sources, problems)
    stages = at(tree, ("stages",))
    views = []
    if config is None or stages is None or not config.stages:
        views = [(1, "train", tree)]
    else:
        base = replace(tree, value={key: child for key, child in tree.value.items() if key != "stages"})
        for index, stage in enumerate(stages.value):
            over = replace(stage, value={key: child for key, child in stage.value.items() if key in _STAGED})
            views.append((index + 1, config.stages[index].name, merge(base, over)))
    found = []
    for index, name, merged in views:
        view = _checked(merged, section, sources, problems) if config is not None else None
        if view is not None:
            problems += [complain(merged, path, what) for path, what in [*conflicts(view, sources), *_refused(view, section)]]
            found.append(StageView(index, name, view))
    names = [view.name for view in found]
    for index, name in enumerate(names):
        if name in names[:index]:
            said = f"is {name!r}, as is that of stage {names.index(name) + 1}: rename one"
            problems.append(complain(tree, ("stages", index, "name"), said))
    report(problems)
    assert config is not None
    written = dump(config)["stages"]
    typed = [
        Stage(**_typed(one, {**dump(view.config), "name": view.name})) for one, view in zip(written, found, strict=False)
    ]  # no stages: one view
    return config.model_copy(update={"stages": typed}), tuple(found)


def _refused(view: RunConfig, section: type[BaseModel] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """What the family cannot be trained with, whatever else is set: its `Config.refused`, {(path of a setting): {value: why}}."""
    for path, values in getattr(section, "refused", {}).items():
        value = functools.reduce(getattr, path, view)
        if value in values:
            yield path, f"is {value!r}, which family {view.family} refuses: {values[value]}"


def _typed(written: Any, whole: Any) -> Any:
    """What a stage wrote, as the values it came to mean in the stage's `whole` configuration ("3e-4" is 0.0003)."""
    if isinstance(written, dict) and isinstance(whole, dict):
        return {key: _typed(child, whole[key]) for key, child in written.items()}
    if isinstance(written, list) and isinstance(whole, list):
        return [_typed(child, other) for child, other in zip(written, whole, strict=True)]
    return whole


def _checked(tree: Node, section: type[BaseModel] | None, sources: Mapping[str, SourceRules], problems: list[Problem]) -> RunConfig | None:
    """`tree` as a typed configuration, its model section with the family's defaults; None, and problems, if it is not one."""
    data = plain(tree)
    before = len(problems)
    if section is not None and isinstance(data.get("model", {}), dict):
        try:
            data["model"] = section.model_validate(data.get("model", {})).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            problems += explain(error, tree, section, ("model",))
    try:
        config = RunConfig.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += explain(error, tree, RunConfig, choices={"source": list(sources)})
    return config if len(problems) == before else None


def _origin(tree: Node, path: Sequence[str | int]) -> str:
    node, depth = find(tree, path)
    return node.source if depth == len(path) else DEFAULT
