"""The runs whose digits are checked in: one or two stages of 20 steps, with mixtures, buckets, averages and dropout between them."""

THEWORLD = """
family: theworld
preset: tiny
run: {folder}/theworld
model:
  tiny: {{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
          vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}
  world: {{image_size: 16}}
  augment: {{flip: true}}
data:
  train:
    - {{source: scenes, weight: 3, limit: 50, options: &scenes {{size: [32, 32], objects: [1, 2], tasks: [colour, count]}}}}
    - {{source: scenes, limit: 9, options: {{size: [32, 32], objects: [1, 2], tasks: [caption]}}}}
  validation: [{{source: scenes, limit: 20, options: *scenes}}]
  workers: 0
stages:
  - {{name: projection, trainable: [projector], optim: {{lr: 1.0e-2}}}}
  - {{name: all, trainable: [projector, vision, language], optim: {{components: {{vision: {{lr: 1.0e-4}}}}}}}}
train: {{steps: 20, global_batch: 8, micro_batch: 2, grad_clip: 1.0}}
optim: {{lr: 1.0e-3, weight_decay: 0.01, schedule: {{name: cosine, warmup_steps: 5}}, ema: {{decay: 0.9, warmup_steps: 2}}}}
checkpoint: {{every_steps: 20}}
evaluate: [{{bench: loss, every_steps: 10, samples: 16}}, {{bench: accuracy, every_steps: 20, samples: 8}}]
track: {{every_steps: 1, tensorboard: false}}
"""

MOLMO = """
family: molmo
preset: debug
run: {folder}/molmo
model: {{residual_dropout: 0.1, response_residual_dropout: 0.05}}
data:
  train:
    - {{source: scenes, weight: 2, limit: 40, options: &scenes {{size: [48, 48], objects: [1, 3], tasks: [count, colour, point]}}}}
    - {{source: scenes, weight: 1, limit: 11, options: {{size: [80, 48], objects: [1, 3], tasks: [caption]}}}}
  validation: [{{source: scenes, limit: 20, options: *scenes}}]
  max_tokens: 256
  workers: 0
train: {{steps: 20, global_batch: 6, micro_batch: 2, grad_clip: 1.0}}
optim: {{schedule: {{name: linear, warmup_steps: 4}}, components: {{vision: {{lr: 1.0e-4, warmup_steps: 8}}}}}}
checkpoint: {{every_steps: 20}}
evaluate: [{{bench: loss, every_steps: 10, samples: 8, batch: 4}}]
track: {{every_steps: 1, tensorboard: false}}
"""

NANODIT = """
family: nanodit
preset: tiny
run: {folder}/nanodit
model: {{metadata: {folder}/latents, depth: 2, hidden: 48, heads: 2, dropout: {{neither: 0.2, text_only: 0.1, image_only: 0.1}}}}
data:
  train: [{{source: latents, path: {folder}/latents, options: {{held_out: 0.2}}}}]
  validation: [{{source: latents, path: {folder}/latents, options: {{held_out: 0.2}}}}]
  workers: 0
train: {{steps: 20, global_batch: 6, micro_batch: 3, grad_clip: 1.0}}
optim: {{ema: {{decay: 0.9, warmup_steps: 5, post_hoc: true}}, schedule: {{name: inverse_sqrt, warmup_steps: 4}}}}
checkpoint: {{every_steps: 20}}
evaluate: [{{bench: loss, every_steps: 10, samples: 12}}]
track: {{every_steps: 1, tensorboard: false}}
"""

LATENTS = [
    "data", "shard", "scenes", "{folder}/latents", "--limit=60", "--latents=tiny", "--texts=tiny", "--images=tiny",
    "--statistics=published", "--buckets=32x32,24x40,40x24", "--options.size=[[32,32],[24,40],[40,24]]",
    "--options.tasks=[caption]", "--options.objects=[1,2]",
]  # fmt: skip
"""The command that writes nanodit's buckets of latents, the first argument's `{folder}` to be filled in."""

RUNS = {"theworld": THEWORLD, "molmo": MOLMO, "nanodit": NANODIT}
