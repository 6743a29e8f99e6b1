"""The code that an export carries: its prompts, pictures, logits and answers are plait's, and it needs nothing of plait."""

import ast
import io
import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from plait.data import image_files
from plait.data.pixels.rgb import to_rgb
from plait.errors import BadSample
from plait.families.molmo import export, family
from plait.families.molmo.config import Config
from plait.families.molmo.generate import answers
from plait.families.molmo.hf.image_processing_plait_molmo import PlaitMolmoImageProcessor
from plait.families.molmo.hf.modeling_plait_molmo import PlaitMolmoForConditionalGeneration
from plait.families.molmo.hf.processing_plait_molmo import PlaitMolmoProcessor
from tests.families.molmo.conftest import TEXTS, photo
from tests.families.molmo.test_generate import restless

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
INPUTS = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}


def processor_of(out):
    tokenizer, pictures = PreTrainedTokenizerFast.from_pretrained(out), PlaitMolmoImageProcessor.from_pretrained(out)
    return PlaitMolmoProcessor(pictures, tokenizer, (out / "chat_template.jinja").read_text())


@pytest.fixture
def exported(make, directory, tmp_path):
    """`exported(**model section)` gives the model that was exported, its inputs, and the model and the processor of the export."""
    numbers = itertools.count()

    def write(**section):
        config, model, inputs = make(**section)
        out = tmp_path / f"out-{next(numbers)}"
        export.write_hf(restless(model), config, directory, out)
        return model, inputs, PlaitMolmoForConditionalGeneration.from_pretrained(out).eval(), processor_of(out)

    return write


def opened(number):
    return Image.open(io.BytesIO(photo(number)))


def chat(ask, *pictures, say=None):
    """Turns of a chat: pictures, the question and perhaps an answer."""
    content = [{"type": "image", "image": opened(number)} for number in pictures] + [{"type": "text", "text": ask}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": say}]}] if say is not None else []
    return [{"role": "user", "content": content}, *answer]


def as_sample(conversation, **fields):
    """The same chat as plait takes it: texts with marks, and encoded pictures beside them."""
    messages, pictures = [], []
    for turn in conversation:
        parts = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        messages.append({"role": turn["role"], "content": "".join(part.get("text", "<|image|>") for part in parts)})
        pictures += [part["image"] for part in parts if part["type"] == "image"]
    encoded = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, encoded, strict=True):
        picture.save(file, "PNG")
    return {"id": "chat", "images": [file.getvalue() for file in encoded], "messages": messages, "fields": fields}


