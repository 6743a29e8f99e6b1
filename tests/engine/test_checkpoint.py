import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch

from plait import files
from plait.engine.checkpoints import checkpoint, integrity, kept_averages
from plait.engine.checkpoints.saver import Saver
from plait.errors import PlaitError

from .toy import ALONE

GROUPS = {
    "weights": {"a": torch.arange(6.0).view(2, 3)},
    "ema": {},
    "moments": {"a.step": torch.tensor(3.0), "a.exp_avg": torch.ones(2, 3)},
}
FACTS = {"stage": "only", "state": {"step": 5}, "base": [], "data": {}, "frozen_xxh3": "0"}


def save(run, step, **facts):
    if "gone" not in run.name:
        run.mkdir(exist_ok=True)
    content = {**FACTS, "state": {"step": step}, **facts}
    return checkpoint.write(checkpoint.folder_of(run, 1, "only", step), GROUPS, content)


def test_a_checkpoint_reads_back_to_the_bit(tmp_path):
    save(tmp_path, 5)
    found = checkpoint.read(tmp_path / "stage-1-only" / "step-00000005")
    assert found.step == 5
    for group, tensors in GROUPS.items():
        read = found.tensors(group)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_a_folder_holds_only_the_files_its_manifest_lists(tmp_path):
    found = save(tmp_path, 5)
    assert sorted(path.name for path in found.folder.iterdir()) == ["manifest.json", "moments.safetensors", "weights.safetensors"]
    assert sorted(found.manifest["files"]) == ["moments.safetensors", "weights.safetensors"]


def test_every_flipped_byte_is_found_and_named(tmp_path):
    folder = save(tmp_path, 5).folder
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            faults = integrity.verify(folder)
            assert len(faults) == 1
            assert str(path) in faults[0]
        path.write_bytes(whole)
    assert integrity.verify(folder) == []


def test_a_short_and_a_missing_file_are_named(tmp_path):
    folder = save(tmp_path, 5).folder
    os.truncate(folder / "weights.safetensors", 10)
    (folder / "moments.safetensors").unlink()
    faults = sorted(integrity.verify(folder))
    assert faults[0] == f"{folder}/moments.safetensors is missing"
    assert faults[1].startswith(f"{folder}/weights.safetensors is damaged: 10 bytes, the manifest says ")


def test_the_newest_intact_checkpoint_is_found_and_newer_damage_named(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step)
    damaged = tmp_path / "stage-1-only" / "step-00000015" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x07")
    (tmp_path / "stage-1-only" / "step-00000020").mkdir()
    found, faults = integrity.newest_intact(tmp_path)
    assert found.step == 10
    assert len(faults) == 2
    assert faults[0].endswith("step-00000020 is no finished checkpoint: it has no manifest.json")
    assert "step-00000015/weights.safetensors is damaged: xxh3" in faults[1]


def test_a_later_stage_comes_before_a_longer_one(tmp_path):
    save(tmp_path, 5)
    checkpoint.write(checkpoint.folder_of(tmp_path, 2, "next", 5), GROUPS, FACTS)
    assert integrity.newest_intact(tmp_path)[0].folder.parent.name == "stage-2-next"


def test_only_the_oldest_of_the_same_stage_are_pruned(tmp_path):
    checkpoint.write(checkpoint.folder_of(tmp_path, 2, "next", 1), GROUPS, FACTS)
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    checkpoint.prune(tmp_path / "stage-1-only", 2)
    assert [folder.name for folder in checkpoint.published(tmp_path)] == ["step-00000020", "step-00000015", "step-00000001"]


@pytest.mark.parametrize("path", ["", "stage-1-only", "stage-1-only/step-00000010"])
def test_a_run_a_stage_and_a_step_locate_the_newest(tmp_path, path):
    save(tmp_path, 5)
    save(tmp_path, 10)
    assert integrity.locate(tmp_path / path).step == 10


