"""Layers, origins, stages, the way back to YAML, and differences."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plait.assembly.configuration import open_config
from plait.config import schema
from plait.config.load import load_config
from plait.config.resolved import ABSENT, difference, dump
from plait.config.schema import RunConfig, Train
from plait.config.show import render
from plait.data.sources.open import KINDS

from .conftest import BASE, model_config

STAGED = (
    BASE
    + """
optim: {lr: 1e-4, components: {vision: {lr: 1e-5}}}
stages:
  - name: projection
    trainable: [projector]
  - name: vision
    trainable: [projector, vision]
    train: {epochs: 0.5}
    optim: {lr: 5e-5, components: {projector: {lr: 2e-5}}}
    data: {train: [{source: scenes, weight: 2}, {source: shards, path: a.tar}]}
"""
)


SECTIONS = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.Section)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda one: one.__name__)
def test_every_setting_is_on_the_page_of_settings(section) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = "".join((docs / name).read_text(encoding="utf-8") for name in ("configuration.md", "configuration_reference.md"))
    names = [field.alias or name for name, field in section.model_fields.items()]
    assert [name for name in names if not re.search(rf"\b{name}\b", page)] == []


def test_defaults_are_those_of_the_classes(load) -> None:
    resolved = load(BASE)
    assert resolved.config.optim == schema.Optim()
    assert resolved.config.model == {"base": "tiny", "world": model_config("theworld")().model_dump()["world"]}
    assert [(view.index, view.name) for view in resolved.stages] == [(1, "train")]
    assert resolved.config.run == "runs/x"


def test_layers_rise_from_defaults_to_the_command_line(load) -> None:
    preset = "optim: {lr: 1, eps: 2, weight_decay: 3}\nseed: 4\n"
    resolved = load(BASE + "preset: small\noptim: {lr: 10, eps: 20}\n", "--optim.lr=100", preset=preset)
    optim = resolved.config.optim
    assert (optim.lr, optim.eps, optim.weight_decay, optim.betas, resolved.config.seed) == (100.0, 20.0, 3.0, (0.9, 0.95), 4)


def test_origins_name_the_layer_of_every_leaf(load) -> None:
    resolved = load(BASE + "preset: small\noptim:\n  eps: 20\n", "--optim.lr=100", preset="optim: {lr: 1, weight_decay: 3}\n")
    wanted = {"optim.lr": "command line", "optim.eps": "x.yaml:7", "optim.weight_decay": "preset small", "optim.name": "default"}
    assert {path: resolved.origins[path] for path in wanted} == wanted
    assert resolved.origins["model.base"] == "x.yaml:2"
    assert resolved.origins["model.world.steps"] == "default"
    assert resolved.origins["data.train.0.source"] == "x.yaml:3"


def test_preset_can_be_named_on_the_command_line(load) -> None:
    assert load(BASE, "--preset=small", preset="seed: 7\n").config.seed == 7


def test_stages_merge_mappings_and_replace_lists(load) -> None:
    first, second = (view.config for view in load(STAGED).stages)
    assert (first.trainable, first.optim.lr, first.train.steps) == (["projector"], 1e-4, 100)
    assert (second.optim.lr, second.optim.eps, second.optim.components["vision"].lr) == (5e-5, 1e-8, 1e-5)
    assert second.optim.components["projector"].lr == 2e-5
    assert [source.source for source in second.data.train] == ["scenes", "shards"]
    assert first.stages == second.stages == []


def test_stage_length_replaces_the_base_length(load) -> None:
    second = load(STAGED).stages[1].config
    assert (second.train.steps, second.train.epochs, second.train.global_batch) == (None, 0.5, 8)


def test_command_line_wins_over_every_stage(load) -> None:
    resolved = load(STAGED, "--optim.lr=3e-6", "--train.steps=7", "--data.train.0.weight=5")
    assert [view.config.optim.lr for view in resolved.stages] == [3e-6, 3e-6]
    assert [(view.config.train.steps, view.config.train.epochs) for view in resolved.stages] == [(7, None), (7, None)]
    assert [view.config.data.train[0].weight for view in resolved.stages] == [5.0, 5.0]
    assert resolved.origins["stages.1.optim.lr"] == "command line"


def test_override_of_one_stage_wins_over_a_general_one(load) -> None:
    resolved = load(STAGED, "--stages.1.optim.lr=2", "--optim.lr=1", "--stages.0.train.steps=5")
    assert [view.config.optim.lr for view in resolved.stages] == [1.0, 2.0]
    assert [view.config.train.steps for view in resolved.stages] == [5, None]


def test_base_without_a_length_is_legal_when_stages_have_one(load) -> None:
    text = BASE.replace("{steps: 100}", "{}") + "stages:\n  - {name: a, train: {steps: 3}}\n"
    assert load(text).stages[0].config.train.steps == 3


def test_override_values_are_yaml(load) -> None:
    config_ = load(
        BASE + "optim: {ema: {decay: 0.9}}\n",
        "--optim.lr=3e-6",
        "--train.samples=1e4",
        "--optim.betas=[0.8, 0.9]",
        "--optim.ema=null",
        "--evaluate=[{bench: loss, data: [{source: scenes}]}]",
        "--model.world=off",
        "--guard={audit: false}",
        "track.every_steps=3",
    ).config
    assert (config_.optim.lr, config_.train.samples, config_.train.steps, config_.optim.betas) == (3e-6, 10_000, None, (0.8, 0.9))
    assert (config_.optim.ema, config_.evaluate[0].data[0].source, config_.model["world"]) == (None, "scenes", False)
    assert (config_.guard.audit, config_.guard.max_bad_fraction, config_.track.every_steps) == (False, 0.01, 3)


def test_override_of_text_is_taken_as_it_stands(load) -> None:
    resolved = load(STAGED, "--run=2024-01-01", "--data.train.0.template.user=Is it {a}: {b}?", "--from='x'", "--stages.0.name=007")
    assert (resolved.config.run, resolved.config.from_, resolved.stages[0].name) == ("2024-01-01", "x", "007")
    assert resolved.config.data.train[0].template.user == "Is it {a}: {b}?"


def test_stages_are_kept_as_written_but_typed(load) -> None:
    text = BASE + "stages:\n  - {name: a, optim: {lr: '3e-4', eps: 1}, train: {steps: 1e2}, evaluate: [{bench: loss}]}\n"
    text = text.replace("scenes}]", "scenes}], validation: [{source: scenes}]")
    stage = dump(load(text).config)["stages"][0]
    assert repr(stage["optim"]) == "{'lr': 0.0003, 'eps': 1.0}"
    assert (repr(stage["train"]), stage["evaluate"]) == ("{'steps': 100}", [{"bench": "loss"}])


def test_yaml_round_trip_loses_nothing(load) -> None:
    text = STAGED.replace("source: scenes}", "source: scenes, template: {user: '1e-5', assistant: '{label} no\n2024-01-01'}}")
    before = load(text + "preset: small\n", "--train.samples=9", "--optim.lr=3e-6", preset="track: {every_steps: 3}\n")
    after = load(before.yaml, name="again.yaml", preset="{}")
    assert difference(before, after) == []
    assert before.stages == after.stages
    assert after.yaml == before.yaml
    assert set(after.origins) == set(before.origins)


def test_yaml_is_complete_and_any_reader_agrees(load) -> None:
    resolved = load(STAGED)
    read = yaml.safe_load(resolved.yaml)
    assert read["optim"]["eps"] == 1e-8
    assert read == dump(resolved.config)


def test_difference_names_path_and_both_values(load) -> None:
    a, b = load(STAGED), load(STAGED, "--optim.lr=2", "--stages.0.trainable=[vision, language]")
    assert difference(a, b) == [
        ("stages.0.trainable.0", "projector", "vision"),
        ("stages.1.optim.lr", 5e-5, 2.0),
        ("optim.lr", 1e-4, 2.0),
        ("stages.0.trainable.1", ABSENT, "language"),
    ]


_LENGTHS = st.one_of(st.none(), st.integers(1, 3))
_CONFIGS = st.builds(
    RunConfig,
    family=st.sampled_from("ab"),
    seed=st.integers(0, 2),
    trainable=st.lists(st.sampled_from("ab"), max_size=2),
    train=st.builds(Train, steps=_LENGTHS, samples=_LENGTHS),
    model=st.dictionaries(st.sampled_from("ab"), st.sampled_from([0, 0.0, False, None, "", [], {}, [None]]), max_size=2),
)


@settings(max_examples=80, deadline=None, database=None)
@given(_CONFIGS, _CONFIGS)
def test_difference_is_empty_exactly_when_equal(a: RunConfig, b: RunConfig) -> None:
    left, right = (json.dumps(dump(one), sort_keys=True) for one in (a, b))
    assert (difference(a, b) == []) == (left == right)
    assert sorted(((path, old, new) for path, new, old in difference(b, a)), key=repr) == sorted(difference(a, b), key=repr)


def test_configuration_never_imports_torch() -> None:
    code = "import plait.config.load, sys; print([name for name in ('torch', 'transformers', 'plait.families') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_render_shows_each_value_with_its_source(load) -> None:
    lines = render(load(BASE, "--optim.lr=3e-6")).splitlines()
    assert lines[0] == "# Resolved, with the source of each value"
    origins = {line.split()[0]: line.split()[2:] for line in lines[1:]}
    assert origins["optim.lr"] == ["3e-06", "command", "line"]
    assert origins["model.base"] == ['"tiny"', "x.yaml:2"]
    assert origins["train.grad_clip"] == ["1.0", "default"]
    assert len({line.index(" = ") for line in lines[1:]}) == 1


def test_every_field_with_a_number_or_a_name_says_what_it_is() -> None:
    bare = [
        f"{kind.__name__}.{name}"
        for kind in (schema.Data, schema.Train, schema.Checkpoint, schema.SourceEntry, schema.Schedule)
        for name, field in kind.model_fields.items()
        if field.description is None and field.annotation not in (bool,) and "Literal" not in str(field.annotation)
    ]
    assert bare == ["Data.train", "SourceEntry.template"]


def test_configuration_is_frozen(load) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(BASE).config.seed = 3


def test_paths_are_shown_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(BASE)
    resolved = load_config(tmp_path / "x.yaml", model_config=model_config, preset=None, sources=KINDS)
    assert resolved.origins["family"] == f"{tmp_path / 'x.yaml'}:1"


@pytest.mark.parametrize(
    ("high", "kept"),
    [
        ("optim.schedule.warmup_steps=3", {"warmup": None, "warmup_steps": 3, "warmup_tokens": 0}),
        ("optim.schedule.warmup=0.2", {"warmup": 0.2, "warmup_steps": 0, "warmup_tokens": 0}),
        ("optim.schedule.name=linear", {"warmup": 0.1, "warmup_steps": 0, "warmup_tokens": 0}),
    ],
)
@pytest.mark.parametrize("stages", ["", "stages: [{name: a, optim: {schedule: {warmup_steps: 9}}}]\n"])
def test_a_warm_up_of_a_higher_layer_replaces_that_of_a_lower_one_in_whichever_unit(tmp_path, high, kept, stages):
    path = tmp_path / "x.yaml"
    path.write_text("family: theworld\npreset: tiny\ndata: {train: [{source: scenes}]}\ntrain: {steps: 10}\n" + stages)
    resolved = open_config(path, [high])
    schedule = resolved.stages[0].config.optim.schedule
    if stages and "warmup" not in high:
        kept = {"warmup": None, "warmup_steps": 9, "warmup_tokens": 0}
    assert {name: getattr(schedule, name) for name in kept} == kept
