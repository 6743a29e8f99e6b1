"""What `plait export` writes is read by plain transformers: AutoProcessor, the model's class and the pipeline, without plait."""

import io
import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from plait.families.theworld import export, family
from plait.families.theworld.config import Config
from plait.families.theworld.pretrained.encoder import unit_range

from .conftest import photo, sample

# What google/gemma-3-4b-it publishes beside its tokenizer.
PUBLISHED = {
    "preprocessor_config.json": {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 896, "width": 896},
    },
    "processor_config.json": {"image_seq_length": 256, "processor_class": "Gemma3Processor"},
}


ASKED = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def conversation(ask="What is this?"):
    image = Image.open(io.BytesIO(photo(1)))
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": ask}]}]


@pytest.fixture
def exported(make, directory, tmp_path):
    config, model, inputs = make()
    export.write_hf(model, config, directory, tmp_path / "out")
    return tmp_path / "out", model, inputs


def test_the_processor_of_an_export_gives_the_tokens_and_pixels_of_plait(make, exported):
    out, _, _ = exported
    _, _, inputs = make(world="off")
    ours = inputs.collate([inputs.prompt(sample(1))], left=True)
    theirs = AutoProcessor.from_pretrained(out).apply_chat_template(conversation(), **ASKED)
    assert torch.equal(theirs["input_ids"], ours["ids"])
    assert torch.equal(theirs["token_type_ids"], ours["token_types"])
    torch.testing.assert_close(theirs["pixel_values"], unit_range(ours["pixels"], torch.float32), atol=2 / 255, rtol=0)  # its own resizing


def test_the_pipeline_answers_from_an_export(exported):
    out, model, _ = exported
    answer = pipeline("image-text-to-text", model=str(out))(text=conversation(), max_new_tokens=5, do_sample=False, return_full_text=False)
    processor = AutoProcessor.from_pretrained(out)
    given = processor.apply_chat_template(conversation(), **ASKED)
    with torch.no_grad():
        tokens = model.gemma.generate(**given, max_new_tokens=5, do_sample=False, eos_token_id=sorted(_stops(out)))
    assert answer[0]["generated_text"] == processor.decode(tokens[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def _stops(out):
    return json.loads((out / "generation_config.json").read_text())["eos_token_id"]


def test_a_base_in_bfloat16_is_exported_in_bfloat16_with_its_own_processor(exported, directory, tmp_path):
    base, tiny, _ = exported
    for name, content in PUBLISHED.items():  # in the layout of the published base
        (base / name).write_text(json.dumps(content))
    tiny.gemma.to(torch.bfloat16).save_pretrained(base)
    config = Config(base=str(base), world="off")
    model = family.build(config, directory, seed=1)
    trained = "gemma.model.language_model.norm.weight"
    parameter = dict(model.named_parameters())[trained]
    parameter.data = parameter.data.float() + 1 / 1024  # as the run holds what trained
    lines = export.write_hf(model, config, directory, tmp_path / "again")
    assert lines[0] == "weights that were trained in float32 are rounded to bfloat16, which the base has"
    with safe_open(tmp_path / "again" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118  no mapping
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "again", dtype="auto").dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(tmp_path / "again")
    assert (processor.image_seq_length, processor.image_processor.size["height"]) == (256, 896)
    assert "<start_of_turn>user" in processor.apply_chat_template(conversation(), add_generation_prompt=True, tokenize=False)