def test_a_damaged_step_asked_for_by_name_is_refused(tmp_path):
    folder = save(tmp_path, 5).folder
    (folder / "weights.safetensors").unlink()
    with pytest.raises(PlaitError, match=r"weights.safetensors is missing; `plait ckpt verify .*` says which are intact"):
        integrity.locate(folder)


def test_another_format_is_refused_by_name(tmp_path):
    folder = save(tmp_path, 5, format="plait-checkpoint-9").folder
    with pytest.raises(PlaitError, match="has format 'plait-checkpoint-9'; this plait reads 'plait-checkpoint-1'"):
        checkpoint.read(folder)


@pytest.mark.parametrize("background", [True, False])
def test_a_failed_save_is_raised_in_one_line_and_leaves_the_earlier_one(tmp_path, background):
    save(tmp_path, 5)
    (tmp_path / "stage-1-only" / ".saving-step-00000010").write_text("in the way")
    saver = Saver(background, ALONE, lambda part: None)

    def save_and_wait():
        saver.save(checkpoint.folder_of(tmp_path, 1, "only", 10), GROUPS, FACTS, keep=3)
        saver.wait()

    with pytest.raises(PlaitError, match=r"step-00000010 could not be written: .*; earlier checkpoints are intact, free space or mend"):
        save_and_wait()
    assert integrity.newest_intact(tmp_path)[0].step == 5


SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from plait.engine.checkpoints import checkpoint
facts = {"stage": "only", "base": [], "data": {}, "frozen_xxh3": "0"}
step = 0
while True:
    step += 1
    groups = {"weights": {"w": torch.full((500_000,), float(step))}}
    checkpoint.write(checkpoint.folder_of(Path(sys.argv[1]), 1, "only", step), groups, {**facts, "state": {"step": step}})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_of_a_save_leaves_an_intact_checkpoint(tmp_path):
    for trial in range(3):
        run = tmp_path / str(trial)
        run.mkdir()
        worker = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(run)], stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            done = int(worker.stdout.readline())
        time.sleep(0.003 * (trial + 1))
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
        found, faults = integrity.newest_intact(run)
        assert faults == []
        assert found.step >= done
        assert torch.all(found.tensors("weights")["w"] == found.step)
        checkpoint.clear_unfinished(run)
        assert not list(run.glob("*/.saving-*"))


class Killed(BaseException):
    """Stands for SIGKILL: no handler of errors sees it."""


@pytest.mark.parametrize(("error", "at"), [(OSError, 1), (OSError, 2), (Killed, 1), (Killed, 2)])
def test_writing_over_a_checkpoint_never_leaves_none(tmp_path, monkeypatch, error, at):
    save(tmp_path, 5)
    calls, rename = [], os.rename

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise error("rename")
        rename(*arguments)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises((PlaitError, Killed)):
        save(tmp_path, 5)
    monkeypatch.undo()
    if error is Killed:  # an error is mended at once, a kill at the next start
        checkpoint.clear_unfinished(tmp_path)
    assert integrity.newest_intact(tmp_path)[0].step == 5
    assert [path.name for path in (tmp_path / "stage-1-only").iterdir()] == ["step-00000005"]


def test_a_leftover_that_is_not_a_folder_ends_no_start(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "stage-1-only" / ".saving-step-00000010").write_text("a file in the place of a folder")
    assert checkpoint.clear_unfinished(tmp_path) == 1


def test_a_changed_blank_of_a_manifest_is_found(tmp_path):
    path = save(tmp_path, 5).folder / "manifest.json"
    path.write_text(path.read_text().replace("\n  ", "\n\t ", 1))
    assert "manifest.json is damaged" in integrity.verify(path.parent)[0]


def test_the_manifest_is_plain_json(tmp_path):
    manifest = json.loads((save(tmp_path, 5).folder / "manifest.json").read_text())
    assert manifest["format"] == "plait-checkpoint-1"
    assert manifest["kind"] == "resumable"


