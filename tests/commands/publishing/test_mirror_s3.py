"""`checkpoint.mirror: s3://...` over a real S3 server, moto's in a process of its own. Passed over where moto or s3fs is not installed.

benchmarks/mirror_kills.py is the long proof: slow uploads, killed at random.
"""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from plait.assembly.configuration import open_config
from plait.commands.actions.publishing import access, mirror, restore
from plait.commands.actions.publishing.mirror import Mirror, Store
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.training import run as training
from plait.training.run_context import TrainOptions
from tests import toy_family as toy

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the server's client library
KEYS = {"AWS_ACCESS_KEY_ID": "sesame", "AWS_SECRET_ACCESS_KEY": "sesame", "AWS_DEFAULT_REGION": "us-east-1"}


def answers(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bucket(monkeypatch):
    """The address of a new bucket of an S3 server on loopback, which lasts as long as the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | KEYS)
    try:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        until_s = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < until_s and server.poll() is None
            time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.terminate()
        server.wait()


def train(recipe, run, address, *overrides):
    """`plait train` of the toy, in this process; what the process beside it would copy is copied after each call."""
    resolved = open_config(recipe, [f"run={run}", f"checkpoint.mirror={address}", *overrides])
    restore.from_mirror(resolved, restart=False, fresh=False)
    training.train(resolved, TrainOptions())
    copy = Mirror(run, address, {f"stage-{view.index}-{view.name}": view.config.checkpoint.keep for view in resolved.stages})
    while copy.update() is not None:
        pass
    return run


def test_another_machine_goes_on_from_an_s3_bucket_to_the_bit(bucket, monkeypatch, tmp_path, capsys):
    recipe, address = toy.install(monkeypatch, tmp_path), f"{bucket}/runs/toy"
    assert access.written(address).cure is None and Store(address).list() == []
    alone = ("stages=[]", "trainable=[projector]", "checkpoint.keep=2")
    whole = train(recipe, tmp_path / "whole", f"file://{tmp_path}/mirror", *alone)
    here = train(recipe, tmp_path / "here", address, *alone, "train.steps=4")
    kept = [str(folder.relative_to(here)) for folder in checkpoint.published(here)]
    assert mirror.complete(Store(address).list()) == kept and len(kept) == 2
    shutil.rmtree(here)
    there = train(recipe, tmp_path / "there", address, *alone)
    assert f"brought from {address}/{kept[0]}" in capsys.readouterr().out
    for group in ("weights", "ema", "moments"):
        assert toy.same(toy.at(whole, 6).tensors(group), toy.at(there, 6).tensors(group))
    assert toy.figures(whole) == toy.figures(there)


def test_a_bucket_that_is_not_there_or_refuses_the_keys_is_told_at_once(bucket, monkeypatch, tmp_path):
    recipe = toy.install(monkeypatch, tmp_path)
    run = toy.train(recipe, tmp_path / "run", "stages=[]", "train.steps=1")
    gone = "the mirror s3://gone/toy cannot be written: The specified bucket does not exist; mend checkpoint.mirror, or the store's keys"
    with pytest.raises(PlaitError, match=gone):
        Mirror(run, "s3://gone/toy", {}).update()
    assert access.written("s3://gone/toy").line() == (
        "MEND  mirror     s3://gone/toy (checkpoint.mirror) cannot be written, read and removed from: The specified bucket does not exist"
    )
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    assert access.written(f"{bucket}/toy").result.endswith("cannot be written, read and removed from: Unable to locate credentials")
