"""A path of data is relative to the file that it is written in; on the command line, to the working directory."""

import json
from pathlib import Path

import pytest

from plait import cli
from plait.assembly.checked_configuration import open_checked, open_run_config
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.config import mixture
from plait.config import resolved as settings
from plait.config.sections.places import has_moved
from plait.config.source_rules import unknown_kind
from plait.data.sources.open import KINDS
from plait.errors import PlaitError

HEAD = "family: theworld\nmodel: {base: tiny}\ntrain: {steps: 4}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with configs/ and data/ in it: project(text) writes configs/x.yaml."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"caption": "in data"}\n')

    def write(text: str) -> str:
        Path("configs/x.yaml").write_text(HEAD + text)
        return "configs/x.yaml"

    return write


def paths(resolved):
    return [entry.path for entry in resolved.config.data.train]


@pytest.mark.parametrize("written", ["../data/a.jsonl", "../data/{a,b}.jsonl", "../data/*.jsonl", "not/there.jsonl"])
def test_a_path_is_relative_to_its_file_from_any_working_directory(project, tmp_path, monkeypatch, written):
    config = project(f"data: {{train: [{{source: jsonl, path: '{written}'}}]}}")
    wanted = [str((tmp_path / "data" / written.removeprefix("../data/")) if written[0] == "." else tmp_path / "configs" / written)]
    assert paths(open_config(config)) == wanted
    monkeypatch.chdir(tmp_path / "data")
    assert paths(open_config("../configs/x.yaml")) == wanted


def test_every_setting_that_is_a_path_of_data_is_resolved_in_stages_too(project, tmp_path):
    config = project(
        """data:
  root: sets
  cache: cache
  train: [{source: jsonl, path: a.jsonl, options: {images: pictures}}, {source: dataset, name: "mine.py:Cats"}]
  validation: [{source: latents, path: held, options: {statistics: first}}]
evaluate: [{bench: loss, data: [{source: datasets, path: rows.csv, options: {images: photos}}]}]
stages: [{name: one, data: {train: [{source: shards, path: one/*.tar}]}, evaluate: [{bench: loss, data: [{source: folder, path: two}]}]}]
"""
    )
    base, resolved = tmp_path / "configs", open_config(config)
    data, stage = resolved.config.data, resolved.stages[0].config
    assert (data.root, data.cache) == (f"{base}/sets", f"{base}/cache")
    assert (data.train[0].path, data.train[0].options["images"]) == (f"{base}/a.jsonl", f"{base}/pictures")
    assert data.train[1].name == f"{base}/mine.py:Cats"
    assert (data.validation[0].path, data.validation[0].options["statistics"]) == (f"{base}/held", f"{base}/first")
    assert (resolved.config.evaluate[0].data[0].path, resolved.config.evaluate[0].data[0].options) == (
        f"{base}/rows.csv",
        {"images": f"{base}/photos"},
    )
    assert (stage.data.train[0].path, stage.evaluate[0].data[0].path) == (f"{base}/one/*.tar", f"{base}/two")


@pytest.mark.parametrize(
    "entry",
    [
        "{source: shards, path: /abs/a.tar}",
        "{source: shards, path: ~/a.tar}",
        "{source: shards, path: $DATA/a.tar}",
        "{source: shards, path: 's3://bucket/a-{0..3}.tar'}",
        "{source: datasets, name: owner/name}",
        "{source: dataset, name: 'package.module:Class'}",
        "{source: scenes}",
    ],
)
def test_addresses_names_and_absolute_paths_stay_as_written(project, entry):
    from_file = open_config(project(f"data: {{train: [{entry}]}}")).config.data.train[0]
    from_line = open_config(project("data: {train: [{source: scenes}]}"), [f"data.train=[{entry}]"]).config.data.train[0]
    assert from_file == from_line and not str(from_file.path or from_file.name or "").startswith(str(Path.cwd()))


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(project, tmp_path):
    config = project("data: {train: [{source: jsonl, path: ../data/a.jsonl}]}")
    assert paths(open_config(config, ["data.train.0.path=data/b.jsonl"])) == [f"{tmp_path}/data/b.jsonl"]
    assert paths(open_config(config, ["data.train=[{source: jsonl, path: c.jsonl}]"])) == [f"{tmp_path}/c.jsonl"]


