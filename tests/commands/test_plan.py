"""`plait plan` as a user meets it: what it prints, what it finds, and that each override it proposes cures what it is beside."""

import json
import shlex

import pytest
import yaml

from plait import cli

RECIPE = """
family: nanodit
model: {space: pixels, depth: 1, hidden: 32, heads: 2, patch: 8, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
data:
  train: [{source: scenes, limit: 64, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]
  workers: 0
stages:
  - {name: first, trainable: [blocks]}
  - {name: second, trainable: [embed, blocks, final], train: {steps: 60}}
train: {global_batch: 8, micro_batch: 4, steps: 40}
optim: {lr: 1.0e-3}
checkpoint: {every_steps: 10, keep: 2}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def plan(recipe, capsys, *options):
    """(exit code, the plan as JSON, standard error)."""
    code = cli.main(["plan", str(recipe), "--json", *options])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def findings(planned, what):
    return [finding for finding in planned["findings"] if finding["what"] == what]


def test_a_sound_run_has_nothing_against_it(recipe, capsys):
    assert cli.main(["plan", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith("nothing to say against it")
    assert "stage 1 first" in text and "40 of 8 samples (2 micro-batches of 4 on each rank), 320 samples" in text
    assert "time         not known: --gpu NAME takes it from a table, --probe measures it here" in text


def test_what_muon_updates_is_told_with_what_it_takes(recipe, capsys):
    (first, _), (plain, _) = (plan(recipe, capsys, *more)[1]["stages"] for more in (["--optim.name=muon"], []))
    values = sum(rows * columns for rows, columns in [*[(32, 32)] * 4, *[(64, 32)] * 2, (288, 32), (128, 32), (32, 128)])
    assert (first["muon"]["matrices"], first["muon"]["values"], plain["muon"]) == (9, values, None)
    assert plain["memory"][0]["moments"] - first["memory"][0]["moments"] == 4 * values
    assert cli.main(["plan", str(recipe), "--optim.name=muon"]) == 0
    assert f"TFLOP a step of Muon, which orthogonalises 9 matrices of {values:,} values together" in capsys.readouterr().out


def test_a_stage_without_matrices_for_muon_is_an_error_with_its_cure(recipe, capsys):
    settings = ["--stages=[]", "--trainable=[embed]", "--optim.name=muon"]
    code, planned, _ = plan(recipe, capsys, *settings)
    (found,) = findings(planned, "optimizer")
    assert (code, found["text"]) == (1, "no matrix of embed is in a block, so there is none for Muon")
    assert found["cure"] == "--optim.components.embed.muon=true"
    assert plan(recipe, capsys, *settings, found["cure"])[0] == 0


def test_a_plan_writes_nothing_where_it_is_run(recipe, capsys, tmp_path):
    plan(recipe, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


CURED = {
    "few samples": (["--data.train.0.limit=6"], "data", "a step takes 8 samples and there are 6, so each"),
    "warm-up": (["--optim.schedule.warmup_steps=39"], "schedule", "the warm-up takes 39 of 40 steps"),
    "rate": (["--optim.lr=0.5"], "rate", "blocks trains at 0.5, 500 times more than the 0.001"),
    "low rate": (["--optim.lr=1e-5"], "rate", "blocks trains at 1e-05, 100 times less than the 0.001"),
    "average": (["--optim.ema.decay=0.9999"], "average", "has a half-life of 6,931 updates"),
    "plateau": (["--train.plateau.min_steps=50"], "plateau", "can end the stage from step 2,000 on, and it has 40"),
    "interval": (["--checkpoint.every_steps=500"], "checkpoints", "only its end is saved"),
}


@pytest.mark.parametrize("case", CURED)
def test_what_is_found_is_cured_by_its_override(recipe, capsys, case):
    overrides, what, text = CURED[case]
    code, planned, _ = plan(recipe, capsys, *overrides)
    found = findings(planned, what)
    assert code == 0 and found and found[0]["stage"] == "first" and text in found[0]["text"]
    code, planned, _ = plan(recipe, capsys, *overrides, *(finding["cure"] for finding in found))
    assert code == 0 and not findings(planned, what)


WARMED = ["--train={epochs: 1, global_batch: 8}", "--optim.schedule.warmup_steps=20", "--stages=[]", "--trainable=[embed, blocks]"]


def test_a_warm_up_longer_than_the_epochs_is_an_error_with_its_cure(recipe, capsys):
    code, planned, error = plan(recipe, capsys, *WARMED)
    (found,) = findings(planned, "schedule")
    assert code == 1 and found["level"] == "error" and found["text"] in error and found["cure"] == "--optim.schedule.warmup_steps=1"
    code, planned, _ = plan(recipe, capsys, *(option for option in WARMED if "warmup" not in option), found["cure"])
    assert code == 0 and planned["stages"][0]["steps"] == 8 and not findings(planned, "schedule")


def test_a_rule_for_a_figure_that_is_measured_at_the_end_only_is_told(recipe, capsys):
    held = "--data.validation=[{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]"
    plateau = ["--train.plateau={min_steps: 5, patience_steps: 8, window_steps: 8}", held, "--stage=first"]
    never = plan(recipe, capsys, *plateau, "--evaluate=[{bench: loss}]")[1]
    assert findings(never, "plateau")[0]["cure"] == "--stages.0.evaluate.0.every_steps=2"
    often = plan(recipe, capsys, *plateau, "--evaluate=[{bench: loss, every_steps: 5}]")[1]
    (found,) = findings(often, "plateau")
    assert found["level"] == "advice" and "waits 8 steps and loss is measured every 5" in found["text"]
    assert not findings(plan(recipe, capsys, *plateau, "--evaluate=[{bench: loss, every_steps: 2}]")[1], "plateau")


def test_missing_data_is_an_error_and_the_rest_is_planned(recipe, capsys):
    code, planned, error = plan(recipe, capsys, "--data.train=[{source: folder, path: nowhere}]")
    assert code == 1 and error.startswith("plait: the plan has errors: first: ") and "nowhere" in error and "and 1 more" in error
    assert [stage["steps"] for stage in planned["stages"]] == [40, 60]
    assert all(stage["assumed_batch"] and stage["memory"][0]["peak"] for stage in planned["stages"])


def test_a_rank_that_is_too_small_is_an_error_with_a_change_that_fits(recipe, capsys):
    whole = plan(recipe, capsys)[1]["stages"][0]["memory"]
    little = f"--distributed.memory_gb={(whole[0]['peak'] + whole[1]['peak']) / 2e9 / 0.95}"
    code, planned, error = plan(recipe, capsys, little, "--stage=first")
    (found,) = findings(planned, "memory")
    assert code == 1 and "a rank holds" in error and found["cure"] == "--stages.0.distributed.activation_checkpointing=full"
    assert plan(recipe, capsys, little, "--stage=first", found["cure"])[0] == 0


def test_held_out_samples_inside_the_training_data_are_told(recipe, capsys):
    tree = yaml.safe_load(RECIPE)
    tree["data"]["validation"] = [tree["data"]["train"][0] | {"split": "train"}]
    recipe.write_text(yaml.safe_dump(tree))
    code, planned, _ = plan(recipe, capsys, "--stage=first")
    (found,) = findings(planned, "held-out")
    assert code == 0 and "32 held out too, 32 with a held-out picture (32 of 64 compared" in found["text"]
    code, planned, _ = plan(recipe, capsys, "--stage=first", found["cure"])
    assert code == 0 and not findings(planned, "held-out")


def test_strategies_and_hours_are_those_of_the_gpus_that_are_named(recipe, capsys):
    planned = plan(recipe, capsys, "--gpu", "h100", "--ranks", "16", "--train.micro_batch=null", "--train.global_batch=32")[1]
    stage = planned["stages"][0]
    assert {row["strategy"] for row in stage["memory"]} == {"ddp", "shard_grad_op", "fsdp", "hsdp"}
    step_s = stage["flops_per_step"] / (0.35 * 67e12 * 16)  # fp32
    assert stage["hours"] == pytest.approx(40 * step_s / 3600) and "35% of the peak of 16 x NVIDIA H100" in stage["pace_from"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "H10"], "--gpu 'H10' is not known: did you mean H100? known: A100-40GB, A100, H100,"),
        (["--stage", "third"], "there is no stage 'third': the stages are first, second"),
        (
            ["--distributed.strategy=hsdp", "--distributed.shard_size=3", "--ranks=8"],
            "distributed.shard_size is 3, but 8 ranks make groups",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(recipe, capsys, options, message):
    assert cli.main(["plan", str(recipe), *options]) == 2
    said = capsys.readouterr()
    assert not said.out and message in said.err and len(said.err.splitlines()) == 1


def test_a_pace_that_was_measured_is_the_median_of_its_stages_rows(recipe, capsys, tmp_path):
    rows = [{"step": n, "stage": 1, "samples_per_s": rate} for n, rate in enumerate((1.0, 2.0, 50.0, 40.0, 30.0), start=1)]
    folder = tmp_path / "runs" / "recipe"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = plan(recipe, capsys)[1]["stages"]
    assert first["samples_per_s"] == 40.0 and first["hours"] == pytest.approx(320 / 40 / 3600) and second["hours"] is None
    assert first["pace_from"].startswith("measured in ")


def test_the_help_names_what_is_planned(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    assert shlex.split(capsys.readouterr().out)[:3] == ["usage:", "plait", "plan"]
