"""EIO at random calls that read: a checkpoint is passed over like any other damaged one, a sample is a bad one, all else is one line."""

import collections
import errno
import json
import re
import shutil

import pytest

from plait import cli, files
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.engine.checkpoints import checkpoint, integrity, stored_files
from plait.errors import BadSample, PlaitError, sample_errors
from tests import toy_family
from tests.data.packing import labelled
from tests.failing_disk import below, failing

SEEDS = range(8)
SETTINGS = ("stages=[]", "train.steps=10", "track.tensorboard=true", "guard.max_bad_fraction=0.9")
LINES = (
    r"\S+: Input/output error; free space or mend the disk, and the same command (goes on|continues from the last checkpoint)",
    r"\S+config\.yaml: cannot be read: Input/output error",
    r"\S+ cannot be made a run directory: Input/output error .*",
    r"checkpoint \S+ could not be written: .*; earlier checkpoints are intact, free space or mend the disk",
    r"\S+ has (\d checkpoints, up to step \d+, and none is|1 checkpoint, of step \d+, and it is not) intact: .*",
    r"(bench loss cannot be run, and would fail during the run: )?data source jsonl:\S+: .*(Input/output error|mend the disk).*",
)
"""What the last line of a run that a disk ended may say."""


@pytest.fixture
def half(tmp_path, monkeypatch):
    """(recipe, a run that was killed after step 6, with checkpoints of steps 2, 4 and 6, the metrics of one that was not)."""
    recipe = toy_family.install(monkeypatch, tmp_path)
    assert train(recipe, tmp_path / "half") == 0
    figures = toy_family.figures(tmp_path / "half")
    for step in (8, 10):
        shutil.rmtree(toy_family.at(tmp_path / "half", step).folder)
    return recipe, tmp_path / "half", figures


def train(recipe, run):
    return cli.main(["train", str(recipe), f"--run={run}", *(f"--{item}" for item in SETTINGS)])


def assert_one_line(said):
    """Nothing but a line that a person can act on ended the command."""
    assert "Traceback" not in said
    last = next(line for line in reversed(said.strip().splitlines()) if line.startswith("plait: "))
    assert any(re.fullmatch(line, last.removeprefix("plait: ")) for line in LINES), last


def test_a_run_continues_past_what_a_disk_does_not_give_and_ends_as_if_nothing_had_been(half, tmp_path, capfd):
    recipe, killed, figures = half
    codes = collections.Counter()
    for seed in SEEDS:
        run = shutil.copytree(killed, tmp_path / f"run-{seed}")
        with failing(run, 0.02, seed, lambda path: not below("events")(path)) as disk:
            codes[code := train(recipe, run)] += 1
        said = capfd.readouterr()
        if code:
            assert disk.failures
            assert_one_line(said.err)
        assert train(recipe, run) == 0, capfd.readouterr().err
        assert toy_family.figures(run) == figures
    assert codes[0] and codes[1] + codes[2] >= 2


def test_a_checkpoint_that_cannot_be_read_is_passed_over_and_set_aside(half, tmp_path, capfd):
    recipe, killed, figures = half
    run = shutil.copytree(killed, tmp_path / "run")
    capfd.readouterr()
    with failing(run, 1.0, 0, lambda path: below("step-00000006")(path) and path.endswith("moments.safetensors")) as disk:
        assert train(recipe, run) == 0
    said = capfd.readouterr()
    assert disk.failures == 1
    assert "passed over: " in said.out and "step-00000006/moments.safetensors cannot be read: [Errno 5] Input/output error" in said.out
    assert f"continuing from {run / 'stage-1-train' / 'step-00000004'}" in said.out
    assert (run / "stage-1-train" / "damaged-step-00000006").is_dir()
    assert toy_family.figures(run) == figures


@pytest.mark.parametrize("function", ["load_file", "safe_open"])
def test_a_checkpoint_whose_tensors_cannot_be_read_after_its_hashes_matched_is_passed_over(half, tmp_path, capfd, monkeypatch, function):
    """`safe_open` fails when the header is checked, `load_file` when the tensors are taken over."""
    recipe, killed, figures = half
    run, read = shutil.copytree(killed, tmp_path / "run"), getattr(stored_files, function)
    newest = run / "stage-1-train" / "step-00000006"

    def fails(path, *arguments):
        if path == newest / "weights.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *arguments)

    monkeypatch.setattr(stored_files, function, fails)
    capfd.readouterr()
    assert train(recipe, run) == 0
    said = capfd.readouterr().out
    assert f"passed over: {newest}" in said and "cannot be read" in said and "Input/output error" in said
    assert f"continuing from {run / 'stage-1-train' / 'step-00000004'}" in said
    assert (run / "stage-1-train" / "damaged-step-00000006").is_dir()
    assert toy_family.figures(run) == figures


