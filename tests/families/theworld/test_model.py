"""The model: who attends to whom, what trains, and that one global batch gives one gradient however it is cut."""

import itertools
import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from plait.errors import PlaitError
from plait.families.theworld import family
from plait.families.theworld.config import Config
from plait.families.theworld.sequence import Kind
from plait.nn.connectors import root_mean_square

from .conftest import sample

SAMPLES = [sample(1), sample(say="left"), sample(2, 3, say="a cat on a mat"), sample(4, ask="Where is it?", say="a cat")]
STAGES = [["projector"], ["projector", "vision"], ["projector", "vision", "language"], ["projector", "vision", "language", "world"]]


def train_only(model, trainable) -> set[str]:
    """Freeze all but these components; the names that train."""
    parts = family.components(model)
    for name, part in parts.items():
        for parameter in part.values():
            parameter.requires_grad_(name in trainable)
    return {name for chosen in trainable for name in parts[chosen]}


def loss_of(config, model, inputs, samples):
    """(sum, weight) of these samples in one micro-batch."""
    loss, batch = family.Loss(config), inputs.collate([inputs.encode(given, 0) for given in samples])
    return loss.sums(model, batch)["loss"], loss.weights(batch)["loss"]


def test_loss_counts_answer_tokens_that_the_limit_cut(make):
    config, model, inputs = make(inputs={"max_tokens": 50})
    batch = inputs.collate([inputs.encode(given, 0) for given in (sample(say="a small green frog and a cat on a mat " * 4), sample())])
    loss = family.Loss(config)
    assert batch["ids"].shape[1] == 50
    assert batch["cut"][1] == 0
    assert loss.sums(model, batch)["cut"].item() == batch["cut"].sum().item() > 0
    assert (loss.weights(batch)["cut"].item(), loss.coefficients) == (2, {"loss": 1.0, "cut": 0.0})


def test_components_are_disjoint_and_cover_every_parameter(make):
    _, model, _ = make()
    named, parts = dict(model.named_parameters()), family.components(model)
    assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(named)
    assert all(named[name] is value for part in parts.values() for name, value in part.items())
    assert family.never_trained == {"world_decoder", "world_time"}
    assert all(name.startswith(("world.vae.decoder.", "world.vae.post_quant_conv.")) for name in parts["world_decoder"])
    assert any("multi_modal_projector" in name for name in parts["vision"])
    assert "world_time" not in family.components(make(world={"steps": 1})[1])


@pytest.mark.parametrize("trainable", STAGES, ids=lambda stage: stage[-1])
def test_stage_moves_exactly_what_it_trains(make, trainable):
    config, model, inputs = make()
    names = train_only(model, trainable)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    loss_of(config, model, inputs, SAMPLES)[0].backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == names


def test_text_only_batch_gives_every_trainable_parameter_a_zero_or_real_gradient(make):
    config, model, inputs = make()
    names = train_only(model, STAGES[3])
    total, _ = loss_of(config, model, inputs, [sample()])
    total.backward()
    missing = [name for name in names if model.get_parameter(name).grad is None]
    assert missing == []
    assert not any(model.get_parameter(name).grad.any() for name in names if not name.startswith("gemma.model.language_model"))
    train_only(model, ["language"])
    assert torch.equal(total, loss_of(config, model, inputs, [sample()])[0])


def test_unsupervised_batch_weighs_nothing_and_pulls_nothing(make):
    config, model, inputs = make()
    batch = inputs.collate([inputs.encode(given, 0) for given in SAMPLES])
    batch["labels"].fill_(-100)
    loss = family.Loss(config)
    total = loss.sums(model, batch)["loss"]
    train_only(model, STAGES[3])
    loss.sums(model, batch)["loss"].backward()
    assert (loss.weights(batch)["loss"].item(), total.item()) == (0.0, 0.0)
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_loss_reads_labels_not_input_ids(make):
    config, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1, say="a cat on a mat"), 0)])
    whole, loss = model(batch)["loss"], family.Loss(config)
    batch["labels"][0, -1] = -100
    assert loss.weights(batch)["loss"].item() == len(inputs.chat.text_ids("a cat on a mat"))
    assert model(batch)["loss"] < whole


