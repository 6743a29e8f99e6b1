"""Load a file and the settings of a command line into one validated configuration per stage, each value with its origin.

A stage is a part of a run with settings of its own; a preset is a family's file of settings below the user's; a dialect is the format of
another trainer. Values come from, in rising order: defaults, preset, file, stage, command line. Mappings merge, lists replace.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plait.config import data_paths, reading, secrets
from plait.config.absent import without_absent
from plait.config.conflicts import conflicts, frozen_as_drawn, idle_components, stage_conflicts
from plait.config.messages import Problem, problem_at, problems_in, raise_first, types_at
from plait.config.nodes import COMMAND_LINE, Node, deepest_node, dotted, from_plain, leaves, merge, nest, node_at, sets, to_plain
from plait.config.reading import Override
from plait.config.resolved import Resolved, StageView, dump
from plait.config.schema import ModelSection, RunConfig, Stage
from plait.config.source_rules import SourceRules
from plait.config.translation import Dialect, Translation, with_short_warmup
from plait.errors import PlaitError

DEFAULT = "default"
"""The origin of a value that nothing sets, in place of a file."""
_STAGED = frozenset(Stage.model_fields) - {"name"}
ModelConfig = Callable[[str], type[ModelSection]]
"""Returns the class of a family's `model:` section, by the family's name."""
Preset = Callable[[str, str], Path]
"""Returns the file of a preset, by the names of family and preset."""


def load_config(
    path: str | Path | Node,
    overrides: Sequence[str] = (),
    *,
    model_config: ModelConfig,
    preset: Preset,
    sources: Mapping[str, SourceRules],
    dialects: Sequence[Dialect] = (),
    words: Sequence[str] = (),
    data_base: Path | None = None,
    run_folder: Callable[[str], str] | None = None,
) -> Resolved:
    """Read, translate, merge and validate the configuration at `path`. Raises PlaitError, one line, for any error in it.

    `path` may be the mapping itself, as a node. `overrides`: settings such as "optim.lr=3e-6". `model_config(family)` returns the class of
    a family's `model:` section, `preset(family, name)` the file of a preset; `sources`: the kinds of data source by name; `dialects`: those
    to try. `words`: arguments of a launch script, if `path` is the name of one. `data_base`: the folder that paths of data are relative to;
    None: the file's. `run_folder`: function from the run folder as written to the one of this process; None: as written.
    """
    typed = [Override.parse(text) for text in overrides]
    file = path if isinstance(path, Node) else _read(Path(path), words, dialects)
    path = Path(path.file if isinstance(path, Node) else path)
    plait_keys = tuple(field.alias or name for name, field in RunConfig.model_fields.items())
    translation = _translate(dialects, file, typed, path, plait_keys)
    family = _chosen(translation.tree, translation.overrides, "family")
    section = _section(family, model_config) if family else None
    tree = _with_preset(_spelled_out(translation.tree), translation.overrides, preset)
    for override in sorted(translation.overrides, key=lambda item: item.path[0] == "stages"):  # a stage's own wins over a general one
        tree = _override(tree, override, section)
    run = node_at(tree, ("run",))
    if run is None or run.value is None:
        tree = merge(tree, Node({"run": Node(f"runs/{path.stem}", DEFAULT, path="run")}, tree.file, tree.line))
    tree = _trial(tree, run_folder) if run_folder else tree
    secrets.refuse(tree)
    reading.refuse_unwritable(tree)
    tree = data_paths.resolve_start(data_paths.expand(tree))
    tree = data_paths.resolve(tree, sources, Path.cwd() if translation.dialect else data_base)
    config, views = _validated(tree, section, sources)
    absent = section.model_validate(config.model).absent() if section is not None else {}
    tree, left_out = without_absent(tree, views, absent)
    if left_out:
        config, views = _validated(tree, section, sources)
    drawn = section.model_validate(config.model).drawn() if section is not None else ()
    origins = {dotted(leaf): _origin(tree, leaf) for leaf, _ in leaves(dump(config))}
    stages = [view.config for view in views]
    warnings = [*translation.warnings, *left_out, *frozen_as_drawn(stages, drawn, staged=bool(config.stages))]
    warnings += idle_components(stages, {} if translation.dialect else origins)
    return Resolved(
        config=config,
        stages=views,
        origins=origins,
        translation=translation.rows,
        warnings=warnings,
        yaml=reading.write_yaml(dump(config)),
        train_options=translation.train_options,
    )


def _read(path: Path, words: Sequence[str], dialects: Sequence[Dialect]) -> Node:
    """Read the mapping in a file, or make that of a launch script from its words."""
    for dialect in dialects:
        if dialect.open_script is not None and path.as_posix() in dialect.scripts:
            tree = dialect.open_script(path.as_posix(), words)
            if not isinstance(tree, Node):
                raise PlaitError(f"{path}: the {dialect.name} dialect opened a {type(tree).__name__}, not a {Node.__module__}.Node")
            return tree
    return reading.read(path)


def _translate(
    dialects: Sequence[Dialect], tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]
) -> Translation:
    """Translate `tree` into plait's names by the dialect that recognises it; without one, return it unchanged."""
    for dialect in dialects:
        if dialect.recognise(tree, plait_keys):
            translation = dialect.translate(tree, overrides, path, plait_keys)
            if not isinstance(translation, Translation):
                what = f"translated into a {type(translation).__name__}, not a {Translation.__module__}.Translation"
                raise PlaitError(f"{path}: the {dialect.name} dialect {what}")
            return replace(with_short_warmup(translation), dialect=dialect.name)
    return Translation(tree, overrides)