def test_a_keep_of_0_keeps_all(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    assert checkpoint.prune(tmp_path / "stage-1-only", 0) == []
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path)] == [5, 4, 3, 2, 1]


def test_the_step_to_be_spared_is_not_pruned_and_what_was_deleted_is_returned(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    gone = checkpoint.prune(tmp_path / "stage-1-only", 2, spared=5)
    assert [folder.name for folder in gone] == ["step-00000010"]
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path)] == [20, 15, 5]
    assert not gone[0].exists()


def test_a_saver_keeps_the_newest_and_the_spared(tmp_path):
    saver = Saver(background=True, ranks=ALONE, mark=lambda part: None)
    for step in range(1, 6):
        saver.save(checkpoint.folder_of(tmp_path, 1, "only", step), GROUPS, FACTS, keep=2, spared=2)
    saver.close()
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path)] == [5, 4, 2]


@pytest.mark.parametrize(
    ("path", "step", "run"),
    [
        ("r/stage-2-b/step-00000012", True, "r"),
        ("r/stage-2-b", False, "r"),
        ("r", False, "r"),
        ("r/stage-2-b/step-12", False, "r/stage-2-b/step-12"),
    ],
)
def test_a_run_is_known_from_its_stages_and_steps(tmp_path, path, step, run):
    assert checkpoint.is_step(tmp_path / path) is step
    assert checkpoint.run_of(tmp_path / path) == tmp_path / run


def test_folders_that_are_no_steps_of_stages_are_passed_over(tmp_path):
    folder = save(tmp_path, 5).folder
    for other in ("stage-1-only/step-5", "stage-x/step-00000009", "stage-1-only/step-00000009x"):
        (tmp_path / other).mkdir(parents=True)
        (tmp_path / other / "manifest.json").write_text((folder / "manifest.json").read_text())
    assert checkpoint.published(tmp_path) == [folder]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("not json", r"manifest\.json is damaged: it is not a manifest \(JSONDecodeError: "),
        ("{}", r"manifest\.json is damaged: it is not a manifest \(KeyError: "),
        ("[]", r"manifest\.json is damaged: it is not a manifest \(TypeError: "),
        (None, r"step-00000005 is no finished checkpoint: it has no manifest\.json"),
    ],
)
def test_what_is_no_manifest_is_told_in_a_line(tmp_path, body, message):
    folder = save(tmp_path, 5).folder
    (folder / "manifest.json").unlink()
    if body is not None:
        (folder / "manifest.json").write_text(body)
    with pytest.raises(PlaitError, match=message):
        checkpoint.read(folder)
    assert len(integrity.verify(folder)) == 1


def test_a_manifest_whose_words_were_changed_is_damaged(tmp_path):
    path = save(tmp_path, 5).folder / "manifest.json"
    path.write_text(path.read_text().replace('"only"', '"once"'))
    with pytest.raises(PlaitError, match=r"damaged: its content does not match its own xxh3 [0-9a-f]{16}"):
        checkpoint.read(path.parent)


def test_a_stage_folder_locates_only_its_own_and_damage_is_passed_over(tmp_path):
    save(tmp_path, 5)
    broken = save(tmp_path, 10).folder
    (broken / "weights.safetensors").unlink()
    checkpoint.write(checkpoint.folder_of(tmp_path, 2, "next", 20), GROUPS, FACTS)
    assert integrity.locate(tmp_path / "stage-1-only").folder.name == "step-00000005"
    assert integrity.locate(tmp_path).folder.name == "step-00000020"
    with pytest.raises(PlaitError, match=r"stage-3-last holds no checkpoint; give a run, a stage folder or a step folder"):
        integrity.locate(tmp_path / "stage-3-last")


