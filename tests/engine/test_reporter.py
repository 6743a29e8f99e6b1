"""Where plait's log lines go: by level, rank, and once."""

import logging

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
