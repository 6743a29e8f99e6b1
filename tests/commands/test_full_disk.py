"""Verbs that write to a disk that is full: one line, and nothing half written under the name that was asked for."""

import os
import shlex
import subprocess
import sys

import pytest

from plait import cli
from tests.test_cli import CONFIG
from tests.test_house import ROOT

MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]
FULL = "a disk that this command writes to is full (No space left on device): free space there, or write elsewhere"


def can_mount():
    try:
        return subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    (folder / "recipe.yaml").write_text(CONFIG)
    assert cli.main(["train", str(folder / "recipe.yaml"), f"--run={folder / 'run'}"]) == 0
    return folder


SHARD = "data shard scenes disk/new --latents=tiny --texts=tiny --images=tiny --limit=60 --buckets=64x64 --options.size=[64,64]"


@pytest.mark.skipif(not can_mount(), reason="needs a disk of its own")
@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("data inspect recipe.yaml --out=disk/new", FULL),
        (SHARD, FULL),
        ("ckpt consolidate run disk/new", FULL),
        ("export run disk/new", FULL),
        ("fork run disk/new", "No space left on device: give another path, or mend this one"),
    ],
    ids=lambda text: text.partition(" disk")[0],
)
def test_a_full_disk_is_one_line(place, verb, told):
    command = shlex.join([sys.executable, "-m", "plait", *verb.split()])
    script = f"mount -t tmpfs -o size=16k tmpfs disk && {command}; code=$?; ls disk; exit $code"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PLAIT_CACHE": str(place / "cache")}
    done = subprocess.run([*MOUNT, "bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("plait: ") and last.endswith(told) and "Traceback" not in done.stderr
    assert done.returncode == 2
    if "data" not in verb:  # these two go on in the folder that they began
        assert "new" not in done.stdout.split()