INSIDE = [{"type": "text", "text": " Is "}, {"type": "image", "image": opened(1)}, {"type": "text", "text": " like "}]
CHATS = {
    "one picture": chat("How many?", 1),
    "two pictures": chat("\n Which of the two? ", 1, 2),
    "no picture": chat("Say something."),
    "no question": chat("", 3),
    "a text alone": [{"role": "user", "content": "  Name <b>two</b> dogs.\n\n"}],
    "pictures inside": [{"role": "user", "content": [*INSIDE, {"type": "image", "image": opened(2)}, {"type": "text", "text": "?"}]}],
    "first and inside": [{"role": "user", "content": [{"type": "image", "image": opened(3)}, *INSIDE]}],
    "several turns": [*chat("Where is it?", 1, say=" left of the mat "), *chat("And what is this?\n", say="a cat"), *chat("Sure?")],
    "a later picture": [*chat("What is this?", 1, say="a dog"), *chat("And this?", 2)],
    "a system text": [{"role": "system", "content": "Be brief. "}, *chat("Where is it?", 1)],
    "a system text alone": [{"role": "system", "content": "Be brief."}],
    "an answer first": [{"role": "assistant", "content": "Hello"}, *chat("Where is it?")],
    "letters like special tokens": chat("What is <|endoftext|> and <im_patch><im_start>|<EXTRA_TOKENS_0>|?", 1, say="<|endoftext|>!")
    + chat("<|endoftext|>"),
}
SECTIONS = [
    {},
    {"style": "style"},
    {"style": "demo_or_style", "default_style": "vqa2"},
    {"style": "style_and_length"},
    {"style": "style_and_length", "caption_length": None, "format": "none"},
    {"style": "none", "format": "none"},
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_a_chat_becomes_the_tokens_and_pictures_of_plait(make, directory, tmp_path, section):
    config, model, inputs = make(**section)
    export.write_hf(model, config, directory, tmp_path / "out")
    processor = processor_of(tmp_path / "out")
    for (name, conversation), style in itertools.product(CHATS.items(), (None, "pointing", "eval_short_answer", "demo")):
        given = as_sample(conversation, **({} if style is None else {"style": style}))
        example = inputs.prompt(given)
        theirs = processor.apply_chat_template(conversation, style=style, **INPUTS)
        assert theirs["input_ids"][0].tolist() == example.row.ids.tolist(), name
        crops = [crop for tiled in example.tiles for crop in tiled.crops]
        assert torch.equal(theirs["crops"][0], torch.stack(crops or [torch.zeros_like(theirs["crops"][0, 0])])), name


def test_texts_are_encoded_each_by_itself_as_in_training(directory, tmp_path):
    """With a tokenizer that begins every text with a blank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # as Llama's
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<|endoftext|>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=[chr(i) for i in range(33, 127)])
    tokenizer.train_from_iterator(TEXTS, trainer)
    LlamaForCausalLM(LlamaConfig(vocab_size=400, bos_token_id=1, eos_token_id=0, **SMALL)).save_pretrained(tmp_path / "lm")
    tokenizer.save(str(tmp_path / "lm/tokenizer.json"))
    config = Config(language=str(tmp_path / "lm"), vision_backbone="debug", overlap=2)
    inputs = family.Inputs(config, directory)
    export.write_hf(family.build(config, directory, seed=1), config, directory, tmp_path / "out")
    processor = processor_of(tmp_path / "out")
    for name, conversation in CHATS.items():
        theirs = processor.apply_chat_template(conversation, **INPUTS)["input_ids"][0].tolist()
        assert theirs == inputs.prompt(as_sample(conversation)).row.ids.tolist(), name
    encode = inputs.tokenizer.encode
    assert encode(" User: a Assistant: b") != encode(" User: a Assistant:") + encode(" b")


def test_an_answer_that_is_begun_is_gone_on_with(exported):
    _, inputs, _, processor = exported()
    begun = processor.apply_chat_template(
        chat("Where is it?", 1, say="left of"), **{**INPUTS, "add_generation_prompt": False}, continue_final_message=True
    )
    asked = inputs.prompt(as_sample(chat("Where is it?", 1))).row.ids.tolist()
    assert begun["input_ids"][0].tolist() == [*asked, *inputs.tokenizer.encode(" left of")]


def batch_of(*chats):
    """Plait's batch of chats, padded on the left, and the chats as the processor takes them."""
    return [as_sample(conversation) for conversation in chats], list(chats)


ROWS = ("two pictures", "no picture", "pictures inside", "several turns", "one picture")


@pytest.mark.parametrize("section", [{}, {"max_crops": 1, "overlap": 0}, {"preprocessing": "published", "max_crops": 6}], ids=str)
def test_logits_of_a_padded_batch_are_those_of_plait(exported, section):
    model, inputs, theirs, processor = exported(**section)
    samples, chats = batch_of(*(CHATS[name] for name in ROWS))
    batch = inputs.collate([inputs.prompt(given) for given in samples], left=True)
    given = processor.apply_chat_template(chats, **INPUTS)
    assert torch.equal(given["input_ids"], batch["ids"])
    with torch.no_grad():
        ours = model.logits(model.hidden(model.embed(batch), batch))
        for more in ({}, {"position_ids": batch["positions"]}):
            logits = theirs(**given, **more).logits
            real = given["attention_mask"].bool()
            assert (logits - ours)[real].abs().max() <= 1e-5  # one arithmetic: only the order of sums may differ
    assert ours[real].std() > 0.5


LANGUAGES = {
    "tied": (LlamaForCausalLM, LlamaConfig(vocab_size=600, bos_token_id=1, eos_token_id=[0, 5], tie_word_embeddings=True, **SMALL)),
    "sliding window": (MistralForCausalLM, MistralConfig(vocab_size=600, bos_token_id=None, eos_token_id=0, sliding_window=5, **SMALL)),
}


@pytest.mark.parametrize(("kind", "sizes"), LANGUAGES.values(), ids=LANGUAGES)
def test_another_language_model_answers_as_in_plait(directory, tmp_path, kind, sizes):
    torch.manual_seed(0)
    kind(sizes).save_pretrained(tmp_path / "lm")
    (tmp_path / "lm/tokenizer.json").write_bytes((directory / "tokenizer/tokenizer.json").read_bytes())
    config = Config(language=str(tmp_path / "lm"), vision_backbone="debug", overlap=2, style="none")
    model, inputs = restless(family.build(config, directory, seed=1).eval()), family.Inputs(config, directory)
    export.write_hf(model, config, directory, tmp_path / "out")
    theirs, processor = PlaitMolmoForConditionalGeneration.from_pretrained(tmp_path / "out").eval(), processor_of(tmp_path / "out")
    said = answers(model, inputs, [inputs.prompt(as_sample(CHATS[name])) for name in ROWS], max_new_tokens=[30] * len(ROWS))
    given = processor.apply_chat_template([CHATS[name] for name in ROWS], **INPUTS)
    tokens = theirs.generate(**given, max_new_tokens=30, do_sample=False)[:, given["input_ids"].shape[1] :]
    assert [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)] == said
    shared = theirs.get_output_embeddings().weight.data_ptr() == theirs.get_input_embeddings().weight.data_ptr()
    assert shared == sizes.tie_word_embeddings


