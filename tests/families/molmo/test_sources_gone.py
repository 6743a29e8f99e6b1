"""An export is asked and measured where the places that its run had the language model and the tower from are gone."""

import json
import re
from pathlib import Path

import yaml
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from plait import cli
from plait.families.molmo.config import TOWERS
from plait.families.molmo.tiny import framing_texts, write_tokenizer
from tests.commands.test_of_export import command

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SCENES = {"source": "scenes", "limit": 4, "options": {"size": [48, 48], "objects": [1, 2], "tasks": ["count"]}}
CONFIG = {
    "family": "molmo",
    "model": {"language": "lm", "vision_backbone": "debug", "vision_source": "tower", "overlap": 2, "max_crops": 1},
    "data": {"train": [SCENES], "workers": 0},
    "train": {"steps": 1, "global_batch": 2},
    "evaluate": [],
    "guard": {"blindness": False},
    "track": {"tensorboard": False, "monitor": False},
}
LAYOUTS = ("hf", "molmo")


def save_parts():
    """A language model with its tokenizer, and a tower of the debug row's sizes, as folders of transformers."""
    Qwen2ForCausalLM(Qwen2Config(vocab_size=768, bos_token_id=0, eos_token_id=[0, 1], **SIZES)).save_pretrained("lm")
    write_tokenizer(Path("made"), framing_texts())
    Path("made/tokenizer.json").rename("lm/tokenizer.json")
    tower = TOWERS["debug"]
    sizes = {"hidden_size": tower.hidden, "num_hidden_layers": tower.layers, "num_attention_heads": tower.heads}
    sizes |= {"intermediate_size": tower.mlp, "image_size": tower.image, "patch_size": tower.patch}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained("tower")


def told(capsys, name):
    """An answer, and the figures of the loss, of a run or an export."""
    answer = command(capsys, "generate", name, "--prompt=How many?", "--max-new-tokens=6")
    assert command(capsys, "eval", name, "--bench=loss", f"--data={json.dumps([SCENES])}", f"--out=out/{name}")[0] == 0
    return answer[0], answer[1], json.loads(Path(f"out/{name}/metrics.json").read_text())["figures"]


def test_an_export_holds_what_it_needs_of_a_local_language_model_and_tower(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_parts()
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    assert cli.main(["train", "run.yaml", "--run=run"]) == 0
    for layout in LAYOUTS:
        assert cli.main(["export", "run", layout, f"--to={layout}"]) == 0
    before = told(capsys, "run")
    for part in ("lm", "tower"):
        Path(part).rename(f"{part}.elsewhere")
    assert [told(capsys, layout) for layout in LAYOUTS] == [before, before] and before[0] == 0
    assert command(capsys, "generate", "run", "--prompt=a")[1].startswith("plait: model.language: cannot load 'lm'")
    for layout in LAYOUTS:  # what is a whole model is no language model
        code, said = command(capsys, "train", "run.yaml", "--run=other", f"--model.language={layout}")
        assert code == 2 and said.endswith(f"model.language: {layout} is a whole model, not a language model: set `from: {layout}`")
    for value in {*json.loads(Path("hf/config.json").read_text())["auto_map"].values()}:
        module, name = value.split(".")
        assert re.search(rf"^class {name}\(", Path(f"hf/{module}.py").read_text(), re.MULTILINE), value
