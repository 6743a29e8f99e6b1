"""A trainer's checkpoint is continued if each of its files is as it was written; else it is refused, or passed over for an older one."""

import json
import shutil

import pytest

import plait
from plait.assembly import weight_files
from plait.hf import checkpoint_files, trainer_checkpoint
from tests.hf import recipes

FILES = [
    *("model.safetensors", "averages/ema.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    "plait-trainer.json",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer that has saved at steps 3 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = recipes.trainer_of(recipes.written("nanodit", folder), folder / "out", args={"max_steps": 6, "save_steps": 3})
    trainer.train()
    return trainer


@pytest.fixture
def newest(trained, tmp_path):
    """A copy of its newest checkpoint, for a test to damage."""
    copied = trained.stage.out / "checkpoint-9"
    shutil.copytree(trained.stage.out / "checkpoint-6", copied)
    yield copied
    shutil.rmtree(copied)


def flip(path):
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    path.write_bytes(body)


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b"")


def refusal(trainer, resume):
    with pytest.raises(plait.PlaitError) as told:
        trainer.train(resume_from_checkpoint=resume)
    assert "\n" not in str(told.value)
    return str(told.value)


def taken(trainer):
    """What `resume_from_checkpoint=True` continues from."""
    return trainer_checkpoint.chosen(True, trainer.stage.out, trainer.ranks, trainer_checkpoint.MOMENTS)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_told_and_an_older_checkpoint_taken(trained, newest, caplog, name):
    body = (newest / name).read_bytes()
    size = f"is damaged: {{}} bytes, the manifest says {len(body)}"
    ways = {flip: "is damaged: its xxh3 was", cut: size.format(50), empty: size.format(0), type(newest).unlink: "is missing"}
    for damage, words in ways.items():
        damage(newest / name)
        caplog.clear()
        assert refusal(trained, str(newest)).startswith(told := f"{newest / name} {words}")
        assert taken(trained) == trained.stage.out / "checkpoint-6"
        assert f"passed over: {told}" in caplog.text
        (newest / name).write_bytes(body)
    assert taken(trained) == newest


def test_a_checkpoint_without_its_list_or_a_part_that_continues_is_told(trained, newest):
    listed = json.loads((newest / weight_files.LIST).read_text())
    assert sorted(listed["files"]) == sorted([*FILES, "training_args.bin"])
    for entries, words in (
        (None, "lacks plait-files.json, which is written last: it is no whole checkpoint of a trainer of plait"),
        ("{", "/plait-files.json is damaged: Expecting property name enclosed in double quotes"),
        ({"files": {}}, "was saved without plait-trainer.json, model.safetensors, trainer_state.json, optimizer.pt, scheduler.pt, by"),
        ({"files": {k: v for k, v in listed["files"].items() if "ema" not in k}}, "has no averages, averages/ema.safetensors, and was"),
    ):
        (newest / weight_files.LIST).unlink(missing_ok=True)
        if entries is not None:
            (newest / weight_files.LIST).write_text(entries if isinstance(entries, str) else json.dumps(entries))
        (newest / "averages/ema.safetensors").unlink(missing_ok=True)
        assert refusal(trained, str(newest)).removeprefix(str(newest)).lstrip().startswith(words)


def test_a_start_from_damaged_weights_is_refused_and_from_weights_alone_is_not(trained, newest, tmp_path):
    config = trained.stage.plan.view.config.model_dump(mode="json", by_alias=True) | {"from": str(newest), "run": str(tmp_path / "run")}
    (newest / "optimizer.pt").unlink()
    assert recipes.trainer_of(config, tmp_path / "out").stage.state.ever_trained
    flip(newest / "model.safetensors")
    for start in (lambda: recipes.trainer_of(config, tmp_path / "out"), lambda: plait.train(config)):
        with pytest.raises(plait.PlaitError) as told:
            start()
        assert str(told.value).startswith(f"from: {newest / 'model.safetensors'} is damaged: its xxh3 was ")


@pytest.mark.parametrize(
    ("resume", "words"),
    [
        (3, "resume_from_checkpoint is to be a checkpoint-STEP folder or True, and is the int 3"),
        ("nowhere", "resume_from_checkpoint: nowhere is no folder: give a checkpoint-STEP folder, or True for the newest whole one"),
    ],
)
def test_what_is_no_checkpoint_is_told(trained, resume, words):
    assert refusal(trained, resume) == words


def test_older_checkpoints_go_once_the_new_one_is_whole_and_no_other_folder(trained, tmp_path, monkeypatch):
    (tmp_path / "out/checkpoint-mine").mkdir(parents=True)
    sealed = []

    def seal(folder, write=weight_files.write_list):
        sealed.append(sorted(path.name for path in folder.parent.glob("checkpoint-*") if (path / checkpoint_files.TOLD).is_file()))
        write(folder)

    monkeypatch.setattr(weight_files, "write_list", seal)
    given = {"save_steps": 2, "save_total_limit": 1}
    trainer = recipes.trainer_of(trained.stage.plan.view.config.model_dump(mode="json", by_alias=True), tmp_path / "out", args=given)
    trainer.train()
    assert sealed == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-mine"]
    assert trainer.args.save_total_limit == 1


def test_a_checkpoint_that_cannot_be_written_ends_training(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "write_list", lambda _: (_ for _ in ()).throw(plait.PlaitError("no space left")))
    trainer = recipes.trainer_of(trained.stage.plan.view.config.model_dump(mode="json", by_alias=True), tmp_path / "out")
    with pytest.raises(plait.PlaitError, match=r"^no space left$"):
        trainer.train()
