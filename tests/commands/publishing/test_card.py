"""Figures in the card and model index of a push are of its files: their weights, their checkpoint, and what they hold of the model."""

import json

import pytest
from huggingface_hub import ModelCard

from plait import cli
from plait.commands.actions.report import measured, record
from tests.test_cli import CONFIG

RECIPE = f"""{CONFIG.replace("{schedule:", "{ema: {decay: 0.5}, schedule:")}
adapters: {{language: {{rank: 2}}}}
trainable: [projector, language.lora]
evaluate: [{{bench: loss, every_steps: 1, samples: 4}}]
"""
ONE = ["--samples=4", "--show=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over Gemma and a world, with adapters and averages, that was measured in five ways."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "world.yaml").write_text(RECIPE)
    run = folder / "run"
    assert cli.main(["train", str(folder / "world.yaml"), f"--run={run}", "--checkpoint.every_steps=1", "--checkpoint.keep=9"]) == 0
    for words in ([], ["--raw"], ["--ablate=world"]):
        assert cli.main(["eval", str(run), "--bench=loss", *ONE, *words]) == 0
    for words in ([f"{run}@1"], ["--base", str(run / "config.yaml")]):
        assert cli.main(["eval", *words, "--bench=loss", *ONE]) == 0
    return run


def figures(run, name):
    """The figure `loss` of a measurement."""
    return json.loads((run / f"eval/{name}/metrics.json").read_bytes())["figures"]


def index(text):
    """The values of each figure in the model index of a card."""
    values = {}
    for one in ModelCard(text).data.eval_results or []:
        values.setdefault(one.metric_name, []).append(one.metric_value)
    return values


def card(hub, run, *words):
    assert cli.main(["push", str(run), "someone/world", "--replace", *words]) == 0
    return hub.repos["someone/world"].files()["README.md"].decode()


def test_the_report_marks_which_weights_each_figure_is_of(run):
    table = measured.measured_table(record.read(run))
    found = {(row[1], row[4], row[5]) for row in table.rows if row[1] == "loss"}
    assert found == {("loss", "2", "averages"), ("loss", "2", "last weights"), ("loss", "1", "averages"), ("loss", "0", measured.BASE)}


def test_the_card_of_a_checkpoint_has_its_own_figures_and_the_index_those_of_its_averages(run, hub):
    text, plain = card(hub, run), figures(run, "loss-step-00000002")
    assert "| last weights |" in text and "| averages |" in text and measured.BASE not in text
    values = index(text)
    raw, older = figures(run, "loss-step-00000002-raw")["loss"], figures(run, "loss-step-00000001")["loss"]
    assert plain["loss"] in values["loss"] and not {raw, older} & set(values["loss"])
    assert not [name for name in values if "world_" in name]


def test_the_card_of_gemma_alone_has_the_figures_without_the_world_or_none(run, hub):
    text, without = card(hub, run, "--to", "hf"), figures(run, "loss-step-00000002-ablate-world")["loss/world_off"]
    assert index(text) == {"loss": [without]} and "leaves the world out" in text and "of the model without its world" in text
    text = card(hub, f"{run}@1", "--to", "hf")
    assert index(text) == {} and "No figure was measured so, as `plait eval RUN --bench NAME --ablate world` does" in text
    assert "Figures while training" not in text and "| loss " not in text


def test_the_card_of_adapters_says_how_peft_loads_them_and_that_no_run_begins_with_them(run, hub, tmp_path, capsys):
    text = card(hub, run, "--to", "peft")
    assert ModelCard(text).data.library_name == "peft" and "by `from:" not in text
    assert 'PeftModel.from_pretrained(base, "someone/world")' in text and "No run of plait begins with them" in text
    capsys.readouterr()
    assert cli.main(["train", str(run.parent / "world.yaml"), "--from=someone/world", f"--run={tmp_path / 'new'}"]) == 2
    line = "holds adapters alone, for peft: give the run that trained them, or export that in another layout"
    assert capsys.readouterr().err.strip().endswith(line)
