"""Sources whose pictures do not belong to their texts are named before training, by another with such texts; sound ones are left alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.monitor_faults import SCENE, mixed_up, sound
from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.data.sources.scenes import SceneSource
from plait.files import read_rows
from plait.keys import rng
from plait.training.monitor import picture_texts
from plait.training.monitor.picture_texts import relation

RECIPE = """
family: theworld
preset: tiny
model: {{world: {{image_size: 16}}, tiny: {{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16,
        image_tokens: 4, vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}}}
data: {{train: [{train}], validation: [{validation}], workers: 0}}
train: {{steps: 2, global_batch: 2}}
checkpoint: {{every_steps: null, best: null}}
track: {{tensorboard: false, every_steps: 1}}
"""


def entry(source):
    return f"{{source: jsonl, path: {source['path']}}}"


def warned(tmp_path, train, validation=""):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(train=", ".join(map(entry, train)), validation=validation))
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}"]) == 0
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    return [(row["step"], line) for row in rows for line in row.get("warnings", ())]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(scenes with captions, the same with each other's captions)."""
    folder = tmp_path_factory.mktemp("captions")
    return sound(folder, 32, task="caption", count=300), mixed_up(folder, 32, task="caption", count=300)


def test_a_source_with_the_captions_of_other_pictures_is_named_beside_a_sound_one(tmp_path, data):
    ((step, line),) = warned(tmp_path, data)
    assert step == 1 and line.startswith("step 1: source jsonl:caption-bad.jsonl: its pictures tell nothing of its texts (")
    assert "while those of jsonl:caption.jsonl, with the same words, do (" in line and line.endswith("(plait data inspect)")


def test_training_data_that_is_mixed_up_is_named_beside_held_out_data(tmp_path, data):
    ((_, line),) = warned(tmp_path, data[1:], entry(data[0]))
    assert "while those of the held-out jsonl:caption.jsonl, with the same words, do (" in line


def test_sound_sources_are_left_alone_and_so_is_one_with_nothing_to_hold_it_to(tmp_path, data):
    assert warned(tmp_path, data[:1], entry(data[0])) == []
    bad = open_source(SourceEntry(source="jsonl", path=data[1]["path"]), seed=0)
    read, bad.worded = [], lambda index: read.append(index) or bad[index]
    assert [*picture_texts.unrelated({"bad": bad}, {}, 0)] == [] and not read


def test_on_a_slow_disk_nothing_is_compared_which_is_told(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(picture_texts, "MOST_S", -1.0)
    assert warned(tmp_path, data) == []
    line = "whether pictures belong to their texts is not compared (guard.blindness): reading some samples of each source takes over -1 s"
    assert f"{line}\n" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["colour", "shape", "exists", "caption"])
def test_pairs_of_sound_sources_are_left_alone(task):
    options = {**SCENE, "size": [32, 32], "tasks": [task], "supersample": 1}
    one, two = (SceneSource(options, seed=0, split=split, length=80) for split in ("train", "test"))
    assert [*picture_texts.unrelated({"one": one}, {"two": two}, 0)] == []


def test_the_relation_is_that_of_a_plain_loop():
    """The criterion beside that of mixed-up pairs, in float64, by sums over pairs; features are float32, hence the tolerance."""
    torch.manual_seed(0)
    shown = [(torch.rand(6), torch.rand(4)) for _ in range(12)]
    answers = [frozenset(["red", f"w{i % 3}"]) for i in range(12)]

    def gaussian(part):
        apart = [[float((one - two).double().square().sum()) for two in part] for one in part]
        positive = sorted(value for row in apart for value in row if value > 0)
        width = positive[(len(positive) - 1) // 2]
        return [[math.exp(-value / width) for value in row] for row in apart]

    kernels = [gaussian([one[i] for one in shown]) for i in (0, 1)]
    kernel = torch.tensor([[a + b for a, b in zip(*rows, strict=True)] for rows in zip(*kernels, strict=True)], dtype=torch.float64)
    weights = {word: math.log(13 / sum(word in words for words in answers)) for words in answers for word in words}
    vectors = torch.tensor([[weights[word] * (word in words) for word in sorted(weights)] for words in answers], dtype=torch.float64)
    cosine = F.normalize(vectors) @ F.normalize(vectors).T
    centring = torch.eye(12, dtype=torch.float64) - 1 / 12
    draw = rng(3, "picture texts")
    orders = [torch.from_numpy(draw.permutation(12)) for _ in range(200)]
    mixed = torch.stack([torch.trace(centring @ kernel @ centring @ cosine[order][:, order]) for order in orders])
    wanted = (torch.trace(centring @ kernel @ centring @ cosine) - mixed.mean()) / mixed.std()
    assert relation(shown, answers, 3) == pytest.approx(float(wanted), rel=1e-4)


def test_pictures_or_answers_that_are_all_alike_are_related_to_nothing():
    shown = [(torch.rand(6), torch.rand(4)) for _ in range(12)]
    assert abs(relation([shown[0]] * 12, [frozenset([str(i % 2)]) for i in range(12)], 0)) < 1e-3
    assert abs(relation(shown, [frozenset(["yes"])] * 12, 0)) < 1e-3
