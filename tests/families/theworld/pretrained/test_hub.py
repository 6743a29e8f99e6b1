"""Where an encoder lies: at the top of a repository or in the `vae` of a pipeline, in which branch; what identifies it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from plait.errors import PlaitError
from plait.families.theworld import family, towers
from plait.families.theworld.config import Config
from plait.families.theworld.features import frozen_features, pin
from plait.families.theworld.pretrained import hub as hub_file
from plait.families.theworld.pretrained import published
from tests import hub_server
from tests.hub_server import BRANCH, Repository

pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")  # diffusers passes it


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub_file._read.cache_clear()
    hub_file._asked.cache_clear()
    hub_file.pin.cache_clear()
    with hub_server.serving(monkeypatch, tmp_path) as server:
        yield server


def repository(folder: str) -> Repository:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return Repository({str(path.relative_to(folder)): path.read_bytes() for path in paths})


def section(source: str, **world) -> Config:
    return Config(base="tiny", world={"source": source, "image_size": 32, **world})


@pytest.mark.parametrize(("name", "folder"), [("dinov3", None), ("convnext", None), ("vjepa2", None), ("wan22", "vae"), ("cosmos1", "vae")])
def test_an_encoder_of_the_hub_is_found_by_its_configuration(stored, hub, name, folder):
    model, source = stored(name)
    hub.repositories["models", f"someone/{name}"] = repository(source)
    config = section(f"someone/{name}")
    encoder = towers.load_encoder(config, config.world, seed=0)
    local = section(source)
    assert encoder.grid == towers.load_encoder(local, local.world, seed=0).grid
    weights = encoder.vae if folder else encoder.model
    assert all(bool((value == weights.state_dict()[key]).all()) for key, value in model.state_dict().items())
    assert encoder.mean.tolist() == towers.load_encoder(local, local.world, seed=0).mean.tolist()
    assert family.base(config)[1] == {"part": "world", "name": f"someone/{name}", "revision": None, "folder": folder}
    named = {"source": f"someone/{name}", "revision": None, "class": type(model).__name__, "image_size": 32, "xxh3": None}
    assert pin(config, config.world) == named
    assert not [path for path in hub.downloaded() if "model_index" in path]


def test_cosmos_predict_2_5_is_read_from_the_branch_that_has_its_vae(stored, hub, monkeypatch):
    name = "nvidia/Cosmos-Predict2.5-2B"
    _, source = stored("wan21")
    hub.repositories["models", name] = repository(source)
    with pytest.raises(PlaitError) as caught:
        towers.load_encoder(section(name), section(name).world, seed=0)
    cure = f"--model.world.revision={BRANCH}"
    assert str(caught.value) == f"model.world.source: {name} has its diffusers folders in another branch: {cure}"
    config = section(name, revision=BRANCH)
    assert towers.encoder_grid(config, config.world).channels == 16  # as published, without asking
    assert family.base(config)[1] == {"part": "world", "name": name, "revision": BRANCH, "folder": "vae"}
    assert not hub.asked
    with pytest.raises(PlaitError, match=rf"^model.world.source: {name} is not as published \(Grid.*channels=4.*, not Grid.*channels=16"):
        towers.load_encoder(config, config.world, seed=0)  # the small one that stands there
    monkeypatch.setitem(published._ENCODERS, name, json.loads(Path(source, "vae", "config.json").read_text()))
    encoder = towers.load_encoder(config, config.world, seed=0)
    assert encoder.grid.channels == 4 and encoder.vae.config["base_dim"] == 8
    asked = [path for _, path, _ in hub.asked if "/resolve/" in path]
    heads = [f"/{name}/resolve/{place}/vae/" for place in (BRANCH, hub_server.COMMIT)]
    assert asked[0].startswith(heads[0]) and all(path.startswith(tuple(heads)) for path in asked)


def test_a_repository_that_is_nowhere_is_named(hub):
    config = section("nobody/nothing")
    assert family.base(config)[1]["folder"] == "vae"
    with pytest.raises(PlaitError, match=r"^model.world.source: cannot load 'nobody/nothing' as a Hub name or a local directory: there is"):
        towers.load_encoder(config, config.world, seed=0)


def test_pickled_weights_are_not_read(stored, tmp_path):
    _, source = stored("dinov3")
    Path(source, "model.safetensors").rename(Path(source, "pytorch_model.bin"))
    with pytest.raises(PlaitError, match=rf"^model.world.source: cannot load '{source}' .*safetensors"):
        towers.load_encoder(section(source), section(source).world, seed=0)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PlaitError, match=rf"^model.world.source: {tmp_path}/config.json is no JSON \(.*\): save or download it again$"):
        towers.load_encoder(section(str(tmp_path)), section(str(tmp_path)).world, seed=0)


def test_other_preprocessing_than_by_255_is_refused(stored):
    _, source = stored("dinov3")
    Path(source, "preprocessor_config.json").write_text(json.dumps({"do_rescale": True, "rescale_factor": 1.0}))
    with pytest.raises(PlaitError, match=r"preprocessor_config\.json does not scale pixels by 1 / 255"):
        towers.load_encoder(section(source), section(source).world, seed=0)


def test_kept_features_and_futures_are_of_a_class_and_a_pin(stored):
    made = []
    for source in ("tiny", "tiny:wan2.2", "tiny:dinov3", stored("dinov3")[1]):
        config = section(source)
        encoder = next(each for each in frozen_features(config) if each.name == "world_latents")
        json.dumps(encoder.settings)
        assert encoder.settings["pin"] == pin(config, config.world)
        assert encoder.settings["encoder"]["_class_name"] == encoder.settings["pin"]["class"]
        made.append((encoder.settings["pin"]["class"], bool(encoder.settings["pin"]["xxh3"])))
    assert made == [("AutoencoderKLWan", False), ("AutoencoderKLWan", False), ("DINOv3ViTModel", False), ("DINOv3ViTModel", True)]


def test_tiny_encoders_of_other_sizes_have_other_pins():
    pins = [pin(config, config.world) for config in (section("tiny"), Config(base="tiny", tiny={"world_base": 4}), section("tiny:dinov3"))]
    assert pins[0]["sizes"] != pins[1]["sizes"] and pins[0] != pins[2] and pins[0] == pin(section("tiny"), section("tiny").world)


def test_an_unknown_tiny_encoder_lists_the_known_ones():
    known = "tiny, tiny:wan, tiny:wan-pooled, tiny:wan2.2, tiny:cosmos1, tiny:dinov3, tiny:dinov3-convnext, tiny:vjepa2"
    with pytest.raises(ValidationError, match=f"there is no tiny:dino; known: {known}"):
        section("tiny:dino")
