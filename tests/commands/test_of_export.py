"""`plait generate` and `plait eval` take the folder of an export, in every layout, and a run starts from it."""

import json
import shutil

import pytest
import yaml

from plait import cli
from plait.errors import PlaitError
from plait.theworld import TheWorld
from tests.families.theworld.conftest import photo

SCENES = {"source": "scenes", "limit": 24, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour"]}}
CONFIG = {
    "family": "theworld",
    "preset": "tiny",
    "seed": 5,
    "model": {"tiny": {"initializer_range": 0.08}},
    "trainable": ["projector", "language"],
    "data": {"train": [SCENES], "validation": [{**SCENES, "limit": 6}], "workers": 0},
    "train": {"steps": 6, "global_batch": 8},
    "optim": {"lr": 0.01},
    "evaluate": [],
    "track": {"every_steps": 1, "tensorboard": False},
}
DATA = json.dumps([{**SCENES, "limit": 6}])


def command(capsys, *words):
    """The exit code of a command, and all that it says."""
    capsys.readouterr()
    code = cli.main(list(map(str, words)))
    said = capsys.readouterr()
    return code, (said.out + said.err).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run, a picture, and the run's exports by layout."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "a.png").write_bytes(photo(1))
    assert cli.main(["train", str(folder / "run.yaml"), f"--run={folder / 'run'}"]) == 0
    for layout in ("hf", "theworld"):
        assert cli.main(["export", str(folder / "run"), str(folder / layout), f"--to={layout}"]) == 0
    return folder


@pytest.mark.parametrize("layout", ["hf", "theworld"])
def test_an_export_answers_and_measures_as_its_run_does(folder, layout, capsys):
    asked = ("--prompt=What colour is the circle?", f"--image={folder / 'a.png'}", "--max-new-tokens=8")
    (code, answer), of_run = (command(capsys, "generate", folder / name, *asked) for name in (layout, "run"))
    assert (code, answer) == of_run and code == 0
    theworld = TheWorld.from_pretrained(folder / layout)
    assert theworld.generate(folder / "a.png", "What colour is the circle?", max_new_tokens=8) == answer
    figures = []
    for name in (layout, "run"):
        assert command(capsys, "eval", folder / name, "--bench=loss,accuracy", f"--data={DATA}")[0] == 0
        written = {path.parent.name.split("-")[0]: json.loads(path.read_text()) for path in (folder / name / "eval").glob("*/metrics.json")}
        figures.append({bench: report["figures"] for bench, report in written.items()})
    assert figures[0] == figures[1] and figures[0].keys() == {"loss", "accuracy"}
    code, said = command(capsys, "verify", folder / layout)
    assert code == 0 and "not covered: eval/" in said, "measuring it has changed no file of it"


@pytest.mark.parametrize("layout", ["hf", "theworld"])
def test_a_run_starts_from_an_export_with_the_weights_of_the_run(folder, layout, tmp_path, capsys):
    for name in (layout, "run"):
        begun = ("train", folder / "run.yaml", f"--run={tmp_path / name}", f"--from={folder / name}", "--train.steps=2")
        code, said = command(capsys, *begun)
        assert code == 0, said
    digest = json.loads((folder / layout / "passport.json").read_text())["digest"]
    began = f"  began       from {layout} (passport {digest})\n"
    assert began in command(capsys, "verify", tmp_path / layout)[1]
    rows = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in (layout, "run")]
    assert rows[0][0] == rows[1][0] and len(rows[0]) == 2  # later steps differ: an export has no moments


def test_data_and_weights_that_an_export_has_not_are_asked_for(folder, capsys):
    out = folder / "theworld"
    lacks = "plait: --bench accuracy: there is no held-out data with this model: give some with --data"
    assert command(capsys, "eval", out, "--bench=accuracy") == (2, lacks)
    refusal = f"plait: {out} is an export, with one set of weights: leave --raw out"
    assert command(capsys, "generate", out, "--raw", "--prompt=a") == (2, refusal)
    assert command(capsys, "eval", out, "--raw", "--bench=loss", f"--data={DATA}") == (2, refusal)
    code, said = command(capsys, "eval", out, "--bench=accuracy", f"--data={DATA}", "--against=base")
    assert (code, said) == (2, "plait: --against base is for a checkpoint of a run; an export does not tell how its run began")


