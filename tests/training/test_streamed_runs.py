"""`plait train` on shards that a server has and a run reads one after the other: killed, stopped, on another machine, on other ranks."""

import json
import os
import shutil
import signal

import pytest

from plait.data.streaming import counts
from plait.engine.checkpoints import checkpoint
from tests import processes
from tests.data.faulty_server import serving, wait_until
from tests.data.packing import labelled
from tests.training import shard_runs
from tests.training.shard_runs import assert_same, metrics, plait, reached, start

SOURCE = 'source: shards, path: "URL/{00..11}.tar", options: {stream: true, block: 2}'
TRAINING = """
train: {steps: 24, global_batch: 4}
checkpoint: {every_steps: 4, keep: 9}
evaluate: []
guard: {max_bad_fraction: 0.5, forgetting: null}
"""
"""96 samples, 24 steps: one epoch."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    paths = [labelled(folder / f"{number:02d}.tar", 8 * number, 8) for number in range(12)]
    counts.write(folder / counts.NAME, [(path.name, 8, path.stat().st_size) for path in paths])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder, url, cache, validation="[]"):
    folder.mkdir(parents=True, exist_ok=True)
    text = shard_runs.RECIPE.replace("SOURCE", SOURCE).replace("CACHE", f"{cache}\n  workers: 2").replace("VALIDATION", validation)
    (folder / "recipe.yaml").write_text(text.replace("URL", url) + TRAINING, encoding="utf-8")


def trained(folder, name="run", *settings, ranks=1):
    """Train to the end; return what the log says."""
    started = processes.start(ranks, plait, folder, name, settings) if ranks > 1 else [start(folder, name, *settings)]
    assert processes.codes(started) == [0] * ranks, (folder / f"{name}.log").read_text()
    log = (folder / f"{name}.log").read_text()
    assert (folder / f"{name}.code").read_text() == "0", log
    return log


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    with serving(shards) as server:
        write(folder, server.url, folder / "cache")
        log = trained(folder)
        asked = [path for path, span in server.asked if path.endswith(".tar") and span != "bytes=0-0"]
    assert "streamed, 12 shards in blocks of 2" in log
    assert sorted({*asked}) == [f"/{number:02d}.tar" for number in range(12)]
    return folder / "run"


def test_a_killed_run_goes_on_at_the_straight_runs_bits_on_a_machine_without_its_cache(shards, straight, tmp_path):
    with serving(shards) as server:
        write(tmp_path, server.url, tmp_path / "cache")
        process = start(tmp_path, "run", hold_at=14)
        wait_until(lambda: reached(tmp_path / "run" / "metrics.jsonl", 14) or not process.is_alive())
        process.kill()
        process.join()
        shutil.rmtree(tmp_path / "cache")
        server.asked.clear()
        saved = max(checkpoint.read(folder).manifest["state"]["step"] for folder in checkpoint.published(tmp_path / "run"))
        trained(tmp_path)
        read = [path for path, span in server.asked if path.endswith(".tar") and span != "bytes=0-0"]
    assert_same(tmp_path / "run", straight)
    assert saved == 12
    left = -(-(24 - saved) // 4)  # blocks of 16 samples, 4 steps
    assert len({*read} - {"/00.tar"}) <= 2 * left


def test_a_run_that_goes_on_with_two_ranks_takes_the_straight_runs_samples(shards, straight, tmp_path):
    with serving(shards) as server:
        write(tmp_path, server.url, tmp_path / "cache")
        trained(tmp_path, "run", "train.steps=9")
        trained(tmp_path, "run", "train.steps=24", ranks=2)
    taken, wanted = ({row["step"]: row["ids"] for row in metrics(run) if "loss" in row} for run in (tmp_path / "run", straight))
    assert taken == wanted
    assert len(taken) == 24


@pytest.mark.parametrize("settings", [("data.workers=0",), ("data.workers=1", "data.worker_kind=processes")])
def test_a_stop_waits_for_no_download_that_stalls_and_the_run_goes_on_as_if_it_had_not(shards, straight, tmp_path, settings):
    with serving(shards) as server:
        write(tmp_path, server.url, tmp_path / "cache")
        path, stalled = tmp_path / "run" / "metrics.jsonl", []

        def stall(name, span):
            if name.endswith(".tar") and reached(path, 2):
                stalled.append(name)
                return "stall"
            return ""

        server.fault = stall
        process = start(tmp_path, "run", *settings)
        wait_until(lambda: stalled or not process.is_alive())
        os.kill(process.pid, signal.SIGTERM)
        assert processes.codes([process]) == [0]
        log = (tmp_path / "run.log").read_text()
        assert (tmp_path / "run.code").read_text() == "75", log
        assert "stopped by SIGTERM after step" in log
        server.fault = lambda name, span: ""
        trained(tmp_path, "run", *settings)
    assert_same(tmp_path / "run", straight)


def test_a_lost_shard_is_counted_in_the_quarantine_and_the_run_goes_on(shards, tmp_path):
    with serving({name: body for name, body in shards.items() if name != "07.tar"}) as server:
        write(tmp_path, server.url, tmp_path / "cache")
        trained(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all("there is no file" in row["reason"] and "07.tar" in row["reason"] for row in rows)


def test_a_held_out_share_of_a_stream_is_not_trained_on_and_downloads_nothing_whole(shards, tmp_path):
    with serving(shards) as server:
        write(tmp_path, server.url, tmp_path / "cache", "10%")
        log = trained(tmp_path, "run", "evaluate=[{bench: loss, every_steps: 12, batch: 4}]", "train.steps=12")
    assert "held-out samples" not in log
    assert any("eval/loss" in row for row in metrics(tmp_path / "run"))