def test_long_answers_of_a_batch_are_those_of_plait(exported):
    model, inputs, theirs, processor = exported()
    samples, chats = batch_of(*(CHATS[name] for name in ROWS))
    said = answers(model, inputs, [inputs.prompt(given) for given in samples], max_new_tokens=[60] * len(samples))
    assert len(set(said)) == len(said) and max(map(len, said)) > 100
    given = processor.apply_chat_template(chats, **INPUTS)
    for more in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        tokens = theirs.generate(**given, max_new_tokens=60, do_sample=False, **more)[:, given["input_ids"].shape[1] :]
        assert [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)] == said


def test_beams_and_samples_see_the_pictures_of_their_own_row(exported):
    _, _, theirs, processor = exported()
    alone = [processor.apply_chat_template(CHATS[name], **INPUTS) for name in ROWS[:3]]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "do_sample": False}
    expected = [theirs.generate(**given, **options)[:, -6:] for given in alone]
    given = processor.apply_chat_template([CHATS[name] for name in ROWS[:3]], **INPUTS)
    assert torch.equal(theirs.generate(**given, **options)[:, -6:], torch.cat(expected))


def test_zeros_on_any_side_of_the_pictures_change_nothing(exported):
    """As a pipeline collates the rows of a batch."""
    _, _, theirs, processor = exported()
    given = processor.apply_chat_template(CHATS["two pictures"], **INPUTS)
    padded = {name: torch.cat([torch.zeros_like(given[name]), given[name], given[name] * 0], 1) for name in ("crops", "marks", "pools")}
    with torch.no_grad():
        assert torch.equal(theirs(**given).logits, theirs(**{**given, **padded}).logits)


def test_a_loss_is_the_cross_entropy_of_labels(exported):
    _, _, theirs, processor = exported()
    given = processor.apply_chat_template(CHATS["one picture"], **INPUTS)
    labels = given["input_ids"].masked_fill(given["input_ids"] >= theirs.rows, -100)
    with torch.no_grad():
        output = theirs(**given, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(output.loss, expected)


def test_half_precision_and_another_attention_are_taken(exported, tmp_path):
    model, _, _, processor = exported()
    given = processor.apply_chat_template(CHATS["one picture"], **INPUTS)
    options = {"dtype": "bfloat16", "attn_implementation": "eager"}
    half = PlaitMolmoForConditionalGeneration.from_pretrained(tmp_path / "out-0", **options).eval()
    whole = PlaitMolmoForConditionalGeneration.from_pretrained(tmp_path / "out-0").eval()
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in whole.parameters()} == {torch.float32} == {value.dtype for value in model.parameters()}
    parts = (half.language, half.vision.layers[0].self_attn)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    with torch.no_grad():
        assert (half(**given).logits.float() - whole(**given).logits).std() < 0.2 * whole(**given).logits.std()


def test_weights_of_two_precisions_are_loaded_in_the_wider(make, directory, tmp_path):
    """As of a run that trains its connector over a frozen language model in bfloat16."""
    config, model, _ = make()
    model.language.to(torch.bfloat16)
    export.write_hf(model, config, directory, tmp_path / "out")
    theirs = PlaitMolmoForConditionalGeneration.from_pretrained(tmp_path / "out")
    loaded = dict(theirs.named_parameters())
    assert theirs.config.dtype == torch.float32 and {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.float()) for name, value in model.named_parameters())
    assert load_file(tmp_path / "out/model.safetensors")["language.lm_head.weight"].dtype == torch.bfloat16


