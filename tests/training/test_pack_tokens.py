"""`data.pack_tokens` in runs: rows of a bounded number of tokens have the losses of padded ones, on any ranks, workers and after a stop."""

import json
import shutil
from collections import Counter

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.errors import BadSample
from plait.training.monitor.stage_monitor import causes_of
from tests import processes
from tests.data.packing import pack, picture
from tests.training.test_token_lengths import MOLMO, NANODIT, SAMPLES, configuration, inputs

__all__ = ["inputs"]  # a fixture

BUDGET = {None: 160, MOLMO: 200}


def train(path, run, *more):
    assert (
        cli.main(["train", str(path), f"--run={run}", "--train.steps=4", "--checkpoint.every_steps=2", "--track.every_steps=1", *more]) == 0
    )


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def packed(family):
    return ["--data.pad=none", f"--data.pack_tokens={BUDGET[family]}", "--train.micro_batch=null"]


@pytest.fixture(scope="module", params=[None, MOLMO], ids=["theworld", "molmo"])
def runs(request, tmp_path_factory):
    """A padded run of four steps, the same with a budget, and one of the latter that stopped after two and went on with processes."""
    folder = tmp_path_factory.mktemp("runs")
    path, more = configuration(folder, request.param), packed(request.param)
    train(path, folder / "padded", "--data.pad=to_128")
    train(path, folder / "straight", *more)
    train(path, folder / "stopped", *more)
    shutil.rmtree(folder / "stopped" / "stage-1-train" / "step-00000004")
    train(path, folder / "stopped", *more, "--data.worker_kind=processes", "--data.workers=2")
    assert processes.codes(processes.start(2, train, path, folder / "ranks", *more)) == [0, 0]
    return folder, request.param


@pytest.mark.parametrize("name", ["straight", "ranks"])
def test_losses_and_samples_are_those_of_padded_rows(runs, name):
    folder, _ = runs
    padded, budgeted = rows_of(folder / "padded"), rows_of(folder / name)
    for key in ("tokens", "ids"):
        assert [row[key] for row in budgeted] == [row[key] for row in padded]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in budgeted] == pytest.approx([row[key] for row in padded], rel=1e-4)


def test_a_stop_and_other_workers_change_no_bit(runs):
    folder, _ = runs
    ends = [sorted((folder / name / "stage-1-train" / "step-00000004").glob("weights*")) for name in ("straight", "stopped")]
    assert ends[0] and [path.read_bytes() for path in ends[0]] == [path.read_bytes() for path in ends[1]]


def test_metrics_tell_the_padding_and_how_unlike_the_ranks_are(runs):
    folder, _ = runs
    assert all(row["padding"] > 0.1 and "imbalance" not in row for row in rows_of(folder / "padded"))
    assert all(row["padding"] == 0 for row in rows_of(folder / "straight"))
    rows = rows_of(folder / "ranks")
    assert all(row["padding"] == 0 and 0 <= row["imbalance"] < 0.2 for row in rows)
    one, other = rows[-1]["spent"]["ranks"]["positions"]
    assert rows[-1]["imbalance"] == pytest.approx(max(one, other) / ((one + other) / 2) - 1, abs=1e-4)