def _with_preset(tree: Node, overrides: Sequence[Override], preset: Preset) -> Node:
    """Return `tree` merged over the preset that it, or the command line, names."""
    name = _chosen(tree, overrides, "preset")
    family = _chosen(tree, overrides, "family")
    if name is None or family is None:
        return tree
    try:
        file = preset(str(family.value), str(name.value))
    except PlaitError as error:
        raise PlaitError(f"{name.location}: {error}") from None
    below = reading.read(file)
    if "preset" in below.value:
        raise PlaitError(f"{below.value['preset'].location}: a preset cannot stand on another preset")
    return merge(_spelled_out(_labelled(below, f"preset {name.value}")), tree)


def _spelled_out(tree: Node) -> Node:
    """Return `tree` with a list in place of the section `alert`, which is short for its `urls`, as the section."""
    short = node_at(tree, ("alert",))
    if short is None or not isinstance(short.value, str | list):
        return tree
    urls = short if isinstance(short.value, list) else replace(short, value=[short])
    return replace(tree, value={**tree.value, "alert": replace(short, value={"urls": urls})})


def _labelled(node: Node, label: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _labelled(child, label) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_labelled(child, label) for child in value]
    return replace(node, value=value, label=label)


def _chosen(tree: Node, overrides: Sequence[Override], key: str) -> Node | None:
    """Return the text at the top-level `key`, from the command line or else the tree. None where it is absent or not text."""
    for override in reversed(overrides):
        if override.path == (key,) and override.text not in ("", "null", "~"):
            return Node(override.text, COMMAND_LINE, path=key)
    node = node_at(tree, (key,))
    return node if node is not None and isinstance(node.value, str) else None


def _section(family: Node, model_config: ModelConfig) -> type[ModelSection]:
    try:
        return model_config(str(family.value))
    except PlaitError as error:
        raise PlaitError(f"{family.location}: {error}") from None


def _trial(tree: Node, run_folder: Callable[[str], str]) -> Node:
    """Return `tree` with the run folder that `run_folder` makes of the written one, as for each trial of a sweep."""
    run = tree.value["run"]
    if not isinstance(run.value, str) or (folder := run_folder(run.value)) == run.value:
        return tree
    return merge(tree, Node({"run": replace(run, value=folder)}, tree.file, tree.line))


def _override(tree: Node, override: Override, section: type[ModelSection] | None) -> Node:
    """Return `tree` with the override applied to the base, and to every stage that sets the same key."""
    leaf = Node(None, COMMAND_LINE, path=dotted(override.path))
    layer = _spelled_out(nest(override.path, from_plain(_value(override, section), leaf)))
    tree = merge(tree, layer)
    stages = node_at(tree, ("stages",))
    if override.path[0] not in _STAGED or stages is None or not isinstance(stages.value, list):
        return tree
    overridden = [_override_stage(stage, override, layer) for stage in stages.value]
    return merge(tree, replace(layer, value={"stages": replace(stages, value=overridden)}))


