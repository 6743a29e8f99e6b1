"""`plait export` and back: what transformers computes from the directory is what plait computes, and a run may start from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from plait import cli
from plait.assembly import saved
from plait.assembly.checkpoint_specs import FORMS
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.engine.checkpoints import integrity
from plait.engine.parallel.distributed import Ranks

from ..processes import kill_inside

SCENES = "{source: scenes, limit: 8, options: {size: [48, 48], objects: [1, 2], tasks: [count], supersample: 2}}"
COMMON = f"""
data: {{train: [{SCENES}], validation: [{SCENES}]}}
train: {{steps: 2, global_batch: 4}}
optim: {{schedule: {{warmup_steps: 0}}}}
track: {{tensorboard: false}}
"""
TINY = """
family: theworld
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
"""
FAMILIES = {
    "molmo": "family: molmo\npreset: debug\nmodel: {max_crops: 1}\n",
    "theworld": TINY + "  world: null\ntrainable: [language]\n",
    "world": TINY,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(family)` is a run of two steps, made once."""
    folder, made = tmp_path_factory.mktemp("export"), {}

    def run(name: str) -> Path:
        if name not in made:
            (folder / f"{name}.yaml").write_text(FAMILIES[name] + COMMON)
            made[name] = folder / name
            assert cli.main(["train", str(folder / f"{name}.yaml"), f"--run={made[name]}"]) == 0
        return made[name]

    return run


def opened(run):
    return saved.open_checkpoint(saved.locate(run), Ranks(0, 1, torch.device("cpu")))


def weights_after(run):
    return integrity.locate(run).tensors("weights")


STILL = ["--optim.lr=1e-30", "--optim.schedule.min_lr=0", "--optim.weight_decay=0"]
"""A step of training that moves no weight by more than 1e-30: what only moves a weight that is exactly 0."""


def moved(before, after):
    return max(float((before[name] - after[name]).abs().max()) for name in before)


PLAIN = """
import json, sys
sys.modules["plait"] = sys.modules["torchvision"] = None  # an import of either fails
folder, picture, out, trust = sys.argv[1:]
trust = {"trust_remote_code": True} if trust else {}
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
model, processor = AutoModelForImageTextToText.from_pretrained(folder, **trust).eval(), AutoProcessor.from_pretrained(folder, **trust)
pictures = {"How many?": [picture], "Which is red?": [picture, picture], "Why?": []}
chats = [
    [{"role": "user", "content": [*({"type": "image", "url": path} for path in paths), {"type": "text", "text": ask}]}]
    for ask, paths in pictures.items()
]
inputs = processor.apply_chat_template(chats[0], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
pipe = pipeline("image-text-to-text", model=folder, **trust)
options = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": 40}}
said = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
batch = pipe(text=chats, batch_size=3, **options) if trust else None
processor.save_pretrained(out + "/again")
model.save_pretrained(out + "/again")
again = pipeline("image-text-to-text", model=out + "/again", **trust)(text=chats[0], **options)[0]["generated_text"]
json.dump({"said": said, "again": again, "batch": batch and [row[0]["generated_text"] for row in batch]}, open(out + "/said.json", "w"))
torch.save(logits, out + "/logits.pt")
"""
"""A program without plait: FOLDER PICTURE OUT TRUST."""


