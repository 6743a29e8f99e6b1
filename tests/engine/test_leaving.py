"""How a rank leaves the others after an error: with its message and its exit code, whatever they do meanwhile."""

import os
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plait import __main__, cli
from plait.engine.parallel import distributed, leaving
from plait.errors import PlaitError
from tests import processes


def broken_with_a_replica(ranks):
    net = distributed.replicate(nn.Linear(7, 5), ranks, "none")
    net(torch.ones(3, 7)).sum().backward()
    replicas.append(weakref.ref(net))
    try:
        raise ValueError("first")
    except ValueError as error:
        raise KeyError("then") from error


replicas = []
"""Weak references to the replicas of this rank."""


def freed_before_the_group():
    freed = []
    destroy = leaving.dist.destroy_process_group
    leaving.dist.destroy_process_group = lambda: (freed.append(replicas[0]() is None), destroy())
    with pytest.raises(KeyError), distributed.join("cpu") as ranks:
        broken_with_a_replica(ranks)
    assert freed == [True]
    assert not torch.distributed.is_initialized()


def test_a_replica_that_an_error_holds_is_freed_before_the_group_of_ranks_is():
    processes.fork(2, freed_before_the_group)


def command(error, log):
    """The command line on a rank: rank 1 fails while a collective of its own is under way, rank 0 waits for it in another."""

    def run(_):
        with distributed.join("cpu") as ranks:
            if ranks.first:
                ranks.barrier()
            torch.distributed.all_reduce(torch.ones(1), async_op=True)
            raise error

    sys.stderr = open(f"{log}-{os.environ['RANK']}", "w", buffering=1)  # noqa: SIM115  open until the process ends
    cli.command_line.parse = lambda _: SimpleNamespace(command=SimpleNamespace(run=run))
    leaving.LIMIT_S = 0.5
    os._exit(__main__.main())


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [(PlaitError("it is broken"), PlaitError.exit_code, "plait: rank 1: it is broken"), (KeyError("x"), 1, "KeyError: 'x'")],
)
def test_a_rank_that_fails_while_a_collective_is_under_way_ends_with_its_code_and_message(monkeypatch, tmp_path, error, code, last):
    monkeypatch.setattr(processes, "LIMIT_S", 30)
    assert processes.codes(processes.start(2, command, error, tmp_path / "log")) == [1, code]
    assert (tmp_path / "log-1").read_text().splitlines()[-1].endswith(last)
    assert (tmp_path / "log-0").read_text().startswith("plait: another rank ended or hangs (")