def _override_stage(stage: Node, override: Override, layer: Node) -> Node:
    return merge(stage, layer) if isinstance(stage.value, dict) and sets(stage, override.path) else stage


def _value(override: Override, section: type[ModelSection] | None) -> Any:
    """Return the value of an override: its text unchanged where the key takes only text, else parsed as YAML."""
    path = override.path
    if path[0] == "stages" and len(path) > 3:
        path = path[2:]
    wanted = types_at(section, path[1:]) if path[0] == "model" and section else types_at(RunConfig, path)
    text = override.text
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if wanted and set(wanted) <= {str, type(None)} and not quoted and text not in ("null", "~", ""):
        return text
    return override.value()


def _validated(
    tree: Node, section: type[ModelSection] | None, sources: Mapping[str, SourceRules]
) -> tuple[RunConfig, tuple[StageView, ...]]:
    """Return the base configuration and the view of each stage. Raises PlaitError for the problems of all of them."""
    problems: list[Problem] = []
    config = _parsed(tree, section, sources, problems)
    stages = node_at(tree, ("stages",))
    merged = []
    if config is None or stages is None or not config.stages:
        merged = [(1, "train", tree)]
    else:
        base = replace(tree, value={key: child for key, child in tree.value.items() if key != "stages"})
        for index, stage in enumerate(stages.value):
            over = replace(stage, value={key: child for key, child in stage.value.items() if key in _STAGED})
            merged.append((index + 1, config.stages[index].name, merge(base, over)))
    views = []
    for index, name, stage_tree in merged:
        parsed = _parsed(stage_tree, section, sources, problems) if config is not None else None
        if parsed is not None:
            problems += [problem_at(stage_tree, path, what) for path, what in [*conflicts(parsed, sources), *_refused(parsed, section)]]
            views.append(StageView(index, name, parsed))
    names = [view.name for view in views]
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f"is {name!r}, as is that of stage {names.index(name) + 1}: rename one"
            problems.append(problem_at(tree, ("stages", index, "name"), message))
    problems += [problem_at(tree, path, what) for path, what in stage_conflicts({view.name: view.config for view in views})]
    raise_first(problems)
    assert config is not None
    written = zip(dump(config)["stages"], views, strict=False)  # without stages there is one view
    stages_typed = [Stage(**_typed(stage, {**dump(view.config), "name": view.name})) for stage, view in written]
    return config.model_copy(update={"stages": stages_typed}), tuple(views)


def _refused(view: RunConfig, section: type[ModelSection] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield a conflict for each setting that the family cannot train with: `Config.refused`, {path of a setting: {value: reason}}."""
    for path, values in section.refused.items() if section is not None else ():
        value: Any = functools.reduce(lambda above, name: None if above is None else getattr(above, name), path, view)
        if value in values:
            yield path, f"is {value!r}, which family {view.family} refuses: {values[value]}"


def _typed(written: Any, whole: Any) -> Any:
    """Return what a stage wrote with the types of the stage's `whole` configuration: "3e-4" becomes 0.0003."""
    if isinstance(written, dict) and isinstance(whole, dict):
        return {key: _typed(child, whole[key]) for key, child in written.items()}
    if isinstance(written, list) and isinstance(whole, list):
        return [_typed(child, other) for child, other in zip(written, whole, strict=True)]
    return whole


def _parsed(
    tree: Node, section: type[ModelSection] | None, sources: Mapping[str, SourceRules], problems: list[Problem]
) -> RunConfig | None:
    """Validate `tree`, its model section with the family's defaults. Where it is invalid, add to `problems` and return None."""
    data = to_plain(tree)
    before = len(problems)
    if section is not None and isinstance(data.get("model", {}), dict):
        try:
            data["model"] = section.model_validate(data.get("model", {})).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            problems += problems_in(error, tree, section, ("model",))
    try:
        config = RunConfig.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += problems_in(error, tree, RunConfig, choices={"source": list(sources)})
    return config if len(problems) == before else None


def _origin(tree: Node, path: Sequence[str | int]) -> str:
    node, depth = deepest_node(tree, path)
    return node.origin if depth == len(path) else DEFAULT
