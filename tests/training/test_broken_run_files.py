"""Files of a run that hold something else than plait wrote: a line or a note is passed over with a word, all else is one line."""

import json
import os
import shutil

import pytest

from plait import cli
from tests import toy_family


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(recipe, a run that has ended)."""
    folder = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy_family.install(patch, folder)
        assert train(recipe, folder / "run") == 0
        yield recipe, folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return finished[0], shutil.copytree(finished[1], tmp_path / "run")


def train(recipe, run, steps=4):
    settings = ("stages=[]", f"train.steps={steps}", "checkpoint.every_steps=2", "track.tensorboard=false")
    return cli.main(["train", str(recipe), f"--run={run}", *(f"--{item}" for item in settings)])


@pytest.mark.parametrize(
    ("name", "line", "key"),
    [
        ("skipped.jsonl", '{"step": 7}', "stage"),
        ("skipped.jsonl", '{"stage": "train", "step": [7]}', "step"),
        ("quarantine.jsonl", '{"a": 1}', "step"),
        ("metrics.jsonl", '{"step": null}', "step"),
        ("metrics.jsonl", '{"step": "7"}', "step"),
        ("metrics.jsonl", '{"step": 1e400}', "step"),
        ("metrics.jsonl", '{"step": 1, "stage": "x"}', "stage"),
    ],
)
def test_a_line_that_is_no_row_of_its_file_costs_that_line_alone(run, capfd, name, line, key):
    recipe, folder = run
    rows = len((folder / "metrics.jsonl").read_text().splitlines())
    number = len((folder / name).read_text().splitlines()) + 1 if (folder / name).exists() else 1
    with (folder / name).open("a") as file:
        file.write(f"{line}\n")
    assert cli.main(["stages", str(folder)]) == 0
    assert train(recipe, folder, 5) == 0
    assert f"warning: line {number} of {folder / name} has no usable {key} and is left out\n" in capfd.readouterr().err
    steps = [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) > rows
    assert steps[-1] == 5


@pytest.mark.parametrize("text", ["", "[1", "[]", '{"train on 1": "x"}', '{"train on 1": 0}'])
def test_a_note_of_micro_batches_that_is_none_is_passed_over(run, capfd, text):
    recipe, folder = run
    (folder / "memory.json").write_text(text)
    assert train(recipe, folder, 5) == 0
    assert f"warning: {folder / 'memory.json'} does not hold micro-batch sizes and is passed over" in capfd.readouterr().err


@pytest.mark.parametrize("body", [b"\xff\xfe\0", b"", b"zz\n"])
def test_an_identity_that_is_none_is_made_anew_with_a_word(run, capfd, body):
    recipe, folder = run
    (folder / "identity").write_bytes(body)
    assert train(recipe, folder, 5) == 0
    new = (folder / "identity").read_text().strip()
    assert len(bytes.fromhex(new)) == 6
    assert f"{folder / 'identity'} does not hold 12 hex digits: the run is {new} from now on" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "is_folder"), [("heartbeat", False), ("metrics.jsonl", True), ("identity", True)])
def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_one_line(run, capfd, name, is_folder):
    recipe, folder = run
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if is_folder else path.write_text("x")
    assert train(recipe, folder, 5) == 1
    assert f"plait: {path} is not the kind of file that a run keeps there" in capfd.readouterr().err


def test_a_path_outside_of_the_run_is_not_called_one_of_its_files(run, monkeypatch, tmp_path, capfd):
    def opened(views):
        (tmp_path / "cache" / "files").mkdir(parents=True)

    (tmp_path / "cache").write_text("x")
    monkeypatch.setattr("plait.training.run.check_data", opened)
    assert train(run[0], tmp_path / "new") == 2
    said = capfd.readouterr().err
    path = tmp_path / "cache" / "files"
    assert f"plait: {path}: Not a directory; it is not of the run: give another path where a setting names it, such as data.cache\n" in said
    assert "remove it" not in said
    assert not (tmp_path / "new").exists()


READERS = ("train {run}", "stages {run}", "eval {run} --bench=loss", "fork {run} {new}", "export {run} {new} --to=hf", "config {run}")


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "identity", "heartbeat/rank-0.json", "assets/tokenizer/tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_one_line_and_is_not_waited_for(run, tmp_path, capfd, verb, name):
    path = run[1] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert cli.main(verb.format(run=run[1], new=tmp_path / "new").split()) == 2
    assert f"plait: {path} is not the kind of file that a run keeps there (a pipe, socket or device); remove it\n" in capfd.readouterr().err


def test_a_pipe_in_place_of_a_copy_of_the_configuration_is_no_copy(run):
    (copy,) = run[1].glob("stage-*/step-00000004/run-config.yaml")
    copy.unlink()
    os.mkfifo(copy)
    (run[1] / "config.yaml").unlink()
    assert cli.main(["stages", str(run[1])]) == 0


def test_a_run_name_that_is_not_utf_8_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = toy_family.install(monkeypatch, tmp_path)
    assert cli.main(["train", str(recipe), "--run=runs/b\udcff"]) == 2
    told = "plait: command line: run: 'runs/b\\udcff' is not UTF-8, in which libraries write their files: give another name\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "runs").exists()