def test_data_may_be_a_kind_alone(folder, tmp_path, capsys):
    for number, data in enumerate(("scenes", "scenes:")):
        asked = ("eval", folder / "theworld", "--bench=accuracy", f"--data={data}", "--samples=4", f"--out={tmp_path / str(number)}")
        assert command(capsys, *asked)[0] == 0
    first, second = (json.loads((tmp_path / str(number) / "predictions.json").read_text()) for number in range(2))
    assert first == second
    assert "--data 'nosuch' is no .jsonl" in command(capsys, "eval", folder / "theworld", "--bench=loss", "--data=nosuch")[1]
    (tmp_path / "a.jsonl").write_text("{}\n")
    code, said = command(capsys, "eval", folder / "theworld", "--bench=loss", f"--data={tmp_path / 'a.jsonl'}", "--split=test")
    assert (code, said) == (2, f"plait: --split test: {tmp_path / 'a.jsonl'} has no splits; leave it out")


def test_an_export_is_compared_with_its_run_on_the_same_samples(folder, tmp_path, capsys):
    code, said = command(capsys, "eval", folder / "run", "--bench=loss", f"--against={folder / 'theworld'}", f"--out={tmp_path / 'out'}")
    assert code == 0 and "theworld" in said


def test_settings_that_say_too_little_are_told(folder, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(folder / "hf", out)
    told = json.loads((out / "plait.json").read_text())
    asked = ("generate", out, "--prompt=a")
    lines = {
        "{": f"plait: {out}/plait.json is damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        json.dumps({**told, "seed": "five"}): f"plait: {out}/plait.json is damaged, or of another version of plait: ",
        json.dumps({"family": "theworld", "model": told["model"]}): f"plait: {out}/plait.json does not tell what the folder lacks: ",
        json.dumps({**told, "left_out": ["world"]}): f"plait: {out} leaves out what its run trained of world: export the run in a layout",
        json.dumps({**told, "seed": 6}): f"plait: {out} does not hold all weights, and those of tiny are not what its run was built over",
    }
    for content, line in lines.items():
        (out / "plait.json").write_text(content)
        code, said = command(capsys, *asked)
        assert code == 2 and said.startswith(line) and "\n" not in said
    (out / "plait.json").write_text(json.dumps(told))
    (out / "projector.safetensors").unlink()
    code, said = command(capsys, *asked)
    assert code == 2 and said.startswith(f"plait: {out} lacks 5 of the model's weights, which no base has: projector.brackets, ")


def test_what_a_layout_leaves_out_of_what_was_trained_is_told(folder, tmp_path, capsys):
    begun = ("train", folder / "run.yaml", f"--run={tmp_path / 'run'}", "--train.steps=1", '--trainable=["projector", "world"]')
    assert command(capsys, *begun)[0] == 0
    line = "hf leaves out what the run trained of world: another layout may hold it"
    for layout, lost in (("hf", ["world"]), ("theworld", [])):
        code, said = command(capsys, "export", tmp_path / "run", tmp_path / layout, f"--to={layout}")
        assert code == 0 and (line in said) == bool(lost)
        assert json.loads((tmp_path / layout / "plait.json").read_text())["left_out"] == lost


def test_a_start_from_an_export_that_leaves_out_what_was_trained_is_inexact(folder, tmp_path, capsys):
    trained = '--trainable=["projector", "world"]'
    assert command(capsys, "train", folder / "run.yaml", f"--run={tmp_path / 'run'}", "--train.steps=1", trained)[0] == 0
    for layout in ("hf", "theworld"):
        assert command(capsys, "export", tmp_path / "run", tmp_path / layout, f"--to={layout}")[0] == 0
    begun = ("train", folder / "run.yaml", f"--run={tmp_path / 'next'}", "--train.steps=1", f"--from={tmp_path / 'hf'}")
    lost = f"{tmp_path / 'hf'} leaves out what its run trained of world"
    code, said = command(capsys, *begun)
    assert code == 2 and said.splitlines()[-1] == f"plait: this start is inexact ({lost}); if that is meant, add --allow-inexact"
    code, said = command(capsys, *begun, "--allow-inexact")
    assert code == 0 and f"inexact: {lost}" in said
    (row,) = [json.loads(line) for line in (tmp_path / "next" / "migrations.jsonl").read_text().splitlines()][-1:]
    assert row["inexact"] == [lost]
    whole = ("train", folder / "run.yaml", f"--run={tmp_path / 'whole'}", "--train.steps=1", f"--from={tmp_path / 'theworld'}")
    assert command(capsys, *whole)[0] == 0
    blind = (*begun[:2], f"--run={tmp_path / 'blind'}", *begun[3:], "--model.world=off")
    said = command(capsys, *blind)[1]
    assert "starting from" in said and "leaves out" not in said, said


def test_another_familys_export_answers_too(tmp_path, capsys):
    recipe = {**CONFIG, "family": "molmo", "preset": "debug", "trainable": ["connector", "language"], "model": {}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "a.png").write_bytes(photo(1))
    assert command(capsys, "train", tmp_path / "run.yaml", f"--run={tmp_path / 'run'}")[0] == 0
    assert command(capsys, "export", tmp_path / "run", tmp_path / "hf")[0] == 0
    for name in ("hf", "run"):
        with pytest.raises(PlaitError, match="is of family 'molmo', not of theworld: "):
            TheWorld.from_pretrained(tmp_path / name)
    asked = ("--prompt=What colour is the circle?", f"--image={tmp_path / 'a.png'}", "--max-new-tokens=6")
    answers = [command(capsys, "generate", tmp_path / name, *asked) for name in ("hf", "run")]
    assert answers[0] == answers[1] and answers[0][0] == 0


def test_an_export_reads_own_data_as_its_run_did_and_an_older_one_says_that_it_cannot(folder, tmp_path, capsys):
    rows = [{"image": "a.png", "caption": f"number {number}"} for number in range(8)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copy(folder / "a.png", tmp_path / "a.png")
    text = {"template": {"user": "Describe it.", "assistant": "{text}"}, "columns": {"text": "caption"}}
    own = {**CONFIG, "data": {"train": [SCENES, {"source": "jsonl", "path": str(tmp_path / "own.jsonl"), **text}], "workers": 0}}
    own["train"] = {"steps": 1, "global_batch": 2}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    run, figures = tmp_path / "run", {}
    assert command(capsys, "train", tmp_path / "own.yaml", f"--run={run}")[0] == 0
    for out in (run, tmp_path / "hf", tmp_path / "theworld"):
        if out != run:
            assert command(capsys, "export", run, out, f"--to={out.name}")[0] == 0
            assert str(tmp_path) not in (out / "plait.json").read_text()
        code, said = command(capsys, "eval", out, "--bench=loss,accuracy", f"--data={tmp_path / 'own.jsonl'}")
        assert code == 0 and "--data is read with the template and columns of data.train.1" in said
        figures[out.name] = [json.loads(path.read_text())["figures"] for path in sorted(out.glob("eval/*/metrics.json"))]
        assert "Describe it." in next(out.glob("eval/accuracy*/predictions.json")).read_text()
    assert figures["hf"] == figures["theworld"] == figures["run"] and len(figures["run"]) == 2
    told = json.loads((tmp_path / "hf/plait.json").read_text())
    assert told.pop("reads") == [{"source": "scenes"}, {"source": "jsonl", **text}]
    (tmp_path / "hf/plait.json").write_text(json.dumps(told))
    code, said = command(capsys, "eval", tmp_path / "hf", "--bench=loss", f"--data={tmp_path / 'own.jsonl'}")
    assert "this export does not tell the template and columns of its run (it is an older one, " in said
    assert f"--data='[{{source: jsonl, path: {tmp_path / 'own.jsonl'}, template: " in said
