"""`plait ckpt prune` frees what nothing needs, and never the newest, the best, or what another run starts from."""

import json
import re
import shutil

import pytest

from plait import cli, files
from plait.commands.actions.runs import prune
from plait.config import signed
from plait.engine.checkpoints import checkpoint, integrity, rundir
from plait.engine.parallel.distributed import full_tensor
from plait.errors import PlaitError
from tests import toy_family as toy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The recipe of the toy, and a run of it with nine checkpoints in three stages."""
    folder = tmp_path_factory.mktemp("prune")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield recipe, toy.train(recipe, folder / "run")


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made[1], tmp_path / "runs" / "one")


def steps(run):
    return sorted(checkpoint.step_of(folder) for folder in checkpoint.published(run))


def bests(run):
    """The steps of each stage's best checkpoint."""
    ends = [integrity.locate(folder).manifest["state"]["best"]["step"] for folder in run.glob("stage-*")]
    return set(ends)


def test_nothing_goes_before_it_is_said_and_asked_for(run, capsys):
    before = {path: path.stat().st_size for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    assert cli.main(["ckpt", "prune", str(run)]) == 0
    said = capsys.readouterr().out
    assert {path: path.stat().st_size for path in run.rglob("*") if path.is_file() and path.name != "lock"} == before
    going = re.findall(r"^goes +\S+ kB  stage-\d-\w+/step-0*(\d+)$", said, re.M)
    assert sorted(map(int, going)) == sorted({2, 4, 6, 8, 10, 12, 14, 16, 18} - {6, 12, 18} - bests(run))
    assert said.splitlines()[-1].endswith(f"would be freed: plait ckpt prune {run} --yes")


def test_what_stays_is_the_newest_and_the_best_of_each_stage_and_the_run_goes_on_from_it(run, made, capsys):
    expected = sorted({6, 12, 18} | bests(run))
    shown = prune.size_of(run)
    assert cli.main(["ckpt", "prune", str(run), "--yes"]) == 0
    assert steps(run) == expected
    assert shown > prune.size_of(run)
    assert not list(run.glob(f"*/{checkpoint.UNFINISHED}*"))
    assert cli.main(["ckpt", "verify", str(run)]) == 0
    toy.train(made[0], run)
    assert toy.same(toy.at(run, 18).tensors("weights"), toy.at(made[1], 18).tensors("weights"))


def test_keep_is_how_many_of_each_stage_stay(run):
    assert cli.main(["ckpt", "prune", str(run), "--yes", "--keep=2"]) == 0
    assert steps(run) == sorted({4, 6, 10, 12, 16, 18} | bests(run))


@pytest.mark.parametrize("spec", ["runs/one@2", "{run}@2", "runs/one/projection@2", "runs/one/stage-1-projection/step-00000002"])
def test_what_another_run_starts_from_stays(spec, run, made, tmp_path, capsys):
    assert 2 not in bests(run)
    toy.train(made[0], tmp_path / "runs" / "deeper" / "two", f"from={spec.format(run=run)}", only="projection")
    capsys.readouterr()
    assert cli.main(["ckpt", "prune", str(run), "--yes"]) == 0
    assert 2 in steps(run)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "step-00000002" in line]
    assert re.fullmatch(r"stays +\S+ kB  stage-1-projection/step-00000002  .*deeper/two starts from it", line)


def test_a_start_from_a_run_keeps_the_checkpoint_that_was_the_newest_then(run, made, tmp_path):
    early = shutil.copytree(run, tmp_path / "runs" / "early")
    for folder in checkpoint.published(early):
        if checkpoint.step_of(folder) > 8:
            shutil.rmtree(folder)
    toy.train(made[0], tmp_path / "elsewhere" / "two", "from=runs/early", only="projection")
    assert json.loads((tmp_path / "elsewhere/two/lineage.json").read_text())["step"] == 8
    for folder in (early / "stage-2-vision", early / "stage-3-language"):
        shutil.rmtree(folder)
        shutil.copytree(run / folder.name, folder)
    assert 8 not in bests(early)
    assert cli.main(["ckpt", "prune", str(early), "--yes", "--also=elsewhere"]) == 0
    assert 8 in steps(early)
    assert cli.main(["ckpt", "prune", str(early), "--yes"]) == 0
    assert 8 not in steps(early), "without --also nobody knows of that run"


def test_a_damaged_checkpoint_is_neither_counted_nor_deleted(run):
    newest, older = (run / f"stage-3-language/step-{step:08d}/weights.safetensors" for step in (18, 14))
    body = bytearray(newest.read_bytes())
    body[-1] ^= 1
    newest.write_bytes(body)
    older.write_bytes(b"")
    assert cli.main(["ckpt", "prune", str(run), "--yes"]) == 0
    assert {14, 16, 18} <= set(steps(run)), "16 is the newest that is intact"


def test_nothing_goes_where_no_checkpoint_is_intact(run, capsys):
    for path in run.rglob("weights.safetensors"):
        path.write_bytes(b"")
    assert cli.main(["ckpt", "prune", str(run), "--yes"]) == 2
    assert "9 checkpoints, up to step 18, and none is intact" in capsys.readouterr().err
    assert len(steps(run)) == 9


