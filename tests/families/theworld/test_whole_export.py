"""The export of a whole model, `--to theworld`: transformers' Auto classes load it after `import plait.hf`, and it is plait's model."""

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

import plait.hf  # noqa: F401  registers
from plait.errors import BadSample, PlaitError
from plait.families.theworld import export, family, towers
from plait.families.theworld.config import Config
from plait.families.theworld.generate import answers
from plait.families.theworld.hf import encoder_weights
from plait.families.theworld.inputs import WORLD_OF
from plait.families.theworld.tiny_sizes import TINY_ENCODERS
from plait.theworld import TheWorldConfig, TheWorldForConditionalGeneration, TheWorldProcessor

from .conftest import photo, sample, talkative

ASKED = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
CLIPS = {"world": {"source": "tiny", "steps": 1, "image_size": 16}}


def picture(number):
    return Image.open(io.BytesIO(photo(number)))


def chat(*pictures, ask="What is this?", clip=None):
    parts = [{"type": "image", "image": picture(number)} for number in pictures]
    parts += [] if clip is None else [{"type": "video", "video": clip}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": ask}]}]


@pytest.fixture(scope="module")
def whole(make, directory, tmp_path_factory):
    """`whole(**model section)` gives (folder of the export, plait's model, its inputs), each made once."""
    made = {}

    def build(**section):
        if (name := json.dumps(section)) not in made:
            out = tmp_path_factory.mktemp("whole") / "out"
            config, model, inputs = make(**section)
            talkative(model)
            if model.projector is not None and model.projector.steps is not None:
                torch.nn.init.normal_(model.projector.steps, std=0.5)
            export.write_whole(model, config, directory, out)
            made[name] = out, model, inputs
        return made[name]

    return build


def loaded(out):
    return AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)


def plaits(model, inputs, *samples):
    batch = inputs.collate([inputs.prompt(each) for each in samples], left=True)
    with torch.no_grad():
        return model.logits(model.hidden(model.embed(batch), batch)), batch


