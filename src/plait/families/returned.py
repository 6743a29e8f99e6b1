"""Check what the functions of another package's family return, when plait calls them: whatever is wrong with it becomes one clear line.

Families in this folder are not wrapped: their tests hold them to the same. The contract is in contract.py.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

import numpy as np
from torch import nn

from plait.config import plugins
from plait.engine.evaluation import CALLS, LOSS, Bench, Benches
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families.ablation import CALLS as ABLATION_CALLS
from plait.families.ablation import Ablation, Ablations
from plait.families.contract import Family, Monitor, Parameters, require_known
from plait.families.frozen import FrozenEncoder
from plait.families.lengths import TokenLengths
from plait.families.limits import Limits
from plait.families.members import METHODS

_BASE = "a list of dicts of part, name and revision (texts; revision may be None), and optionally folder"
_INSPECT = "a dict of images (a list of uint8 arrays, H x W x 3), text (a list of pairs of a text and true or false) and notes (a dict)"


def checked(family: Family) -> Family:
    """Return the family with functions that raise PlaitError where they return something else than contract.py says."""
    of = f"family {family.name!r}: "

    def build(config: Any, assets: Path, *, seed: int) -> nn.Module:
        base(config)  # which is called for each checkpoint: what is wrong with it is told before the first step
        model = family.build(config, assets, seed=seed)
        return model if isinstance(model, nn.Module) else _refuse(f"{of}build(config, assets, *, seed)", model, "a torch module")

    def build_over(config: Any, assets: Path, *, seed: int, parts: frozenset[str]) -> nn.Module:
        assert family.build_over is not None
        model = family.build_over(config, assets, seed=seed, parts=parts)
        return model if isinstance(model, nn.Module) else _refuse(f"{of}build_over(config, assets, ...)", model, "a torch module")

    def inputs(config: Any, assets: Path, *, max_tokens: int | None, pad: str, train: bool) -> Any:
        made, what = family.Inputs(config, assets, max_tokens=max_tokens, pad=pad, train=train), "Inputs(config, assets, ...)"
        calls = {call.partition("(")[0]: call for call in METHODS["Inputs"]}
        if faults := plugins.function_faults({name: getattr(made, name) for name in calls if name in dir(made)}, calls):
            _refuse(f"{of}{what}", made, f"an object with {' and '.join(calls.values())}; {'; '.join(faults)}")
        return made

    def base(config: Any) -> Any:
        parts = family.base(config)
        sound = isinstance(parts, list | tuple) and all(map(_is_part, parts))
        return parts if sound else _refuse(f"{of}base(config)", parts, _BASE)

    def limits(config: Any) -> Limits:
        value = family.limits(config)
        if not isinstance(value, Limits):
            _refuse(f"{of}limits(config)", value, f"a {Limits.__module__}.Limits")
        if faults := plugins.faults(value, {}):
            raise PlaitError(f"{of}limits(config) returned Limits whose {'; '.join(faults)}")
        return value

    def monitors(config: Any) -> list[Monitor]:
        value = family.monitors(config)
        if not isinstance(value, list | tuple) or any(plugins.call_fault("monitor(row)", monitor) for monitor in value):
            _refuse(f"{of}monitors(config)", value, "a list of functions, monitor(row)")
        return [_monitor(of, monitor) for monitor in value]

    changed = replace(
        family,
        build=build,
        build_over=None if family.build_over is None else build_over,
        components=lambda model: _components(family, model),
        blocks=lambda model: _blocks(family, model, "blocks"),
        recomputed=lambda model: _blocks(family, model, "recomputed"),
        Inputs=inputs,
        Loss=lambda section: _loss(family, section),
        base=base,
        limits=limits,
        monitors=monitors,
        frozen_features=lambda config: _frozen_features(of, family.frozen_features(config)),
    )
    if (lengths := family.token_lengths) is not None:
        changed = replace(changed, token_lengths=lambda inputs: _token_lengths(of, lengths(inputs)))
    if family.generate is not None:
        changed = replace(changed, generate=_generate(of, family.generate))
    return changed if family.inspect is None else replace(changed, inspect=_inspect(of, family.inspect))


def _refuse(call: str, value: Any, wanted: str) -> NoReturn:
    """Raise PlaitError: what a call returned, and what it is to return."""
    raise PlaitError(f"{call} returned {plugins.shown(value)}: it is to return {wanted}")


def _components(family: Family, model: nn.Module) -> dict[str, Parameters]:
    """Return `family.components(model)`. Raises PlaitError unless it holds each parameter once."""
    what, components = f"family {family.name!r}: components(model)", family.components(model)
    if not (isinstance(components, Mapping) and all(isinstance(part, Mapping) for part in components.values())):
        _refuse(what, components, "{component: {parameter's name: parameter}}")
    parameters, held = dict(model.named_parameters()), Counter[str]()
    for part in components.values():
        held.update(part.keys())
    if unknown := sorted(held.keys() - parameters.keys(), key=str):
        raise PlaitError(f"{what} names {unknown[0]!r}, which is no parameter of the model")
    if twice := [parameter for parameter, count in held.items() if count > 1]:
        raise PlaitError(f"{what} has {twice[0]!r} in two components: each parameter belongs to one")
    if missing := [parameter for parameter in parameters if parameter not in held]:
        raise PlaitError(f"{what} leaves out {len(missing)} of {len(parameters)} parameters, the first {missing[0]!r}: add them to one")
    return components


def _blocks(family: Family, model: nn.Module, member: str) -> list[nn.Module]:
    """Return what the member `blocks` or `recomputed` does of the model. Raises PlaitError unless that are modules of it."""
    blocks, modules = getattr(family, member)(model), set(model.modules())
    several = isinstance(blocks, Sequence | nn.ModuleList)
    if not several or not all(isinstance(block, nn.Module) and block in modules for block in blocks):
        _refuse(f"family {family.name!r}: {member}(model)", blocks, "a list of modules of the model")
    return list(blocks)


def _loss(family: Family, section: Any) -> Loss:
    """Return `family.Loss(section)`. Raises PlaitError where its members have other types, or name what there is not."""
    loss, what = family.Loss(section), f"family {family.name!r}: "
    if "coefficients" not in dir(loss):
        raise PlaitError(f"{what}its Loss sets no coefficients, the factor of each term by name")
    factors = loss.coefficients
    if not (isinstance(factors, Mapping) and all(isinstance(factor, int | float) for factor in factors.values())):
        raise PlaitError(f"{what}coefficients of its Loss is to be a mapping, the factor of each term by name, not {factors!r}")
    for member, value in (("counts", loss.counts), ("may_idle", loss.may_idle), ("amounts", loss.amounts)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise PlaitError(f"{what}{member} of its Loss is to be a sequence of names, not {value!r}: a tuple of one is written (name,)")
    if both := [name for name in loss.counts if name in factors]:
        raise PlaitError(f"{what}counts of its Loss names {both[0]!r}, which is a term of coefficients: a name is one or the other")
    require_known(family.name, "amounts of its Loss", loss.amounts, [*factors, *loss.counts])
    return loss


def _frozen_features(of: str, value: Any) -> list[FrozenEncoder]:
    """Return what `frozen_features(config)` of a family returned. Raises PlaitError unless it is a list of encoders."""
    if isinstance(value, list | tuple) and all(isinstance(encoder, FrozenEncoder) for encoder in value):
        return list(value)
    _refuse(f"{of}frozen_features(config)", value, f"a list of {FrozenEncoder.__module__}.FrozenEncoder")


def _token_lengths(of: str, value: Any) -> TokenLengths:
    """Return what `token_lengths(inputs)` of a family returned. Raises PlaitError unless it is a TokenLengths."""
    if isinstance(value, TokenLengths):
        return value
    _refuse(f"{of}token_lengths(inputs)", value, f"a {TokenLengths.__module__}.TokenLengths")


def _is_part(part: Any) -> bool:
    """Return whether an item of `base` names a pretrained part."""
    return (
        isinstance(part, Mapping)
        and {"part", "name", "revision"} <= part.keys() <= {"part", "name", "revision", "folder"}
        and isinstance(part["part"], str)
        and isinstance(part["name"], str)
        and all(isinstance(part.get(name), str | None) for name in ("revision", "folder"))
    )


def _monitor(of: str, monitor: Monitor) -> Monitor:
    def warnings(row: Mapping[str, Any]) -> list[str]:
        lines = monitor(row)
        if not (isinstance(lines, list | tuple) and all(isinstance(line, str) for line in lines)):
            _refuse(f"{of}a function of monitors(config)", lines, "a list of texts, which may be empty")
        return list(lines)

    return warnings


def _generate(of: str, generate: Callable[..., Iterable[str]]) -> Callable[..., Iterator[str]]:
    call, wanted = f"{of}generate(model, inputs, options, out, moment)", "texts, a line each: a list, or one by one with yield"

    def lines(*arguments: Any) -> Iterator[str]:
        given = generate(*arguments)
        for line in given if isinstance(given, Iterable) and not isinstance(given, str) else _refuse(call, given, wanted):
            yield line if isinstance(line, str) else _refuse(call, line, wanted)

    return lines


def _inspect(of: str, inspect: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    call = f"{of}inspect(inputs, sample, example)"

    def shown(*arguments: Any) -> dict[str, Any]:
        value = inspect(*arguments)
        if not isinstance(value, dict):
            _refuse(call, value, _INSPECT)
        if lacking := [name for name in ("images", "text", "notes") if name not in value]:
            raise PlaitError(f"{call} returned a dict without {' and '.join(map(repr, lacking))}: it is to return {_INSPECT}")
        wrong = [name for name, sound in _SHOWN.items() if name in value and not sound(value[name])]
        if not wrong and "labels" in value and len(value["labels"]) != len(value["images"]):
            wrong = ["labels"]
        if wrong:
            raise PlaitError(f"{call} returned other {wrong[0]}: it is to return {_INSPECT}; labels: a text per image")
        return value

    return shown


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _is_run(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], bool)


_SHOWN: Mapping[str, Callable[[Any], bool]] = {
    "images": lambda value: isinstance(value, list | tuple) and all(map(_is_picture, value)),
    "text": lambda value: isinstance(value, list | tuple) and all(map(_is_run, value)),
    "notes": lambda value: isinstance(value, Mapping),
    "labels": lambda value: isinstance(value, list | tuple) and all(isinstance(label, str) for label in value),
}
"""By key of what `inspect` returns: whether its value is of the right types."""


def checked_benches(family: str, module: ModuleType) -> Benches:
    """Return the benches of a family's evaluate.py, with functions that raise PlaitError for what no Bench may return.

    Raises PlaitError where the module defines no `benches`, or one that does not fulfil the contract.
    """
    of, wanted = f"family {family!r}: ", f"a mapping of name to {Bench.__module__}.Bench"
    if "benches" not in vars(module):
        raise PlaitError(f"{of}{module.__name__} has no benches, {wanted}")
    if not isinstance(module.benches, Mapping):
        raise PlaitError(f"{of}{module.__name__}.benches is a {type(module.benches).__name__}, not {wanted}")
    for name, bench in module.benches.items():
        where = f"{of}{module.__name__}.benches[{name!r}]"
        if not isinstance(bench, Bench):
            raise PlaitError(f"{where} is no Bench: it is to be {wanted}")
        if not isinstance(name, str) or name == LOSS or {":", "/"} & set(name):
            raise PlaitError(f"{where} has a name that cannot be used: it is to be a text without : and /, and not {LOSS!r}")
        if wrong := plugins.faults(bench, CALLS):
            raise PlaitError(f"{where} does not fulfil the contract of {Bench.__module__}.Bench: {'; '.join(wrong)}")
    return {name: _checked_bench(f"{of}bench {name!r}: its ", bench) for name, bench in module.benches.items()}


def checked_ablations(family: str, listed: Any) -> Ablations:
    """Return `listed`, the `ablations` of another package's evaluate.py, checked. Raises PlaitError for one that breaks the contract."""
    wanted = f"a mapping of name to {Ablation.__module__}.Ablation"
    if not isinstance(listed, Mapping):
        raise PlaitError(f"family {family!r}: evaluate.ablations is a {type(listed).__name__}, not {wanted}")
    for name, ablation in listed.items():
        where = f"family {family!r}: evaluate.ablations[{name!r}]"
        if not isinstance(ablation, Ablation):
            raise PlaitError(f"{where} is no Ablation: it is to be {wanted}")
        if wrong := plugins.faults(ablation, ABLATION_CALLS):
            raise PlaitError(f"{where} does not fulfil the contract of {Ablation.__module__}.Ablation: {'; '.join(wrong)}")
    return cast("Ablations", listed)


