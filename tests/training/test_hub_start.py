"""`from: owner/name`: a pushed run, a checkpoint or weights of a repository; only what is needed is downloaded, once."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

from plait.assembly import hub_start
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from tests import hub_server, processes
from tests import toy_family as toy
from tests.engine.toy import ALONE
from tests.hub_server import Repository

ONE = ("stages=[]", "trainable=[language]", "train.steps=1")
NEWEST = "stage-3-language/step-00000018"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, a finished run of it)."""
    folder = tmp_path_factory.mktemp("hub-start")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        run = toy.train(recipe, folder / "run")
        (run / "assets" / "tokenizer").mkdir()
        (run / "assets" / "tokenizer" / "words").write_text("the parent's own")
        yield recipe, run


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with hub_server.serving(monkeypatch, tmp_path) as server:
        yield server


def pushed(folder):
    """A repository with the files of a folder."""
    return Repository({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def within(folder, *names):
    """The files of the folders `names` below a folder, as a repository has them, without the copies of the configuration."""
    paths = [
        path
        for name in names
        for path in (folder / name).rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "run-config.yaml")
    ]
    return sorted(str(path.relative_to(folder)) for path in paths)


def test_a_pushed_run_is_a_start_and_only_its_newest_checkpoint_and_assets_are_downloaded(made, hub, tmp_path, capsys):
    hub.repositories["models", "someone/run"] = pushed(made[1])
    new = toy.train(made[0], tmp_path / "new", "from=someone/run", *ONE)
    given = {"config.yaml" if name.endswith("run-config.yaml") else name for name in hub.downloaded()}  # one content under two names
    assert sorted(given) == sorted([*within(made[1], NEWEST, "assets"), "config.yaml"])  # which tells what `model:` changed
    assert toy.at(new, 1).tensors("weights").keys() == toy.at(made[1], 18).tensors("weights").keys()
    assert toy.same(of(new, 1, "vision"), of(made[1], 18, "vision")) and of(new, 1, "vision")
    assert (new / "assets" / "tokenizer" / "words").read_text() == "the parent's own"
    assert not (new / "assets" / "tokenizer" / "words").is_symlink()
    assert "moments  vision     keep" in capsys.readouterr().out
    lineage = (new / "lineage.json").read_text()
    assert '"from": "someone/run"' in lineage and NEWEST in lineage


def of(run, step, part):
    return {name: value for name, value in toy.at(run, step).tensors("weights").items() if name.startswith(part)}


@pytest.mark.parametrize(
    ("spec", "step"),
    [
        ("someone/run", NEWEST),
        ("someone/run@latest", NEWEST),
        ("someone/run@8", "stage-2-vision/step-00000008"),
        ("someone/run/step8", "stage-2-vision/step-00000008"),
        ("someone/run@best", None),
        ("someone/run@v2", NEWEST),
    ],
)
def test_a_mark_names_a_step_of_a_pushed_run_or_a_revision(made, hub, spec, step):
    hub.repositories["models", "someone/run"] = pushed(made[1])
    best = toy.at(made[1], 18).manifest["state"]["best"]["step"]
    step = step or f"stage-3-language/step-{best:08d}"
    folder = hub_start.fetch(spec, ALONE)
    assert str(folder).endswith(step) and set(within(made[1], step)) <= set(hub.downloaded())
    assert ("/api/models/someone/run/revision/v2" in [path for _, path, _ in hub.asked]) is spec.endswith("v2")


def test_a_step_that_a_pushed_run_has_not_is_told_with_those_it_has(made, hub):
    hub.repositories["models", "someone/run"] = pushed(made[1])
    with pytest.raises(PlaitError, match="from: someone/run has no checkpoint at step '9'; it has 2, 4, 6, 8, 10, 12, 14, 16, 18"):
        hub_start.fetch("someone/run@9", ALONE)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_checkpoint_alone_and_bare_weights_are_a_start(made, hub, tmp_path, with_manifest):
    names = ["weights.safetensors", *(["manifest.json", "ema.safetensors", "moments.safetensors"] if with_manifest else [])]
    files = {name: (made[1] / NEWEST / name).read_bytes() for name in names}
    others = {"README.md": b"x", "vae/model.safetensors": b"x", "pytorch_model.bin": b"x"}
    hub.repositories["models", "someone/weights"] = Repository({**files, **others})
    new = toy.train(made[0], tmp_path / "new", "from=someone/weights@v2", *ONE)
    assert hub.downloaded() == sorted(names)
    assert toy.same(of(new, 1, "vision"), of(made[1], 18, "vision"))


def test_a_tokenizer_of_a_repository_is_taken_over(made, hub, tmp_path):
    weights = (made[1] / NEWEST / "weights.safetensors").read_bytes()
    hub.repositories["models", "someone/export"] = Repository({"model.safetensors": weights, "tokenizer.json": b"{}", "config.json": b"{}"})
    new = toy.train(made[0], tmp_path / "new", "from=someone/export", *ONE)
    assert (new / "assets" / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert hub.downloaded() == ["model.safetensors", "tokenizer.json"]


def test_what_was_downloaded_is_a_start_without_a_network(made, hub, monkeypatch):
    hub.repositories["models", "someone/run"] = pushed(made[1])
    folder = hub_start.fetch("someone/run", ALONE)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_start.fetch("someone/run", ALONE) == folder and len(hub.asked) == asked


def test_a_snapshot_on_disk_is_a_run_and_a_link_out_of_it_is_not(made, hub, tmp_path):
    hub.repositories["models", "someone/run"] = pushed(made[1])
    snapshot = hub_start.fetch("someone/run", ALONE).parents[1]
    weights = snapshot / NEWEST / "weights.safetensors"
    assert weights.is_symlink()
    new = toy.train(made[0], tmp_path / "new", f"from={snapshot}", *ONE)
    assert toy.same(of(new, 1, "vision"), of(made[1], 18, "vision"))
    shutil.copy(weights, tmp_path / "elsewhere")
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlaitError, match=r"none is intact|it is not intact"):
        toy.train(made[0], tmp_path / "other", f"from={snapshot}", *ONE)


def test_a_damaged_download_is_refused(made, hub, tmp_path):
    repository = pushed(made[1])
    body = bytearray(repository.files[f"{NEWEST}/weights.safetensors"])
    body[-1] ^= 1
    repository.files[f"{NEWEST}/weights.safetensors"] = bytes(body)
    hub.repositories["models", "someone/run"] = repository
    with pytest.raises(PlaitError, match=r"weights\.safetensors is damaged: xxh3"):
        toy.train(made[0], tmp_path / "new", "from=someone/run", *ONE)


@pytest.mark.parametrize(
    ("gated", "reason"),
    [(False, r"there is no \S+/someone/absent, or it is private"), (True, "it is gated: accept its licence at")],
)
def test_a_hub_that_does_not_give_it_is_one_line_without_the_token(made, hub, gated, reason):
    hub.repositories["models", "someone/gated"] = Repository({"model.safetensors": b"x"}, gated=True)
    spec = "someone/gated" if gated else "someone/absent"
    with pytest.raises(
        PlaitError, match=rf"from: '{spec}' is no run, stage or folder here, and the Hub did not give it: {reason}"
    ) as error:
        hub_start.fetch(spec, ALONE)
    assert "\n" not in str(error.value) and "`plait doctor` says more" in str(error.value)


def test_no_network_and_no_name_of_a_repository_are_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    for spec in ("someone/model", "some one/model", "someone/model@8"):
        with pytest.raises(PlaitError, match="is no run, stage or folder here, and the Hub did not give it: ") as error:
            hub_start.fetch(spec, ALONE)
        assert "\n" not in str(error.value)


def test_what_is_here_is_not_looked_for_on_the_hub(made, hub, monkeypatch):
    monkeypatch.chdir(made[1].parent)
    for spec in (str(made[1]), "run/vision", "run@8", "./absent", "run/vison"):
        assert hub_start.fetch(spec, ALONE) is None
        assert hub_start.assets(spec) is None
    assert hub.asked == []


def on_ranks(folder, url, cache, spec):
    """The folder that a rank got, or the error that it raised."""
    with pytest.MonkeyPatch.context() as patch, distributed.join("cpu") as ranks:
        patch.chdir(folder)
        hub_server.point(patch, url, cache)
        try:
            return str(hub_start.fetch(spec, ranks))
        except PlaitError as error:
            return str(error)


def test_one_rank_asks_and_downloads_while_the_others_wait(made, hub, tmp_path):
    save_file(toy.at(made[1], 18).tensors("weights"), tmp_path / "model.safetensors")
    hub.repositories["models", "someone/model"] = Repository({"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    folders = processes.run(3, on_ranks, tmp_path, hub.url, tmp_path / "cache", "someone/model")
    assert len(set(folders)) == 1 and (Path(folders[0]) / "model.safetensors").is_file()
    contents = [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]
    assert len(contents) == 1 and len([path for _, path, _ in hub.asked if path == "/api/models/someone/model"]) == 1
    refused = processes.run(2, on_ranks, tmp_path, hub.url, tmp_path / "cache", "someone/absent")
    assert len(set(refused)) == 1 and "the Hub did not give it" in refused[0]
