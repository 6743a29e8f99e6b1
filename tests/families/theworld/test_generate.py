"""Generation: the cache changes nothing, the world is seen once, another world is another answer's odds, and rows are independent."""

import json

import pytest
import torch
from transformers import GenerationConfig

from plait.errors import PlaitError
from plait.families.theworld import export, family
from plait.families.theworld.generate import CachedTheWorld, GenerateOptions, answers, generate
from plait.nn.decoding import Sampling, decode

from .conftest import photo, sample, talkative

NEVER = frozenset({10_000})
PAIR = [sample(1), sample(2, ask="Where is it? a cat on a mat")]


def prompts(inputs, samples, **how):
    return inputs.collate([inputs.prompt({**given, **how}) for given in samples], left=True)


@torch.no_grad()
def recomputed(model, batch, steps):
    """Greedy tokens without a cache: the whole row again for each token."""
    embeds, batch, tokens = model.embed(batch), dict(batch), []
    for _ in range(steps):
        token = model.logits(model.hidden(embeds, batch)[:, -1]).argmax(-1)
        tokens.append(token)
        embeds = torch.cat([embeds, model.gemma.get_input_embeddings()(token[:, None])], dim=1)
        for name, value in (("attention_mask", 1), ("token_types", 0)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, 1), value=value)
        batch["positions"] = torch.cat([batch["positions"], batch["positions"][:, -1:] + 1], dim=1)
    return torch.stack(tokens, dim=1).tolist()


@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_generation_equals_a_full_recompute(make, seed):
    _, model, inputs = make(seed=seed, tiny={"window": 24})
    talkative(model)
    batch = prompts(inputs, PAIR)
    got = decode(CachedTheWorld(model, batch), max_new_tokens=[20, 20], stops=NEVER)
    assert got == recomputed(model, batch, 20)
    assert len(set(got[0] + got[1])) > 4


def test_generation_extends_mask_and_positions_by_one_a_token(make):
    _, model, inputs = make()
    batch, seen = prompts(inputs, PAIR), []
    language = model.gemma.model
    language.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    decode(CachedTheWorld(model, batch), max_new_tokens=[5, 5], stops=NEVER)
    fused = batch["ids"].shape[1]
    assert [given["attention_mask"].shape[1] for given in seen] == [fused + t for t in range(5)]
    lengths = batch["attention_mask"].sum(-1)
    assert all(torch.equal(given["position_ids"][:, -1], lengths - 1 + t) for t, given in enumerate(seen))


def test_world_encoder_and_vision_run_once_per_call(make):
    _, model, inputs = make()
    calls = []
    model.world.register_forward_hook(lambda *_: calls.append("world"))
    model.gemma.model.vision_tower.register_forward_hook(lambda *_: calls.append("vision"))
    decode(CachedTheWorld(model, prompts(inputs, PAIR)), max_new_tokens=[6, 6], stops=NEVER)
    assert sorted(calls) == ["vision", "world"]


@torch.no_grad()
def test_another_world_changes_the_logits_and_nothing_else_of_the_prompt(make):
    _, model, inputs = make()
    own, other = prompts(inputs, [sample(1)]), prompts(inputs, [sample(1)], world_of=sample(2))
    alike = [name for name, value in own.items() if isinstance(value, torch.Tensor) and name != "frames"]
    assert "kinds" in alike and all(torch.equal(own[name], other[name]) for name in alike)
    first, second = (model.logits(model.hidden(model.embed(batch), batch)[:, -1]) for batch in (own, other))
    assert (first - second).abs().max() > 1e-4


def test_rows_end_at_their_own_stop(make):
    _, model, inputs = make(seed=2)
    talkative(model)
    batch = prompts(inputs, PAIR)
    free = decode(CachedTheWorld(model, batch), max_new_tokens=[12, 12], stops=NEVER)
    stop = next(token for token in free[0] if token not in free[0][:1] and token not in free[1])
    stopped = decode(CachedTheWorld(model, batch), max_new_tokens=[12, 12], stops=frozenset({stop}))
    assert stopped == [free[0][: free[0].index(stop)], free[1]]


def test_sampling_does_not_depend_on_the_batch(make):
    _, model, inputs = make()
    examples = [inputs.prompt(given) for given in PAIR]
    together = answers(model, inputs, examples, max_new_tokens=[8, 8], sampling=Sampling(1.0, 0.9, [11, 12]))
    alone = [
        answers(model, inputs, [example], max_new_tokens=[8], sampling=Sampling(1.0, 0.9, [key]))[0]
        for example, key in zip(examples, [11, 12], strict=True)
    ]
    assert together == alone
    assert together != answers(model, inputs, examples, max_new_tokens=[8, 8], sampling=Sampling(1.0, 0.9, [13, 14]))


def test_generate_answers_and_writes(make, tmp_path):
    _, model, inputs = make()
    (tmp_path / "a.png").write_bytes(photo(1))
    options = GenerateOptions.model_validate({"prompt": "What is this?", "image": str(tmp_path / "a.png"), "max_new_tokens": "4"})
    lines = generate(model, inputs, options, tmp_path / "out", "step-00000007")
    written = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert lines == [written["answer"]]
    assert written["world_tokens"] == 16
    off = generate(model, inputs, options.model_copy(update={"world": False}), tmp_path / "off", "latest")
    assert json.loads((tmp_path / "off" / "answer.json").read_text())["world_tokens"] == 0
    assert len(off) == 1


def test_generate_names_a_missing_image(make):
    _, model, inputs = make()
    with pytest.raises(PlaitError, match="generate: --image: no file nowhere"):
        generate(model, inputs, GenerateOptions(image=["nowhere.png"]), None, "latest")


@pytest.mark.parametrize(("own", "sampled"), [(7, False), ([7, 1], True), (None, False)])
def test_an_export_keeps_the_ends_of_its_base_and_adds_plaits(make, directory, tmp_path, own, sampled):
    config, model, inputs = make()
    model.gemma.generation_config.update(eos_token_id=own, do_sample=sampled)
    export.write_hf(model, config, directory, tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert set(written.eos_token_id) == inputs.chat.stops | ({7} if own else set())
    assert (written.do_sample, model.gemma.generation_config.eos_token_id) == (sampled, own)


def test_family_exports_the_contract():
    names = ("Config", "Inputs", "Loss", "GenerateOptions", "base", "blocks", "build", "components", "generate", "inspect")
    assert all(name in family.__all__ for name in (*names, "never_trained", "prepare"))


def test_a_clip_is_shown_to_a_model_with_world_steps(make, tmp_path):
    _, model, inputs = make(world={"steps": 1})
    (tmp_path / "clip").mkdir()
    for number in range(6):
        (tmp_path / "clip" / f"{number}.png").write_bytes(photo(number))
    files = [tmp_path / "clip" / f"{number}.png" for number in range(6)]
    for number, frames in enumerate((tmp_path / "clip", files)):
        generate(model, inputs, GenerateOptions(image=files[0], frames=frames, max_new_tokens=2), tmp_path / str(number), "")
    shown = [json.loads((tmp_path / str(number) / "answer.json").read_text()) for number in range(2)]
    assert [one["world_tokens"] for one in shown] == [32, 32] and shown[0]["answer"] == shown[1]["answer"]
    with pytest.raises(PlaitError, match=r"it has a single picture, and model.world.steps 1 takes"):
        generate(model, inputs, GenerateOptions(image=files[0]), None, "")
    with pytest.raises(PlaitError, match=r"generate: --frames: no file .*absent"):
        generate(model, inputs, GenerateOptions(frames=tmp_path / "absent"), None, "")
