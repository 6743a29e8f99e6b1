import os
import re
import subprocess
import sys

import pytest

from plait.config.sections import continued
from plait.engine.checkpoints import folders, rundir
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
        continued.refuse(tmp_path, [("optim.lr", 0.1, 0.2), ("seed", 0, 1)])


@pytest.mark.parametrize("key", ["track.every_steps", "data.workers", "train.micro_batch", "stages.0.checkpoint.keep", "run", "evaluate"])
def test_what_does_not_change_the_answer_may_differ(key):
    assert continued.binding([(key, 1, 2)]) == []


@pytest.mark.parametrize(
    "key", ["optim.lr", "data.train", "train.global_batch", "stages.1.optim.lr", "model.base", "tracker", "distributed.ddp_comm_hook"]
)
def test_what_changes_the_answer_binds(key):
    assert continued.binding([(key, 1, 2)]) == [(key, 1, 2)]


def test_set_aside_keeps_every_earlier_run(tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        run.mkdir()
        folders.set_aside(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.before-1", "run.before-2"]


def test_a_run_keeps_its_identity(tmp_path):
    assert rundir.identity(tmp_path) == rundir.identity(tmp_path)


def test_the_lock_names_its_process_and_falls_with_the_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("99999 of an earlier start")
    file = rundir.lock(tmp_path / "run")
    assert (tmp_path / "run" / "lock").read_text() == str(os.getpid())
    file.close()
    rundir.lock(tmp_path / "new" / "run").close()  # makes the folder


def test_what_a_start_leaves_behind_makes_no_run_and_no_stranger(tmp_path):
    assert rundir.check(tmp_path / "nowhere") is False
    for name in ("lock", "assets", "identity"):
        (tmp_path / name).touch()
    assert rundir.check(tmp_path) is False
    for name in "dbca":
        (tmp_path / name).touch()
    with pytest.raises(PlaitError, match=r"holds a, b, c but no config\.yaml"):
        rundir.check(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert rundir.check(tmp_path) is True


@pytest.mark.parametrize(("name", "stranger"), [(".config.yaml.tmp", False), (".profile", True), ("notes.tmp", True)])
def test_only_a_file_that_a_kill_left_half_written_is_no_stranger(tmp_path, name, stranger):
    (tmp_path / name).touch()
    if stranger:
        with pytest.raises(PlaitError, match=f"holds {re.escape(name)} but no config"):
            rundir.check(tmp_path)
    else:
        assert rundir.check(tmp_path) is False


def test_half_written_files_are_swept_at_any_depth_of_a_run_and_others_stay(tmp_path):
    (tmp_path / "stage-1-a" / "step-00000001").mkdir(parents=True)
    folders = (tmp_path, tmp_path / "stage-1-a", tmp_path / "stage-1-a" / "step-00000001")
    for folder in folders:
        for name in (".x.tmp", ".x", "x.tmp"):
            (folder / name).touch()
    rundir.sweep(tmp_path)
    assert all({".x", "x.tmp"} <= {path.name for path in folder.iterdir()} for folder in folders)
    assert not any((folder / ".x.tmp").exists() for folder in folders)


def test_the_same_configuration_is_not_refused(tmp_path):
    continued.refuse(tmp_path, [])


@pytest.mark.parametrize(("key", "free"), [("stages", False), ("stages.0", False), ("stages.0.trainable", False), ("stages.0.track", True)])
def test_a_stage_binds_but_for_what_is_free_in_it(key, free):
    assert (continued.binding([(key, 1, 2)]) == []) is free


def test_clearing_removes_what_was_made_for_a_configuration_and_nothing_else(tmp_path):
    (tmp_path / "assets").mkdir()
    for name in ("assets/tokenizer.json", "lineage.json", "config.yaml"):
        (tmp_path / name).touch()
    rundir.clear(tmp_path)
    rundir.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_every_run_has_an_identity_of_twelve_digits_of_its_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (rundir.identity(tmp_path / name) for name in "ab")
    assert one != other and re.fullmatch("[0-9a-f]{12}", one)
