"""`plait completion`: what a shell completes with the script, by asking the shell."""

import contextlib
import os
import pty
import shutil
import subprocess
import sys

import pytest

from plait import cli
from plait.commands import command_line, completion


@pytest.fixture
def home(tmp_path):
    for folder in ("runs/demo", "runs/my $(touch ran) run", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    return tmp_path


def script(shell):
    return completion.script(shell, command_line.build_parsers()[1])


def asked(shell, home, text):
    """What the shell offers for the last word of `text`, files left out."""
    (home / "script").write_text(script(shell))
    if shell == "fish":
        command = ["fish", "--no-config", "-c", "source ./script; complete -C $argv[1]", text]
    else:
        code = 'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _plait; printf "%s\\n" "${COMPREPLY[@]}"'
        command = ["bash", "--norc", "-c", code, shell, *text.split(" ")]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(home)})
    assert done.stderr == ""
    return {line for line in done.stdout.splitlines() if line}


def typed(shell, home, keys):
    """The arguments that an interactive shell gives to `plait` when `keys` are typed, \\t and all."""
    (home / "script").write_text(script(shell))
    begin = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    environment = {**os.environ, "HOME": str(home), "TERM": "dumb", "HISTFILE": ""}
    master, terminal = pty.openpty()
    with subprocess.Popen(
        begin, cwd=home, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    ) as run:
        os.close(terminal)
        tabs = b"zstyle ':completion:*' insert-tab false\n" if shell == "zsh" else b""  # or it takes quick typing for a paste
        os.write(master, tabs + b"source ./script; plait() { printf '%s\\n' \"$@\" > given; }\n" + keys.encode() + b"\nexit\n")
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while os.read(master, 4096):
                pass
        run.wait()
    os.close(master)
    return (home / "given").read_text().splitlines()


def there(*shells):
    """The shells that this machine has; a skipped test for each other."""
    return [pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here")) for shell in shells]


@pytest.fixture(params=there("bash", "fish"))
def offers(request, home):
    return lambda text: asked(request.param, home, text)


def test_a_shell_completes_verbs_and_those_of_groups(offers):
    assert offers("plait st") == {"stages"}
    assert offers("plait ckpt ") == {"inspect", "verify", "consolidate", "ema", "prune", "diff", "replay"}
    assert offers("plait completion ") == {"bash", "zsh", "fish"}


def test_a_shell_completes_options_of_the_verb_alone(offers):
    assert offers("plait train --rest") == {"--restart"}
    assert offers("plait stages --rest") == set()
    assert offers("plait data index --be") == {"--beside"}
    assert offers("plait eval runs/demo --bench loss --ra") == {"--raw"}
    assert offers("plait generate runs/demo --im") == {"--image", "--image-scale"}


def test_a_shell_completes_settings_of_a_configuration(offers):
    steps = {"--optim.schedule.warmup_from", "--optim.schedule.warmup_steps", "--optim.schedule.warmup_tokens"}
    assert offers("plait train mine.yaml --optim.schedule.warmup_") == steps
    assert offers("plait data inspect mine.yaml --optim.schedule.warmup_") == steps
    assert offers("plait eval mine.yaml --optim.schedule.warmup_") == set()


@pytest.mark.parametrize("shell", there("bash", "zsh"))
def test_what_is_typed_with_tabs_is_what_the_shell_runs(shell, home):
    assert typed(shell, home, "plait tr\tmi\t--res\t--optim.lr\t3e-6") == ["train", "mine.yaml", "--restart", "--optim.lr", "3e-6"]


@pytest.mark.parametrize("shell", there("bash", "zsh"))
def test_a_run_with_blanks_and_signs_in_its_name_is_completed_and_nothing_in_it_is_run(shell, home):
    run = "runs/my $(touch ran) run"
    assert [word.rstrip("/") for word in typed(shell, home, "plait ckpt ins\truns/m\t")] == ["ckpt", "inspect", run]
    assert typed(shell, home, "plait fork runs/demo --run runs/m\t")[-1].rstrip("/") == run
    assert not (home / "ran").exists()


@pytest.mark.parametrize("shell", there("bash"))
def test_a_value_after_an_equals_sign_is_a_file_too(shell, home):
    assert typed(shell, home, "plait train mine.yaml --run=runs/d\t") == ["train", "mine.yaml", "--run=runs/demo/"]


def test_every_verb_and_option_is_in_the_script():
    parsers = command_line.build_parsers()[1]
    for shell in completion.SHELLS:
        text = script(shell)
        assert all(word in text for words in parsers for word in words)
    assert {("train",), ("ckpt", "diff"), ("completion",)} <= parsers.keys()


def test_names_of_settings_are_those_that_the_command_line_takes():
    names = [*completion.setting_names()]
    assert {"optim.lr", "optim.ema.decay", "track.wandb.project", "from", "train.plateau.metric"} <= {*names}
    assert len(names) == len(set(names)) and not any("from_" in name for name in names)


def test_the_script_is_printed_without_torch():
    code = "import sys; from plait import cli; cli.main(['completion', 'zsh']); assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == script("zsh")


def test_an_unknown_shell_is_one_line(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "plait: shell 'tcsh' is unknown: known: bash, zsh, fish (see plait completion --help)\n"
