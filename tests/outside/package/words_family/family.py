"""The words family: a small causal language model that learns what the assistant says in a conversation."""

from pathlib import Path

import torch
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from plait.engine import loss
from plait.errors import BadSample
from plait.files import write_whole
from plait.nn.tokenizer import train_tokenizer
from words_family.config import Config

MARKS = {"system": 1, "user": 2, "assistant": 3}
SPECIAL = ["<end>", *(f"<{role}>" for role in MARKS)]
END, UNSUPERVISED = 0, -100


def prepare(config, assets, texts):
    if not (assets / "tokenizer.json").exists():
        write_whole(assets / "tokenizer.json", train_tokenizer(texts(), rows=config.vocab_size, special=SPECIAL).to_str())


def build(config, assets, *, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**config.model_dump(), tie_word_embeddings=True))


def components(model):
    named = dict(model.named_parameters())
    table = {"model.embed_tokens.weight": named.pop("model.embed_tokens.weight")}
    return {"table": table, "layers": named}


def blocks(model):
    return list(model.model.layers)


class Inputs:
    """A conversation as tokens: of each message the mark of its role, its text, and an end."""

    def __init__(self, config: Config, assets: Path, *, max_tokens: int | None, pad: str, train: bool):
        self.tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json"))
        self.max_tokens = min(max_tokens or config.max_position_embeddings, config.max_position_embeddings)

    def encode(self, sample, key):
        tokens, labels = [], []
        for message in sample["messages"]:
            words = [*self.tokenizer.encode(message["content"]).ids, END]
            tokens += [MARKS[message["role"]], *words]
            labels += [UNSUPERVISED, *(words if message["role"] == "assistant" else [UNSUPERVISED] * len(words))]
        if all(label == UNSUPERVISED for label in labels[: self.max_tokens]):
            raise BadSample(f"the assistant says nothing in the first {self.max_tokens} tokens")
        return {"tokens": torch.tensor(tokens[: self.max_tokens]), "labels": torch.tensor(labels[: self.max_tokens])}

    def collate(self, examples):
        """Return tokens and labels (B, L), padded at the right, where causal attention does not see it."""
        padding = {"tokens": END, "labels": UNSUPERVISED}
        return {name: pad_sequence([example[name] for example in examples], True, value) for name, value in padding.items()}


class Loss(loss.Loss):
    """Cross-entropy of each supervised token, given those before it."""

    def __init__(self, config):
        self.coefficients = {"words": 1.0}

    def weights(self, batch):
        return {"words": (batch["labels"][:, 1:] != UNSUPERVISED).sum().double()}

    def sums(self, model, batch):
        logits = model(batch["tokens"]).logits[:, :-1].flatten(0, 1).float()
        return {"words": functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")}


class GenerateOptions(BaseModel):
    prompt: str = Field(description="what the user says")


@torch.no_grad()
def answer(model, inputs, prompt):
    """Return the likeliest answer, a token at a time."""
    tokens = [MARKS["user"], *inputs.tokenizer.encode(prompt).ids, END, MARKS["assistant"]]
    start = len(tokens)
    while len(tokens) < inputs.max_tokens and tokens[-1] != END:
        logits = model(torch.tensor([tokens], device=model.device)).logits
        tokens.append(int(logits[0, -1].argmax()))
    return inputs.tokenizer.decode(tokens[start:])


def generate(model, inputs, options, out, moment):
    yield answer(model, inputs, options.prompt)


def inspect(inputs, sample, example):
    words = [inputs.tokenizer.decode([token], skip_special_tokens=False) for token in example["tokens"].tolist()]
    return {"images": [], "text": list(zip(words, (example["labels"] != UNSUPERVISED).tolist(), strict=True)), "notes": {}}
