"""The nested YAML dialect: the author's file as written, every key, and what is refused."""

from pathlib import Path

import pytest

from plait.assembly.configuration import open_config
from plait.config import reading
from plait.config.dialects import nested_yaml
from plait.config.nodes import to_plain
from plait.config.resolved import difference
from plait.errors import PlaitError

AUTHOR = Path(__file__).resolve().parents[3] / "shared" / "dialects" / "nanodit_config.yaml"
OTHER = {
    "training.logit_normal_loc": 0.5,
    "training.optimizer.betas": [0.8, 0.9],
    "training.timestep_sampling": "uniform",
    "data.buckets": ["64x64"],
    "model.hidden_size": 768,
    "model.num_heads": 4,
    "training.cfg_dropout.p_uncond": 0.2,
    "data.shard_base_dir": "elsewhere",
    "validation.output_dir": "elsewhere",
    "checkpoint.output_dir": "elsewhere",
}
"""Other legal values of keys that do not just take another number or the other switch."""


def other(key):
    spec = nested_yaml.KEYS[key]
    if key in OTHER:
        return OTHER[key]
    return (not spec.default) if spec.kind == "bool" else spec.default * 0.5 if spec.kind == "number" else spec.default + 1


def written(**changes):
    """The plan's defaults as a file of this dialect, some keys otherwise (None: left out)."""
    values = {key: spec.default for key, spec in nested_yaml.KEYS.items()} | {key.replace("__", "."): v for key, v in changes.items()}
    tree: dict = {}
    for key, value in values.items():
        *above, last = key.split(".")
        inside = tree
        for section in above:
            inside = inside.setdefault(section, {})
        inside[last] = value
    return reading.write_yaml(tree)


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def resolve(text, *overrides):
        Path("x.yaml").write_text(text)
        return open_config("x.yaml", overrides)

    return resolve


@pytest.mark.skipif(not AUTHOR.is_file(), reason="the author's file is not beside the repository")
def test_the_authors_file_loads_as_written(load):
    config = load(AUTHOR.read_text()).config
    assert (config.family, config.run, config.train.steps, config.train.global_batch, config.train.micro_batch) == (
        "nanodit",
        "checkpoints",
        50_000,
        256,
        8,
    )
    assert config.optim.ema is not None and config.optim.ema.decay == 0.9999 and config.optim.lr == 3e-4
    assert config.model["sampling"]["image_scale"] == 2.0 and config.model["dropout"]["image_only"] == 0.1
    assert config.data.train[0].source == "latents" and config.data.train[0].path == str(Path.cwd() / "data/shards")


@pytest.mark.skipif(not AUTHOR.is_file(), reason="the author's file is not beside the repository")
def test_the_plans_defaults_are_those_of_the_authors_file():
    values = dict(nested_yaml._leaves(reading.read(AUTHOR)))
    assert values.keys() == nested_yaml.KEYS.keys()
    assert {key: to_plain(node) for key, node in values.items()} == {key: spec.default for key, spec in nested_yaml.KEYS.items()}


@pytest.mark.parametrize("key", [key for key in nested_yaml.KEYS if key != "training.optimizer.type"])
def test_every_key_has_an_effect(load, key):
    before, after = load(written()), load(written(**{key.replace(".", "__"): other(key)}))
    changed = {path for path, _, _ in difference(before, after)}
    assert changed, f"{key} changes nothing"
    row = next(row for row in after.translation if row[0] == key)
    assert any(path == row[2] or path.startswith(f"{row[2]}.") for path in changed), f"{key} says {row[2]}, but changed {changed}"


@pytest.mark.parametrize("key", nested_yaml.KEYS)
def test_a_key_that_is_left_out_has_the_plans_value(load, key):
    full, short = load(written()), written()
    tree = reading.scalar(short)
    *above, last = key.split(".")
    inside = tree
    for section in above:
        inside = inside[section]
    del inside[last]
    assert difference(full, load(reading.write_yaml(tree))) == []


def test_a_keep_last_n_of_0_keeps_every_checkpoint(load):
    assert load(written(checkpoint__keep_last_n=0)).config.checkpoint.keep == 0  # which prunes nothing: engine/test_checkpoint.py


def test_the_optimizers_type_is_adamw_or_refused(load):
    assert load(written(training__optimizer__type="adamw")).config.optim.name == "adamw"
    with pytest.raises(PlaitError, match=r"x.yaml:\d+: training.optimizer.type must be AdamW, got 'Lion'"):
        load(written(training__optimizer__type="Lion"))


def test_both_vocabularies_work_on_the_command_line(load):
    config = load(written(), "--training.optimizer.lr=1e-5", "--optim.eps=1e-6", "--model.depth=3", "--sampling.text_scale=7").config
    assert (config.optim.lr, config.optim.eps, config.model["depth"]) == (1e-5, 1e-6, 3)
    assert config.model["sampling"]["text_scale"] == 7.0


def test_numbers_that_yaml_reads_as_text_are_numbers(load):
    assert load(written(training__optimizer__lr="3e-5")).config.optim.lr == 3e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__optimizer__learning_rate": 1}, "training.optimizer.learning_rate is not a key"),
        ({"training__ema_decy": 0.9}, "training.ema_decy is not a key: did you mean training.ema_decay?"),
        ({"model__depth": "deep"}, "model.depth must be a whole number, got 'deep'"),
        ({"data__buckets": "1024x1024"}, "data.buckets must be a list of names, got '1024x1024'"),
        ({"data__swap_caption_lr": 1}, "data.swap_caption_lr must be true or false, got 1"),
        ({"training__batch_size": 0}, "training.batch_size must be 1 or more, got 0"),
        ({"training__warmup_steps": 50_000}, "is 50000, but the stage has 50000 steps"),
        ({"training__cfg_dropout__p_uncond": 0.9}, "more than 1"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_line(load, changes, message):
    with pytest.raises(PlaitError) as caught:
        load(written(**changes))
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.yaml:")
    assert "\n" not in str(caught.value)


def test_a_file_speaks_one_language(load):
    with pytest.raises(PlaitError, match=r"x.yaml:\d+: \w+ belongs to the nested dialect, but family .* is plait's own"):
        load(written() + "family: nanodit\n")


def test_plaits_own_files_are_left_alone(load):
    own = "family: nanodit\nmodel: {depth: 2}\ncheckpoint: {keep: 2}\ndata: {train: [{source: scenes}]}\ntrain: {steps: 9}\n"
    assert load(own).translation == []


def test_model_section_of_another_family_may_have_this_dialects_keys(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("family: words\nmodel: {hidden_size: 8}\n")
    assert not nested_yaml.recognise(reading.read(path), ["family", "model", "train"])
    path.write_text("family: nanodit\nmodel: {hidden_size: 8}\n")
    with pytest.raises(PlaitError, match=r"model\.hidden_size belongs to the nested dialect, but family "):
        nested_yaml.recognise(reading.read(path), ["family", "model", "train"])