@pytest.mark.parametrize("call", range(4))
def test_whichever_read_of_a_manifest_fails_its_checkpoint_is_passed_over(half, call):
    _, run, _ = half
    calls = []
    with failing(run, 0.0, 0, lambda path: path.endswith("step-00000006/manifest.json")) as disk:
        disk.random.random = lambda: (calls.append(0), len(calls) - 1 != call)[1]  # 0 is below no share
        disk.share = 0.5
        newest, faults = integrity.newest_intact(run)
    assert (newest.step, len(faults)) == ((4, 1) if disk.failures else (6, 0))


def test_samples_that_a_disk_does_not_give_are_bad_ones_and_the_run_goes_on(half, tmp_path, capfd):
    recipe, killed, _ = half
    listed = 0
    for seed in SEEDS:
        run = shutil.copytree(killed, tmp_path / f"run-{seed}")
        capfd.readouterr()
        with failing(tmp_path, 0.05, seed, lambda path: path.endswith("/train.jsonl")) as disk:
            code = train(recipe, run)
        said = capfd.readouterr()
        rows = files.read_rows(run / "quarantine.jsonl")
        assert all("Input/output error" in row["reason"] for row in rows)
        if code:
            assert disk.failures
            assert_one_line(said.err)
            continue
        listed += len(rows)
        totals = checkpoint.read(checkpoint.published(run)[0]).manifest["state"]["totals"]
        assert totals.get("bad", 0) == sum(row["attempt"] == 0 for row in rows)
        assert totals["samples"] == 40
        assert train(recipe, run) == 0, capfd.readouterr().err  # the probe of those steps was not of other samples
    assert listed >= 5


@pytest.mark.parametrize("kind", ["jsonl", "shards", "folder"])
def test_each_read_is_a_sample_or_a_bad_one_and_the_same_sample_once_the_disk_gives_it(tmp_path, kind):
    if kind == "shards":
        path = labelled(tmp_path / "data" / "a.tar", 0, 40)
    elif kind == "folder":
        shutil.unpack_archive(labelled(tmp_path / "a.tar", 0, 40), path := tmp_path / "data", filter="data")
    else:
        (path := tmp_path / "data" / "a.jsonl").parent.mkdir()
        path.write_text("".join(f'{{"caption": "{number}"}}\n' for number in range(40)))
    good = open_source(SourceEntry(source=kind, path=str(path)), seed=0)
    expected, outcomes = [good[index] for index in range(40)], collections.Counter()
    for seed in SEEDS:
        with failing(tmp_path / "data", 0.1, seed):
            try:
                source = open_source(SourceEntry(source=kind, path=str(path)), seed=0)
            except PlaitError as error:
                outcomes[str(error).count("\n")] += 1
                continue
            for index in range(40):
                try:
                    with sample_errors:
                        outcomes["right" if source[index] == expected[index] else "wrong"] += 1
                except BadSample as error:
                    outcomes["bad" if "Input/output error" in str(error) else "unclear"] += 1
        assert [source[index] for index in range(40)] == expected
    assert set(outcomes) <= {"right", "bad", 0}
    assert outcomes["bad"] > 20 and outcomes["right"] > 20 * outcomes[0]


@pytest.mark.parametrize("name", ["frozen_xxh3", "ranks", "data", "state.trained", "state.totals", "state.stage_start"])
def test_a_manifest_with_a_right_hash_that_lacks_something_is_passed_over(half, tmp_path, capfd, name):
    recipe, killed, figures = half
    run = shutil.copytree(killed, tmp_path / "run")
    path = run / "stage-1-train" / "step-00000006" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    section, key = (manifest["state"], name.removeprefix("state.")) if "." in name else (manifest, name)
    del section[key]
    files.write_json(path, {**manifest, "xxh3": checkpoint.manifest_hash(manifest)})
    capfd.readouterr()
    assert train(recipe, run) == 0
    assert f"manifest.json lacks {name}" in capfd.readouterr().out
    assert toy_family.figures(run) == figures