def _checked_bench(of: str, bench: Bench) -> Bench:
    def predict(model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str) -> list[dict[str, Any]]:
        call = f"{of}predict"
        rows = bench.predict(model, samples, inputs, batch=batch, moment=moment)
        if not isinstance(rows, list | tuple):
            _refuse(call, rows, "a list of rows, one for each sample, in order")
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise PlaitError(f"{call} returned {plugins.shown(row)} as row {number}: a row is a dict of JSON values with an id")
            if "id" not in row:
                raise PlaitError(f"{call} returned row {number} without an id: it has {', '.join(map(str, row)) or 'nothing'}")
            if (fault := plugins.json_fault(row)) is not None:
                raise PlaitError(f"{call} returned row {number} with {fault}: a row holds JSON values; of a tensor, .tolist()")
        return list(rows)

    def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        figures = bench.summarise(rows)
        if not isinstance(figures, Mapping):
            _refuse(f"{of}summarise", figures, "figures, a dict of numbers by name")
        for name, figure in figures.items():
            if not (isinstance(name, str) and isinstance(figure, int | float)):
                raise PlaitError(f"{of}summarise returned {plugins.shown(figure)} as {name!r}: a figure is a number; of a tensor, .item()")
        return dict(figures)

    def pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        assert bench.pictures is not None
        drawn = bench.pictures(rows)
        sound = isinstance(drawn, dict) and all(map(_is_picture, drawn.values()))
        return drawn if sound else _refuse(f"{of}pictures", drawn, "pictures by name, a dict of uint8 arrays, H x W x 3")

    def needs(section: Any) -> Sequence[str]:
        names = bench.needs(section)
        sound = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        return names if sound else _refuse(f"{of}needs", names, "a list of names of encoders")

    def about(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        texts = bench.about(rows)
        sound = isinstance(texts, Mapping) and all(isinstance(item, str) for pair in texts.items() for item in pair)
        return texts if sound else _refuse(f"{of}about", texts, "a dict of texts by name")

    def finish(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        ended = bench.finish(rows)
        sound = isinstance(ended, list) and len(ended) == len(rows) and all(isinstance(row, dict) and "id" in row for row in ended)
        return ended if sound else _refuse(f"{of}finish", ended, "a list of as many rows, in order")

    drawing = None if bench.pictures is None else pictures
    return replace(bench, predict=predict, summarise=summarise, pictures=drawing, needs=needs, about=about, finish=finish)