def test_a_steps_rows_are_listed_as_they_were(runs, capsys):
    folder, family = runs
    for name, ranks in (("straight", 1), ("ranks", 2)):
        assert cli.main(["data", "step", str(folder / name), "2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["hash"] == told["recorded_hash"] and told["ranks"] == ranks
        rows = Counter((sample["rank"], sample["micro_batch"]) for sample in told["samples"])
        spent = rows_of(folder / name)[1]["spent"]
        assert len(rows) == ranks * spent["micro_batches"] and sum(rows.values()) == 8 and spent["micro_batches"] > 1
    assert cli.main(["data", "step", str(folder / "straight"), "2"]) == 0
    assert f"in rows of at most {BUDGET[family]:,} tokens" in capsys.readouterr().out


def test_a_start_tells_how_full_rows_are(tmp_path, capsys):
    path = configuration(tmp_path)
    train(path, tmp_path / "run", *packed(None))
    told = capsys.readouterr().out.partition("rows of at most 160 tokens: ")[2]
    assert " a step, " in told and told.partition("% full")[1]
    assert cli.main(["plan", str(path), *packed(None), "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["micro_batches"] == rows_of(tmp_path / "run")[0]["spent"]["micro_batches"]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("model", ["theworld", "theworld without a world", "theworld with steps", "molmo", "molmo of many crops"])
def test_pixels_are_those_that_the_encoders_are_given(inputs, model, sample):
    family, made = inputs[model]
    given = {"id": "a", "fields": {}, **SAMPLES[sample]}
    for name in {"images", "frames"} & given.keys():
        given[name] = [picture(9, size) for size in given[name]]
    try:
        example = made.encode(given, 1)
    except BadSample:
        return
    values = [tile.crops for tile in example.tiles] if family.name == "molmo" else [example.pixels, example.frames]
    assert family.token_lengths(made).pixels(given) == sum(value.numel() for value in values) / 3


def test_why_proposes_packing_where_rows_are_padded(runs, capsys):
    folder, _ = runs
    assert cli.main(["why", str(folder / "padded"), "--json"]) == 0
    causes = {cause["what"]: cause for cause in json.loads(capsys.readouterr().out)["causes"]}
    assert causes["padding"]["cure"] == "--data.pad=none" and causes["padding"]["text"].endswith("are padding (data.pad=to_128)")


RANKS = {"data": [0, 0], "start": [0, 0], "forward": [0.1, 0.3], "backward": [0.1, 0.3], "positions": [1500, 4500]}


def test_rows_of_some_samples_at_most_need_no_divisor_of_the_global_batch(runs, capsys):
    folder, family = runs
    more = [*packed(family)[:2], "--train.micro_batch=3"]  # of a global batch of 8
    assert cli.main(["plan", str(folder / "run.yaml"), f"--run={folder / 'planned'}", *more]) == 0, capsys.readouterr().out
    train(folder / "run.yaml", folder / "few", *more)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows_of(folder / "few")] == pytest.approx([row[key] for row in rows_of(folder / "padded")], rel=1e-4)


SPENT = {
    "steps": 1,
    "seconds": {"forward": 0.3, "backward": 0.3},
    "forward": {},
    "prepare": {},
    "collate": 0.0,
    "micro_batches": 2,
    "micro_batch": 4,
    "padding": 0.0,
    "masked": 0.0,
    "device": "cpu",
    "ranks": RANKS,
}


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        (["data.pad=longest"], "--data.pad=none --data.pack_tokens=3072"),
        (["data.pad=none", "data.max_tokens=4000"], "--data.pack_tokens=4000"),
        (["data.pad=none", "distributed.compile=true"], "--data.pack_tokens=3072"),
    ],
)
def test_why_proposes_a_budget_where_ranks_have_unlike_numbers_of_tokens(tmp_path, settings, cure):
    resolved = open_config(configuration(tmp_path), [f"run={tmp_path}", *settings])
    spent = {**SPENT, **({"graphs": 0} if "distributed.compile=true" in settings else {})}
    found = {cause.what: cause for cause in causes_of([{"step": 1, "spent": spent}], resolved.stages[0], resolved)}
    assert found["unbalanced ranks"].cure == cure
    assert found["unbalanced ranks"].text.endswith("as it has 3 times their positions")
    open_config(configuration(tmp_path), [f"run={tmp_path}", *settings, *(word.removeprefix("--") for word in cure.split())])


@pytest.mark.parametrize(("pad", "cure"), [("longest", "--data.pad=none"), ("none", "--data.max_tokens=256")])
def test_why_proposes_packing_where_attention_has_masks(tmp_path, pad, cure):
    resolved = open_config(configuration(tmp_path), [f"run={tmp_path}", f"data.pad={pad}", "data.max_tokens=512"])
    found = {cause.what: cause for cause in causes_of([{"step": 1, "spent": {**SPENT, "masked": 0.5}}], resolved.stages[0], resolved)}
    assert found["dense masks"].cure == cure


def test_why_proposes_a_larger_budget_for_rows_of_few_samples(tmp_path):
    settings = [f"run={tmp_path}", "data.pad=none", "data.pack_tokens=256"]
    spent = {**SPENT, "micro_batches": 8, "micro_batch": 2}
    cures = {}
    for most in ("null", "2"):
        resolved = open_config(configuration(tmp_path), [*settings, f"train.micro_batch={most}"])
        found = {cause.what: cause for cause in causes_of([{"step": 1, "spent": spent}], resolved.stages[0], resolved)}
        cures[most] = found["micro-batches"].cure
    assert cures == {"null": "--data.pack_tokens=1024", "2": "--train.micro_batch=16"}


WRONG = {
    "--data.pack_tokens=512": "data.pack_tokens is 512, but rows are padded (data.pad=longest): set data.pad=none as well",
    "--data.pack_tokens=512 --data.pad=none --data.max_tokens=600": "data.pack_tokens is 512, but a single sample may have 600 "
    "(data.max_tokens): set one of them to that of the other",
}


@pytest.mark.parametrize("settings", WRONG)
def test_settings_that_cannot_be_together_are_refused(tmp_path, capsys, settings):
    assert cli.main(["config", str(configuration(tmp_path)), *settings.split()]) == 2
    assert capsys.readouterr().err.rstrip().endswith(WRONG[settings])


def test_families_and_streams_without_lengths_are_told(tmp_path, capsys):
    settings = ["--data.pad=none", "--data.pack_tokens=512", f"--run={tmp_path / 'run'}"]
    assert cli.main(["train", str(configuration(tmp_path, NANODIT)), *settings]) == 2
    told = "data.pack_tokens is 512, and the rows of family nanodit have no lengths in tokens: leave it out"
    assert capsys.readouterr().err.rstrip().endswith(told)
    members = [(f"{i}.{kind}", body) for i in range(8) for kind, body in (("png", picture(i, (30, 30))), ("txt", b"a red square"))]
    tar = pack(tmp_path / "a.tar", members)
    source = f"--data.train=[{{source: shards, path: {tar}, options: {{stream: true}}}}]"
    assert cli.main(["train", str(configuration(tmp_path)), source, *settings]) == 2
    told = "is read as a stream, whose samples are not measured before: leave it out, or set its options.stream to false"
    assert capsys.readouterr().err.rstrip().endswith(told)