def drawn(mode, **options):
    """A picture of noise in a mode of Pillow, as a file."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, (20, 30), dtype=np.uint16))
    file = io.BytesIO()
    (image if mode in ("RGBA", "I;16") else image.convert(mode)).save(file, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES = {
    "transparent": drawn("RGBA", format="PNG"),
    "palette": drawn("P", format="GIF", transparency=3),
    "grey with alpha": drawn("LA", format="PNG"),
    "16 bits": drawn("I;16", format="PNG"),
    "one bit": drawn("1", format="PNG"),
    "print colours": drawn("CMYK", format="JPEG"),
    "turned": drawn("RGB", format="JPEG", exif=TURNED),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_picture_has_the_pixels_that_training_sees(data):
    assert np.array_equal(to_rgb(Image.open(io.BytesIO(data))), image_files.decode_rgb(data))


def test_pictures_come_as_files_paths_arrays_and_images(exported, tmp_path):
    processor = exported()[3]
    (tmp_path / "a.png").write_bytes(photo(1))
    kinds = [photo(1), tmp_path / "a.png", str(tmp_path / "a.png"), opened(1), np.array(opened(1))]
    first, *others = (processor(images=[picture], text="<|image|> What?")["crops"] for picture in kinds)
    assert all(torch.equal(first, other) for other in others)
    with pytest.raises(TypeError, match=r"a picture as an array is uint8 \(height, width, 3\), not float64 \(2, 2, 3\)"):
        processor(images=np.zeros((2, 2, 3)), text="What?")


def test_pictures_without_marks_come_first_and_lists_are_dealt_out(exported):
    processor = exported()[3]
    marked = processor(images=[[opened(1), opened(2)], [opened(3)]], text=["<|image|><|image|> What?", "<|image|> Why?"])
    for text in (["<|image|><|image|> What?", "<|image|> Why?"], ["<|endoftext|><|image|><|image|> What?", " Why?"]):
        nested = text[1] == " Why?"
        images = [[opened(1), opened(2)], [opened(3)]] if nested else [opened(1), opened(2), opened(3)]
        other = processor(images=images, text=text)
        assert all(torch.equal(marked[name], other[name]) for name in marked)


WRONG = {
    "1 <|image|> marks, and 2 pictures": ((["a", "b"], "<|image|> What?"), {}),
    "2 pictures for 3 texts: give a list of lists": ((["a", "b"], ["What?"] * 3), {}),
    "padding 'max_length', return_tensors 'pt'": ((None, "What?"), {"padding": "max_length"}),
    "8203 tokens, and the model has 4096 positions": ((None, " ?" * 4101), {}),
}


@pytest.mark.parametrize(("line", "given"), WRONG.items())
def test_wrong_inputs_are_told_in_one_line(exported, line, given):
    (images, text), options = given
    images = images and [opened(1) for _ in images]
    with pytest.raises(ValueError) as told:
        exported()[3](images=images, text=text, **options)
    assert line in str(told.value) and "\n" not in str(told.value)


def test_an_option_of_another_is_told_and_ignored(exported, capfd):
    exported()[3](text="What?", do_sample=True)
    assert "the processor has no argument do_sample: ignored" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        (chat("a") + chat("b"), "roles must alternate user, assistant, user, ...; they are user, user"),
        (chat("a", say="<|image|>") + chat("b"), "images stand in the turns of the user, not of role assistant"),
        ([{"role": "system", "content": "<image>"}, *chat("a")], "images stand in the turns of the user, not of role system"),
        ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], "a chat holds text and image, not video"),
        (chat("a \ufdd0 b"), r"a message holds U\+FDD0 or U\+FDD1, which are no characters"),
    ],
    ids=str,
)
def test_a_chat_that_plait_refuses_is_refused(exported, turns, line):
    _, inputs, _, processor = exported()
    with pytest.raises(Exception, match=line.replace(".", r"\.")):  # jinja's error
        processor.apply_chat_template(turns, **INPUTS)
    if "<image>" in str(turns) or "alternate" in line:
        with pytest.raises(BadSample):
            inputs.prompt(as_sample(turns))


def test_images_that_the_tokens_do_not_name_are_refused(exported):
    _, _, theirs, processor = exported()
    one, none = (processor.apply_chat_template(CHATS[name], **INPUTS) for name in ("one picture", "no picture"))
    with pytest.raises(ValueError, match="image tokens, but no crops, marks and pools are given"):
        theirs(input_ids=one["input_ids"])
    with pytest.raises(ValueError, match=r"input_ids hold \[0\] image tokens, and the images given \[\d+\]: give the images of exactly"):
        theirs(**{**one, "input_ids": none["input_ids"], "attention_mask": none["attention_mask"]})


def test_the_code_of_an_export_imports_only_itself_and_what_transformers_needs(make, directory, tmp_path):
    config, model, _ = make()
    export.write_hf(model, config, directory, tmp_path / "out")
    code = {path.stem: ast.parse(path.read_text()) for path in (tmp_path / "out").glob("*.py")}
    assert len(code) == len(export.standalone()) == 10
    for tree in code.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in code
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                tops = {name.split(".")[0] for name in names}
                assert tops - sys.stdlib_module_names <= {"torch", "transformers", "numpy", "PIL"}


def test_plait_runs_no_code_of_an_export_and_says_so(exported, tmp_path):
    exported()
    for path in (tmp_path / "out-0").glob("*.py"):
        path.write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(Exception, match=r"model\.language: .*out-0 is a whole model, not a language") as told:
        family.build(Config(language=str(tmp_path / "out-0"), vision_backbone="debug", overlap=2), tmp_path, seed=0)
    assert "\n" not in str(told.value)