@pytest.fixture
def all_in_float64(monkeypatch):
    """Gemma's norms round to float32 whatever the model's type; without that, cuts can be compared to the last digits of float64."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    monkeypatch.setattr(Gemma3RMSNorm, "forward", forward)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_one_global_batch_gives_one_gradient_however_it_is_cut(make, all_in_float64, cut):
    config, model, inputs = make()
    model.double()
    train_only(model, STAGES[3])
    whole, weight = loss_of(config, model, inputs, SAMPLES)
    expected = torch.autograd.grad(whole / weight, [p for p in model.parameters() if p.requires_grad])
    parts = [loss_of(config, model, inputs, SAMPLES[start : start + cut]) for start in range(0, 4, cut)]
    weight = sum(part for _, part in parts)
    for total, _ in parts:
        (total / weight).backward()
    got = [p.grad for p in model.parameters() if p.requires_grad]
    assert len({part.item() for _, part in parts}) > 1 or cut == 4, "rows of equal weight would hide a mean of means"
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_initial_loss_is_that_of_a_uniform_guess(make):
    total, weight = loss_of(*make(), SAMPLES)
    assert total.item() / weight.item() == pytest.approx(math.log(512), abs=0.4)


@torch.no_grad()
def test_world_and_image_tokens_are_at_the_words_scale(make):
    _, model, inputs = make()
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    embeds, kinds = model.embed(batch)[0], batch["kinds"][0]
    words = root_mean_square(embeds[kinds == Kind.TEXT])
    for kind in (Kind.IMAGE, Kind.WORLD, Kind.WORLD_START):
        assert root_mean_square(embeds[kinds == kind]) / words == pytest.approx(1.0, abs=0.4), kind.name


@torch.no_grad()
def _influence(model, batch, position):
    """Which positions' hidden states change when the embedding at `at` does."""
    embeds = model.embed(batch)
    other = embeds.clone()
    other[0, position] += 1.0
    return (model.hidden(embeds, batch) != model.hidden(other, batch)).any(-1)[0]


@torch.no_grad()
@pytest.mark.parametrize("std", [0.02, 128**-0.5])
def test_initializer_range_sets_the_scale_of_the_first_embeddings(make, std):
    config, model, _ = make(tiny={"initializer_range": std})
    words = model.gemma.get_input_embeddings()(torch.arange(config.tiny.vocabulary))
    assert root_mean_square(words) == pytest.approx(std * 128**0.5, rel=0.02)  # 65,536 draws: the mean square is known to 0.6 %


def test_images_and_the_world_attend_both_ways_each_within_its_block(make):
    _, model, inputs = make(tiny={"window": 512})
    batch = inputs.collate([inputs.encode(sample(1, 2), 0)])
    kinds = batch["kinds"][0]
    image = (kinds == Kind.IMAGE).nonzero()[:, 0]
    world = (kinds == Kind.WORLD).nonzero()[:, 0]
    for block in (world, image[:16], image[16:]):
        changed = _influence(model, batch, int(block[-1]))
        assert changed[block].all(), "the last token of a block reaches its first"
        assert not changed[: block[0]].any(), "and nothing before the block"
    last = int((kinds == Kind.TEXT).nonzero()[-1])
    assert not _influence(model, batch, last)[:last].any()


