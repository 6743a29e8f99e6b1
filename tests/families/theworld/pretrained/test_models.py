"""The model with each class of world encoder: what trains, FLOPs, ablations, whole exports, and published sizes on the meta device."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor

import plait.hf  # noqa: F401  registers
from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.flops import Flops
from plait.families.ablation import ablated
from plait.families.theworld import evaluate, export, family
from plait.families.theworld.config import Config
from plait.families.theworld.hf import encoder_weights
from plait.families.theworld.sequence import Kind
from plait.families.theworld.tiny_sizes import TINY_ENCODERS
from tests.families.theworld.conftest import photo, sample
from tests.families.theworld.test_model import STAGES, loss_of, train_only

CLIP = {"wan": 9, "wan2.2": 9, "cosmos1": 17, "dinov3": 3, "dinov3-convnext": 3, "vjepa2": 6}
"""Frames of two world steps."""
UNUSED = ("world.vae.decoder.", "world.vae.post_quant_conv.", "world.model.predictor.", "world.model.embeddings.mask_token")


def world_of(name, steps=0, **more):
    return {"source": f"tiny:{name}", "image_size": 32, "steps": steps, **more}


def clip(name, number=0, **more):
    return sample(number, frames=[photo(number + 40 + i) for i in range(CLIP[name])], **more)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", CLIP)
def test_a_stage_with_the_world_trains_all_of_the_encoder_and_nothing_else_of_it(make, name, steps):
    config, model, inputs = make(world=world_of(name, steps))
    names = train_only(model, STAGES[3])
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3, weight_decay=0.0)
    samples = [clip(name, 1), sample(say="left"), clip(name, 5, say="a cat on a mat")]
    loss_of(config, model, inputs, samples)[0].backward()
    optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == names
    idle = {key for key, _ in model.named_parameters() if key.startswith("world.") and not key.startswith(UNUSED)} - names
    assert all(".time_conv." in key or (".temp_attentions." in key and (".to_q." in key or ".to_k." in key)) for key in idle)
    assert bool(idle) == (steps == 0 and name in ("wan", "wan2.2", "cosmos1"))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", CLIP)
def test_every_component_that_is_never_trained_is_known_or_absent_by_the_section(make, name, steps):
    config, model, _ = make(world=world_of(name, steps))
    parts = family.components(model)
    assert family.never_trained == (parts.keys() | config.absent().keys()) & family.never_trained
    assert not parts.keys() & config.absent().keys()
    assert all(parts[component] for component in parts.keys() - family.never_trained)


@pytest.mark.parametrize("name", CLIP)
def test_a_row_has_the_tokens_of_its_clip_and_fewer_of_a_shorter_one(make, name):
    _, _, inputs = make(world=world_of(name, 2))
    per_frame = inputs.tokens_per_frame
    whole, shorter = clip(name), clip(name)
    shorter["frames"] = shorter["frames"][:-1]
    assert [inputs.encode(each, 0).world_tokens for each in (whole, shorter)] == [3 * per_frame, 2 * per_frame]
    assert len(inputs.encode(shorter, 0).frames) == inputs.grid.frames(1)


@pytest.mark.parametrize("trainable", [["projector"], ["projector", "world"]], ids=lambda stage: stage[-1])
@pytest.mark.parametrize("name", CLIP)
def test_a_step_costs_what_torch_counts(make, name, trainable):
    _, model, inputs = make(world=world_of(name, 2))
    batch = inputs.collate([inputs.encode(clip(name, 1), key=1), inputs.encode(clip(name, 2, say="a cat on a mat"), key=2)])
    train_only(model.train(), trainable)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
        with Flops() as flop:
            total = model(batch)["loss"]
        total.backward()
    wanted = torchs.get_total_flops()
    if name == "dinov3-convnext" and "world" in trainable:  # torch counts the weights' gradients of grouped convolutions once per channel
        wanted -= 2 * 7 * 7 * 6 * (8 * 8 * 32 * (32 - 1) + 4 * 4 * 64 * (64 - 1))  # 6 frames, 32 and 64 channels of 8 x 8 and 4 x 4 cells
    assert flop.total == pytest.approx(wanted, rel=0.01)  # the loss's logits, which torch's counter does not know


@pytest.mark.parametrize("name", CLIP)
def test_the_world_is_taken_away_and_exchanged_whichever_encoder_it_is(make, name):
    _, model, inputs = make(world=world_of(name))
    bench = ablated(evaluate.benches["accuracy"], "world", evaluate.ablations["world"])
    rows = bench.predict(model, [sample(1), sample(2), sample(3)], inputs, batch=3, moment="")
    assert [row["world_tokens"] for row in rows] == [inputs.tokens_per_frame] * 3
    figures = bench.summarise(bench.finish(rows))
    assert {"accuracy", "accuracy/world_off", "accuracy/world_shuffled"} <= figures.keys()
    prompts = [inputs.prompt(sample(1, world_of=other)) for other in (sample(1), sample(2), None)]
    with torch.no_grad():
        on, shuffled, off = (model(inputs.collate([_answered(inputs, each)]))["loss"] for each in prompts)
    assert len({float(on), float(shuffled), float(off)}) == 3


def _answered(inputs, example):
    """The example with its last position supervised, so that it has a loss."""
    example.row.labels[-1] = example.row.ids[-1]
    return example


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", CLIP)
def test_a_whole_export_has_the_encoder_and_gives_the_logits(make, directory, tmp_path, name, steps):
    config, model, inputs = make(world=world_of(name, steps))
    export.write_whole(model, config, directory, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["encoder_config"]["_class_name"] == TINY_ENCODERS[name]
    them = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = inputs.prompt(clip(name, 1))
    batch = inputs.collate([prompt], left=True)
    given = {"input_ids": batch["ids"], "attention_mask": batch["attention_mask"], "kinds": batch["kinds"], "pixels": batch["pixels"][None]}
    given |= {"pixel_counts": torch.tensor([1]), "frames": batch["frames"][None], "frame_counts": torch.tensor(batch["frame_counts"])}
    with torch.no_grad():
        theirs, ours = them(**given).logits, model.logits(model.hidden(model.embed(batch), batch))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert processor.inputs.grid == inputs.grid and (batch["kinds"] == Kind.WORLD).sum() == (1 + steps) * inputs.tokens_per_frame


def test_a_control_that_is_frozen_is_named_by_its_pin(directory, stored, tmp_path):
    model, source = stored("dinov3")
    config = Config(base="tiny", world={"source": source, "image_size": 32})
    built = family.build(config, directory, seed=1)
    export.write_whole(built, config, directory, tmp_path / "out")
    pin = json.loads((tmp_path / "out" / "config.json").read_text())["encoder_pin"]
    assert (pin["source"], pin["class"], pin["xxh3"]) == (source, "DINOv3ViTModel", encoder_weights.weights_hash(built.world))
    them = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(them.world.model.norm.weight, model.norm.weight)
    frames = torch.randint(256, (1, 1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(them.world(frames), built.world(frames))  # the pixels' mean and standard deviation too


WAN22 = {"_class_name": "AutoencoderKLWan", "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4]}
WAN22 |= {"num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0, "is_residual": True}
WAN22 |= {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16}
WAN22 |= {"clip_output": False, "_diffusers_version": "0.35.0.dev0", "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
COSMOS1 = {"_class_name": "AutoencoderKLCosmos", "latent_channels": 16, "encoder_block_out_channels": [128, 256, 512, 512]}
COSMOS1 |= {"decode_block_out_channels": [256, 512, 512, 512], "num_layers": 2, "patch_size": 4, "patch_type": "haar", "resolution": 1024}
COSMOS1 |= {"spatial_compression_ratio": 8, "temporal_compression_ratio": 8, "attention_resolutions": [32], "scaling_factor": 1.0}
DINOV3 = {"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], "hidden_size": 1024, "num_hidden_layers": 24}
DINOV3 |= {"num_attention_heads": 16, "intermediate_size": 4096, "num_register_tokens": 4, "patch_size": 16, "image_size": 224}
CONVNEXT = {"model_type": "dinov3_convnext", "architectures": ["DINOv3ConvNextModel"], "hidden_sizes": [96, 192, 384, 768]}
CONVNEXT |= {"depths": [3, 3, 9, 3], "image_size": 224}
VJEPA2 = {"model_type": "vjepa2", "architectures": ["VJEPA2Model"], "hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 16}
VJEPA2 |= {"num_attention_heads": 16, "mlp_ratio": 4.0, "tubelet_size": 2, "frames_per_clip": 64, "crop_size": 256, "image_size": 256}


def vit(width, layers, patch_inputs, *, biases, extra):
    """Parameters of a vision transformer: patches, blocks of attention and an MLP four times as wide, norms; `biases` of q, k, v, out."""
    block = 4 * width**2 + biases * width + 8 * width**2 + 5 * width + 4 * width
    return patch_inputs * width + width + layers * block + 2 * width + extra


@pytest.mark.parametrize(
    ("published", "encoder", "unused", "grid", "projector"),
    [
        (WAN22, 149_637_088, 555_051_580, (48, 32, 1, 4), 48 * 2560),
        (COSMOS1, 42_914_864, 62_738_832, (16, 64, 1, 8), 16 * 2560),
        # query, value and out have biases; two scales of layers; class token and four registers; the mask token is not used
        (DINOV3, vit(1024, 24, 3 * 16**2, biases=3, extra=5 * 1024 + 24 * 2 * 1024), 1024, (1024, 32, 1, 1), 1024 * 2560),
        (CONVNEXT, 28_589_128 - 769_000, 0, (768, 16, 1, 1), 768 * 2560),  # ConvNeXt-T (Liu et al. 2022) without its classifier
        (VJEPA2, vit(1024, 24, 2 * 3 * 16**2, biases=4, extra=0), 22_086_016, (1024, 32, 2, 2), 1024 * 2560),
    ],
    ids=["wan2.2", "cosmos1", "dinov3", "convnext", "vjepa2"],
)
def test_published_sizes_on_the_meta_device(tmp_path, published, encoder, unused, grid, projector):
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = Config(world={"source": str(tmp_path), "steps": 2})
    with torch.device("meta"):
        model = family.build(config, None, seed=0)
    counts = {name: sum(value.numel() for value in part.values()) for name, part in family.components(model).items()}
    assert (counts["world"], counts.get("world_decoder", 0)) == (encoder, unused)
    found = model.world.grid
    assert (found.channels, found.side, found.first, found.later) == grid
    assert counts["projector"] == projector + 2560 + 2560**2 + 2560 + 5_120 + 17 * 2560


@pytest.mark.parametrize("name", CLIP)
def test_recomputing_the_encoder_changes_no_bit_of_a_gradient(make, name):
    config, model, inputs = make(world=world_of(name, 2))
    train_only(model, STAGES[3])
    samples = [clip(name, 1), sample(say="left")]

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        loss_of(config, model, inputs, samples)[0].backward()
        return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}

    plain, listed = gradients(), family.recomputed(model)
    runs = []
    hooks = [block.register_forward_hook(lambda module, args, output: runs.append(module)) for block in listed]
    with blocks.changed([], Distributed(activation_checkpointing="full"), recomputed=listed):
        found = gradients()
    for hook in hooks:
        hook.remove()
    assert set(runs) == set(listed) and listed
    assert all(torch.equal(found[key], value) for key, value in plain.items())
