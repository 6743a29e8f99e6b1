"""Preprocessing of samples: keyed draws, mirroring with its text, packing, bad samples."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from plait.errors import BadSample
from plait.families.nanodit import family
from plait.families.nanodit.inputs import caption
from plait.families.nanodit.network.conditions import Conditions, noise

from .conftest import sample


def picture(colour=(255, 0, 0), size=(40, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_same_key_gives_the_same_example_and_another_another(make):
    _, _, inputs = make(inputs={"train": True})
    first, again, other = (inputs.encode(sample(1), key) for key in (5, 5, 6))
    assert (first.t, first.mirrored) == (again.t, again.mirrored)
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise) and first.t != other.t


def test_noise_is_standard_normal():
    values = noise((16, 64, 64), 3)
    assert values.dtype == torch.float32
    assert [float(values.mean()), float(values.std())] == pytest.approx([0, 1], abs=0.01)  # 65,536 numbers


def test_torchs_own_generator_is_never_used(make):
    _, _, inputs = make(inputs={"train": True})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = inputs.encode(sample(1), 5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    np.random.default_rng(0)
    assert torch.equal(inputs.encode(sample(1), 5).noise, first.noise)


def test_text_states_go_to_the_device_as_they_are_stored_and_train_as_in_float32(make):
    config, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1), 1), inputs.encode(sample(2, text=""), 2), inputs.encode(sample(3, tokens=5), 3)])
    assert batch["text"].dtype == torch.float16
    gradients = []
    for text in (batch["text"], batch["text"].float()):
        model.zero_grad()
        family.Loss(config).sums(model, {**batch, "text": text})["flow"].backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize(("stored", "sent"), [(np.float32, torch.float32), (np.float64, torch.float32), (np.float16, torch.float16)])
def test_text_states_of_other_types_are_float32(make, stored, sent):
    _, _, inputs = make()
    states = np.random.default_rng(0).standard_normal((3, 8)).astype(stored)
    examples = [inputs.encode(sample(1, t5h=states), 1), inputs.encode(sample(2), 2)]
    assert examples[0].conditions.text.dtype == sent
    batch = inputs.collate(examples)
    assert batch["text"].dtype == sent
    assert torch.equal(batch["text"][:3], torch.from_numpy(states).to(sent))


def test_held_out_samples_keep_their_conditions_and_are_never_mirrored(make):
    _, _, inputs = make(flip={"probability": 1.0}, dropout={"neither": 1.0, "text_only": 0.0, "image_only": 0.0})
    example = inputs.encode(sample(1), 5)
    assert example.conditions.text is not None and example.conditions.image is not None
    assert not example.mirrored


def test_dropout_follows_its_shares(make):
    _, _, inputs = make(inputs={"train": True})
    kept = [inputs.encode(sample(1), key).conditions for key in range(2000)]
    pairs = [(one.text is not None, one.image is not None) for one in kept]
    shares = [pairs.count(pair) / 2000 for pair in ((False, False), (True, False), (False, True), (True, True))]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.7], abs=0.03)


def mirrored(inputs, one, count=64):
    return [inputs.encode(one, key) for key in range(count)]


def test_half_of_the_samples_are_mirrored_with_their_latents(make):
    _, _, inputs = make(inputs={"train": True})
    examples = mirrored(inputs, sample(1, text="a frog"), 400)
    assert sum(one.mirrored for one in examples) / 400 == pytest.approx(0.5, abs=0.08)
    x0 = torch.tensor(sample(1)["arrays"]["vae"])
    assert all(torch.equal(one.x0, x0.flip(-1) if one.mirrored else x0) for one in examples)


def test_a_caption_with_a_side_is_mirrored_only_with_its_twin(make):
    _, _, inputs = make(inputs={"train": True}, flip={"probability": 1.0}, dropout={"neither": 0, "text_only": 0, "image_only": 0})
    twin = np.full((3, 8), 7, np.float16)
    plain, paired = sample(1, text="the left dot"), sample(1, text="the left dot", t5h_flip=twin)
    assert not any(one.mirrored for one in mirrored(inputs, plain))
    assert all(one.mirrored and torch.equal(one.conditions.text, torch.full((3, 8), 7.0)) for one in mirrored(inputs, paired))


def test_without_swapping_a_caption_with_a_side_is_never_mirrored(make):
    _, _, inputs = make(inputs={"train": True}, flip={"probability": 1.0, "swap_caption": False})
    twin = np.full((3, 8), 7, np.float16)
    assert not any(one.mirrored for one in mirrored(inputs, sample(1, text="the left dot", t5h_flip=twin)))
    assert all(one.mirrored for one in mirrored(inputs, sample(1, text="the upright frog", t5h_flip=twin)))


def test_words_of_a_mirrored_caption_are_swapped(make):
    _, _, inputs = make(
        text="words", inputs={"train": True}, flip={"probability": 1.0}, dropout={"neither": 0, "text_only": 0, "image_only": 0}
    )
    example = inputs.encode(sample(1, text="Left dot, right hand"), 3)
    assert example.mirrored
    assert torch.equal(example.conditions.text, inputs.words("right dot, left hand"))


def test_the_same_word_has_the_same_row_and_case_does_not_count(make):
    _, _, inputs = make(text="words", inputs={"max_tokens": 4})
    assert torch.equal(inputs.words("A Frog, a frog!"), inputs.words("a frog, A FROG!"))
    assert len(inputs.words("one two three four five six")) == 4
    assert inputs.words("  ") is None


@pytest.mark.parametrize("kind", ["words", "features"])
def test_tokens_of_a_caption_that_the_limit_cut_are_counted_where_it_is_shown(make, kind):
    config, net, inputs = make(inputs={"max_tokens": 4}, **({"text": "words"} if kind == "words" else {}))
    one = sample(1, text="one two three four five six", tokens=6)
    examples = [inputs.encode(given, 0) for given in (one, sample(2, text="frog", tokens=2), one | {"messages": []})]
    batch = inputs.collate(examples)
    assert batch["cut"].tolist() == [2, 0, 0]
    loss = family.Loss(config)
    assert (loss.sums(net, batch)["cut"].item(), loss.weights(batch)["cut"].item()) == (2, 3)
    assert examples[0].conditions.only(text=False, image=True).cut == 0


def test_packing_puts_valid_tokens_in_their_places(make):
    _, _, inputs = make()
    rows = [Conditions(torch.ones(2, 8)), Conditions(), Conditions(3 * torch.ones(3, 8), torch.ones(6))]
    batch = inputs.pack(rows)
    assert batch["text_mask"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch["text_index"].tolist() == [0, 1, 3, 6, 7, 8]
    assert batch["text_null"].tolist() == [False, False, True, False, False, False]
    assert batch["text"][:, 0].tolist() == [1, 1, 0, 3, 3, 3]
    assert batch["image_null"].tolist() == [True, True, False]


@pytest.mark.parametrize(("pad", "longest"), [("longest", 3), ("to_128", 128), ("to_max", 40)])
def test_padding_fixes_the_number_of_places(make, pad, longest):
    _, _, inputs = make(inputs={"pad": pad, "max_tokens": 40})
    batch = inputs.pack([inputs.conditions(sample(i, tokens=n)) for i, n in enumerate((2, 3))])
    assert batch["text_mask"].shape == (2, longest)
    assert len(batch["text"]) == (5 if pad == "longest" else 2 * longest)


def test_pixels_are_cropped_and_scaled_to_the_unit(make):
    _, _, inputs = make(space="pixels", channels=3, image_size=16, image_dim=0, text="words")
    example = inputs.encode({**sample(1, text="red"), "images": [picture()]}, 1)
    assert example.x0.shape == (3, 16, 16)
    assert example.x0.amax((1, 2)).tolist() == [1.0, -1.0, -1.0]


def test_the_caption_is_the_answer_else_the_question():
    ask, say = {"role": "user", "content": " What? "}, {"role": "assistant", "content": "A frog. "}
    assert [caption({"messages": m}) for m in ([ask, say], [ask], [])] == ["A frog.", "What?", ""]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vae": np.zeros((3, 8, 8), np.float32)}, r"latents of shape \(3, 8, 8\); expected \(4, H, W\), H and W multiples of 2"),
        ({"vae": np.zeros((4, 7, 8), np.float32)}, r"latents of shape \(4, 7, 8\)"),
        ({"vae": np.full((4, 8, 8), np.nan, np.float32)}, "latents that are not finite"),
        ({"vae": None}, "no array 'vae' in the sample; it has dinov3, t5h"),
        ({"t5h": np.zeros((3, 9), np.float16)}, r"text states t5h of shape \(3, 9\); expected \(tokens, 8\)"),
        ({"t5h": np.full((3, 8), np.inf, np.float16)}, "text states t5h that are not finite"),
        ({"dinov3": np.zeros(5, np.float32)}, r"image features of shape \(5,\); expected \(6,\)"),
        ({"dinov3": np.full(6, np.nan, np.float32)}, "image features that are not finite"),
    ],
)
def test_a_bad_sample_is_refused_with_its_reason(make, arrays, message):
    _, _, inputs = make()
    with pytest.raises(BadSample, match=message):
        inputs.encode(sample(1, **arrays), 1)


def test_a_picture_that_is_missing_is_a_bad_sample(make):
    _, _, inputs = make(space="pixels", channels=3, image_dim=0, text="words")
    with pytest.raises(BadSample, match="no image in the sample"):
        inputs.encode(sample(1), 1)


def test_of_several_pictures_none_is_taken_for_the_samples_own(make):
    _, _, inputs = make(space="pixels", channels=3, image_dim=0, text="words")
    with pytest.raises(BadSample, match="it has 2 images, and the model draws one of a sample; make each a sample of its own"):
        inputs.encode({**sample(1), "images": [b"", b""]}, 1)


def test_two_shapes_in_one_batch_are_a_defect(make):
    _, _, inputs = make()
    with pytest.raises(AssertionError, match="buckets keep them apart"):
        inputs.collate([inputs.encode(sample(i, size=size), 1) for i, size in enumerate(((8, 8), (8, 4)))])