def test_training_sees_what_inference_sees(make):
    _, model, inputs = make()
    given = sample(1, 2)
    whole, prompt = inputs.collate([inputs.encode(given, 0)]), inputs.collate([inputs.prompt(given)], left=True)
    length = prompt["ids"].shape[1]
    with torch.no_grad():
        training, inference = (model.hidden(model.embed(batch), batch) for batch in (whole, prompt))
    torch.testing.assert_close(training[:, :length], inference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_row_sees_its_own_world(make):
    _, model, inputs = make(world={"steps": 2})
    clip = [sample(number)["images"][0] for number in range(10, 15)]
    longer = clip + [sample(number)["images"][0] for number in range(20, 24)]
    samples = [sample(1, frames=clip[::-1]), sample(), sample(2, frames=longer), sample(3, frames=clip)]
    together = inputs.collate([inputs.encode(given, 0) for given in samples], left=True)
    hidden = model.hidden(model.embed(together), together)
    for i, given in enumerate(samples):
        alone = inputs.collate([inputs.encode(given, 0)])
        own_hidden = hidden[i][together["attention_mask"][i].bool()]
        torch.testing.assert_close(own_hidden, model.hidden(model.embed(alone), alone)[0], atol=2e-5, rtol=2e-5)


def test_frozen_towers_keep_no_activations(make):
    _, model, inputs = make()
    train_only(model, ["language"])
    batch = inputs.collate([inputs.encode(sample(1), 0)])
    assert not model.image_features(batch["pixels"]).requires_grad
    assert not model.world(batch["frames"][:, None]).requires_grad
    train_only(model, ["vision", "world"])
    assert model.image_features(batch["pixels"]).requires_grad


@pytest.mark.parametrize("trainable", STAGES, ids=lambda stage: stage[-1])
def test_frozen_bfloat16_and_trained_float32_parts_work_together(make, trainable):
    config, model, inputs = make()
    exact, weight = loss_of(config, model, inputs, SAMPLES)
    names = train_only(model, trainable)
    for name, parameter in model.named_parameters():
        if name not in names:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss_of(config, model, inputs, SAMPLES)
    total.backward()
    assert total.dtype == torch.float32
    assert all(model.get_parameter(name).grad.dtype == torch.float32 for name in names)
    assert total.item() / weight.item() == pytest.approx(exact.item() / weight.item(), rel=0.02)  # bfloat16 keeps 8 bits


def test_build_depends_on_the_seed_alone(make):
    states = []
    for seed, noise in ((2**64 - 5, 1), (2**64 - 5, 2), (3, 2)):
        torch.manual_seed(noise)
        states.append(make(seed=seed)[1].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["projector.brackets"], states[2]["projector.brackets"])
    assert not torch.equal(states[0]["world.vae.quant_conv.weight"], states[2]["world.vae.quant_conv.weight"])


def test_local_directories_build_the_saved_weights(make, directory, tmp_path):
    _, model, inputs = make()
    model.gemma.save_pretrained(tmp_path / "gemma")
    PreTrainedTokenizerFast.from_pretrained(directory / "tokenizer").save_pretrained(tmp_path / "gemma")
    model.world.vae.save_pretrained(tmp_path / "pipeline" / "vae")
    world = {"source": str(tmp_path / "pipeline"), "image_size": 32}
    config = Config(base=str(tmp_path / "gemma"), world=world)
    twin, twin_inputs = family.build(config, tmp_path, seed=1).eval(), family.Inputs(config, tmp_path)
    twin.projector.load_state_dict(model.projector.state_dict())
    with torch.no_grad():
        assert torch.equal(*(m(i.collate([i.encode(sample(1), 0)]))["loss"] for m, i in ((model, inputs), (twin, twin_inputs))))


@pytest.mark.parametrize("section", [{"base": "nobody/nothing"}, {"base": "tiny", "world": {"source": "/no/such/place"}}])
def test_parts_that_cannot_be_loaded_are_named(section, tmp_path):
    with pytest.raises(PlaitError, match=r"^model\.(base|world\.source): cannot load '(nobody/nothing|/no/such/place)'[^\n]*$"):
        family.build(Config(**section), tmp_path, seed=0)


def test_blocks_are_the_transformer_layers(make):
    assert len(family.blocks(make()[1])) == 2 + 4
