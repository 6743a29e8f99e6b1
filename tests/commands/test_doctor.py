"""`plait doctor`: each fault gives a line and a cure; a machine without one gives exit code 0."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from huggingface_hub import constants

from plait import cli
from plait.assembly.configuration import open_config
from plait.commands.actions import doctor, findings, run_needs
from plait.config import reading
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.families import registry
from tests import processes, toy_family
from tests.engine.toy import ALONE

ROOT = Path(__file__).resolve().parents[2]
ROOMY = SimpleNamespace(free=1e12)


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """A machine with room, whatever this one has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: ROOMY)


def test_a_machine_without_a_fault_is_told_so_and_left_as_it_was(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["doctor", str(recipe), f"--run={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert [line[:4] for line in said.splitlines()] == ["ok  "] * len(said.splitlines())
    for what in ("versions", "devices", "ranks", "clocks", "storage", "disk", "memory", "hub", "data"):
        assert f"ok    {what}" in said
    assert "1 source of all stages open, with 30 samples" in said
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts and path.suffix != ".idx"] == before


def test_versions_are_held_against_the_ranges_of_the_package():
    installed = {"torch": "2.10.0", "numpy": "2.1"}.__getitem__
    findings = list(doctor.versions(["torch>=2.11,<2.16", "numpy>=2,<3", 'wandb>=0.2; extra == "wandb"'], installed))
    assert [(finding.result, finding.cure) for finding in findings] == [
        ("torch is 2.10.0, plait needs <2.16,>=2.11", "pip install 'torch<2.16,>=2.11'"),
        ("1 of 2 packages as needed: numpy 2.1, ...", None),
    ]


@pytest.mark.parametrize("package", ["numpy", "diffusers"])
def test_a_package_that_cannot_be_imported_is_a_finding_and_no_traceback(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('cannot import name cached_download')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "plait", "doctor", "configs/theworld/demo.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(rf"^MEND  imports    {package}\S* cannot be imported: ImportError: cannot import name", done.stdout, re.M)
    assert "ok    versions " in done.stdout and "to mend: install the versions that plait needs" in done.stderr


def test_findings_are_told_as_they_come_and_a_look_that_fails_is_one(tmp_path, monkeypatch, capsys):
    def hub():
        raise ZeroDivisionError("of a broken client")

    told = []
    monkeypatch.setattr(doctor, "hub", hub)
    monkeypatch.setattr(doctor, "shared_memory", lambda: told.append(capsys.readouterr().out) or findings.Finding("memory", "much"))
    assert cli.main(["doctor", f"--run={tmp_path}"]) == 1
    assert "ok    storage" in told[0]
    assert "MEND  hub        could not be looked at: ZeroDivisionError: of a broken client" in capsys.readouterr().out


RANK = {"GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
LOOP = {"MASTER_ADDR": "head"}


@pytest.mark.parametrize(
    ("environment", "addresses", "said", "well"),
    [
        ({}, {}, "here: one machine, whose name no other has to know", True),
        (RANK | {"GLOO_SOCKET_IFNAME": "eth0"}, {}, "here: ranks of 2 machines meet at 10.0.0.1, and it is reached through eth0", True),
        (RANK, {"here": "10.0.0.2"}, "here: ranks of 2 machines meet at 10.0.0.1, and it is reached through its name, 10.0.0.2", True),
        (RANK, {"here": "127.0.1.1"}, "here: its own name is 127.0.1.1, and other machines would be told to look there", False),
        (RANK, {}, "here: its own name is not known within 0.2 s, and other machines would be told to look there", False),
        (RANK | LOOP, {}, "ranks meet at head, which is not known within 0.2 s on here", False),
        (RANK | LOOP, {"head": "127.0.1.1"}, "ranks meet at head, which is 127.0.1.1, which no other machine reaches on here", False),
    ],
)
def test_names_that_machines_need_are_looked_up_within_a_time(monkeypatch, environment, addresses, said, well):
    def resolve(name, within_s):
        if name not in addresses and not name[0].isdigit():
            time.sleep(5)  # a server of names that does not answer
        return addresses.get(name, name)

    monkeypatch.setattr(doctor, "RESOLVE_WITHIN_S", 0.2)
    monkeypatch.setattr(doctor.network, "resolve", resolve)
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "here")
    finding = doctor.names(environment)
    assert (finding.result, finding.cure is None) == (said, well)


def test_a_folder_that_cannot_be_written_gives_its_error_and_another_exit_code(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", f"--run={tmp_path / 'file' / 'run'}"]) == 1
    out, error = capsys.readouterr()
    assert "MEND  storage" in out
    assert "Not a directory" in out
    assert f"1 thing to mend: give another --run: {tmp_path / 'file' / 'run'} must allow writing, fsync, rename and flock" in error


@pytest.mark.parametrize(("name", "errno"), [("fsync", 5), ("rename", 95)])
def test_storage_that_lacks_a_call_is_found(tmp_path, name, errno):
    with mock.patch.object(os, name, side_effect=OSError(errno, "refused")):
        finding = doctor.storage(tmp_path, ALONE)
    assert finding.cure.endswith("must allow writing, fsync, rename and flock")


def test_a_file_server_with_another_clock_is_found(tmp_path):
    with mock.patch.object(time, "time", return_value=time.time() + 60):
        finding = doctor.storage(tmp_path, ALONE)
    assert finding.result.endswith("its clock is 60.0 s behind")
    assert finding.cure == "set the clock of the file server"


def test_too_little_room_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    assert doctor.disk(tmp_path).cure == "free space to 10 GB, or give another --run"
    assert "--shm-size" in doctor.shared_memory(tmp_path).cure


def with_base(monkeypatch, parts):
    """Make the toy family one that starts from the weights of these parts."""
    family = replace(toy_family.FAMILY, base=lambda section: parts)
    monkeypatch.setattr(registry, "load", lambda name: family)


def test_weights_that_can_neither_be_found_nor_fetched_are_named(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    part = {"part": "toy", "name": "someone/nothing", "revision": None}
    with_base(monkeypatch, [part])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["doctor", str(recipe), f"--run={tmp_path}"]) == 1
    assert "someone/nothing (model: toy) is not in the cache, and the Hub is offline" in capsys.readouterr().out


def test_a_directory_of_weights_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    names = (str(tmp_path), str(tmp_path / "gone"))
    with_base(monkeypatch, [{"part": "toy", "name": name, "revision": None} for name in names])
    assert cli.main(["doctor", str(recipe), f"--run={tmp_path}"]) == 1
    said, error = capsys.readouterr()
    assert f"ok    weights    {names[0]} is here\nMEND  weights    {names[1]} is not here\n" in said
    assert f"1 thing to mend: save the part as {names[1]}" in error


def test_data_that_does_not_open_is_told_with_its_own_words(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert cli.main(["doctor", str(recipe), f"--run={tmp_path}"]) == 1
    assert "train.jsonl" in capsys.readouterr().out


def test_alerts_trackers_and_adapters_that_a_run_could_not_use_are_told(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    told = ["--alert=[$NOT_THERE]", "--track.mlflow={experiment: e}", "--adapters.projector.rank=2", "--stages=[]"]
    monkeypatch.setattr(run_needs.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["doctor", str(recipe), f"--run={tmp_path}", *told]) == 1
    out = capsys.readouterr().out
    assert "MEND  alerts     alert.urls names $NOT_THERE, a variable of the environment that is not set" in out
    assert "MEND  trackers   mlflow is not installed, and would get no rows" in out
    assert "MEND  adapters   peft is not installed, which makes them" in out
    assert list(run_needs.services(open_config(recipe, ["--alert.command=true", "--alert.on=[finish]"]))) == [
        findings.Finding("alerts", "a command told of finish")
    ]


@pytest.mark.parametrize(("tokens", "said"), [(2048, "the model has 2048 positions"), (2049, "data.max_tokens is 2049, but the model has")])
def test_sequences_longer_than_the_models_positions_are_told(tmp_path, tokens, said):
    tree = {"family": "theworld", "model": {"base": "tiny"}, "train": {"steps": 1}, "data": {"train": [{"source": "scenes"}]}}
    (tmp_path / "a.yaml").write_text(reading.write_yaml({**tree, "data": {**tree["data"], "max_tokens": tokens}}))
    finding = doctor.lengths(open_config(tmp_path / "a.yaml"))
    assert finding.result.startswith(said)
    assert (finding.cure is None) is (tokens == 2048)


def test_a_setting_without_a_configuration_is_refused(capsys):
    assert cli.main(["doctor", "--optim.lr=1"]) == 2
    assert "--optim.lr=1 is a setting of a configuration: plait doctor CONFIG --optim.lr=1" in capsys.readouterr().err


def on_ranks(folder):
    """Rank 1 has another clock and another disk."""
    rank = int(os.environ["RANK"])
    with distributed.join("cpu") as ranks:
        with mock.patch.object(time, "time", return_value=1e9 - 100 * rank):
            late = doctor.clocks(ranks)
        blind = doctor.storage(folder if rank == 0 else folder / "other", ranks)
        with mock.patch.object(findings.importlib.metadata, "version", return_value=f"2.{rank}"):
            versions = list(findings.compared(ranks.gather(findings.installed_versions(["torch>=2"]))))
        with mock.patch.object(os, "rename", side_effect=OSError(95, "refused") if rank == 1 else None, wraps=os.rename):
            refused = doctor.storage(folder, ranks)
        return [doctor.reach(ranks), late, blind, doctor.storage(folder, ranks), versions, refused]


def test_ranks_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "OPEN_WITHIN_S", 0.3)
    for reach, late, blind, sees, versions, refused in processes.run(2, on_ranks, tmp_path):
        assert "2 ranks reach each other" in reach.result
        assert late.result == "they differ by 100.0 s"
        assert blind.result.startswith("rank 1 does not see ")
        assert blind.cure == "put --run on storage that every machine sees"
        assert sees.cure is None and sees.result.endswith("; so can all 2 ranks, and they see each other's")
        assert versions[0].result == "torch is not the same on all ranks: 2.0 on rank 0; 2.1 on rank 1"
        assert versions[0].cure == "install one version of torch on all machines"
        assert versions[1].result == "1 packages are the same on 2 ranks"
        assert refused.result.startswith("rank 1: ") and refused.cure.endswith("must allow writing, fsync, rename and flock")
    assert not list(tmp_path.rglob(".plait-doctor*"))


def test_more_ranks_than_devices_are_found(monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="X", total_memory=80e9))
    finding = doctor.device(Ranks(0, 2, ALONE.device))
    assert (finding.result, finding.cure) == ("1 GPUs, the first X with 80 GB, for 2 ranks", "start at most 1 ranks per machine: --nproc 1")
