"""`held_out`: a share of one source of the training data, whatever kind it is of, that is measured and not trained on."""

import json

import pytest
import yaml

from plait import cli
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training, open_validation
from plait.errors import PlaitError
from tests.data.packing import labelled
from tests.data.test_dedup import drawn, encoded, written
from tests.test_cli import CONFIG


@pytest.fixture
def place(tmp_path):
    """Two streamed shards of 40 samples, and a list of 24 pictures of which every third is a copy of the one before."""
    for first in (0, 40):
        labelled(tmp_path / f"{first:02d}.tar", first, 40)
    pictures = {f"{i:02d}.png": encoded(drawn(i - (i % 3 == 2))) for i in range(24)}
    written(tmp_path, pictures)
    return tmp_path


def entries(place, **of_list):
    shards = {"source": "shards", "path": str(place / "{00,40}.tar"), "options": {"stream": True}, "template": {"assistant": "{label}"}}
    return [shards | {"held_out": "20%"}, {"source": "jsonl", "path": str(place / "data.jsonl"), **of_list}]


def configured(place, rows, **data):
    tree = yaml.safe_load(CONFIG)
    tree["data"] = {"train": rows, **data}
    (place / "run.yaml").write_text(yaml.safe_dump(tree | {"evaluate": [{"bench": "loss"}]}))
    return place / "run.yaml"


def names(source):
    return [source[i]["id"] for i in range(len(source))]


def test_a_share_of_one_source_is_held_out_and_the_other_is_trained_on_whole(place, capsys):
    path = configured(place, entries(place))
    config = open_config(path, []).config
    (held,), (shards, listed) = open_validation(config), open_training(config).sources
    whole = open_training(open_config(path, ["evaluate=[]", "data.train.0.held_out=0"]).config).sources[0]
    assert sorted([*names(held), *names(shards)]) == sorted(names(whole))
    assert 8 < len(held) < 24 and len(listed) == 24 and shards.stream is not None
    assert names(open_validation(config)[0]) == names(held)
    assert cli.main(["data", "inspect", str(path), "--out", str(place / "seen")]) == 0
    told = capsys.readouterr().out
    both = f"(32 of {len(shards)} compared with {len(held)} of {len(held)} held out)"
    assert f"leakage: {shards.name}: none is held out {both}" in told
    run = str(place / "run")
    assert cli.main(["train", str(path), f"--run={run}"]) == 0 and "held out: loss" in capsys.readouterr().err
    assert cli.main(["eval", run, "--bench", "loss", "--split", "test"]) == 2
    assert "--split test: what is held out is 20% of data.train.0, without splits" in capsys.readouterr().err
    assert cli.main(["doctor", str(path)]) == 0 and f"loss {len(held)} samples" in capsys.readouterr().out
    assert cli.main(["report", run]) == 0 and "20% of data.train.0" in (place / "run" / "report.html").read_text()


