"""Write docs/cli.md and the table of AGENTS.md from the parsers of verbs, and docs/configuration_reference.md from the schema of settings.

    python scripts/reference.py            write them
    python scripts/reference.py --check    exit with 1, and name them, if one of them is not what would be written

tests/test_reference.py holds the files to this.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.commands import command_line
from plait.commands.command import Command, actions
from plait.config.schema import RunConfig
from plait.families import registry

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WIDTH = 120
"""Characters of a line of prose; rows of tables are as long as they are."""

Schema = Mapping[str, Any]
"""A JSON schema, as pydantic makes it of a section of settings."""

COMMANDS_HEAD = """\
# What can be typed?

Written by `python scripts/reference.py` from the parsers themselves; `plait VERB --help` prints the same.

```sh
plait train configs/theworld/demo.yaml --optim.lr=1e-3 --run=runs/first
```

A checkpoint is named `RUN` (its newest), `RUN@STEP`, `RUN@best`, `RUN/STAGE`, `RUN/STAGE@STEP`, `RUN/STAGE@best`, or by its own folder.
Where a verb takes settings of the configuration, `--a.b=value` sets one; [configuration_reference.md](configuration_reference.md) has all
of them.

## Exit codes
| code | means | what a script does |
|---|---|---|
| 0 | done; of a check, nothing is wrong | go on |
| 1 | stopped, and may go on: a hang, a lost rank or disk, a loss that is not finite; of `plan`, `doctor`, `prove`, \
`upgrade-check`, `verify`, `ckpt verify`: wrong | read the last line, then the same command |
| 2 | would come again: a wrong argument, setting or file, or data that cannot be used | mend what the line says; a restart does not help |
| 75 | asked to stop (SIGTERM, SIGINT in a run, a time limit), and saved | the same command goes on from there |
| 130 | Ctrl-C where nothing had to be saved | |

Every error is one line on standard error. What a verb was asked for is on standard output; with `--json` that is one JSON object, and
nothing else.

## Environment
| variable | what it is for |
|---|---|
| `CC` | the C compiler that `distributed.compile: auto` looks for; else `gcc` or `clang` |
| `PLAIT_CACHE` | folder of indices, fetched files, features and compiled blocks; else `~/.cache/plait` |
| `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` | as in `huggingface_hub`: the token, the cache, no network |
| `WANDB_API_KEY`, `WANDB_MODE` | the key of Weights & Biases (secrets are read from the environment alone); `disabled`, `offline` |
| `WANDB_RUN_ID`, `WANDB_SWEEP_ID` | set by a sweep's agent; the run takes its place in the sweep |
| `MLFLOW_TRACKING_URI` | where MLflow is, for `track.mlflow` without `uri` |
| `HF_HUB_VERBOSITY` | how much the Hub's client tells; by default its errors alone |
| `CUDA_VISIBLE_DEVICES` | which GPU is used |
"""

SETTINGS_HEAD = """\
# Which settings are there?

Written by `python scripts/reference.py` from the schema. [configuration.md](configuration.md) says how files, presets, stages and the
command line are put together; `plait config FILE` prints every value of a run with where it comes from. Each setting can be given on the
command line: `--optim.lr=3e-4`.
"""


def main() -> None:
    """Write the pages, or with `--check` exit with 1 if one of them would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not what would be written")
    check = parser.parse_args().check
    old = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in old:
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    if check and old:
        sys.exit(f"{', '.join(path.name for path in old)}: run python scripts/reference.py")


def pages() -> dict[Path, str]:
    """Return the text of each page by its path."""
    agents = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    return {
        DOCS / "cli.md": command_page(),
        DOCS / "configuration_reference.md": settings_page(),
        ROOT / "AGENTS.md": re.sub(r"(\| verb \|.*\n\|---.*\n)(\|.*\n)*", lambda found: found[1] + verb_rows(), agents),
    }


def verb_rows() -> str:
    """Return a row per verb for AGENTS.md: its name, what it is for, and the keys of its `--json`."""
    rows = []
    for words, own in command_line.build_parsers()[1].items():
        keys = [action.help or "" for action in actions(own) if "--json" in action.option_strings]
        rows.append(f"| `plait {' '.join(words)}` | {_cell(_command(own).help)} | {_cell(' '.join(keys).partition(': ')[2])} |\n")
    return "".join(rows)


