"""Two ranks equal one, and a rank without an image does not keep the other waiting."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.molmo import two_ranks

ROOT = Path(__file__).parents[3]
IMPORTS_S = 180  # on a busy machine; the worker itself limits what comes after them


def launch(out):
    """Run the worker on two gloo ranks; returns what rank 0 wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.families.molmo.two_ranks", str(out)]
    ranks = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT) for rank in range(2)]
    assert [rank.wait(two_ranks.LIMIT_S + IMPORTS_S) for rank in ranks] == [0, 0]
    return json.loads(out.read_text())


def test_text_on_one_rank_and_images_on_the_other_equal_one_rank(directory):
    two_ranks.main(directory / "one.json")
    one = json.loads((directory / "one.json").read_text())
    for alone, together in zip(one, launch(directory / "two.json"), strict=True):
        assert together == pytest.approx(alone, rel=1e-4)  # fp32, two updates between the first row and the last