def test_copies_are_on_neither_side_twice_and_a_listed_source_stays(place, capsys):
    rows = entries(place, held_out="30%")[1:]
    listed = [{"source": "scenes", "limit": 3, "options": {"size": [32, 32]}}]
    path, copies = configured(place, rows, validation=listed), place / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(copies), "--distance", "0"]) == 0
    told = capsys.readouterr().out
    rows[0]["filter"] = {"dedup": str(copies)}
    config = open_config(configured(place, rows, validation=listed), []).config
    (scenes, held), (trained,) = open_validation(config), open_training(config).sources
    assert (len(scenes), len(held) + len(trained)) == (3, 16) and "8 exact copies" in told
    pictures = [[source[i]["images"][0] for i in range(len(source))] for source in (held, trained)]
    assert len({*pictures[0]} | {*pictures[1]}) == 16 and {*pictures[0]}.isdisjoint(pictures[1]) and pictures[0]
    left = [json.loads(line) for line in copies.read_text().splitlines()[1:]]
    assert not any(row["held_out"] and not row["of"]["held_out"] for row in left)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["data.train.0.held_out=150%"], "data.train.0.held_out: holds out 150%: a share is more than 0% and less than 100%, such as 1%"),
        (["data.train.0.held_out=some"], "data.train.0.held_out: must be a share of the source, such as 1%, got 'some'"),
        (
            ["data.train.1.path={0}/{{00,40}}.tar", "data.train.1.source=shards", "data.train.1.held_out=5%"],
            "data.train.1 reads what data.train.0 reads, and holds out 5% of it, not 20%: write the same held_out in both, as either would "
            "train on samples that the other holds out",
        ),
        (
            ["data.validation=[{{source: scenes, held_out: 1%}}]"],
            "data.validation.0.held_out is for data.train: what is listed here is held out whole",
        ),
        (["data.train.0.held_out=0"], "evaluate.0 measures 'loss' on nothing: name sources in data.validation or evaluate.0.data"),
        (
            ["stages=[{{name: a}}, {{name: b, data: {{train: [{{source: shards, path: '{0}/{{00,40}}.tar'}}]}}, evaluate: []}}]"],
            "data.train holds out 20% of data.train.0 in stage a, and stage b trains on the same data without: write one share (held_out) "
            "in all stages",
        ),
    ],
)
def test_a_share_that_would_be_trained_on_is_refused(place, change, message):
    path = configured(place, entries(place))
    with pytest.raises(PlaitError) as caught:
        open_config(path, [one.format(place) if "{{" in one else one for one in change])
    assert str(caught.value).endswith(message)


def test_a_share_of_a_source_stands_in_place_of_that_of_all(place):
    path = configured(place, entries(place, held_out=0), validation="10%")
    config = open_config(path, []).config
    (held,) = open_validation(config)
    alone = open_config(configured(place, entries(place)), []).config
    assert names(held) == names(open_validation(alone)[0]) and len(open_training(config).sources[1]) == 24
    both = open_config(configured(place, entries(place), validation="10%"), []).config
    assert both.data.shares == "20% of data.train.0, 10% of data.train.1" and [len(one) > 0 for one in open_validation(both)] == [True] * 2


def test_drawn_data_of_other_options_is_other_data(place):
    options = {"size": [32, 32], "objects": 1}
    drawn = [{"source": "scenes", "limit": 20, "options": {**options, "tasks": [task]}} for task in ("colour", "count")]
    config = open_config(configured(place, [drawn[0] | {"held_out": "20%"}, drawn[1]]), []).config
    assert config.data.shares == "20% of data.train.0"
    with pytest.raises(PlaitError, match=r"reads what data\.train\.0 reads, and holds out 0% of it, not 20%"):
        open_config(configured(place, [drawn[0] | {"held_out": "20%"}, drawn[0]]), [])


def test_a_plan_names_what_leaves_copies_out_where_a_share_is_held_out(place, capsys):
    rows = [*entries(place, held_out="30%")[1:], {"source": "jsonl", "path": str(place / "copy.jsonl")}]
    (place / "copy.jsonl").write_bytes((place / "data.jsonl").read_bytes())
    cli.main(["plan", str(configured(place, rows)), "--json"])
    (found,) = (one for one in json.loads(capsys.readouterr().out)["findings"] if one["what"] == "held-out" and "copy.jsonl" in one["text"])
    assert "`plait data dedup CONFIG copies.jsonl` lists copies, filter: {dedup: copies.jsonl} on its source" in found["text"]
    assert found["cure"] == ""


def test_a_row_of_a_mixture_has_no_share_of_its_own(place):
    (place / "mixed.yaml").write_text(yaml.safe_dump([entries(place)[0] | {"weight": 1}]))
    path = configured(place, [], mixture=str(place / "mixed.yaml"), validation="5%")
    with pytest.raises(PlaitError, match=r"held_out is for data\.train: of a mixture, hold out one share of each dataset, "):
        open_training(open_config(path, []).config)