def test_what_cannot_be_pruned_is_one_line(run, tmp_path, capsys):
    with rundir.lock(run):
        assert cli.main(["ckpt", "prune", str(run), "--yes"]) == 2
    assert capsys.readouterr().err.startswith(f"plait: {run} is in use: a run deletes its own checkpoints as it trains")
    for words, line in (
        ([str(tmp_path)], f"{tmp_path} is no run directory: it has no config.yaml and no checkpoint"),
        ([str(run), "--also=nowhere"], "nowhere is not there: give a folder with runs in it"),
    ):
        assert cli.main(["ckpt", "prune", *words]) == 2
        assert capsys.readouterr().err == f"plait: {line}\n"
    assert len(steps(run)) == 9


def test_a_disk_that_fails_says_which_checkpoint_is_left(run, monkeypatch):
    def fails(folder, before):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoint, "delete", fails)
    with pytest.raises(PlaitError, match=r"step-0000000\d could not be deleted: \[Errno 30\] Read-only file system"):
        prune.prune(run, keep=1, do=True)


def test_averages_of_what_goes_are_kept_and_not_counted_as_freed(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = toy.train(made[0], "runs/averaged", "stages=[]", "optim.ema={decay: 0.5, post_hoc: true}")
    before = {name: full_tensor(value) for name, value in toy.at(run, 4).stored("ema-0.05").items()}
    capsys.readouterr()
    assert cli.main(["ckpt", "prune", str(run), "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    gone = [entry for entry in told["checkpoints"] if entry["kept"] is None]
    assert 0 < told["bytes_freed"] < sum(entry["bytes"] for entry in gone)
    kept = checkpoint.read(run / "averages" / "step-00000004") if before else None
    assert kept is not None and toy.same(kept.tensors("ema-0.05"), before)


def test_json_names_every_checkpoint_with_its_size_and_why_it_stays(run, capsys):
    assert cli.main(["ckpt", "prune", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["deleted"], len(told["checkpoints"])) == (str(run), False, 9)
    by_step = {int(entry["checkpoint"].rpartition("-")[2]): entry for entry in told["checkpoints"]}
    assert by_step[18]["kept"] == "newest of its stage"
    size = sum(path.stat().st_size for path in (run / "stage-3-language/step-00000018").iterdir())
    assert by_step[18]["bytes"] == size
    assert told["bytes_freed"] == sum(entry["bytes"] for entry in told["checkpoints"] if entry["kept"] is None)


def test_a_run_of_which_nothing_is_known_is_a_warning(run, tmp_path, capsys):
    other = tmp_path / "runs" / "broken"
    other.mkdir()
    (other / "config.yaml").write_text("family: [")
    files.write_whole(other / "identity", "0" * 12)
    (other / "lineage.json").write_text("{")
    assert cli.main(["ckpt", "prune", str(run)]) == 0
    said = capsys.readouterr().err
    assert "broken: what it starts from is not known: " in said
    assert "lineage.json cannot be read (JSONDecodeError): what " in said


@pytest.mark.parametrize("version", ["now", "older", "older, without identities"])
def test_what_another_run_starts_from_by_a_path_relative_to_elsewhere_stays(version, run, made, tmp_path, capsys, monkeypatch):
    other = tmp_path / "sub" / "out" / "two"
    other.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sub")
    toy.train(made[0], other, "from=../runs/one@2", only="projection")
    lineage = json.loads((other / "lineage.json").read_text())
    told = {"from": f"{run}@2", "folder": str(run / "stage-1-projection/step-00000002")}
    assert {name: lineage[name] for name in told} == told
    assert f"from: {run}@2\n" in (other / "config.yaml").read_text()
    if version != "now":
        text = (other / "config.yaml").read_text().replace(f"from: {run}@2", "from: ../runs/one@2")
        (other / "config.yaml").write_text(signed.sign("".join(text.splitlines(keepends=True)[:-1])))
        lineage |= {"from": "../runs/one@2", "folder": "../runs/one/stage-1-projection/step-00000002"}
        lineage |= {"parent": None} if "without" in version else {}
        (other / "lineage.json").write_text(json.dumps(lineage))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(["ckpt", "prune", str(run), "--yes", "--also=sub/out"]) == 0
    assert 2 in steps(run)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "step-00000002" in line]
    unsure = " ../runs/one@2, relative to where it was started, and this may be it" if "without" in version else " it"
    assert line.endswith(f"sub/out/two starts from{unsure}")


def test_a_run_that_starts_from_a_relative_path_begins_when_it_is_continued_elsewhere(run, made, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    other = toy.train(made[0], tmp_path / "two", "from=../runs/one@2", only="projection")
    monkeypatch.chdir("/")
    for folder in checkpoint.published(other):
        shutil.rmtree(folder)
    (other / "lineage.json").unlink()
    toy.train(other / "config.yaml", other)
    assert json.loads((other / "lineage.json").read_text())["step"] == 2
