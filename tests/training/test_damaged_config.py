"""A run's config.yaml that is edited, cut short, damaged or lost: nothing of it is trained unsaid, and a run goes on exactly."""

import shutil

import pytest

from plait import cli
from plait.config import signed
from tests import toy_family

STEPS = ("stages=[]", "train.steps=10")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, a run that was killed after step 6, the metrics of one that was not)."""
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy_family.install(patch, folder)
        assert train(recipe, folder / "half") == 0
        figures = toy_family.figures(folder / "half")
        for step in (8, 10):
            shutil.rmtree(toy_family.at(folder / "half", step).folder)
        yield recipe, folder / "half", figures


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "run")


def train(recipe, run, *settings):
    return cli.main(["train", str(recipe), f"--run={run}", *(f"--{item}" for item in (*STEPS, *settings))])


def again(run):
    return cli.main(["train", str(run)])


def test_every_checkpoint_has_the_configuration_that_it_was_saved_with(run):
    copies = sorted(run.glob("stage-1-train/step-*/run-config.yaml"))
    assert len(copies) == 3
    assert {copy.read_bytes() for copy in copies} == {(run / "config.yaml").read_bytes()}
    assert all(map(signed.is_as_written, copies))
    assert signed.newest_copy(run) == copies[-1]


DAMAGES = {
    "cut in a word": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "lost": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("by", ["the run", "the recipe"])
def test_a_run_without_a_readable_configuration_goes_on_exactly_by_the_copy_of_its_newest_checkpoint(made, run, capfd, damage, by):
    recipe, _, figures = made
    written = (run / "config.yaml").read_text()
    DAMAGES[damage](run / "config.yaml")
    capfd.readouterr()
    assert (again(run) if by == "the run" else train(recipe, run)) == 0
    said = capfd.readouterr()
    copy = run / "stage-1-train" / "step-00000006" / "run-config.yaml"
    assert f"warning: {run / 'config.yaml'} is " in said.err and str(copy) in said.err
    assert f"continuing from {copy.parent}" in said.out
    assert toy_family.figures(run) == figures
    assert (run / "config.yaml").read_text().splitlines()[1:-1] == written.splitlines()[1:-1]  # but for the run's name and the hash
    assert signed.is_as_written(run / "config.yaml")


def test_a_folder_in_place_of_the_configuration_is_one_line_and_once_removed_the_run_goes_on_exactly(made, run, capfd):
    (run / "config.yaml").unlink()
    (run / "config.yaml").mkdir()
    assert again(run) == 2
    said = capfd.readouterr().err
    assert f"plait: {run / 'config.yaml'} is not the kind of file that a run keeps there (Is a directory); remove it" in said
    assert "Traceback" not in said
    (run / "config.yaml").rmdir()
    assert again(run) == 0
    assert toy_family.figures(run) == made[2]


def test_a_configuration_that_was_cut_between_two_keys_is_not_trained_with_default_values(made, run, capfd):
    whole = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(whole[: whole.index("optim:")])
    assert again(run) == 2
    said = capfd.readouterr().err
    copy = run / "stage-1-train" / "step-00000006" / "run-config.yaml"
    assert f"is not as plait wrote it: it was edited or damaged; {copy}, saved with that checkpoint, is what this start must fit" in said
    assert "was begun with another configuration (" in said and "optim.lr: 0.01 -> " in said
    shutil.copy(copy, run / "config.yaml")
    assert again(run) == 0
    assert toy_family.figures(run) == made[2]


def test_an_edit_that_changes_results_is_refused_as_on_the_command_line_and_one_that_does_not_is_taken(made, run, capfd):
    path = run / "config.yaml"
    whole = path.read_text()
    path.write_text(whole.replace("lr: 0.01", "lr: 0.5"))
    assert again(run) == 2
    assert "was begun with another configuration (optim.lr: 0.01 -> 0.5)" in capfd.readouterr().err
    path.write_text(whole.replace("keep: 9", "keep: 8"))
    assert again(run) == 0
    assert "checkpoint.keep: 9 -> 8" in capfd.readouterr().out
    assert toy_family.figures(run) == made[2]


def test_a_flipped_bit_in_a_setting_is_found(run, capfd):
    body = bytearray((run / "config.yaml").read_bytes())
    at = body.index(b"seed: 0") + len(b"seed: ")
    body[at] ^= 1
    (run / "config.yaml").write_bytes(body)
    assert again(run) == 2
    assert "seed: 0 -> 1" in capfd.readouterr().err


def test_a_damaged_copy_is_not_used(run, capfd):
    copies = sorted(run.glob("stage-1-train/step-*/run-config.yaml"))
    copies[-1].write_text(copies[-1].read_text().replace("lr: 0.01", "lr: 0.5"))
    (run / "config.yaml").unlink()
    assert again(run) == 0
    assert f"{copies[-2]}, saved with that checkpoint, is read in its place" in capfd.readouterr().err


def test_without_any_copy_the_line_says_what_to_put_back(made, run, capfd):
    for copy in run.glob("stage-1-train/step-*/run-config.yaml"):
        copy.unlink()
    (run / "config.yaml").write_text("a: [")
    assert train(made[0], run) == 2
    assert (
        "and no checkpoint has a copy; use the version that began the run, or, if the file is damaged, put a copy" in capfd.readouterr().err
    )


def test_a_run_that_saved_nothing_begins_with_the_configuration_that_is_given(made, run, capfd):
    shutil.rmtree(run / "stage-1-train")
    (run / "config.yaml").write_text("a: [")
    assert train(made[0], run) == 0
    assert "nothing was saved: the run begins with the new one" in capfd.readouterr().err
    assert toy_family.figures(run) == made[2]


def test_a_fork_has_no_copy_of_its_parents_configuration_until_it_saves_its_own(run, tmp_path):
    assert cli.main(["fork", f"{run}@6", str(tmp_path / "fork"), "--optim.lr=0.5"]) == 0
    assert signed.newest_copy(tmp_path / "fork") is None
    assert signed.is_as_written(tmp_path / "fork" / "config.yaml")
    assert again(tmp_path / "fork") == 0
    assert "lr: 0.5" in signed.newest_copy(tmp_path / "fork").read_text()


def test_other_verbs_read_the_copy_too(run, capfd):
    (run / "config.yaml").write_text("a: [")
    assert cli.main(["stages", str(run)]) == 0
    assert "is damaged, or not of this version of plait" in capfd.readouterr().err


def cut(run):
    """Remove what follows the data from config.yaml: it is valid YAML, and defaults would stand for the rest."""
    whole = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(whole[: whole.index("optim:")])


def copy_of(run):
    return run / "stage-1-train" / "step-00000006" / "run-config.yaml"


NAMING = ("fork {run} {new}", "eval {run} --bench=loss", "ckpt diff {run}@4 {run}@6", "ckpt consolidate {run} {new}")


@pytest.mark.parametrize("verb", NAMING)
def test_verbs_that_name_a_checkpoint_read_its_copy_in_place_of_a_configuration_that_was_cut(run, tmp_path, capfd, verb):
    cut(run)
    assert cli.main(verb.format(run=run, new=tmp_path / "new").split()) == 0
    said = capfd.readouterr()
    changed = f"warning: {run / 'config.yaml'} is not as plait wrote it: it was edited or damaged; "
    assert said.err.count(f"{changed}{copy_of(run)}, saved with that checkpoint, is read in its place\n") == 1
    assert "config optim" not in said.out
    if verb.startswith("fork"):
        assert "lr: 0.01" in (tmp_path / "new" / "config.yaml").read_text()


def test_a_fork_of_an_older_checkpoint_reads_the_copy_of_that_one(run, tmp_path):
    older = run / "stage-1-train" / "step-00000004" / "run-config.yaml"
    body = older.read_text().replace("lr: 0.01", "lr: 0.02")
    older.write_text(signed.sign("".join(body.splitlines(keepends=True)[:-1])))
    cut(run)
    assert cli.main(["fork", f"{run}@4", str(tmp_path / "new")]) == 0
    assert "lr: 0.02" in (tmp_path / "new" / "config.yaml").read_text()


@pytest.mark.parametrize("verb", ["stages {run}", "config {run}"])
def test_verbs_that_show_a_run_read_an_edited_configuration_and_say_so(run, capfd, verb):
    cut(run)
    assert cli.main(verb.format(run=run).split()) == 0
    assert f"it was edited or damaged; it is read as it is, and {copy_of(run)} is as it was" in capfd.readouterr().err


def test_the_model_settings_of_a_run_without_configuration_are_those_of_the_copy(run, tmp_path):
    (run / "config.yaml").unlink()
    assert cli.main(["ckpt", "consolidate", str(run), str(tmp_path / "new")]) == 0
    assert '"width": 4' in (tmp_path / "new" / "plait.json").read_text()


def unreadable(path):
    """Give a copy a key of another version, and sign it."""
    body = path.read_text().replace("optim:", "optimizers:")
    path.write_text(signed.sign("".join(body.splitlines(keepends=True)[:-1])))


def test_a_configuration_that_was_repaired_by_hand_counts_where_its_copy_cannot_be_read(made, run, capfd):
    for copy in run.glob("stage-1-train/step-*/run-config.yaml"):
        unreadable(copy)
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "# mended\n")
    assert again(run) == 0
    said = capfd.readouterr().err
    assert f"it was edited or damaged; it is taken as it is, as {copy_of(run)} is damaged, or not of this version of plait (" in said
    assert toy_family.figures(run) == made[2]


def test_a_configuration_and_a_copy_that_cannot_be_read_are_both_named(made, run, capfd):
    for copy in run.glob("stage-1-train/step-*/run-config.yaml"):
        unreadable(copy)
    (run / "config.yaml").write_text("a: [")
    assert train(made[0], run) == 2
    said = capfd.readouterr().err
    assert f"plait: {run / 'config.yaml'} is damaged, or not of this version of plait (" in said
    assert f", and {copy_of(run)} is damaged, or not of this version of plait (" in said
    assert "); use the version that began the run, or, if the file is damaged, put a copy of it back" in said
    assert "no checkpoint has a copy" not in said