def command_page() -> str:
    """Return the page of all verbs: what each is for, its arguments and options."""
    _, parsers = command_line.build_parsers()
    listed = [f"| [`plait {' '.join(words)}`](#plait-{'-'.join(words)}) | {_cell(_command(own).help)} |" for words, own in parsers.items()]
    parts = [wrapped(COMMANDS_HEAD), "## Verbs\n| verb | |\n|---|---|\n" + "\n".join(listed) + "\n"]
    for words, own in parsers.items():
        command = _command(own)
        about = [f"{command.help[0].upper()}{command.help[1:]}."] + ([command.settings] if command.settings else [])
        parts.append(f"## plait {' '.join(words)}\n" + wrapped(" ".join(about)) + "\n")
        parts.append(_options(own))
        parts += [f"{_title(more)}\n\n{_options(more)}" for more in command.more()]
    return "\n".join(part for part in parts if part)


def _command(parser: argparse.ArgumentParser) -> Command:
    """Return the declaration of a parser's verb."""
    command = parser.get_default("command")
    assert isinstance(command, Command)
    return command


def _options(parser: argparse.ArgumentParser) -> str:
    """Return the table of a parser's arguments and options, without its help; empty where it has none."""
    rows = []
    for action in actions(parser):
        if isinstance(action, argparse._HelpAction):
            continue
        value = "" if action.nargs == 0 else action.metavar or (_choices(action) if action.choices else action.dest.upper())
        names = ", ".join(action.option_strings)
        name = f"`{names} {value}`" if names and value else f"`{names or value}`"
        needed = "" if action.option_strings or action.nargs not in ("?", "*") else " (may be left out)"
        default = "" if action.default in (None, False, argparse.SUPPRESS, []) or action.nargs == 0 else f" (default {action.default})"
        help_ = (action.help or "").replace("%%", "%") % {"default": action.default, "prog": parser.prog} if action.help else ""
        rows.append(f"| {_cell(name)} | {_cell(help_)}{needed}{'' if 'default' in help_ else default} |")
    return "| argument | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def _title(parser: argparse.ArgumentParser) -> str:
    """Return what the help calls a parser's arguments, such as "options of family molmo"."""
    return next((f"{str(group.title)[0].upper()}{str(group.title)[1:]}:" for group in parser._action_groups if group._group_actions), "")


def _choices(action: argparse.Action) -> str:
    return ",".join(map(str, action.choices or ()))


def settings_page() -> str:
    """Return the page of all settings: those of every run by section, and then the `model:` section of each family."""
    schema = RunConfig.model_json_schema(by_alias=True)
    parts = [wrapped(SETTINGS_HEAD), "## At the top\n" + _table(schema, schema, "")]
    for path, section in _sections(schema, schema, ""):
        parts.append(f"## {path}\n{wrapped(_null(_about(section)))}\n\n{_table(section, schema, path)}")
    for family, config in registry.model_configs():
        own = config.model_json_schema(by_alias=True)
        parts.append(f"## model, of family {family}\n{wrapped(_about(own))}\n\n{_table(own, own, 'model')}")
        for path, section in _sections(own, own, "model"):
            parts.append(f"### {path}, of family {family}\n{wrapped(_about(section))}\n\n{_table(section, own, path)}")
    return "\n".join(parts)


