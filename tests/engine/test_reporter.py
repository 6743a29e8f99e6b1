"""Where plait's log lines go: by level, rank, and once."""

import contextlib
import io
import logging
import os
import sys

import pytest

from plait.engine.monitoring import reporter
from plait.engine.monitoring.reporter import EVERY_RANK

log = logging.getLogger("plait.engine.test_reporter")


def test_information_goes_to_the_output_and_warnings_to_the_error_stream(capsys):
    log.info("a line")
    log.warning("a warning")
    log.error("an error")
    log.debug("a detail")
    out, err = capsys.readouterr()
    assert (out, err) == ("a line\n", "warning: a warning\nan error\n")


@pytest.mark.parametrize(("rank", "said"), [("0", "first\nevery\n"), ("1", "every\n"), (None, "first\nevery\n")])
def test_only_rank_0_speaks_unless_every_rank_is_to(monkeypatch, capsys, rank, said):
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    log.info("first")
    log.info("every", extra=EVERY_RANK)
    assert capsys.readouterr().out == said


def test_installing_twice_says_every_line_once(capsys):
    reporter.install()
    reporter.install()
    log.info("once")
    assert capsys.readouterr().out == "once\n"
    assert logging.getLogger("plait").propagate is False


def test_a_stream_that_is_closed_or_knows_fewer_letters_ends_nothing(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    log.info("ü \u86d9")
    assert narrow.buffer.getvalue() == b"\\xfc \\u86d9\n"
    narrow.close()
    log.info("to nobody")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken, contextlib.suppress(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", broken)
        log.info("to a pipe without a reader")
        reporter.settle_output()


def test_what_a_terminal_would_obey_is_shown(capsys):
    log.info("a\x1b[2Jb")
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"
