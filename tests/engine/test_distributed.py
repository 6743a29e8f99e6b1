import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("two_ranks.py")


def launch(out, world):
    """Run the worker on `world` gloo ranks; returns what rank 0 wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.two_ranks", str(out)]
    root = WORKER.parents[2]
    ranks = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=root) for rank in range(world)]
    assert [rank.wait(120) for rank in ranks] == [0] * world
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return launch(folder / "one.json", 1), launch(folder / "two.json", 2)


@pytest.mark.parametrize("figure", ["loss", "grad_norm", "weights", "held_out"])
def test_two_ranks_equal_one(results, figure):
    one, two = results
    assert two[figure] == pytest.approx(one[figure], rel=1e-5, abs=1e-6)  # fp32: sums of 16 terms in another order, 5 updates


def test_ranks_see_every_bench_sample_once_and_in_order(results):
    for found in results:
        assert found["bench"] == list(range(7))
