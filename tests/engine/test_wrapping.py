"""Lines are as wide as the terminal, and whole where there is none; what may be copied from them is never broken."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait import cli
from plait.engine.monitoring.wrapping import columns, wrapped
from tests import processes

DEMO = "configs/theworld/demo.yaml"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("a line of forty columns in all, not more", ["a line of forty columns in all, not more"]),
        ("a line of more than forty columns: its second part", ["a line of more than forty columns: its", "    second part"]),
        ("  captions: 500 samples, 32 looked at: all good", ["  captions: 500 samples, 32 looked at:", "      all good"]),
        ("ok    names      one machine that all know to be one", ["ok    names      one machine that all", f"{' ' * 17}know to be one"]),
        ("accuracy  0.1  0.2  +1.0 points [0.5, 1.5]", ["accuracy  0.1  0.2", "          +1.0 points [0.5, 1.5]"]),
        ("data  waits for more than it should: 55 % of the step", ["data  waits for more than it should:", "      55 % of the step"]),
        ("data  waits for about as long as this 55 % of the step", ["data  waits for about as long as this", "      55 % of the step"]),
        (f"run   {'x' * 40}, and more", [f"run   {'x' * 40},", "      and more"]),
        ("ask   plait generate runs/a-long-name --prompt=...", ["ask   plait generate runs/a-long-name --prompt=..."]),
        ("go on: plait train runs/a --allow-inexact --nproc=2", ["go on:", "    plait train runs/a --allow-inexact --nproc=2"]),
        ("`plait ckpt verify runs/a/very/long/name` says which", ["`plait ckpt verify runs/a/very/long/name`", "    says which"]),
        ("見出しの文章はとても長いので、一行には入り ません", ["見出しの文章はとても長いので、一行には入り", "    ません"]),
        (f"{' ' * 30}weights  gradients  moments", [f"{' ' * 30}weights", f"{' ' * 13}gradients  moments"]),
        ("a blank that does not break, ever: the\xa0blank here", ["a blank that does not break, ever:", "    the\xa0blank here"]),
    ],
)
def test_a_line_is_wrapped_at_words_below_its_second_cell(line, shown):
    assert wrapped(line, 40).split("\n") == shown
    assert wrapped(line, None) == line and wrapped(line, 200) == line


@given(st.text(alphabet="ab: ;,`%5plait-", max_size=120), st.integers(20, 90))
def test_no_word_is_lost_and_no_line_is_too_wide_that_could_be_narrower(text, width):
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or " " not in line.strip() or "plait" in line or "`" in line or "%" in line for line in lines[1:])


def test_a_file_has_no_width_and_a_terminal_has_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with (tmp_path / "log").open("w") as file:
        assert columns(file) is columns(None) is None
    assert columns(file) is None  # closed
    main, side = pty.openpty()
    with os.fdopen(side, "w") as terminal:
        assert columns(terminal) == 80  # it has not been told
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 72, 0, 0))
        assert columns(terminal) == 72
        monkeypatch.setenv("COLUMNS", "60")
        assert columns(terminal) == 60
    os.close(main)


def on_a_terminal(width, *words):
    """Run plait in a pseudo-terminal of this width; return the lines that it shows and its exit code."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    process = processes.forked(shows, side, words, TERM="dumb")
    os.close(side)
    shown = bytearray()
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while chunk := os.read(main, 65536):
            shown += chunk
    os.close(main)
    return shown.decode().replace("\r", "").splitlines(), processes.codes([process])[0]


def shows(side, words):
    """End this process with the exit code of a command that reads from and writes to a terminal."""
    os.environ.pop("COLUMNS", None)
    for stream in range(3):
        os.dup2(side, stream)
    os.close(side)
    with open(0, closefd=False) as sys.stdin, open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        code = cli.main(words)
    os._exit(code)


def test_a_terminal_of_60_columns_shows_whole_words_and_whole_commands(tmp_path):
    run = tmp_path / "run"
    lines, code = on_a_terminal(60, "train", DEMO, f"--run={run}", "--train.steps=1", "--evaluate.0.samples=10")
    assert code == 0
    assert "stage 1 projection: trains projector 4,608 of 257,459" in lines and "    parameters (1.79%)" in lines
    assert f"export       plait export {run} {run}-export --to hf" in lines
    assert [line for line in lines if len(line) > 60 and str(run) not in line] == []
    shown, _ = on_a_terminal(60, "stages", str(run), "--json")
    assert json.loads("\n".join(shown))["run"] == str(run)


def test_a_terminal_of_60_columns_shows_errors_wrapped_and_json_as_it_is(tmp_path):
    lines, code = on_a_terminal(60, "train", DEMO, "--optim.lrr=1")
    assert code == 2 and len(lines) > 1 and all(len(line) <= 60 for line in lines) and lines[1].startswith("    ")
    for verb in ("config", "plan"):
        shown, _ = on_a_terminal(60, verb, DEMO, "--json")
        assert json.loads("\n".join(shown)) and any(len(line) > 60 for line in shown)
