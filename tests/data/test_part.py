"""A held-out share of a source: each sample on one side, the same at every opening, whatever kind of source it is of."""

import json
import pickle

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training, open_validation
from plait.config.schema import SourceEntry
from plait.data.buckets import BucketOrder
from plait.data.loading.bucketing import order_of
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source
from plait.data.sources.part import Part
from plait.errors import PlaitError
from tests.data import latent_sets
from tests.test_cli import CONFIG


class Numbers(Source):
    """A source whose sample i is i."""

    name = "numbers"

    def __init__(self, length, groups=()):
        self.length, self.groups, self.fingerprint = length, groups, str(length)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"id": index}


def indices(part):
    return [part[i]["id"] for i in range(len(part))]


def parts(source, share=0.1, seed=0):
    return [Part(source, share, seed, held_out=held_out) for held_out in (True, False)]


@pytest.mark.parametrize("length", [2, 3, 10, 1000])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.999])
def test_every_sample_is_on_one_side_and_neither_is_empty(length, share):
    held, rest = map(indices, parts(Numbers(length), share))
    assert sorted([*held, *rest]) == [*range(length)]
    assert held == sorted(held) and rest == sorted(rest) and held and rest


def test_about_the_share_is_held_out():
    held, _ = parts(Numbers(100_000), 0.01)
    assert abs(len(held) - 1000) < 4 * 1000**0.5  # four standard deviations of a binomial count


def test_samples_that_are_added_move_none_and_another_seed_holds_out_others():
    held, _ = parts(Numbers(1000))
    longer, _ = parts(Numbers(1500))
    assert [index for index in indices(longer) if index < 1000] == indices(held)
    assert indices(held) != indices(parts(Numbers(1000), seed=1)[0])
    assert len({part.fingerprint for share in (0.1, 0.2) for seed in (0, 1) for part in parts(Numbers(9), share, seed)}) == 8


def test_a_part_pickles_and_draws_what_the_whole_draws():
    _, rest = parts(Numbers(50))
    assert indices(pickle.loads(pickle.dumps(rest))) == indices(rest)
    assert rest.draw(7, 1) == rest[7]
    with pytest.raises(IndexError, match="sample 50 of 4"):
        rest[50]


def test_a_source_of_one_sample_is_refused():
    told = r"^a share of numbers is held out, which has 1, too few for it: list other sources in data.validation$"
    with pytest.raises(PlaitError, match=told):
        Part(Numbers(1), 0.1, 0, held_out=True)


def test_each_bucket_gives_to_both_sides(tmp_path):
    root = latent_sets.make(tmp_path / "set", {"16x16": 30, "24x16": 20, "16x24": 1})
    whole = open_source(SourceEntry(source="latents", path=str(root)), seed=0)
    held, rest = parts(whole)
    names = [part[i]["id"] for part in (held, rest) for i in range(len(part))]
    assert sorted(names) == sorted(whole[i]["id"] for i in range(len(whole)))
    assert (len(held.groups), len(rest.groups)) == (2, 3)
    buckets = [part[i]["id"].split("/")[0] for part in (held, rest) for i in range(len(part))]
    counted = [row["samples"] for part in (held, rest) for row in part.table(4)]
    assert counted == [len(list(run)) for run in _runs(buckets)] == [*held.groups, *rest.groups]
    assert isinstance(order_of([rest], [1.0], 0, 4), BucketOrder)


def _runs(names):
    runs = []
    for name in names:
        if not runs or runs[-1][-1] != name:
            runs.append([])
        runs[-1].append(name)
    return runs


def test_a_run_trains_on_the_rest_and_measures_the_share(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "evaluate: [{bench: loss}]\n")
    share, run = "--data.validation=20%", tmp_path / "run"
    config = open_config(path, [share.removeprefix("--")]).config
    (held,), training = open_validation(config), open_training(config)
    assert len(held) + len(training.sources[0]) == 30
    assert {held[i]["id"] for i in range(len(held))}.isdisjoint(training.sources[0][i]["id"] for i in range(len(training.sources[0])))
    assert cli.main(["train", str(path), share, f"--run={run}"]) == 0
    assert f"{len(training.sources[0])} samples; 2 steps of 4" in capsys.readouterr().out
    assert cli.main(["eval", str(run), "--bench", "loss"]) == 0
    (folder,) = (run / "eval").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["count"] == len(held)
    assert cli.main(["eval", str(run), "--bench", "loss", "--split", "test"]) == 2
    assert "--split test: what is held out is 20% of the training data, without splits; give --data" in capsys.readouterr().err
    assert cli.main(["train", str(path), "--data.validation=30%", "--train.steps=3", f"--run={run}"]) == 2
    assert "data.validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("150%", "holds out 150%: a share is more than 0% and less than 100%, such as 1%"),
        ("0", "holds out 0: a share is more than 0% and less than 100%, such as 1%"),
        ("some", "must be a list of sources or a share of the training data, such as 1%, got 'some'"),
    ],
)
def test_a_wrong_share_is_told_in_one_line(tmp_path, value, message):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    with pytest.raises(PlaitError) as caught:
        open_config(path, [f"data.validation={value}"])
    assert str(caught.value).endswith(message)


def test_one_stage_may_not_train_on_what_another_holds_out(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "stages: [{name: a}, {name: b, data: {validation: 5%}}]")
    with pytest.raises(PlaitError, match="holds out 5% in stage b, and stage a trains on the same data without: write one share for all"):
        open_config(path)


def test_training_prints_the_warnings_of_a_translated_configuration(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text('{"model_name": "tiny", "dataset_name": "scenes", "max_steps": 1, "streaming": true, "device": "cuda:1"}')
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}", "--optim.lr=0"]) == 2
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}", "--data.max_tokens=99999"]) == 2
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warned[0].startswith(f"warning: {path}: without meaning here: streaming; `plait config {path}` says why")
    assert warned[1].startswith(f"warning: {path}: device is 'cuda:1': the whole model is on one GPU")