@pytest.mark.parametrize(("written", "spelling"), [("data/a.jsonl", "../data/a.jsonl"), ("./data/*.jsonl", "../data/*.jsonl")])
def test_a_path_of_the_working_directory_is_refused_with_its_new_spelling(project, tmp_path, capsys, written, spelling):
    config = project(f"data:\n  train:\n    - {{source: jsonl, path: {written}}}")
    assert cli.main(["config", config]) == 2
    assert capsys.readouterr().err == (
        f"plait: configs/x.yaml:6: data.train.0.path is {written!r}, which is not in {tmp_path}/configs: a path of data is relative to the "
        f"file that it is written in; for the one in the working directory write {spelling!r}\n"
    )
    assert paths(open_config(project(f"data: {{train: [{{source: jsonl, path: {spelling}}}]}}"))) == [
        f"{tmp_path}/{written}".replace("./", "")
    ]


def test_what_is_beside_the_file_wins_over_the_working_directory(project, tmp_path):
    Path("a.jsonl").write_text('{"caption": "in the working directory"}\n')
    Path("configs/a.jsonl").write_text('{"caption": "beside the file"}\n')
    config = open_config(project("data: {train: [{source: jsonl, path: a.jsonl, template: {assistant: '{caption}'}}]}")).config
    assert open_training(config).sources[0][0]["messages"][-1]["content"] == "beside the file"


def test_the_saved_configuration_of_a_run_has_absolute_paths_and_the_run_can_move(project, tmp_path, monkeypatch):
    resolved = open_config(project("data: {train: [{source: jsonl, path: ../data/a.jsonl}]}"))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text(resolved.yaml)
    (tmp_path / "runs" / "a").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "data")
    assert paths(open_run_config(tmp_path / "moved")) == paths(open_checked(tmp_path / "moved")) == [f"{tmp_path}/data/a.jsonl"]