def _sections(schema: Schema, root: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield every section below `schema`, as (its path of keys, its schema), each where it is used first."""
    seen: set[str] = set()
    waiting = [(path, schema)]
    while waiting:
        place, section = waiting.pop(0)
        for key, value in section.get("properties", {}).items():
            for reference, suffix in _references(value):
                name = reference.rpartition("/")[2]
                if name in seen:
                    continue
                seen.add(name)
                below = ".".join(part for part in (place, key) if part) + suffix
                yield below, root["$defs"][name]
                waiting.append((below, root["$defs"][name]))


def _references(value: Schema, suffix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the sections that a value may be, as (reference, what stands behind the key: "" or ".N" of a list, ".NAME" of a mapping)."""
    if "$ref" in value:
        yield value["$ref"], suffix
    for part in [*value.get("anyOf", []), *value.get("oneOf", []), *value.get("allOf", [])]:
        yield from _references(part, suffix)
    if isinstance(value.get("items"), Mapping):
        yield from _references(value["items"], suffix + ".N")
    if isinstance(value.get("additionalProperties"), Mapping):
        yield from _references(value["additionalProperties"], suffix + ".NAME")


def _table(section: Schema, root: Schema, path: str) -> str:
    """Return the table of a section's own keys: value, default and meaning."""
    rows = []
    for key, value in section.get("properties", {}).items():
        default = "required" if key in section.get("required", []) else _default(value, root)
        name = f"{path}.{key}" if path else key
        meaning = value.get("description") or _about_section(value, root, path)
        rows.append(f"| `{name}` | {_cell(_kind(value, root))} | {_cell(default)} | {_cell(_null(meaning))} |")
    return "| setting | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _about_section(value: Schema, root: Schema, path: str) -> str:
    """Return the first sentence about the section that a value is, or a list of; of a stage's own, what it differs from."""
    sections = [root["$defs"][reference.rpartition("/")[2]] for reference, _ in _references(value)]
    if sections:
        return _about(sections[0]).partition(". ")[0].partition("\n")[0].rstrip(".")
    return f"what differs from `{str(value.get('title', '')).lower()}` of the run" if path == "stages.N" else ""


def _null(text: str) -> str:
    """Return a description as it is read in a file: null, which Python calls None, and no marks that Markdown would take for its own."""
    return re.sub(r"<(?=\w)", "\\<", re.sub(r"\bNone\b", "`null`", text))


def _default(value: Schema, root: Schema) -> str:
    """Return a default as YAML would have it: nothing for one that is none, or a section of defaults."""
    default = value.get("default")
    if default is None or default in ({}, []) or isinstance(default, Mapping):
        return ""
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def _kind(value: Schema, root: Schema) -> str:
    """Return what a value may be, in words: "a whole number from 1", "one of `ddp`, `fsdp`", "a list of texts"."""
    if "$ref" in value:
        return "a section"
    if parts := value.get("anyOf") or value.get("oneOf") or value.get("allOf"):
        return ", or ".join(dict.fromkeys(_kind(part, root) for part in parts if part.get("type") != "null"))
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`" if not isinstance(value["const"], str) else f"`{value['const']}`"
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return f"a list of {len(value['prefixItems'])}: {_kind(value['prefixItems'][0], root)} each"
        inner = _kind(value.get("items", {}), root)
        return f"a list: {inner} each" if inner else "a list"
    if kind == "object":
        inner = _kind(value["additionalProperties"], root) if isinstance(value.get("additionalProperties"), Mapping) else ""
        return f"by name: {inner} each" if inner else "a mapping"
    words = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "`true`, `false`"}.get(str(kind), "")
    return " ".join(part for part in (words, _bounds(value)) if part)


def _bounds(value: Schema) -> str:
    """Return the limits of a number: "from 0, below 1"."""
    names = {"minimum": "from", "ge": "from", "exclusiveMinimum": "above", "gt": "above"}
    names |= {
        "maximum": "to",
        "le": "to",
        "exclusiveMaximum": "below",
        "lt": "below",
        "multipleOf": "in steps of",
        "multiple_of": "in steps of",
    }
    return ", ".join(f"{word} {value[key]:g}" for key, word in names.items() if key in value)


def _about(section: Schema) -> str:
    """Return the docstring of a section."""
    return str(section.get("description", ""))


def _cell(text: object) -> str:
    """Return text for one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def wrapped(text: str) -> str:
    """Return Markdown with its paragraphs wrapped; headings, tables and blocks of code stay as they are."""
    blocks, code = [], False
    for block in text.split("\n\n"):
        lines: Sequence[str] = block.splitlines()
        fenced = code or any(line.startswith("```") for line in lines)
        code ^= sum(line.startswith("```") for line in lines) % 2 == 1
        kept = fenced or any(line.startswith(("|", "#", "-")) for line in lines)
        blocks.append(block if kept else textwrap.fill(" ".join(block.split()), WIDTH, break_long_words=False, break_on_hyphens=False))
    return "\n\n".join(blocks).rstrip("\n") + ("\n" if text.endswith("\n") else "")


if __name__ == "__main__":
    main()
