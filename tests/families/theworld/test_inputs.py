"""What a sample becomes: pixels against the stock processor, world pictures, augmentation by key, batches."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from plait.errors import BadSample, PlaitError
from plait.families.theworld import family
from plait.families.theworld.config import Config
from plait.families.theworld.pretrained.encoder import unit_range

from .conftest import encoded, photo, sample


@pytest.mark.parametrize("size", [(40, 28), (16, 16), (200, 120)])
def test_pixels_equal_the_stock_processor_within_two_levels(make, size):
    _, _, inputs = make()
    data = photo(3, size)
    stock = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = stock(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    got = unit_range(inputs.encode(sample(images=[data]), 0).pixels, torch.float32)
    assert (got - expected).abs().max() <= 2 * 2 / 255 + 1e-6  # two levels of 255 over a range of 2


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("white", [True, False])
def test_white_and_black_of_every_mode_reach_both_towers(make, mode, white):
    _, _, inputs = make()
    level = 255 if white else 0
    image = Image.new("L", (24, 16), level)
    image = Image.fromarray(np.full((16, 24), level * 257, np.uint16)) if mode == "I;16" else image.convert("RGB").convert(mode)
    example = inputs.encode(sample(images=[encoded(image, "TIFF" if mode == "CMYK" else "PNG")]), 0)
    for seen in (example.pixels, example.frames):
        assert torch.equal(seen, torch.full_like(seen, level))


def test_vision_sees_all_images_and_the_world_encoder_the_first(make):
    _, _, inputs = make()
    example, alone = inputs.encode(sample(1, 2, 3), 0), inputs.encode(sample(1), 0)
    assert example.pixels.shape == (3, 3, 32, 32)
    assert torch.equal(example.frames, alone.frames)
    assert example.frames.shape == (1, 3, 32, 32)
    assert (example.world_tokens, inputs.encode(sample(), 0).world_tokens) == (16, 0)


def test_world_steps_show_the_first_frames_of_a_clip(make):
    _, _, inputs = make(world={"steps": 2, "max_steps": 4})
    clip = [photo(number) for number in range(7)]
    example = inputs.encode(sample(0, frames=clip), 0)
    assert len(example.frames) == 5
    assert example.world_tokens == 2 * 16
    assert torch.equal(example.frames[4], make()[2].encode(sample(4), 0).frames[0])
    with pytest.raises(BadSample, match=r"it has a single picture, and model.world.steps 2 takes 1 \+ 4 k frames"):
        inputs.encode(sample(0), 0)


def test_world_off_has_no_world(make):
    _, _, inputs = make(world=False)
    example = inputs.encode(sample(1), 0)
    assert (len(example.frames), example.world_tokens, len(example.pixels)) == (0, 0, 1)


def test_broken_picture_is_a_bad_sample(make):
    with pytest.raises(BadSample, match="not a readable image"):
        make()[2].encode(sample(images=[b"GIF89a but no more"]), 0)


def test_flip_depends_on_the_key_alone_and_on_training(make, directory):
    config = Config(base="tiny", augment={"flip": True})
    train, held_out = (family.Inputs(config, directory, train=train) for train in (True, False))
    plain = held_out.encode(sample(1), 0)
    examples = [train.encode(sample(1), key) for key in range(40)]
    flipped = [torch.equal(example.pixels, plain.pixels.flip(-1)) for example in examples]
    assert 10 <= sum(flipped) <= 30
    for example, turned in zip(examples, flipped, strict=True):
        assert torch.equal(example.pixels, plain.pixels.flip(-1) if turned else plain.pixels)
        assert torch.equal(example.frames, plain.frames.flip(-1) if turned else plain.frames)
    assert torch.equal(train.encode(sample(1), 7).pixels, examples[7].pixels)


def test_shift_moves_both_towers_alike_and_repeats_the_edge(directory):
    inputs = family.Inputs(Config(base="tiny", augment={"shift": 0.25}), directory, train=True)
    still = family.Inputs(Config(base="tiny"), directory, train=True).encode(sample(1), 5).pixels
    moved = inputs.encode(sample(1), 5)
    shifts = [(down, right) for down in range(-8, 9) for right in range(-8, 9)]
    padded = torch.nn.functional.pad(still.float(), (8,) * 4, mode="replicate").to(torch.uint8)
    same = [(d, r) for d, r in shifts if torch.equal(padded[..., 8 - d : 40 - d, 8 - r : 40 - r], moved.pixels)]
    assert len(same) == 1
    assert same != [(0, 0)]
    assert torch.equal(moved.pixels, moved.frames)


def test_batch_lists_pictures_and_frames_in_the_rows_order(make):
    _, _, inputs = make()
    examples = [inputs.encode(sample(*pictures), 0) for pictures in [(1, 2), (), (3,)]]
    batch = inputs.collate(examples)
    assert batch["frame_counts"] == [1, 1]
    assert torch.equal(batch["pixels"], torch.cat([examples[0].pixels, examples[2].pixels]))
    assert torch.equal(batch["frames"], torch.cat([examples[0].frames, examples[2].frames]))


def test_inputs_travel_to_another_process(make):
    _, _, inputs = make()
    twin = pickle.loads(pickle.dumps(inputs))
    ask = "<end_of_turn> What?"
    assert torch.equal(twin.encode(sample(1, ask=ask), 3).row.ids, inputs.encode(sample(1, ask=ask), 3).row.ids)


def test_max_tokens_holds_for_training_and_never_cuts_a_prompt(make):
    _, _, inputs = make(inputs={"max_tokens": 60})
    long = sample(ask="What is this? " * 40)
    with pytest.raises(BadSample, match="would leave no token of the answer"):
        inputs.encode(long, 0)
    assert len(inputs.prompt(long).row) > 60


def test_a_sequence_longer_than_the_models_positions_is_a_bad_sample(make):
    _, _, inputs = make(tiny={"positions": 80})
    long = sample(1, say="a cat on a mat " * 40)
    with pytest.raises(BadSample, match=r"^\d+ tokens, and the model has 80 positions: data\.max_tokens 80 would cut its end$"):
        inputs.encode(long, 0)
    with pytest.raises(BadSample, match="the model has 80 positions"):
        inputs.prompt(sample(1, ask="What is this? " * 40))
    _, _, inputs = make(tiny={"positions": 80}, inputs={"max_tokens": 80})
    row = inputs.encode(long, 0).row
    assert (len(row), row.cut > 0) == (80, True)


def test_inspect_shows_pixels_and_marks_the_supervised_text(make):
    _, _, inputs = make()
    given = sample(1, 2)
    example = inputs.encode(given, 0)
    seen = family.inspect(inputs, given, example)
    assert [picture.shape for picture in seen["images"]] == [(32, 32, 3)] * 3
    assert seen["labels"] == ["SigLIP, 32 px, picture 1 of 2", "SigLIP, 32 px, picture 2 of 2", "world encoder, 32 px"]
    assert np.array_equal(seen["images"][1], example.pixels[1].permute(1, 2, 0).numpy())
    assert [text for text, supervised in seen["text"] if supervised] == ["a small green frog<end_of_turn>"]
    assert ("[world x 16]", False) in seen["text"]
    assert (seen["notes"]["image tokens"], seen["notes"]["world tokens"]) == (32, 16)


def test_missing_tokenizer_says_where_it_should_be(tmp_path):
    with pytest.raises(PlaitError, match=r"no tokenizer at .*tokenizer\.json: a tiny model's tokenizer is trained when its run starts"):
        family.Inputs(Config(base="tiny"), tmp_path)


def test_prepare_is_idempotent_and_deterministic(tmp_path, directory):
    config = Config(base="tiny")
    texts = ["b c d e", "some words and other words"] * 9
    for folder, order in ((tmp_path / "a", texts), (tmp_path / "b", texts[::-1])):
        family.prepare(config, folder, lambda order=order: order)
    first = (tmp_path / "a/tokenizer/tokenizer.json").read_bytes()
    assert first == (tmp_path / "b/tokenizer/tokenizer.json").read_bytes()
    family.prepare(config, tmp_path / "a", lambda: ["other texts entirely"])
    assert (tmp_path / "a/tokenizer/tokenizer.json").read_bytes() == first
