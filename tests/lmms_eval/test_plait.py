"""The model `plait` of lmms-eval: what it answers and how likely it finds it, with the real package where that is installed."""

import contextlib
import importlib
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.errors import PlaitError
from plait.lmms_eval import answering
from plait.lmms_eval.answering import Answering

TINY = """
family: FAMILY
run: run
data:
  train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: 1, tasks: [colour]}}]
  workers: 0
train: {steps: 1, global_batch: 4}
optim: {schedule: {warmup_steps: 0}}
track: {tensorboard: false}
"""
FAMILIES = {
    "theworld": """
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
""",
    "molmo": "preset: debug\n",
    "nanodit": """
model: {space: pixels, depth: 1, hidden: 48, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
""",
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of one step of each family, by name; each is trained when it is first asked for."""

    def trained(family, _made={}):  # noqa: B006
        if family not in _made:
            folder = tmp_path_factory.mktemp(family)
            (folder / "c.yaml").write_text(TINY.replace("FAMILY", family) + FAMILIES[family])
            assert cli.main(["train", str(folder / "c.yaml"), f"--run={folder / 'run'}"]) == 0
            _made[family] = str(folder / "run")
        return _made[family]

    return trained


@pytest.fixture(scope="module")
def theworld(runs):
    return Answering(runs("theworld"))


@pytest.mark.parametrize("family", ["theworld", "molmo"])
def test_an_answer_is_that_of_plait_generate(runs, tmp_path, capsys, family):
    PICTURE.save(tmp_path / "a.png")
    own = Answering(runs(family)).answer("<image>What is this?", [PICTURE], {"max_new_tokens": 6})
    capsys.readouterr()
    assert cli.main(["generate", runs(family), "--prompt=What is this?", f"--image={tmp_path / 'a.png'}", "--max-new-tokens=6"]) == 0
    assert own == capsys.readouterr().out.strip()
    assert Answering(runs(family)).answer("What is this?", [str(tmp_path / "a.png")], {"max_new_tokens": 6}) == own


def test_an_export_answers_as_its_run(runs, theworld, tmp_path):
    assert cli.main(["export", runs("theworld"), str(tmp_path / "out"), "--to=theworld"]) == 0
    exported = Answering(str(tmp_path / "out"))
    asked = ("<image>What is this?", [PICTURE], {"max_new_tokens": 6})
    assert exported.answer(*asked) == theworld.answer(*asked) and exported.name == str(tmp_path / "out")
    with pytest.raises(PlaitError, match="out is an export, with one set of weights: leave --raw out"):
        Answering(str(tmp_path / "out"), averaged=False)


def test_settings_of_a_task_are_followed_or_told(theworld, monkeypatch, caplog):
    given = []
    monkeypatch.setattr(
        theworld, "generate", lambda model, inputs, options, out, moment: [given.append(options) or "(A)\n\nso A. END more"]
    )
    answer = theworld.answer("?", [], {"until": ["\n\n", "END"], "max_new_tokens": 3, "num_beams": 1})
    assert answer == "(A)\n\nso A." and (given[-1].max_new_tokens, given[-1].temperature) == (3, 0.0)
    theworld.answer("?", [], {"temperature": 0.7, "top_p": 0.9, "do_sample": True, "num_beams": 4, "top_k": 5})
    assert (given[-1].temperature, given[-1].top_p) == (0.7, 0.9)
    theworld.answer("?", [], {"temperature": 0.7, "do_sample": False, "num_beams": 4})
    assert given[-1].temperature == 0.0
    told = [record.message for record in caplog.records if "generation_kwargs" in record.message]
    assert told == [f"generation_kwargs: {name} has no effect on the model plait" for name in ("num_beams", "top_k")]


@pytest.mark.parametrize("family", ["theworld", "molmo"])
def test_a_text_that_the_model_would_give_is_known_as_such(runs, monkeypatch, family):
    one = Answering(runs(family))
    value, greedy = one.log_likelihood("What is this?", "a strange long text", [PICTURE])
    monkeypatch.setattr(one, "generate", lambda *given: ["red"])
    assert value < 0 and not greedy
    assert [one.log_likelihood("What is this?", text, [PICTURE])[1] for text in (" red", "blue")] == [True, False]


def test_the_log_likelihood_is_the_loss_of_the_answer(theworld):
    inputs, bundle = theworld.inputs, theworld.bundle
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "red"}]
    batch = inputs.collate([inputs.encode({"id": "1", "images": [], "messages": messages, "fields": {}}, 0)])
    value, _ = theworld.log_likelihood("Which?", " red", [])
    assert value == pytest.approx(-float(bundle.loss().sums(bundle.model, batch)["loss"].detach()), rel=1e-5)


def test_what_cannot_be_asked_is_told_in_a_line(runs, theworld, tmp_path):
    with pytest.raises(PlaitError, match=r"the model plait is shown pictures only, not clip.mp4"):
        theworld.answer("?", ["clip.mp4"], {})
    with pytest.raises(PlaitError, match="the model plait is shown pictures only, not dict"):
        theworld.answer("?", [{"array": []}], {})
    with pytest.raises(PlaitError, match="family 'nanodit' answers no questions about pictures: no max_new_tokens"):
        Answering(runs("nanodit"))
    with pytest.raises(PlaitError, match=r"model_args: stile: .*; options of family theworld: frames, temperature, top_p, seed, world"):
        Answering(runs("theworld"), options={"stile": "vqa2"})
    with pytest.raises(PlaitError, match="does not exist"):
        Answering(str(tmp_path / "nothing"))


def test_several_processes_are_refused(runs, monkeypatch):
    @contextlib.contextmanager
    def joined():
        yield types.SimpleNamespace(size=2, device="cpu")

    monkeypatch.setattr(answering.distributed, "join", joined)
    with pytest.raises(PlaitError, match="answers in one process: start lmms-eval without accelerate or torchrun"):
        Answering(runs("theworld"))


@dataclass
class Request:
    """What lmms-eval gives a model to answer."""

    args: tuple
    task_name: str = "t"


class StandIn:
    """What a model of lmms-eval inherits."""

    def __init__(self):
        self.task_dict, self.cache_hook = {}, types.SimpleNamespace(add_partial=lambda *given: None)


@pytest.fixture
def plait_model(monkeypatch):
    """The class that lmms-eval makes: with the package if it is here, else with a stand-in for what it inherits."""
    try:
        importlib.import_module("lmms_eval.api.model")
    except ImportError:
        for name, members in {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": StandIn},
                              "lmms_eval.api.instance": {"Instance": Request}}.items():  # fmt: skip
            module = types.ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "plait.lmms_eval.model", raising=False)
    return importlib.import_module("plait.lmms_eval.model").Plait


def test_requests_are_answered_in_order_with_the_pictures_of_their_documents(plait_model, runs, monkeypatch):
    model = plait_model(checkpoint=runs("theworld"), batch_size="4", world=False)
    assert model.is_simple and model.answering.options == {"world": False}
    model.task_dict = {"t": {"test": [{"image": PICTURE, "gold": "red"}, {"image": None, "gold": "blue"}]}}
    asked = []
    monkeypatch.setattr(
        model.answering, "answer", lambda context, visuals, settings: asked.append((context, len(visuals))) or context.upper()
    )
    monkeypatch.setattr(model.answering, "log_likelihood", lambda context, text, visuals: (-float(len(text)), not visuals))

    def visuals(document):
        return [document["image"]] if document["image"] else None

    requests = [Request((f"q{n}", {"max_new_tokens": 4}, visuals, n, "t", "test")) for n in (1, 0)]
    assert model.generate_until(requests) == ["Q1", "Q0"] and asked == [("q1", 0), ("q0", 1)]
    likely = [Request(("q", target, visuals, 0, "t", "test")) for target in (lambda document: document["gold"], "a")]
    assert model.loglikelihood(likely) == [(-3.0, False), (-1.0, False)]
    with pytest.raises(PlaitError, match="answers in one round; t has several"):
        model.generate_until_multi_round(requests)


def test_another_device_than_plaits_is_refused(plait_model, runs):
    with pytest.raises(PlaitError, match="device is tpu, but plait answers on cpu: leave --device out"):
        plait_model(checkpoint=runs("theworld"), device="tpu")


def test_lmms_eval_finds_the_model_by_its_entry_point(tmp_path, monkeypatch):
    registry = pytest.importorskip("lmms_eval.models.registry_v2")
    metadata = tmp_path / "found_plait-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: found-plait\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lmms_eval.models]\nplait = plait.lmms_eval.manifest:manifest\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    models = registry.ModelRegistryV2()
    models.load_entrypoint_manifests()
    assert models.get_model_class("plait").__name__ == "Plait"
