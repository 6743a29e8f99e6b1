"""The command `plait recipes`: list the configurations that come with plait, and copy them. `declare` adds the arguments of `run`."""

import difflib
import itertools
import logging
import re
from pathlib import Path

import plait
from plait.commands.arguments import add_json
from plait.commands.command import Arguments, Command, Parser
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError, command
from plait.files import write_whole

log = logging.getLogger(__name__)

_FOLDER = "configs"
"""Where a copy lands, below the current folder: the commands of the recipes and of the docs name them there."""
_TYPES = (".yaml", ".json")
_MEANT_FOR = ("Hardware:", "Meant for:")


def declare(parser: Parser) -> None:
    """Add the arguments of `plait recipes` to its parser."""
    what = f"copy these, as FAMILY/NAME, to {_FOLDER}/ in the current folder; without any, list all"
    parser.add_argument("names", nargs="*", metavar="NAME", help=what)
    parser.add_argument("--replace", action="store_true", help="even over a file that says something else")
    add_json(parser, "recipes, copied")


def run(arguments: Arguments) -> None:
    """List the recipes with what each is for, or copy those that the argument `names` names.

    Raises PlaitError for a name that there is not, and, without `replace`, where another file is in its place.
    """
    every = recipes()
    bodies = {name: every[name].read_bytes() for name in map(_name_of, arguments.names)}
    if not arguments.replace:
        for name, body in bodies.items():
            if (target := Path(_FOLDER, name)).exists() and target.read_bytes() != body:
                raise PlaitError(f"{target} is another file than the recipe: keep it, or --replace it")
    for name, body in bodies.items():
        Path(_FOLDER, name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(_FOLDER, name), body)
    if arguments.json:
        rows = [{"name": name, "about": about(path)} for name, path in every.items()]
        show_json({"recipes": rows, "copied": [str(Path(_FOLDER, name)) for name in bodies]})
    elif bodies:
        for name in bodies:
            log.info(f"{Path(_FOLDER, name)}: `{command('train', Path(_FOLDER, name))}`, for {about(every[name])}")
    else:
        for name, path in every.items():
            log.info(f"{name:34} {about(path)}")
        log.info(f"to have one: {command('recipes', next(iter(every)))}")


def recipes() -> dict[str, Path]:
    """Return the recipes by name, FAMILY/FILE: from the installed package, or from the repository that it is run from."""
    package = Path(plait.__file__).parent
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / _FOLDER
    paths = sorted(path for path in folder.glob("*/*") if path.suffix in _TYPES)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def about(path: Path) -> str:
    """Return what a recipe is meant for, from the comment that it begins with, such as "2 CPU cores, no network"."""
    if path.suffix == ".json":
        return "a file of another trainer, which is translated"
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    told = next((line for line in lines if line.lstrip("# ").startswith(_MEANT_FOR)), "")
    return re.split(r"[.;(]|  ", told.partition(":")[2].strip())[0].strip()


def _name_of(text: str) -> str:
    """Return the name of the recipe that `text` means: with or without its ending, and `configs/` before it. Raises PlaitError for none."""
    every, wanted = recipes(), text.removeprefix(f"{_FOLDER}/")
    for name in (wanted, *(f"{wanted}{ending}" for ending in _TYPES)):
        if name in every:
            return name
    near = difflib.get_close_matches(wanted, every, 1, 0.5)
    raise PlaitError(f"{text}: no such recipe; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(every)}")


COMMANDS = (Command(("recipes",), "list the configurations that come with plait, and copy them", declare, run),)