def in_plain_transformers(folder, picture, out, trust=""):
    """What PLAIN answers, and its logits of the first chat."""
    places = {"HF_MODULES_CACHE": str(out / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-P", "-c", PLAIN, str(folder), str(picture), str(out), trust]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out, env={**os.environ, **places})
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr
    return json.loads((out / "said.json").read_text()), torch.load(out / "logits.pt")


@pytest.fixture
def picture(tmp_path):
    drawn = open_source(SourceEntry(source="scenes", limit=1, options={"size": [48, 48]}), seed=0)[0]["images"][0]
    (tmp_path / "a.png").write_bytes(drawn)
    return tmp_path / "a.png"


def generated(run, out, ask, *pictures):
    """What `plait generate` answers."""
    images = [f"--image={path}" for path in pictures]
    assert cli.main(["generate", str(run), f"--prompt={ask}", "--max_new_tokens=40", *images, "--out", str(out / ask)]) == 0
    return json.loads((out / ask / "answer.json").read_text())["answer"]


def test_molmo_as_hf_computes_and_answers_the_same_where_plait_is_not_installed(trained, tmp_path, picture):
    run = trained("molmo")
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    reloaded, theirs = in_plain_transformers(tmp_path / "out", picture, tmp_path, trust="yes")
    built = opened(run)
    inputs = built.family.Inputs(built.section, built.assets)
    asked = {"id": "a", "images": [picture.read_bytes()], "messages": [{"role": "user", "content": "How many?"}], "fields": {}}
    batch = inputs.collate([inputs.prompt(asked)], left=True)
    with torch.no_grad():
        logits = built.model.logits(built.model.hidden(built.model.embed(batch), batch))
    assert (theirs - logits).abs().max() <= 1e-5  # one arithmetic in two programs: only the order of sums may differ
    pictures = {"How many?": [picture], "Which is red?": [picture, picture], "Why?": []}
    said = [generated(run, tmp_path, ask, *given) for ask, given in pictures.items()]
    assert len(set(said)) == 3
    assert [text.strip() for text in reloaded["said"]] == [text.strip() for text in reloaded["batch"]] == said
    assert reloaded["again"].strip() == said[0]


@pytest.mark.parametrize("loader", ["AutoProcessor", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoConfig"])
def test_molmo_as_hf_without_trust_is_refused_by_transformers(trained, tmp_path, loader):
    assert cli.main(["export", str(trained("molmo")), str(tmp_path / "out")]) == 0
    with pytest.raises(ValueError, match=r"contains custom code which must be executed(.|\n)*trust_remote_code=True"):
        getattr(transformers, loader).from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_theworld_as_hf_answers_the_same_in_plain_transformers(trained, tmp_path, picture):
    run = trained("theworld")
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    reloaded, _ = in_plain_transformers(tmp_path / "out", picture, tmp_path)
    pictures = {"How many?": [picture], "Which is red?": [picture, picture], "Why?": []}
    said = [generated(run, tmp_path, ask, *given) for ask, given in pictures.items()]
    assert [text.strip() for text in reloaded["said"]] == said
    assert reloaded["again"].strip() == said[0]


@pytest.mark.parametrize("to", ["hf", "molmo"])
def test_a_run_starts_from_an_exported_directory_bit_for_bit(trained, tmp_path, to, capsys):
    run = trained("molmo")
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--to", to]) == 0
    assert ("trained with model.preprocessing corrected: readers of this layout" in capsys.readouterr().out) == (to == "molmo")
    (tmp_path / "next.yaml").write_text(FAMILIES["molmo"] + COMMON.replace("steps: 2", "steps: 1") + "checkpoint: {every_steps: 1}\n")
    overrides = [f"--run={tmp_path / 'next'}", f"--from={tmp_path / 'out'}", *STILL]
    assert cli.main(["train", str(tmp_path / "next.yaml"), *overrides]) == 0, capsys.readouterr().err
    before, after = weights_after(run), weights_after(tmp_path / "next")
    assert before.keys() == after.keys()
    assert moved(before, after) <= 1e-29
    words = [json.loads((folder / "assets/tokenizer/tokenizer.json").read_text())["model"] for folder in (run, tmp_path / "next")]
    assert words[0] == words[1]


def test_theworld_as_hf_is_plain_gemma_with_the_same_logits(trained, tmp_path):
    run = trained("theworld")
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    gemma, built = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out").eval(), opened(run)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("how many red squares").input_ids])
    with torch.no_grad():
        theirs = gemma(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
        ours = built.model.gemma(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
    assert torch.equal(theirs, ours)
    assert gemma.lm_head.weight.data_ptr() == gemma.get_input_embeddings().weight.data_ptr()  # tied, as in the base


@pytest.mark.parametrize(("name", "to", "count"), [("molmo", "hf", 1), ("molmo", "molmo", 1), ("theworld", "hf", 2), ("world", "hf", 2)])
def test_an_export_ends_its_answers_where_plait_does(trained, tmp_path, name, to, count):
    run = trained(name)
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--to", to]) == 0
    built = opened(run)
    inputs = built.family.Inputs(built.section, built.assets)
    stops = inputs.chat.stops if hasattr(inputs, "chat") else inputs.tokenizer.stops
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert len(stops) == count
    assert sorted(stops) == ends
    if count == 2:
        assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_ids_to_tokens(ends) == ["<eos>", "<end_of_turn>"]


@pytest.mark.parametrize(("name", "to"), [("world", "hf"), ("molmo", "hf"), ("molmo", "molmo")])
def test_every_file_of_an_export_follows_the_umask(trained, tmp_path, name, to):
    (tmp_path / "plain").touch()
    assert cli.main(["export", str(trained(name)), str(tmp_path / "out"), "--to", to]) == 0
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "passport.json"} < modes.keys() and set(modes.values()) == {(tmp_path / "plain").stat().st_mode}
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_theworld_comes_back_with_its_projector(trained, tmp_path):
    run = trained("world")
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    (tmp_path / "next.yaml").write_text(FAMILIES["world"] + COMMON.replace("steps: 2", "steps: 1"))
    overrides = [f"--run={tmp_path / 'next'}", f"--from={tmp_path / 'out'}", *STILL]
    assert cli.main(["train", str(tmp_path / "next.yaml"), *overrides]) == 0
    before, after = weights_after(run), weights_after(tmp_path / "next")
    assert moved(before, after) <= 1e-29


WRONG = {
    "export {run} {run}": "exists already: export to a new directory, or remove it",
    "export {run} {new} --to molm": "--to 'molm' is no layout of family 'molmo': did you mean molmo?",
    "export nowhere {new}": f"'nowhere' does not exist; {FORMS}",
}


@pytest.mark.parametrize(("command", "line"), WRONG.items())
def test_a_wrong_export_is_told_in_one_line(trained, tmp_path, capsys, command, line):
    told = command.format(run=trained("molmo"), new=tmp_path / "new").split()
    assert cli.main(told) == 2
    assert line in capsys.readouterr().err


def test_a_family_without_a_layout_says_so(tmp_path, capsys, monkeypatch, trained):
    monkeypatch.setattr("plait.families.offers.publisher", lambda family: None)
    assert cli.main(["export", str(trained("molmo")), str(tmp_path / "new")]) == 2
    assert "family 'molmo' has no layout that other software reads; `plait ckpt consolidate` writes" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["molmo", "world"])
def test_what_a_killed_export_left_is_gone_after_the_next(trained, tmp_path, monkeypatch, family):
    run = trained(family)

    def killed(out, wait):
        monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", lambda *arguments: wait())  # after the weights
        cli.main(["export", str(run), str(out)])

    kill_inside(tmp_path / "out", killed)
    assert [path.name for path in tmp_path.iterdir()] == [".out.tmp"]
    assert list((tmp_path / ".out.tmp").glob("*.safetensors"))
    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
