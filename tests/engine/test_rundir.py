import re
import subprocess
import sys

import pytest

from plait.engine.checkpoints import rundir
from plait.errors import PlaitError


def test_a_run_is_held_by_one_process_at_a_time(tmp_path):
    code = "import sys; from pathlib import Path; from plait.engine.checkpoints import rundir; rundir.lock(Path(sys.argv[1]))"
    with rundir.lock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert re.search(r"is in use by process \d+; wait for it, or give another --run", done.stderr)
    rundir.lock(tmp_path).close()


def test_a_folder_of_something_else_is_never_taken_for_a_run(tmp_path):
    assert rundir.check(tmp_path) is False
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(PlaitError, match=r"holds holiday\.jpg but no config\.yaml: it is no run directory; give another --run"):
        rundir.check(tmp_path)


def test_a_run_of_another_configuration_is_refused_with_the_differences(tmp_path):
    with pytest.raises(PlaitError, match=r"another configuration \(optim\.lr: 0\.1 -> 0\.2; seed: 0 -> 1\); undo that"):
        rundir.refuse(tmp_path, [("optim.lr", 0.1, 0.2), ("seed", 0, 1)])


@pytest.mark.parametrize("key", ["track.every_steps", "data.workers", "train.micro_batch", "stages.0.checkpoint.keep", "run", "evaluate"])
def test_what_does_not_change_the_answer_may_differ(key):
    assert rundir.binding([(key, 1, 2)]) == []


@pytest.mark.parametrize("key", ["optim.lr", "data.train", "train.global_batch", "stages.1.optim.lr", "model.base", "tracker"])
def test_what_changes_the_answer_binds(key):
    assert rundir.binding([(key, 1, 2)]) == [(key, 1, 2)]


def test_set_aside_keeps_every_earlier_run(tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        run.mkdir()
        rundir.set_aside(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.before-1", "run.before-2"]


def test_a_run_keeps_its_identity(tmp_path):
    assert rundir.identity(tmp_path) == rundir.identity(tmp_path)