def test_a_run_of_before_has_paths_relative_to_the_working_directory(project, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(HEAD + "data: {train: [{source: jsonl, path: data/a.jsonl}]}")
    assert paths(open_run_config(tmp_path / "old")) == [f"{tmp_path}/data/a.jsonl"]


def test_a_mixture_and_its_rows_are_relative_to_their_own_files(project, tmp_path):
    (tmp_path / "data" / "mix.yaml").write_text("[{source: jsonl, path: a.jsonl}, {name: 'own.py:Own'}, vqa2]")
    Path("configs/m.yaml").write_text("family: molmo\ntrain: {steps: 4}\ndata: {mixture: ../data/mix.yaml}\n")
    named = open_config("configs/m.yaml").config.data.mixture
    assert named == f"{tmp_path}/data/mix.yaml"
    entries = mixture.read(Path(named), [], KINDS).entries
    assert [entry.path or entry.name for entry in entries] == [f"{tmp_path}/data/a.jsonl", f"{tmp_path}/data/own.py:Own", "vqa2"]


def test_a_configuration_of_another_trainer_keeps_that_trainers_working_directory(project, tmp_path):
    Path("configs/flat.json").write_text(json.dumps({"dataset_name": "./data/a.jsonl", "learning_rate": 1e-4}))
    assert paths(open_config("configs/flat.json")) == [f"{tmp_path}/data/a.jsonl"]


def test_two_dots_leave_the_folder_that_a_link_leads_to(project, tmp_path):
    project("data: {train: [{source: jsonl, path: ../data/a.jsonl}]}")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link").symlink_to(tmp_path / "configs")
    assert paths(open_config(tmp_path / "far" / "link" / "x.yaml")) == [f"{tmp_path}/data/a.jsonl"]


def test_data_that_moved_is_no_other_configuration(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert has_moved("/gone/a.jsonl", f"{tmp_path}/a.jsonl")
    assert not has_moved(f"{tmp_path}/a.jsonl", "/gone/a.jsonl")  # the first is there still: the user wants another
    assert not has_moved("/gone/a.jsonl", f"{tmp_path}/b.jsonl")
    assert not has_moved("a.jsonl", f"{tmp_path}/a.jsonl") and not has_moved(1, 2)


def test_an_unknown_kind_is_told_as_before(project):
    with pytest.raises(PlaitError, match=r"data\.train\.0\.source must be 'shards'.*got 'sharts': did you mean 'shards'"):
        open_config(project("data: {train: [{source: sharts, path: x}]}"))


def test_a_leading_tilde_in_the_model_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "family: theworld\nmodel: {base: ~/gemma}\ntrain: {steps: 1}\ndata: {train: [{source: scenes}], root: ~/sets}\n"
    (tmp_path / "x.yaml").write_text(text)
    config = open_config(tmp_path / "x.yaml").config
    assert config.model["base"] == str(tmp_path / "gemma")
    assert config.data.root == "~/sets"


@pytest.mark.parametrize(("kind", "meant"), [("CSV", "datasets"), ("parquet", "datasets"), ("llava", "jsonl"), ("webdataset", "shards")])
def test_a_kind_by_another_name_is_told_what_is_meant(kind, meant):
    assert unknown_kind(kind, KINDS).endswith(f"got {kind!r}: did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("run=$UNSET/x", "command line: run: $UNSET/x"),
        ("run=runs/a-${UNSET}", "command line: run: runs/a-${UNSET}"),
        ("from=$UNSET/run@best", "command line: from: $UNSET/run@best"),
        ("model.base=$UNSET/gemma", "command line: model.base: $UNSET/gemma"),
        ("model.world.source=${UNSET}", "command line: model.world.source: ${UNSET}"),
        ("data.train.0.path=$UNSET/a.jsonl", "$UNSET/a.jsonl"),
        ("data.train.0.options.images=$UNSET", "$UNSET"),
        ("data.validation=[{source: shards, path: '/x/${UNSET}/{0..3}.tar'}]", "/x/${UNSET}/{0..3}.tar"),
        ("data.cache=$UNSET/cache", "$UNSET/cache"),
        ("data.root=$UNSET", "$UNSET"),
        ("data.mixture=$UNSET/mix.yaml", "$UNSET/mix.yaml"),
    ],
)
def test_a_variable_that_is_not_set_is_named_before_anything_is_written(project, tmp_path, monkeypatch, capsys, setting, said):
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    text = "data: {train: [{source: jsonl, path: ../data/a.jsonl}]}\n".replace("data: {train", "data: {workers: 0, train")
    path = project(text if "mixture" not in setting else "")
    assert cli.main(["train", path, f"--{setting}"]) == 2
    assert f"{said} needs the environment variable UNSET, which is not set\n" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} - {"cache"} == {"configs", "data"}


def test_a_variable_that_is_set_is_filled_in_where_the_run_and_the_model_lie(project, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    path = project("run: $SCRATCH${SCRATCH}-x\nfrom: $SCRATCH/old@best\ndata: {train: [{source: scenes}], cache: $SCRATCH/cache}\n")
    config = open_config(path, ["model.base=$SCRATCH/gemma", "model.system=it costs $5"]).config
    scratch = f"{tmp_path}/scratch"
    assert (config.run, config.from_) == (f"{scratch}{scratch}-x", f"{scratch}/old@best")
    assert config.model["base"] == f"{scratch}/gemma"
    assert (settings.folder(config.data.cache), config.data.cache) == (tmp_path / "scratch/cache", "$SCRATCH/cache")
    assert config.model["system"] == "it costs $5"
