"""List the dialects in the order in which they are tried. A dialect is a format of another trainer, whose files load as they are written.

A new dialect is a module here and a row below, or an entry point `plait.dialects` of another package that names a `Dialect`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

from plait.config import plugins
from plait.config.dialects import dotted_flags, flat_json, molmo_commands, molmo_scripts, nested_yaml, wandb_sweeps
from plait.config.translation import CALLS, Dialect, Translation
from plait.errors import PlaitError

GROUP = "plait.dialects"
"""The entry point group of other packages' dialects."""
SHIPPED: tuple[Dialect, ...] = (
    Dialect("W&B sweep", wandb_sweeps.recognise, wandb_sweeps.translate),
    Dialect("flat JSON", flat_json.recognise, flat_json.translate),
    Dialect("nested YAML", nested_yaml.recognise, nested_yaml.translate),
    Dialect(
        *("dotted flags", dotted_flags.recognise, dotted_flags.translate),
        scripts=molmo_scripts.SCRIPTS,
        open_script=molmo_scripts.open_script,
        switches=dotted_flags.SWITCHES,
    ),
)
"""The dialects of this package, in the order in which they are tried."""


def dialects() -> tuple[Dialect, ...]:
    """Return the dialects (formats of other trainers) that plait ships, then those that installed packages offer.

    Raises PlaitError for one that breaks its contract, or has a name or script of another.
    """
    known, owners = list(SHIPPED), ["plait itself"] * len(SHIPPED)
    for entry in plugins.offered(GROUP):
        plugins.named(GROUP, entry.name, [dialect.name for dialect in SHIPPED])
        added = _load(entry)
        for dialect, owner in zip(known, owners, strict=True):
            if added.name == dialect.name:
                raise plugins.fault(entry, f"cannot be added: there is a dialect {added.name!r} already, of {owner}")
            if both := sorted(added.scripts.keys() & dialect.scripts.keys()):
                raise plugins.fault(entry, f"cannot be added: there is a script {both[0]!r} already, of {owner}")
        known.append(added)
        owners.append(plugins.package_of(entry))
    return tuple(known)


def _load(entry: EntryPoint) -> Dialect:
    dialect = plugins.load(entry, Dialect, CALLS)
    if dialect.scripts and dialect.open_script is None:
        raise plugins.fault(entry, f"({entry.value}) has scripts and no open_script(name, words), which makes the tree of one")
    return _guarded(dialect, entry)


def _guarded(dialect: Dialect, entry: EntryPoint) -> Dialect:
    """Return another package's dialect with functions whose errors name the package, and say how to go on."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except PlaitError:
            raise
        except Exception as error:  # whatever it is, it is that package's code that must be mended
            name = next(name for name in CALLS if vars(dialect)[name] is function)
            cure = "mend it, or uninstall the package to go on without this dialect"
            raise plugins.fault(entry, f"failed in {CALLS[name]}: {plugins.raised(error)}; {cure}") from error

    def translate(*arguments: Any) -> Translation:
        translation: Translation = call(dialect.translate, *arguments)
        if isinstance(translation, Translation) and (wrong := plugins.faults(translation, {})):
            raise plugins.fault(entry, f"returned from {CALLS['translate']} a Translation whose {'; '.join(wrong)}")
        return translation

    opened = None if dialect.open_script is None else functools.partial(call, dialect.open_script)
    return replace(dialect, recognise=functools.partial(call, dialect.recognise), translate=translate, open_script=opened)


def scripts() -> dict[str, tuple[str, ...]]:
    """Return all launch scripts, names given in place of a file, with the words that follow each: {"molmo/captioner": ("MODEL",)}.

    Raises PlaitError for a dialect of another package that breaks its contract.
    """
    return {name: words for dialect in dialects() for name, words in dialect.scripts.items()}


def is_script(name: str) -> bool:
    """Return whether `name` is a launch script of a dialect, such as molmo/captioner, which takes words, and not a file."""
    return name in scripts()


def takes_value(script: str, setting: str, word: str) -> bool:
    """Return whether `word` is the value of `setting` (without dashes) in `SCRIPT --setting word`, rather than a word of the script.

    `script`: its name, such as molmo/captioner. After a switch, a setting that may stand without a value, only true and false are values.
    """
    switches = next(dialect.switches for dialect in dialects() if script in dialect.scripts)
    alone = "." not in setting and setting != "run" and (switches is None or setting in switches)
    return not alone or (switches is not None and word.lower() in ("true", "false"))


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Return a command line with a training script of another trainer replaced by its name here; any other line unchanged.

    `["train", "launch_scripts/train_captioner.py", ...]` gives `["train", "molmo/captioner", ...]`. Raises PlaitError, with the command to
    type, for a line that plait cannot run so, such as torchrun with a script.
    """
    return molmo_commands.rewritten(arguments)
