"""The control as the guide has it: the same recipe with a second eye in place of the world model, both in one table."""

import json

import pytest

from plait import cli

RECIPE = """
family: theworld
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16, steps: 1}
data:
  train:
    - source: scenes
      limit: 8
      options: &scenes {size: [32, 32], objects: 2, frames: 9, horizon: 12, speed: [0.03, 0.15], tasks: [faster]}
  validation: [{source: scenes, limit: 4, options: *scenes}]
  workers: 0
stages:
  - {name: first, trainable: [projector], train: {steps: 1}}
  - {name: all, trainable: [projector, language, world], train: {steps: 2}}
train: {global_batch: 4}
optim: {lr: 1.0e-3, ema: null, schedule: {warmup_steps: 0}}
checkpoint: {every_steps: 2}
evaluate: []
track: {every_steps: 1, tensorboard: false}
"""


@pytest.mark.parametrize("eye", ["tiny:dinov3", "tiny:vjepa2"])
def test_a_second_eye_is_trained_ablated_and_compared_with_the_world(tmp_path, capsys, eye):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    runs = {source: str(tmp_path / source.replace(":", "-")) for source in ("tiny", eye)}
    for source, run in runs.items():
        assert cli.main(["train", str(recipe), f"--run={run}", f"--model.world.source={source}"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    command = ["eval", runs["tiny"], "--bench", "accuracy,loss", "--ablate", "world", "--against", runs[eye], "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"{runs[eye]}" in said and "world" in said
    against = json.loads(next(out.rglob("against.json")).read_text())
    assert runs[eye] in against["sentence"] and "the measured model" in against["sentence"]
    assert cli.main(["ckpt", "inspect", runs[eye]]) == 0
    assert f"base world: {eye}" in capsys.readouterr().out
