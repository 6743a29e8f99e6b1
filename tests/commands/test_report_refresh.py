"""The page is kept up to date while a run trains, in another process; what goes wrong with it does not stop the run."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import plait
from plait import cli
from plait.commands.actions.report import refresh, report
from plait.training.figures import kept_answers
from tests import toy_family as toy
from tests.commands.test_answers_page import Page
from tests.test_cli import CONFIG

EVERY = "--track.report_every_steps=2"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def started(monkeypatch):
    """The commands of the processes that are started, each ended at once, with an exit code that can be set."""
    words, code = [], [0]
    popen = subprocess.Popen

    def start(given, **options):
        words.append(given)
        return popen([sys.executable, "-S", "-c", f"import sys; print('no disk', file=sys.stderr); sys.exit({code[0]})"], **options)

    monkeypatch.setattr(refresh.subprocess, "Popen", start)
    return words, code


def test_a_page_is_written_while_the_run_trains_and_at_its_end(recipe):
    assert cli.main(["train", str(recipe), "--run=run", "--train.steps=4", "--track.report_every_steps=4"]) == 0
    page = Page(recipe.parent / "run" / "report.html")
    assert any(text.startswith("theworld, done; 4 steps in ") for text in page.texts("p"))
    assert "Plan and reality" in page.texts("h3")


def test_pages_are_due_every_so_many_steps_of_a_stage_and_the_last_has_the_plan(recipe, started):
    assert cli.main(["train", str(recipe), "--run=run", "--train.steps=3", EVERY]) == 0
    first, last = ([sys.executable, "-m", "plait", "report", "run", *options] for options in (["--no-plan"], []))
    assert started[0] == [first, last]


def test_a_page_that_fails_is_one_warning_and_the_run_goes_on(recipe, started, capsys):
    started[1][0] = 1
    assert cli.main(["train", str(recipe), "--run=run", "--train.steps=6", EVERY]) == 0
    said = "warning: the page of the run could not be written: no disk; training goes on, and `plait report run` tries again\n"
    assert capsys.readouterr().err.count(said) == 1
    assert cli.main(["stages", "run"]) == 0


def test_nothing_is_started_without_the_setting_nor_on_other_ranks(recipe, started, monkeypatch):
    assert cli.main(["train", str(recipe), "--run=run"]) == 0
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        resolved = plait.load_config(str(recipe), **{"track.report_every_steps": 1})
        with refresh.refreshed(resolved) as hooks:
            assert hooks == ()
    assert started[0] == []


def test_a_run_that_took_no_step_writes_no_page(recipe, started):
    assert cli.main(["train", str(recipe), "--run=run"]) == 0
    assert cli.main(["train", "run", EVERY]) == 0
    assert started[0] == []


def test_python_has_the_pages_too(recipe, started):
    plait.train(plait.load_config(str(recipe), run="run", **{"track.report_every_steps": 1}))
    assert len(started[0]) >= 2


def test_a_run_that_ends_early_starts_a_last_page_and_does_not_wait_for_it(recipe, monkeypatch):
    started = []
    popen = subprocess.Popen

    def start(given, **options):
        started.append((given, popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], **options)))
        return started[-1][1]

    monkeypatch.setattr(refresh.subprocess, "Popen", start)
    resolved = plait.load_config(str(recipe), run="run", **{"track.report_every_steps": 1000})

    def train():
        with refresh.refreshed(resolved) as hooks:
            hooks[0](SimpleNamespace(stage=1, stage_step=1), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    ((words, process),) = started
    assert (words[-2:], process.poll()) == (["run", "--no-plan"], None)
    process.kill()
    process.wait()


def test_a_fork_takes_the_answers_up_to_its_step(recipe):
    evaluate = "--evaluate=[{bench: accuracy, every_steps: 2, samples: 4}]"
    assert cli.main(["train", str(recipe), "--run=run", "--train.steps=4", "--checkpoint.every_steps=2", evaluate]) == 0
    assert cli.main(["fork", "run@2", "new"]) == 0
    assert [row["step"] for row in kept_answers.files.read_rows(recipe.parent / "new" / kept_answers.NAME)] == [2]


def test_pages_change_no_weight(recipe, started):
    for name, words in (("with", [EVERY]), ("without", [])):
        assert cli.main(["train", str(recipe), f"--run={name}", "--train.steps=4", *words]) == 0
    one, other = (toy.at(recipe.parent / name, 4) for name in ("with", "without"))
    assert toy.same(one.tensors("weights"), other.tensors("weights"))


def test_answers_of_each_evaluation_are_kept_and_read_at_every_step(recipe):
    evaluate = "--evaluate=[{bench: accuracy, every_steps: 2, samples: 4}]"
    assert cli.main(["train", str(recipe), "--run=run", "--train.steps=4", "--checkpoint.every_steps=2", evaluate]) == 0
    kept = kept_rows(recipe)
    assert [(row["step"], row["bench"], len(row["answers"])) for row in kept] == [(2, "accuracy", 4), (4, "accuracy", 4)]
    report.write([recipe.parent / "run"], plan=False)
    page = Page(recipe.parent / "run" / "report.html")
    assert page.texts("dt").count("step 2") == page.texts("dt").count("step 4") == 4
    assert kept[0]["answers"][0]["question"] in page.texts("h4")
    again = kept_rows(recipe)
    for folder in (recipe.parent / "run").glob("stage-*/step-00000004"):
        folder.rename(recipe.parent / "aside")
    assert cli.main(["train", "run"]) == 0
    assert kept_rows(recipe) == again, "a step that is evaluated again is there once"


def kept_rows(recipe):
    return kept_answers.files.read_rows(recipe.parent / "run" / kept_answers.NAME)