def edited(folder, change):
    """A manifest that was changed and says so in its own hash: what a faulty writer would leave."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["xxh3"] = checkpoint.manifest_hash(manifest)
    files.write_json(folder / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda m: m.pop("files"), "KeyError: 'files'"),
        (lambda m: m.update(state={}), "KeyError: 'step'"),
        (lambda m: m["state"].update(stage=0), "its stage is 0 in a folder of stage 1"),
        (lambda m: m["state"].update(step="5"), "its step is '5'"),
        (lambda m: m["state"].update(step=-1), "its step is -1"),
        (lambda m: m["state"].update(step="x" * 200), f"its step is '{'x' * 87})"),  # 100 characters of the reason
        (
            lambda m: m["files"].update({"../../secret": {"size": 1, "xxh3": "0"}}),
            "names '../../secret', which is not inside",
        ),
        (lambda m: m["files"].update({"/etc/passwd": {"size": 1, "xxh3": "0"}}), "it names '/etc/passwd'"),
        (lambda m: m["files"].update({"./weights.safetensors": {"size": 1, "xxh3": "0"}}), "it names './weights.safetensors'"),
        (lambda m: m["files"].update({"x": {"size": "1", "xxh3": "0"}}), "size and xxh3 of 'x' are not a number and a text"),
        (lambda m: m["files"].update({"x": {"size": 1, "xxh3": 0}}), "size and xxh3 of 'x' are not a number and a text"),
        (lambda m: m.update(files=[]), "AttributeError"),
    ],
)
def test_a_manifest_that_readers_cannot_rely_on_is_passed_over(tmp_path, change, fault):
    save(tmp_path, 4)
    edited(save(tmp_path, 5).folder, change)
    newest, faults = integrity.newest_intact(tmp_path)
    assert newest.step == 4
    assert fault in faults[0] and "manifest.json is damaged" in faults[0]


def test_a_manifest_of_step_0_and_one_of_averages_are_sound(tmp_path):
    assert checkpoint.read(save(tmp_path, 0).folder).step == 0
    edited(save(tmp_path, 5).folder, lambda m: m["state"].update(stage=1))
    edited(save(tmp_path, 6).folder, lambda m: m.update(kind="averages", state={"step": 6, "stage": 2}))
    assert [checkpoint.read(folder).step for folder in checkpoint.published(tmp_path)] == [6, 5, 0]


def test_a_deep_manifest_is_passed_over(tmp_path):
    save(tmp_path, 4)
    (save(tmp_path, 5).folder / "manifest.json").write_text('{"format": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert integrity.newest_intact(tmp_path)[0].step == 4


def test_a_header_that_is_none_of_safetensors_is_passed_over_whatever_its_hash(tmp_path):
    save(tmp_path, 4)
    folder = save(tmp_path, 5).folder
    path = folder / "weights.safetensors"
    body = bytearray(path.read_bytes())
    body[0:8] = (2**40).to_bytes(8, "little")
    path.write_bytes(body)
    edited(folder, lambda m: m["files"]["weights.safetensors"].update(xxh3=files.xxh3(path)))
    newest, faults = integrity.newest_intact(tmp_path)
    assert newest.step == 4 and "weights.safetensors cannot be read: " in faults[0]


def test_a_disk_error_while_a_checkpoint_is_read_passes_it_over(tmp_path, monkeypatch):
    save(tmp_path, 4)
    save(tmp_path, 5)
    whole = files.xxh3

    def xxh3(path):
        if "step-00000005" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    monkeypatch.setattr(files, "xxh3", xxh3)
    newest, faults = integrity.newest_intact(tmp_path)
    assert newest.step == 4 and "cannot be read: [Errno 5] Input/output error" in faults[0]


def test_a_link_is_no_file_of_a_checkpoint(tmp_path):
    folder = save(tmp_path, 5).folder
    (folder / "weights.safetensors").rename(tmp_path / "elsewhere")
    (folder / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "weights.safetensors is no regular file" in integrity.verify(folder)[0]


def test_damaged_checkpoints_are_set_aside_and_count_as_none_that_is_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    stage = tmp_path / "stage-1-only"
    (stage / "step-00000003" / "weights.safetensors").unlink()
    assert [path.name for path in checkpoint.prune(stage, 2)] == ["step-00000001"]  # 4 and 2 are kept, 3 is neither counted nor deleted
    (stage / "step-00000004" / "weights.safetensors").unlink()
    newest, _ = integrity.newest_intact(tmp_path)
    assert newest.step == 2
    assert [path.name for path in integrity.set_aside_damaged(tmp_path, newest)] == ["damaged-step-00000004", "damaged-step-00000003"]
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000002"]
    (save(tmp_path, 4).folder / "weights.safetensors").unlink()  # again
    assert [path.name for path in integrity.set_aside_damaged(tmp_path, newest)] == ["damaged-step-00000004"]


def test_a_checkpoint_is_not_written_where_its_run_has_gone(tmp_path):
    with pytest.raises(PlaitError, match="could not be written"):
        save(tmp_path / "gone", 5)
    assert not (tmp_path / "gone").exists()


def test_weights_are_as_readable_as_any_other_file(tmp_path):
    folder = save(tmp_path, 5).folder
    assert (folder / "weights.safetensors").stat().st_mode == (folder / "manifest.json").stat().st_mode


def test_a_replaced_checkpoint_goes_once_its_successor_is_there_and_else_comes_back(tmp_path):
    stage = save(tmp_path, 5).folder.parent
    shutil.copytree(stage / "step-00000005", stage / ".replaced-step-00000005")
    shutil.copytree(stage / "step-00000005", stage / ".replaced-step-00000006")
    checkpoint.clear_unfinished(tmp_path)
    assert sorted(path.name for path in stage.iterdir()) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("left", [".replaced-step-00000005", ".saving-step-00000005"])
def test_a_save_of_the_same_step_replaces_what_is_there_and_what_an_interrupted_one_left(tmp_path, left):
    stage = save(tmp_path, 5).folder.parent
    shutil.copytree(stage / "step-00000005", stage / left)
    (stage / left / "junk").touch()
    save(tmp_path, 5, base=["other"])
    assert [path.name for path in stage.iterdir()] == ["step-00000005"]
    assert integrity.verify(stage / "step-00000005") == []
    assert checkpoint.read(stage / "step-00000005").manifest["base"] == ["other"]
    assert sorted(path.name for path in (stage / "step-00000005").iterdir()) == [
        "manifest.json",
        "moments.safetensors",
        "weights.safetensors",
    ]


def test_a_save_that_fails_gives_back_a_checkpoint_that_was_to_be_replaced_before(tmp_path, monkeypatch):
    stage = save(tmp_path, 5).folder.parent
    (stage / "step-00000005").rename(stage / ".replaced-step-00000005")  # where a kill came between two renames
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(PlaitError, match="could not be written"):
        save(tmp_path, 5)
    assert [path.name for path in stage.iterdir()] == ["step-00000005"]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_its_name_before_older_ones_go(tmp_path, monkeypatch):
    stage = save(tmp_path, 5).folder.parent
    calls, usual = [], {"fsync": os.fsync, "rename": os.rename, "rmtree": shutil.rmtree}

    def fsync(file):
        calls.append(os.readlink(f"/proc/self/fd/{file}").removeprefix(f"{stage}"))
        usual["fsync"](file)

    def rename(source, target):
        calls.append(("rename", str(target).removeprefix(f"{stage}/")))
        usual["rename"](source, target)

    def rmtree(path, **options):
        if path.exists():
            calls.append(("rmtree", path.name))
        usual["rmtree"](path, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save(tmp_path, 5)
    named = calls.index(("rename", "step-00000005"))
    unfinished = "/.saving-step-00000005"
    assert {f"{unfinished}/{name}.safetensors" for name in ("weights", "moments")} <= set(calls[:named])
    assert any(unfinished in call and "manifest.json" in call for call in calls[:named] if isinstance(call, str))
    assert calls[named + 1 :] == ["", ("rmtree", ".replaced-step-00000005")]  # "": the stage's folder


def test_a_checkpoint_that_is_half_deleted_is_none_any_more(tmp_path, monkeypatch):
    for step in (5, 10):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        checkpoint.prune(tmp_path / "stage-1-only", 1)
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000010"]
    assert (tmp_path / "stage-1-only" / ".saving-step-00000005" / "weights.safetensors").exists()
    monkeypatch.undo()
    assert checkpoint.clear_unfinished(tmp_path) == 1
    assert [path.name for path in (tmp_path / "stage-1-only").iterdir()] == ["step-00000010"]


@pytest.mark.parametrize("links", [True, False])
def test_averages_of_a_deleted_checkpoint_are_kept_whole_whatever_is_in_their_place(tmp_path, monkeypatch, links):
    kept = {**GROUPS, "ema-0.05": {"a": torch.full((2, 3), 7.0)}}
    for step in (5, 10):
        checkpoint.write(checkpoint.folder_of(tmp_path, 1, "only", step), kept, {**FACTS, "state": {"step": step}})
    for name in ("step-00000005", ".saving-step-00000005"):
        (tmp_path / "averages" / name).mkdir(parents=True)
        (tmp_path / "averages" / name / "junk").touch()
    if not links:
        refused = OSError(errno.EPERM, "Operation not permitted")
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(refused))
    checkpoint.prune(tmp_path / "stage-1-only", 1, before=kept_averages.keep)
    (folder,) = (tmp_path / "averages").iterdir()
    assert (folder.name, sorted(path.name for path in folder.iterdir())) == ("step-00000005", ["ema-0.05.safetensors", "manifest.json"])
    assert integrity.verify(folder) == []
    found = checkpoint.read(folder)
    assert (found.step, found.manifest["kind"], found.tensors("ema-0.05")["a"].unique().tolist()) == (5, "averages", [7.0])


def test_what_a_save_of_averages_left_is_removed_too(tmp_path):
    (tmp_path / "averages" / ".saving-step-00000005").mkdir(parents=True)
    assert checkpoint.clear_unfinished(tmp_path) == 1
    assert list((tmp_path / "averages").iterdir()) == []


def test_what_interrupted_saves_left_is_removed_and_counted(tmp_path):
    save(tmp_path, 5)
    for name in (".saving-step-00000010", ".saving-step-00000015"):
        (tmp_path / "stage-1-only" / name).mkdir()
    assert checkpoint.clear_unfinished(tmp_path) == 2
    assert checkpoint.clear_unfinished(tmp_path) == 0
    assert [path.name for path in (tmp_path / "stage-1-only").iterdir()] == ["step-00000005"]


def test_an_error_of_a_background_save_is_raised_once_at_the_next_save(tmp_path, monkeypatch):
    saver = Saver(background=True, ranks=ALONE, mark=lambda part: None)
    monkeypatch.setattr(checkpoint, "write", lambda *_: (_ for _ in ()).throw(PlaitError("no room")))
    saver.save(checkpoint.folder_of(tmp_path, 1, "only", 1), GROUPS, FACTS, keep=3)
    with pytest.raises(PlaitError, match="no room"):
        saver.save(checkpoint.folder_of(tmp_path, 1, "only", 2), GROUPS, FACTS, keep=3)
    saver.wait()
    saver.close()


def test_an_error_that_is_no_fault_of_the_disk_is_raised_as_it_is_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.write(checkpoint.folder_of(tmp_path, 1, "only", 1), GROUPS, {"state": object()})
    assert list((tmp_path / "stage-1-only").iterdir()) == []


def test_a_run_that_is_deleted_while_it_is_saved_is_not_made_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    folder = checkpoint.folder_of(run, 1, "only", 1)
    written = checkpoint._write_files

    def then_lost(*arguments):
        listed = written(*arguments)
        shutil.rmtree(run)
        return listed

    with mock.patch.object(checkpoint, "_write_files", then_lost), pytest.raises(PlaitError, match="could not be written"):
        checkpoint.write(folder, GROUPS, {**FACTS, "state": {"step": 1}}, config="a: 1\n")
    assert not run.exists()