def test_a_fresh_process_with_plait_gives_the_logits_and_the_answer(whole, tmp_path):
    out, model, inputs = whole()
    logits, batch = plaits(model, inputs, sample(1))
    (tmp_path / "a.png").write_bytes(photo(1))
    code = f"""if True:
        import numpy, torch, plait.hf
        from transformers import AutoModelForImageTextToText, AutoProcessor
        model, processor = (auto.from_pretrained({str(out)!r}) for auto in (AutoModelForImageTextToText, AutoProcessor))
        parts = [{{"type": "image", "path": {str(tmp_path / "a.png")!r}}}, {{"type": "text", "text": "What is this?"}}]
        given = processor.apply_chat_template([{{"role": "user", "content": parts}}], **{ASKED!r})
        with torch.no_grad():
            numpy.save({str(tmp_path / "logits.npy")!r}, model(**given).logits.numpy())
        tokens = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
        print(repr(processor.decode(tokens, skip_special_tokens=True).strip()), type(model).__name__, type(processor).__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), logits, atol=1e-5, rtol=0)  # fp32, other threads
    answer = answers(model, inputs, [inputs.prompt(sample(1))], max_new_tokens=[12])[0]
    assert done.stdout.strip() == f"{answer!r} TheWorldForConditionalGeneration TheWorldProcessor" and len(answer) > 3
    assert int((batch["kinds"] >= 2).sum()) == 16 + 2  # the world is on: 4 x 4 cells of 32 px, and brackets


WITHOUT = """if True:
    import sys
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
    class Absent:
        def find_spec(self, name, *more):
            if name == "plait":
                raise ModuleNotFoundError("No module named 'plait'")
    sys.meta_path[:0] = [Absent()] if {absent} else []
    for auto in (AutoModelForImageTextToText.from_pretrained, AutoProcessor.from_pretrained):
        try:
            said = type(auto({out!r}, {options})).__name__
        except Exception as error:
            said = type(error).__name__ + " " + str(error).replace(chr(10), " ")
        print(chr(10) + "GIVES", said)"""


def fresh(out, options="", *, absent=False):
    """What the Auto classes give, or say, in a process that has not imported plait.hf."""
    code = WITHOUT.format(out=str(out), options=options, absent=absent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return re.findall("^GIVES (.*)$", done.stdout, re.MULTILINE)


def test_without_plait_hf_nothing_is_silently_less(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    out, _, _ = whole()
    refused = fresh(out)
    assert len(refused) == 2 and all("custom code" in line and "trust_remote_code=True" in line for line in refused)
    assert fresh(out, "trust_remote_code=True") == ["TheWorldForConditionalGeneration", "TheWorldProcessor"]
    lacking = fresh(out, "trust_remote_code=True", absent=True)
    assert len(lacking) == 2 and all(line.startswith("ImportError") and "plait" in line for line in lacking)


BATCH = [sample(1), sample(ask="Where is it?"), sample(2, 3, ask="Is <image> left of <image>?"), sample(4, **{WORLD_OF: None})]


def test_a_padded_batch_of_none_one_and_several_pictures_is_plaits(whole):
    out, model, inputs = whole()
    them, processor = loaded(out)
    chats = [chat(1), chat(ask="Where is it?"), chat(2, 3)]
    chats[2][0]["content"] = [{"type": "text", "text": "Is "}, chats[2][0]["content"][0], {"type": "text", "text": " left of "}]
    chats[2][0]["content"] += [{"type": "image", "image": photo(3)}, {"type": "text", "text": "?"}]
    given = processor.apply_chat_template(chats, **ASKED)
    logits, batch = plaits(model, inputs, *BATCH[:3])
    assert torch.equal(given["input_ids"], batch["ids"]) and torch.equal(given["kinds"], batch["kinds"])
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(them(**given).logits[real], logits[real], atol=1e-5, rtol=0)
    want = answers(model, inputs, [inputs.prompt(each) for each in BATCH[:3]], max_new_tokens=[12] * 3)
    for how in ({}, {"use_cache": False}):
        tokens = them.generate(**given, max_new_tokens=12, do_sample=False, **how)[:, given["input_ids"].shape[1] :]
        assert [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)] == want
    assert len(set(want)) == 3


def test_beams_keep_the_pictures_of_their_rows(whole):
    out, _, _ = whole()
    them, processor = loaded(out)
    both = processor.apply_chat_template([chat(2, 3), chat(1)], **ASKED)
    alone = processor.apply_chat_template(chat(2, 3), **ASKED)
    ends = [them.generate(**given, max_new_tokens=6, num_beams=2, do_sample=False)[0, -6:].tolist() for given in (both, alone)]
    assert ends[0] == ends[1]


def test_the_world_is_left_out_where_that_is_asked_for(whole):
    out, model, inputs = whole()
    them, processor = loaded(out)
    given = processor.apply_chat_template(chat(4), world=False, **ASKED)
    logits, batch = plaits(model, inputs, BATCH[3])
    assert "frames" not in given and torch.equal(given["input_ids"], batch["ids"])
    with torch.no_grad():
        torch.testing.assert_close(them(**given).logits, logits, atol=1e-5, rtol=0)


def test_a_clip_goes_through_temporal_positions(whole, tmp_path):
    out, model, inputs = whole(**CLIPS)
    frames = [photo(number) for number in range(5)]
    for number, frame in enumerate(frames):
        (tmp_path / f"{number}.png").write_bytes(frame)
    them, processor = loaded(out)
    given = processor.apply_chat_template(chat(1, clip=str(tmp_path)), **ASKED)
    as_list = processor.apply_chat_template(chat(1, clip=[picture(number) for number in range(5)]), **ASKED)
    assert torch.equal(given["frames"], as_list["frames"]) and given["frame_counts"].tolist() == [5]
    with torch.no_grad():
        logits, _ = plaits(model, inputs, {**sample(1), "frames": frames})
        torch.testing.assert_close(them(**given).logits, logits, atol=1e-5, rtol=0)
    with pytest.raises(BadSample, match=r"a single picture, and model.world.steps 1 takes"):
        processor.apply_chat_template(chat(1), **ASKED)


@pytest.mark.parametrize("encoder", sorted(TINY_ENCODERS))
def test_every_class_of_encoder_is_exported_whole(whole, encoder):
    out, model, inputs = whole(world={"source": f"tiny:{encoder}", "steps": 1, "image_size": 32})
    them, processor = loaded(out)
    frames = [photo(number) for number in range(inputs.grid.frames(1))]
    given = processor.apply_chat_template(chat(1, clip=frames), **ASKED)
    logits, _ = plaits(model, inputs, {**sample(1), "frames": frames})
    with torch.no_grad():
        torch.testing.assert_close(them(**given).logits, logits, atol=1e-5, rtol=0)


def test_a_call_takes_the_text_of_the_template(whole):
    out, _, _ = whole()
    processor = AutoProcessor.from_pretrained(out)
    given = processor.apply_chat_template([chat(1), chat(2, 3)], **ASKED)
    texts = processor.apply_chat_template([chat(1), chat(2, 3)], add_generation_prompt=True)
    assert texts[0] == "<bos><start_of_turn>user\n<start_of_image>What is this?<end_of_turn>\n<start_of_turn>model\n"
    called = processor(text=texts, images=[[picture(1)], [picture(2), picture(3)]])
    assert all(torch.equal(called[name], given[name]) for name in given) and called.keys() == given.keys()
    bare = texts[0].replace("<start_of_image>", "").removeprefix("<bos>")
    assert torch.equal(processor(text=bare, images=picture(1))["input_ids"], processor(text=texts[0], images=picture(1))["input_ids"])


def test_a_whole_conversation_and_an_answer_to_go_on_with_are_encoded_as_the_template_writes_them(whole):
    out, _, inputs = whole()
    processor = AutoProcessor.from_pretrained(out)
    turns = [*chat(1), {"role": "assistant", "content": [{"type": "text", "text": "a small green frog"}]}]
    whole_text = processor.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0].tolist()
    spans = inputs.chat.spans([{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "a small green frog"}], 1)
    trained = [i for span in spans for i in span.ids]
    assert [i for i in whole_text if i != inputs.chat.pad] == [*trained, *inputs.chat.text_ids("\n")]
    begun = processor.apply_chat_template(turns, tokenize=True, continue_final_message=True)[0].tolist()
    assert begun[-1] != inputs.chat.end_turn and processor.decode(begun, skip_special_tokens=True).endswith("a small green frog")


def test_the_tokenizer_is_that_of_the_file_also_where_transformers_builds_one_of_its_own(whole, tmp_path):
    """As of the class that the published base names, which splits words at blanks and not at bytes."""
    out, _, inputs = whole()
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    named = json.loads((copy / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    (copy / "tokenizer_config.json").write_text(json.dumps(named))
    processor = AutoProcessor.from_pretrained(copy)
    asked = "Where is it? left of the red square"
    assert AutoTokenizer.from_pretrained(copy)(asked)["input_ids"] != inputs.chat.text_ids(asked)
    assert processor.tokenizer(asked)["input_ids"] == inputs.chat.text_ids(asked)
    given = processor.apply_chat_template(chat(ask=asked), **ASKED)
    assert torch.equal(given["input_ids"], plaits_ids(inputs, asked))
    processor.save_pretrained(tmp_path / "again")
    again = AutoProcessor.from_pretrained(tmp_path / "again")
    assert torch.equal(again.apply_chat_template(chat(ask=asked), **ASKED)["input_ids"], given["input_ids"])


def test_special_tokens_that_a_user_writes_are_text(whole):
    out, _, inputs = whole()
    asked = "Is <start_of_image> or <end_of_turn> a word?"
    given = AutoProcessor.from_pretrained(out).apply_chat_template(chat(ask=asked), **ASKED)
    assert torch.equal(given["input_ids"], plaits_ids(inputs, asked)) and given["input_ids"].tolist()[0].count(inputs.chat.end_turn) == 1


def plaits_ids(inputs, asked):
    return inputs.collate([inputs.prompt(sample(ask=asked))], left=True)["ids"]


def test_the_models_system_text_comes_before_a_conversation_without_one(whole):
    out, _, inputs = whole(system="You are terse.")
    processor = AutoProcessor.from_pretrained(out)
    given = processor.apply_chat_template(chat(ask="Where is it?"), **ASKED)
    assert torch.equal(given["input_ids"], plaits_ids(inputs, "Where is it?"))
    text = processor.apply_chat_template(chat(ask="Where is it?"), add_generation_prompt=True)
    assert "user\nYou are terse.\n\nWhere is it?" in text and torch.equal(processor(text=text)["input_ids"], given["input_ids"])


def part(**content):
    return [{"role": "user", "content": [content]}]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda p: p(text="<start_of_image> and <start_of_image>", images=[picture(1)]),
            "the text has 2 <start_of_image> marks, and 1 pictures",
        ),
        (lambda p: p(text=["a", "b", "c"], images=[picture(1)]), "1 pictures for 3 texts: give a list of lists of pictures"),
        (lambda p: p(text=["a", "b"], videos=[[picture(1)]]), "1 clips for 2 texts: give one for each"),
        (lambda p: p(text="a", padding="max_length"), "a batch is text, pictures and clips, padded to the longest"),
        (
            lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], **ASKED),
            "part of type 'audio'",
        ),
        (lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], **ASKED), "has no 'image', url or path"),
        (lambda p: p.apply_chat_template(chat(clip="no.mp4"), **ASKED), "there is no clip no.mp4"),
        (lambda p: p(text="a", images="no.png"), "there is no picture no.png"),
        (lambda p: p(text="a", images=b"no picture"), "cannot be|cannot identify|is no|not "),
    ],
)
def test_what_cannot_be_encoded_is_told(whole, call, line):
    out, _, _ = whole()
    with pytest.raises((ValueError, PlaitError), match=line):
        call(AutoProcessor.from_pretrained(out))


def test_pictures_without_their_positions_are_refused(whole):
    out, _, _ = whole()
    them, processor = loaded(out)
    given = processor.apply_chat_template(chat(1), **ASKED)
    lines = {"pixels": "`kinds` has 16 positions for images, and 0 pictures are given", "kinds": "has 0 positions for images, and 1"}
    for left_out, line in lines.items():
        with pytest.raises(ValueError, match=line):
            them(**{name: value for name, value in given.items() if name != left_out})


def test_the_pipeline_and_the_class_for_causal_models_answer(whole):
    out, model, inputs = whole()
    answer = pipeline("image-text-to-text", model=str(out))(text=chat(1), max_new_tokens=12, return_full_text=False)[0]["generated_text"]
    assert answer.strip() == answers(model, inputs, [inputs.prompt(sample(1))], max_new_tokens=[12])[0]
    assert isinstance(AutoModelForCausalLM.from_pretrained(out), TheWorldForConditionalGeneration)
    assert isinstance(AutoConfig.from_pretrained(out), TheWorldConfig)
    assert isinstance(AutoProcessor.from_pretrained(out), TheWorldProcessor)


def test_the_loss_of_labels_is_plaits(whole):
    out, model, inputs = whole()
    batch = inputs.collate([inputs.encode(sample(1), 0), inputs.encode(sample(2, say="a cat"), 0)])
    them, _ = loaded(out)
    pictures = {"pixels": batch["pixels"][:, None], "frames": batch["frames"][:, None]}
    counts = {"pixel_counts": torch.tensor([1, 1]), "frame_counts": torch.tensor([1, 1])}
    with torch.no_grad():
        loss = them(batch["ids"], batch["attention_mask"], labels=batch["labels"], kinds=batch["kinds"], **pictures, **counts).loss
        ours = model(batch)["loss"] / (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(loss, ours, atol=1e-6, rtol=0)


def test_a_model_without_a_world_is_exported_whole_too(whole):
    out, model, inputs = whole(world="off")
    them, processor = loaded(out)
    given = processor.apply_chat_template(chat(1), **ASKED)
    logits, _ = plaits(model, inputs, sample(1))
    assert them.world is None and "frames" not in given
    with torch.no_grad():
        torch.testing.assert_close(them(**given).logits, logits, atol=1e-5, rtol=0)


def tensors(out):
    with safe_open(out / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


@pytest.fixture
def published(make, directory, tmp_path):
    """A model whose world encoder is a folder of a VAE, and the folder."""
    _, tiny, _ = make()
    tiny.world.vae.save_pretrained(tmp_path / "vae")
    config = Config(base="tiny", world={"source": str(tmp_path / "vae"), "image_size": 32})
    return config, family.build(config, directory, seed=1), tmp_path / "vae"


def test_a_frozen_encoder_is_named_by_a_pin_and_held_to_it(published, directory, tmp_path):
    config, model, vae = published
    lines = export.write_whole(model, config, directory, tmp_path / "out")
    assert lines[0] == f"the world encoder is {vae}, by its hash; theworld-with-encoder holds its weights too"
    assert not [name for name in tensors(tmp_path / "out") if name.startswith("world.")]
    pin = json.loads((tmp_path / "out" / "config.json").read_text())["encoder_pin"]
    assert (pin["source"], pin["revision"], len(pin["xxh3"])) == (str(vae), None, 16)
    them, processor = loaded(tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in them.state_dict().items())
    processor.save_pretrained(tmp_path / "again")
    them.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["encoder_pin"] == pin
    with torch.no_grad():
        them.world.vae.encoder.conv_in.bias.add_(1)
    them.save_pretrained(tmp_path / "trained")  # by transformers' own training
    assert torch.equal(tensors(tmp_path / "trained")["world.vae.encoder.conv_in.bias"], them.world.vae.encoder.conv_in.bias)
    changed = model.world.vae
    with torch.no_grad():
        changed.encoder.conv_in.bias.add_(1)
    changed.save_pretrained(vae)
    with pytest.raises(PlaitError, match=r"the world encoder at .*vae is another than the model was trained with: its weights"):
        loaded(tmp_path / "out")


def test_an_option_and_a_trained_encoder_put_its_weights_in_the_export(published, directory, tmp_path):
    config, model, vae = published
    export.exports["theworld-with-encoder"](model, config, directory, tmp_path / "held")
    with torch.no_grad():
        model.world.vae.quant_conv.weight.mul_(1.5)
    lines = export.write_whole(model, config, directory, tmp_path / "trained")
    assert lines[0] == f"the world encoder is not that of {vae}: it was trained, so that its weights are in the export"
    for out, ours in (("held", 1.5), ("trained", 1.0)):
        held = tensors(tmp_path / out)
        assert not [name for name in held if ".decoder." in name or "post_quant" in name]
        torch.testing.assert_close(held["world.vae.quant_conv.weight"] * ours, model.world.vae.quant_conv.weight.detach())
        assert json.loads((tmp_path / out / "config.json").read_text())["encoder_pin"] is None
    vae.rename(tmp_path / "gone")
    them, processor = loaded(tmp_path / "trained")
    given = processor.apply_chat_template(chat(1), **ASKED)
    logits, _ = plaits(
        model, family.Inputs(config.model_copy(update={"world": config.world.model_copy(update={"source": "tiny"})}), directory), sample(1)
    )
    with torch.no_grad():
        torch.testing.assert_close(them(**given).logits, logits, atol=1e-5, rtol=0)


def test_files_that_lack_weights_are_refused(whole, tmp_path):
    from safetensors.torch import save_file

    out, _, _ = whole()
    held = tensors(out)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in out.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    save_file({name: value for name, value in held.items() if name != "projector.brackets"}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlaitError, match=r"copy: the files lack 1 tensors: projector.brackets"):
        loaded(copy)
    save_file({**held, "projector.other": torch.zeros(1)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlaitError, match=r"copy: the files hold, of no use in this model, 1 tensors: projector.other"):
        loaded(copy)


def test_over_a_base_in_bfloat16_gemma_is_in_bfloat16_and_what_is_plaits_in_float32(make, directory, tmp_path):
    config, tiny, _ = make()
    tiny.gemma.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    for path in (directory / towers.TOKENIZER).iterdir():
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    config = Config(base=str(tmp_path / "base"), world={"source": "tiny", "image_size": 32})
    model = family.build(config, directory, seed=1)
    lines = export.write_whole(model, config, directory, tmp_path / "out")
    assert "rounded" not in lines[0]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    them, processor = loaded(tmp_path / "out")
    kinds = {name.partition(".")[0]: value.dtype for name, value in them.named_parameters() if encoder_weights.used(name)}
    assert kinds == {"gemma": torch.bfloat16, "world": torch.float32, "projector": torch.float32} and them.dtype == torch.bfloat16
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in them.state_dict().items() if encoder_weights.used(name))
    assert them.generate(**processor.apply_chat_template(chat(1), **ASKED), max_new_tokens=3).shape[0] == 1
