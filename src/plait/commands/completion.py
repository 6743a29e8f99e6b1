"""The command `plait completion`: print a script that lets a shell complete verbs (sub-commands), options, settings and files.

The script is made from the parsers of all verbs, those of other installed packages too; completing starts no Python.
"""

import argparse
import logging
import typing
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from plait.commands.command import OVERRIDES, Arguments, Command, Parser, actions
from plait.config.schema import RunConfig
from plait.engine.monitoring.reporter import WHOLE

log = logging.getLogger(__name__)

SHELLS = ("bash", "zsh", "fish")
"""Shells that there is a completion script for."""

Parsers = Mapping[tuple[str, ...], Parser]
"""The parser of each verb, by its name as a tuple of words, such as ("ckpt", "diff")."""

_BASH = """\
# plait: completion of verbs, options and settings; without one of these the shell completes files
_plait() {
    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[*]:1:$((COMP_CWORD - 1))}" words=
    local settings="@SETTINGS@"
    case "$before " in
@CASES@    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _plait plait
"""

_ZSH = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\nautoload -Uz bashcompinit && bashcompinit\n"
"""Lines that let zsh run the script made for bash; they come before it."""

_FISH = """\
# plait: completion of verbs, options and settings; without one of these the shell completes files
function __plait_before
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"
end
function __plait_within
    set -l words (commandline -opc)
    for verb in $argv
        string match -q -- "$verb *" "$words[2..] "; and return 0
    end
    return 1
end
"""


def script(shell: str, parsers: Parsers) -> str:
    """Return the completion script for a shell, one of `SHELLS`, as text. `parsers`: {words of a verb: its parser} of all verbs."""
    return _fish(parsers) if shell == "fish" else _ZSH * (shell == "zsh") + _bash(parsers)


def setting_names(section: type[BaseModel] = RunConfig, above: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting that the command line can set, such as optim.lr; not of those inside lists.

    `section`: the class of the configuration, or of a section of it; `above`: the section's name and a dot, put before each.
    """
    for name, field in section.model_fields.items():
        dotted = f"{above}{field.alias or name}"
        kinds = [kind for kind in (field.annotation, *typing.get_args(field.annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            yield dotted
        elif typing.get_origin(field.annotation) not in (list, dict):
            yield from setting_names(inner, f"{dotted}.")


def _settings() -> list[str]:
    """Return the settings of a configuration as options."""
    return [f"--{name}" for name in setting_names()]


def _takes_settings(parser: Parser) -> bool:
    command: Command = parser.get_default("command")
    return command.settings == OVERRIDES


def _own_options(parser: Parser) -> list[argparse.Action]:
    """Return a verb's options, and those that its help lists beside them: of an option of several families the first."""
    command: Command = parser.get_default("command")
    every = [action for listed in (parser, *command.more()) for action in actions(listed) if action.option_strings]
    return list({action.option_strings[-1]: action for action in reversed(every)}.values())[::-1]


def _choices(parser: Parser) -> list[str]:
    """Return the words among which a verb's first argument is one; none where it is a path or name."""
    first = next((action for action in actions(parser) if not action.option_strings), None)
    return [str(choice) for choice in (first.choices if first is not None else None) or ()]


def _first_words(parsers: Parsers) -> dict[str, list[str]]:
    """Return {words before: words that can follow}.

    It is of verbs, of groups such as `ckpt`, and of verbs that begin with one of some words.
    """
    words: dict[str, list[str]] = {"": list(dict.fromkeys(words[0] for words in parsers))}
    for (*group, name), parser in parsers.items():
        if group:
            words.setdefault(group[0], []).append(name)
        if choices := _choices(parser):
            words[" ".join([*group, name])] = choices
    return words


def _bash(parsers: Parsers) -> str:
    cases = [f'        "{before} ") words="{" ".join(words)}" ;;\n' for before, words in _first_words(parsers).items()]
    for words, parser in parsers.items():
        options = [name for action in _own_options(parser) for name in action.option_strings if name.startswith("--")]
        options += ["$settings"] * _takes_settings(parser)
        cases.append(f'        "{" ".join(words)} "*) [[ $current == -* ]] && words="{" ".join(options)}" ;;\n')
    return _BASH.replace("@CASES@", "".join(cases)).replace("@SETTINGS@", " ".join(_settings()))


def _fish(parsers: Parsers) -> str:
    lines = [
        f"complete -c plait -f -n '__plait_before {_quoted(before)}' -a {_quoted(' '.join(words))}"
        for before, words in _first_words(parsers).items()
    ]
    for words, parser in parsers.items():
        within = f"complete -c plait -n '__plait_within {_quoted(' '.join(words))}'"
        for action in _own_options(parser):
            value = "" if action.nargs == 0 else " -r"
            lines += [f"{within} -l {name[2:]}{value}" for name in action.option_strings if name.startswith("--")]
    verbs = " ".join(_quoted(" ".join(words)) for words, parser in parsers.items() if _takes_settings(parser))
    lines += [f"complete -c plait -n '__plait_within {verbs}' -l {name[2:]} -r" for name in _settings()]
    return _FISH + "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"'


def declare(parser: Parser) -> None:
    """Add the arguments of `plait completion` to its parser."""
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(arguments: Arguments) -> None:
    """Print the completion script for the shell that the argument `shell` names."""
    log.info(script(arguments.shell, arguments.parsers).rstrip("\n"), extra=WHOLE)


COMMANDS = (Command(("completion",), "print a script by which bash, zsh or fish completes plait's commands", declare, run),)
