"""The commands that plait proposes can be typed as they stand, also where a run's name has blanks and characters of the shell."""

import re
import shlex
from pathlib import Path

import pytest

from plait import cli
from plait.commands import verbs
from plait.errors import command
from tests.test_cli import CONFIG

SOURCE = Path(__file__).resolve().parents[1] / "src"
RUN = "runs/first try; $(HOME) it's"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder with two runs that are done, one of which keeps its best checkpoint, and the last lines of both."""
    folder = tmp_path_factory.mktemp("proposed")
    (folder / "small.yaml").write_text(CONFIG)
    best = ["--checkpoint.best=loss", "--evaluate=[{bench: loss, every_steps: 1}]", "--checkpoint.every_steps=1"]
    lines = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for run, more in ((RUN, best), ("plain", ["--data.validation=[]"])):
            log = []
            patch.setattr("plait.training.run.log.info", lambda text, log=log: log.append(text))
            assert cli.main(["train", "small.yaml", f"--run={run}", *more]) == 0
            lines[run] = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in log[-1].splitlines()}
    return folder, lines


def test_a_run_with_a_best_checkpoint_ends_with_its_name_and_its_export(ended):
    _, lines = ended
    assert re.fullmatch(rf"{re.escape(RUN)}/stage-1-train/step-0000000[12], loss \d\.\d+", lines[RUN]["best"])
    assert shlex.split(lines[RUN]["export"]) == ["plait", "export", f"{RUN}@best", f"{RUN}-export", "--to", "hf"]
    assert "best" not in lines["plain"]
    assert lines["plain"]["export"] == "plait export plain plain-export --to hf"


def test_a_run_that_holds_nothing_out_asks_for_the_data_to_measure_on(ended, monkeypatch, capsys):
    folder, lines = ended
    monkeypatch.chdir(folder)
    assert lines["plain"]["measure"] == "plait eval plain --bench loss --data=..."
    words = shlex.split(lines["plain"]["measure"].replace("--data=...", "--data=scenes"))
    assert cli.main([*words[1:], "--samples=2"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["measure", "ask", "export", "more"])
def test_the_commands_at_the_end_run_as_they_are_printed(name, ended, monkeypatch, capsys):
    folder, lines = ended
    monkeypatch.chdir(folder)
    typed = lines[RUN][name].removeprefix("steps").strip()
    shorter = {"--prompt=...": "--prompt=colour?", "--train.steps=...": "--train.steps=3"}
    short = {"measure": ["--samples=2"], "ask": ["--max-new-tokens=1"]}.get(name, [])
    program, *words = [shorter.get(word, word) for word in shlex.split(typed)]
    assert (program, cli.main([*words, *short])) == ("plait", 0), capsys.readouterr().err
    if name == "export":
        assert f"{RUN}/stage-1-train/step-" in capsys.readouterr().out
        assert (folder / f"{RUN}-export" / "config.json").is_file()


def test_a_damaged_run_names_commands_that_can_be_typed(ended, monkeypatch, capsys):
    folder, _ = ended
    monkeypatch.chdir(folder)
    assert cli.main(["fork", RUN, "other; $(fork)"]) == 0
    proposed = capsys.readouterr().out.splitlines()[-1].partition("continue it: ")[2]
    assert shlex.split(proposed) == ["plait", "train", "other; $(fork)"]
    for weights in (folder / "other; $(fork)").rglob("weights.safetensors"):
        weights.write_bytes(b"")
    assert cli.main(["eval", "other; $(fork)", "--bench=loss"]) == 2
    cures = re.findall(r"`(.*?)`", capsys.readouterr().err)
    assert [shlex.split(cure) for cure in cures] == [
        ["plait", "train", "other; $(fork)", "--restart"],
        ["plait", "ckpt", "verify", "other; $(fork)"],
    ]


def test_no_command_is_put_together_without_quotes():
    """Values reach a proposed command through `errors.command` alone."""
    known = "|".join(sorted({item.words[0] for item in verbs.shipped()}))
    pattern = re.compile(rf"\bplait (?:{known})\b[^`\"]*(?<!\{{)\{{(?!\{{)")
    found = [
        f"{path.name}: {line.strip()}" for path in SOURCE.rglob("*.py") for line in path.read_text().splitlines() if pattern.search(line)
    ]
    assert found == []
    assert pattern.search('f"`plait train {run}` goes on"')


def test_a_word_is_quoted_only_where_a_shell_needs_it():
    assert command("train", "runs/demo@best", "--optim.lr=...") == "plait train runs/demo@best --optim.lr=..."
    assert command("train", Path("a b"), 3) == "plait train 'a b' 3"


FEW = """
family: nanodit
model: {depth: 1, hidden: 16, heads: 2, space: pixels, patch: 8, text: words, text_dim: 16, words: 64, image_dim: 0, image_size: 32,
        sampling: {steps: 1}}
data:
  train: [{source: scenes, limit: 12, options: &scenes {size: [32, 32], objects: 1, tasks: [caption]}}]
  validation: [{source: scenes, limit: 5, options: *scenes}]
  workers: 0
train: {steps: 1, global_batch: 4}
optim: {schedule: {warmup_steps: 0}}
track: {tensorboard: false}
"""


def test_the_bench_that_a_run_ends_with_is_one_that_its_held_out_data_has_enough_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.yaml").write_text(FEW)
    assert cli.main(["train", "few.yaml", "--run=few"]) == 0
    measure = re.search(r"^measure +(.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    assert measure == "plait eval few --bench loss"
    assert cli.main(shlex.split(measure)[1:]) == 0, capsys.readouterr().err
    failed = '{"step": 1, "stage": "train", "bench": "validation", "reason": "none", "traceback": ""}\n'
    (tmp_path / "few/bench_failures.jsonl").write_text(failed)
    more = ["--train.steps=2", "--evaluate=[{bench: validation, every_steps: 9}]"]
    assert cli.main(["train", "few.yaml", "--run=few", *more]) == 0
    assert "plait eval few --bench loss\n" in capsys.readouterr().out
