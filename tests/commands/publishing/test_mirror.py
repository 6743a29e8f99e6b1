"""`checkpoint.mirror`: whole checkpoints at an address, verified, pruned by the run's rule, from which another machine goes on."""

import errno
import shutil
from types import SimpleNamespace

import pytest

import plait
from plait import cli
from plait.assembly.configuration import open_config
from plait.commands.actions.publishing import beside, mirror, mirror_way, restore
from plait.commands.actions.publishing.mirror import Mirror, Store
from plait.commands.actions.publishing.retries import Later
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.training import run as training
from plait.training.run_context import TrainOptions
from tests import toy_family as toy
from tests.commands.publishing.test_beside import SMALL


@pytest.fixture
def toys(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def train(recipe, run, folder, *overrides, **options):
    """`plait train` of the toy, in this process, with `folder` as its mirror; what the process beside it does is done at its end."""
    resolved = open_config(recipe, [f"run={run}", f"checkpoint.mirror=file://{folder}", *overrides])
    restore.from_mirror(resolved, restart=options.get("restart", False), fresh=options.get("fresh", False))
    training.train(resolved, TrainOptions(**options))
    followed(resolved, folder)
    return run


def followed(resolved, folder):
    keep = {f"stage-{view.index}-{view.name}": view.config.checkpoint.keep for view in resolved.stages}
    copy = Mirror(checkpoint.run_of(beside.Path(str(resolved.config.run))), f"file://{folder}", keep)
    while copy.update() is not None:
        pass


def steps(folder):
    return sorted(int(name.rpartition("-")[2]) for name in mirror.complete(Store(f"file://{folder}").list()))


def below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ALONE = ("stages=[]", "trainable=[projector]")


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """(recipe, the mirror of a finished run of it, with a checkpoint of steps 2, 4 and 6)."""
    folder = tmp_path_factory.mktemp("mirrored")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        for length in (2, 4, 6):
            train(recipe, folder / "run", folder / "mirror", f"train.steps={length}", *ALONE)
    return recipe, folder / "mirror"


def test_another_machine_goes_on_from_the_mirror_to_the_bit(toys, tmp_path, capsys):
    whole = train(toys, tmp_path / "whole", tmp_path / "other")
    train(toys, tmp_path / "here", tmp_path / "mirror", only="projection")
    shutil.rmtree(tmp_path / "here")
    there = train(toys, tmp_path / "there", tmp_path / "mirror")
    assert f"brought from file://{tmp_path}/mirror/stage-1-projection/step-00000006" in capsys.readouterr().out
    for group in ("weights", "ema", "moments"):
        assert toy.same(toy.at(whole, 18).tensors(group), toy.at(there, 18).tensors(group))
    assert toy.figures(whole) == toy.figures(there) and steps(tmp_path / "mirror") == steps(tmp_path / "other")


def test_the_mirror_is_pruned_as_the_run_is(toys, tmp_path):
    run = train(toys, tmp_path / "run", tmp_path / "mirror", "checkpoint.keep=2", *ALONE)
    assert steps(tmp_path / "mirror") == sorted(checkpoint.step_of(folder) for folder in checkpoint.published(run))
    train(toys, run, tmp_path / "mirror", "checkpoint.keep=2", "train.steps=10", *ALONE)
    assert steps(tmp_path / "mirror") == sorted(checkpoint.step_of(folder) for folder in checkpoint.published(run))
    shutil.rmtree(run)
    train(toys, run, tmp_path / "mirror", "checkpoint.keep=2", "train.steps=12", *ALONE)
    assert len(checkpoint.published(run)) == 2 and 12 in steps(tmp_path / "mirror") and len(steps(tmp_path / "mirror")) in (2, 3)


def test_a_damaged_copy_is_passed_over_and_one_without_its_manifest_is_none(toys, tmp_path, capsys):
    run, folder = train(toys, tmp_path / "run", tmp_path / "mirror", *ALONE), tmp_path / "mirror"
    weights = folder / "stage-1-train/step-00000006/weights.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(bytes(body))
    (folder / "stage-1-train/step-00000004/manifest.json").unlink()
    shutil.rmtree(run)
    resolved = open_config(toys, [f"run={run}", f"checkpoint.mirror=file://{folder}", *ALONE])
    restore.from_mirror(resolved, restart=False, fresh=False)
    assert [checkpoint.step_of(path) for path in checkpoint.published(run)] == [2]
    assert "passed over: " in (said := capsys.readouterr().err) and "weights.safetensors is damaged: xxh3" in said
    followed(resolved, folder)
    assert steps(folder) == [2, 6] and not list(folder.glob("*/step-00000004"))  # what was left of a kill is swept


@pytest.mark.parametrize("hashed", [True, False], ids=["with its hash", "of an older plait"])
def test_one_flipped_bit_of_the_packed_records_is_never_brought(mirrored, toys, tmp_path, capsys, hashed):
    recipe, source = mirrored
    folder = shutil.copytree(source, tmp_path / "mirror")
    newest = folder / "stage-1-train/step-00000006"
    resolved = open_config(recipe, [f"run={tmp_path / 'run'}", f"checkpoint.mirror=file://{folder}", *ALONE])
    before = shutil.copytree(source, tmp_path / "before")
    shutil.rmtree(before / "stage-1-train/step-00000006")
    there = open_config(recipe, [f"run={tmp_path / 'good'}", f"checkpoint.mirror=file://{before}", *ALONE])
    restore.from_mirror(there, restart=False, fresh=False)
    if not hashed:
        (newest / mirror.RECORDS_HASH).unlink()
    body = (newest / mirror.RECORDS).read_bytes()
    for place in range(12, len(body), len(body) // 20):
        damaged = bytearray(body)
        damaged[place] ^= 1 << place % 8
        (newest / mirror.RECORDS).write_bytes(damaged)
        restore.from_mirror(resolved, restart=False, fresh=False)
        assert below(tmp_path / "run") == below(tmp_path / "good"), place
        assert "step-00000006: records.tar.gz is damaged: " in capsys.readouterr().err
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("name", ["run-config.yaml", "weights.safetensors", "manifest.json", "records.json", "records.tar.gz"])
def test_each_file_that_comes_back_changed_or_not_at_all_is_noticed(mirrored, toys, tmp_path, capsys, name):
    recipe, source = mirrored
    folder = shutil.copytree(source, tmp_path / "mirror")
    path = folder / "stage-1-train/step-00000006" / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    for change in (lambda: path.write_bytes(body), path.unlink):
        change()
        resolved = open_config(recipe, [f"run={tmp_path / 'run'}", f"checkpoint.mirror=file://{folder}", *ALONE])
        restore.from_mirror(resolved, restart=False, fresh=False)
        steps_of_run = [checkpoint.step_of(one) for one in checkpoint.published(tmp_path / "run")]
        assert steps_of_run == ([6] if name == "records.json" and not path.exists() else [4]), "an older plait wrote no records.json"
        shutil.rmtree(tmp_path / "run")


def test_records_that_are_damaged_everywhere_leave_no_run_and_no_new_identity(mirrored, toys, tmp_path):
    recipe, source = mirrored
    folder = shutil.copytree(source, tmp_path / "mirror")
    for packed in folder.glob("stage-*/*/records.tar.gz"):
        packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(PlaitError, match=r"has no intact checkpoint: records\.tar\.gz is damaged: \d+ bytes, records\.json says \d+; give"):
        train(recipe, tmp_path / "run", folder, *ALONE)
    assert set(below(tmp_path / "run")) == {"lock"} and below(folder)["identity"] == below(source)["identity"]


def test_averages_that_come_back_damaged_are_left_out_and_told(toys, tmp_path, capsys):
    options = ("checkpoint.keep=1", "checkpoint.best=null", "optim.ema={decay: 0.5, post_hoc: true}", *ALONE)
    folder, run = tmp_path / "mirror", train(toys, tmp_path / "run", tmp_path / "mirror", *options)
    kept = sorted(path.parent.name for path in folder.glob("averages/*/manifest.json"))
    damaged = next(folder.glob(f"averages/{kept[0]}/*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shutil.rmtree(run)
    restore.from_mirror(open_config(toys, [f"run={run}", f"checkpoint.mirror=file://{folder}", *options]), restart=False, fresh=False)
    assert sorted(path.name for path in (run / "averages").iterdir()) == kept[1:]
    assert f"left out: file://{folder}/averages/{kept[0]}: " in capsys.readouterr().err


def test_a_file_that_arrives_damaged_is_not_a_checkpoint_and_is_sent_again(toys, tmp_path, monkeypatch):
    run = train(toys, tmp_path / "run", tmp_path / "other", *ALONE)
    copy, write = Mirror(run, f"file://{tmp_path / 'mirror'}", {}), Store.put

    def torn(self, path, source):
        monkeypatch.setattr(Store, "put", write)
        (tmp_path / "torn").write_bytes(source.read_bytes()[:-1])
        monkeypatch.setattr(self.system, "put_file", lambda one, other, callback: shutil.copy(tmp_path / "torn", other))
        try:
            return write(self, path, source)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(Store, "put", torn)
    with pytest.raises(mirror.Torn, match="is not what was written there"):
        copy.update()
    assert steps(tmp_path / "mirror") == []
    copy.update()
    assert steps(tmp_path / "mirror") == [6]


def test_another_run_is_never_overwritten_or_taken_for_this_one(toys, tmp_path):
    folder = tmp_path / "mirror"
    train(toys, tmp_path / "one", folder, *ALONE)
    before = below(folder)
    other = training.train(open_config(toys, [f"run={tmp_path / 'two'}", *ALONE]))
    with pytest.raises(PlaitError, match=r"mirror holds run [0-9a-f]{12}, and .*two is run [0-9a-f]{12}: give another checkpoint\.mirror"):
        train(toys, other, folder, *ALONE)
    with pytest.raises(PlaitError, match=r"mirror holds run [0-9a-f]{12}, and this is run [0-9a-f]{12}: give another checkpoint\.mirror"):
        Mirror(other, f"file://{folder}", {}).update()
    with pytest.raises(PlaitError, match="holds a run already, and a fresh one was asked for"):
        train(toys, tmp_path / "three", folder, *ALONE, fresh=True)
    assert below(folder) == before and not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("/data/x", "/data/x is no address of a folder: write it as s3://bucket/folder"),
        ("https://h/x", "https://h/x is an address that plait only reads: give one of s3://, gs:// or file://"),
        ("s3://", "s3:// is no address of a folder"),
        ("memory://x", "memory://x is gone when the process ends: give one of s3://, gs:// or file://"),
        ("ftp://127.0.0.1:1/x", "checkpoint.mirror ftp://127.0.0.1:1/x cannot be read: [Errno 111] Connection refused; mend that"),
        ("file://$RUN", "run, the run's own directory, and is no copy there: give a folder elsewhere, best on another disk"),
        ("file://$RUN/x/y", "/run/x/y, inside the run's own directory"),
        ("nowhere://x/y", "cannot open nowhere://x/y: Protocol not known: nowhere"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_before_a_step(toys, tmp_path, monkeypatch, capsys, value, line):
    value = value.replace("$RUN", str(tmp_path / "run"))
    assert cli.main(["train", str(toys), f"--run={tmp_path / 'run'}", f"--checkpoint.mirror={value}"]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_guides_address_to_save_to_is_a_mirror(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = open_config(beside.Path("molmo/captioner"), ["save_folder=gs://bucket/deep/cap"], words=["debug"]).config
    assert (config.run, config.checkpoint.mirror) == ("runs/cap", "gs://bucket/deep/cap")


def test_stages_with_mirrors_of_their_own_are_refused(toys, tmp_path):
    with pytest.raises(PlaitError, match=r"checkpoint\.mirror is file:///a in stage one, and none in stage two: write it once, outside of"):
        open_config(toys, [f"run={tmp_path}", "stages=[{name: one, checkpoint: {mirror: 'file:///a'}}, {name: two}]"])


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_another_machine_starts_from(toys, tmp_path, monkeypatch):
    folder, whole = tmp_path / "mirror", train(toys, tmp_path / "whole", tmp_path / "other", *ALONE)
    run = train(toys, tmp_path / "run", folder, "train.steps=2", *ALONE)
    training.train(open_config(toys, [f"run={run}", *ALONE]))
    shutil.copytree(folder, tmp_path / "before")
    writes = {"left": 0}

    def until_killed(name):
        original = getattr(Store, name)

        def call(self, path, *rest):
            writes["left"] -= 1
            if writes["left"] < 0:
                if rest and isinstance(rest[0], beside.Path):  # half of a file, as a disk would have it
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(rest[0].read_bytes()[:100])
                raise Killed
            return original(self, path, *rest)

        monkeypatch.setattr(Store, name, call)

    for name in ("put", "remove"):
        until_killed(name)
    seen = set()
    for count in range(30):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
        writes["left"] = count
        try:
            followed(open_config(toys, [f"run={run}", "checkpoint.keep=1", *ALONE]), folder)
            break
        except Killed:
            writes["left"] = 1000
        there = tmp_path / f"there-{count}"
        restore.from_mirror(open_config(toys, [f"run={there}", f"checkpoint.mirror=file://{folder}", *ALONE]), restart=False, fresh=False)
        (newest,) = checkpoint.published(there)
        step = checkpoint.step_of(newest)
        assert toy.same(toy.at(there, step).tensors("moments"), toy.at(run, step).tensors("moments"))
        seen.add(step)
    assert count > 5 and seen == {2, 6}
    writes["left"] = 1000
    there = train(toys, tmp_path / "end", folder, *ALONE)
    assert toy.same(toy.at(there, 6).tensors("moments"), toy.at(whole, 6).tensors("moments"))


def test_a_run_has_its_mirror_kept_by_the_process_beside_it(tmp_path, capfd):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL.format(push="end").replace("hub: {repo: someone/small, push: end}", ""))
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", f"--checkpoint.mirror=file://{tmp_path / 'mirror'}"]) == 0
    kept = sorted(checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path / "run"))
    assert steps(tmp_path / "mirror") == kept and f"mirrored to file://{tmp_path}/mirror/stage-2-two/" in capfd.readouterr().out


def test_python_asks_the_mirror_too(toys, tmp_path):
    resolved = open_config(toys, [f"run={tmp_path / 'run'}", "checkpoint.mirror=nowhere://x/y"])
    with pytest.raises(PlaitError, match="cannot open nowhere://x/y: Protocol not known"):
        plait.train(resolved)


def test_what_would_be_refused_again_is_told_at_once_and_other_failures_are_tried_again(toys, tmp_path, monkeypatch):
    run, said = train(toys, tmp_path / "run", tmp_path / "other", *ALONE), []
    inbox = SimpleNamespace(settings={"mirror": "file:///x", "keep": {}}, say=lambda text, warning: said.append(text))
    way = mirror_way.Way(run, inbox)
    others = "mend checkpoint.mirror, or the store's keys and settings"
    for error, line in {
        PermissionError("Access Denied"): "Access Denied; mend its rights",
        FileNotFoundError("The specified bucket does not exist"): f"The specified bucket does not exist; {others}",
        OSError(errno.ENOSYS, "a function that is not implemented"): f".* a function that is not implemented; {others}",
        OSError(errno.EROFS, "read-only"): f".* read-only; {others}",
    }.items():
        monkeypatch.setattr(Store, "write", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(PlaitError, match=f"^the mirror file:///x cannot be written: {line}$"):
            way.send()
    monkeypatch.setattr(Store, "write", lambda *_: (_ for _ in ()).throw(OSError("timed out")))
    for failures in (1, 2, 3):
        with pytest.raises(Later, match="timed out"):
            way.send()
        assert way.pause_s == 2 ** (failures - 1)
    assert said == ["the mirror file:///x is behind: timed out; it is tried again"] and "plait train" in way.left()


def test_a_store_that_does_not_answer_at_first_is_tried_again_by_the_process_beside_the_run(tmp_path):
    said = []
    inbox = SimpleNamespace(settings={"mirror": "ftp://127.0.0.1:1/x", "keep": {}}, say=lambda text, warning: said.append(text))
    way = mirror_way.Way(tmp_path, inbox)
    for _ in range(2):
        with pytest.raises(Later, match="Connection refused"):
            way.send()
    assert said == ["the mirror ftp://127.0.0.1:1/x is behind: [Errno 111] Connection refused; it is tried again"]
