"""The saver where the disk does not take a checkpoint: told at once, tried again while training goes on, raised when nothing helped.

A file where the unfinished folder should be is what no write gets past: `mkdir` fails as on a full or failing disk, for any user.
"""

import contextlib
import logging
import threading

import pytest
import torch

from plait.engine.checkpoints import checkpoint, failed_writes, integrity
from plait.engine.checkpoints.saver import Saver
from plait.engine.checkpoints.sharded_files import RankFiles
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from tests import processes

ALONE = Ranks(0, 1, torch.device("cpu"))
GROUPS = {"weights": {"w": torch.arange(4.0)}}
FACTS = {"stage": "only", "base": [], "data": {}, "frozen_xxh3": "0"}


@contextlib.contextmanager
def told(after_line=lambda number: None):
    """The lines of the saver, as they are logged; `after_line(how many)` is called in the thread that logs."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            after_line(len(lines))

    handler, logger = Handler(), logging.getLogger(failed_writes.__name__)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def in_the_way(run, step):
    path = run / "stage-1-only" / f".saving-step-{step:08d}"
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    return path


def save(writer, run, step, keep=3):
    writer.save(checkpoint.folder_of(run, 1, "only", step), GROUPS, {**FACTS, "state": {"step": step}}, keep=keep)


@pytest.mark.parametrize("background", [True, False])
def test_a_write_that_fails_once_is_told_and_made_up_for(tmp_path, background):
    blocking, writer = in_the_way(tmp_path, 2), Saver(background, ALONE, lambda part: None)
    with told(lambda number: blocking.unlink() if number == 1 else None) as lines:
        save(writer, tmp_path, 2)
        writer.wait()
    failed, done = lines
    assert "step-00000002 could not be written: " in failed and "File exists" in failed and "no checkpoint exists yet" in failed
    assert failed.endswith("; it is tried again in 10 s, or when the run needs it" if background else "; it is tried again once more")
    assert done == f"checkpoint {tmp_path}/stage-1-only/step-00000002 is written, at try 2"
    assert integrity.newest_intact(tmp_path)[0].step == 2


def test_a_write_is_tried_again_while_nobody_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(failed_writes, "PAUSES_S", (0.0, 0.001))
    blocking, writer = in_the_way(tmp_path, 2), Saver(True, ALONE, lambda part: None)
    with told(lambda number: blocking.unlink() if number == 5 else None) as lines:
        save(writer, tmp_path, 2)
        writer._thread.join()  # as training would go on meanwhile
        assert not writer._waiting.awaited.is_set()
    assert [line.rpartition("; ")[2] for line in lines[:3]] == [
        "it is tried again in 0 s, or when the run needs it",
        *["it is tried again in 0.001 s, or when the run needs it"] * 2,
    ]
    assert len(lines) == 6 and lines[-1].endswith("is written, at try 6")
    writer.wait()
    assert integrity.newest_intact(tmp_path)[0].step == 2


@pytest.mark.parametrize("background", [True, False])
def test_a_write_that_never_succeeds_is_told_at_once_and_raised_once_when_it_is_needed(tmp_path, background):
    writer = Saver(background, ALONE, lambda part: None)
    save(writer, tmp_path, 1)
    in_the_way(tmp_path, 2)

    def save_twice():
        for step in (2, 3):
            save(writer, tmp_path, step)

    with told() as lines, pytest.raises(PlaitError, match=r"step-00000002 could not be written: .*; earlier checkpoints are intact"):
        save_twice()
    assert len(lines) == 1
    writer.close()
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000001"]
    save(writer, tmp_path, 3)
    writer.wait()
    assert integrity.newest_intact(tmp_path)[0].step == 3


def test_an_error_that_is_not_of_the_disk_is_not_tried_again(tmp_path):
    writer = Saver(False, ALONE, lambda part: None)
    with told() as lines, pytest.raises(TypeError):
        writer.save(checkpoint.folder_of(tmp_path, 1, "only", 1), {"weights": {"w": torch.zeros(2), 5: torch.zeros(2)}}, FACTS, keep=1)
    assert lines == []


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_deleted_by_the_next_save(tmp_path):
    writer = Saver(False, ALONE, lambda part: None)
    save(writer, tmp_path, 1, keep=1)
    blocking = in_the_way(tmp_path, 1)
    with told() as lines:
        save(writer, tmp_path, 2, keep=1)
    assert len(lines) == 1 and lines[0].endswith("an old checkpoint could not be deleted; the next save tries again")
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000002", "step-00000001"]
    blocking.unlink()
    save(writer, tmp_path, 3, keep=1)
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000003"]


@pytest.mark.parametrize("background", [True, False])
def test_the_last_try_is_marked_while_it_runs_so_that_a_slow_disk_is_no_hang(tmp_path, monkeypatch, background):
    marked, tries = threading.Event(), []

    def slow(folder, *others):
        if not tries:
            marked.clear()  # the save itself began with one
        tries.append(marked.wait(60 if tries else 0))
        raise PlaitError("no space")

    monkeypatch.setattr(checkpoint, "write", slow)
    writer = Saver(background, ALONE, lambda part: marked.set())

    def save_and_wait():
        save(writer, tmp_path, 1)
        writer.wait()

    with pytest.raises(PlaitError, match="no space"):
        save_and_wait()
    assert tries == [False, True]


def closing(first):
    """Two ranks write together and fail. One waits for the write and the other does not: how many tries each has made."""
    failed_writes.PAUSES_S = (3600.0,)
    with distributed.join("cpu") as ranks:
        group = torch.distributed.new_group(backend="gloo")
        waiting, tries = failed_writes.Waiting(), []

        def write():
            tries.append(waiting.settled.is_set())
            raise PlaitError("no space")

        if ranks.rank == first:
            waiting.awaited.set()
        with contextlib.suppress(PlaitError):
            failed_writes.until_written(write, PlaitError("no space"), RankFiles(ranks.rank, 2, {}, group), waiting, background=True)
        return tries


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_ends_alone_has_the_others_try_at_once(first):
    assert processes.run(2, closing, first) == [[True], [True]]
