"""`plait export --check`: equal exports of every family pass, in a process of their own; broken ones are refused with what differs."""

import os
import re
import shutil
import subprocess
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait import cli
from plait.commands.actions.export_check import check, load

SCENES = "{source: scenes, limit: 8, options: {size: [32, 32], objects: [1, 2], tasks: [TASK], supersample: 2}}"
COMMON = f"""
data: {{train: [{SCENES}], validation: [], workers: 0}}
train: {{steps: 2, global_batch: 4}}
optim: {{lr: 0.02, schedule: {{name: constant, warmup_steps: 0}}}}
track: {{tensorboard: false}}
"""
TINY = """{hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}"""
FAMILIES = {
    "molmo": "family: molmo\npreset: debug\nmodel: {max_crops: 1}\n" + COMMON.replace("TASK", "count"),
    "world": f"family: theworld\npreset: tiny\nmodel: {{system: Be brief., tiny: {TINY}}}\n" + COMMON.replace("TASK", "count"),
    "adapters": f"family: theworld\npreset: tiny\nmodel: {{world: null, tiny: {TINY}}}\n"
    "adapters: {language: {rank: 2, alpha: 8}, vision: {kind: dora, rank: 2}}\ntrainable: [language.lora, vision.lora]\n"
    + COMMON.replace("TASK", "count"),
    "nanodit": "family: nanodit\nmodel: {depth: 1, hidden: 16, heads: 2, space: pixels, patch: 8, text: words, text_dim: 16, words: 64, "
    "image_dim: 0, image_size: 32}\n" + COMMON.replace("TASK", "caption"),
}
TRUSTED = {
    "adapters": ["--to=peft", "--check=peft"],
    "molmo": ["--check=transformers", "--trust-remote-code"],
    "nanodit": ["--check=diffusers", "--trust-remote-code"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(family)` is a run of two steps, made once."""
    folder, made = tmp_path_factory.mktemp("check"), {}

    def run(name):
        if name not in made:
            (folder / f"{name}.yaml").write_text(FAMILIES[name])
            made[name] = folder / name
            assert cli.main(["train", str(folder / f"{name}.yaml"), f"--run={made[name]}"]) == 0
        return made[name]

    return run


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """`exported(family)` is an export that passed its check, in a process of its own, and what the command said."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def export(name, log):
        if name not in made:
            made[name] = folder / name
            assert cli.main(["export", str(trained(name)), str(made[name]), *TRUSTED.get(name, ["--check=transformers"])]) == 0
            made[name] = made[name], log.text
        return made[name]

    return export


@pytest.fixture
def forked(monkeypatch):
    """The program that loads an export runs in a fork of this process, which has imported the libraries."""

    def run(command, environment):
        if (child := os.fork()) == 0:
            torch.set_num_threads(torch.get_num_threads())  # its pool is made anew after a fork, which threads may not do at once
            os.environ.update(environment)
            warnings.simplefilter("ignore")  # as in a process of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            try:
                load.main(command[-1])
            finally:
                os._exit(0)
        return subprocess.CompletedProcess(command, os.waitpid(child, 0)[1], "", "")

    monkeypatch.setattr(check, "_run", run)


EQUAL = {
    "molmo": r"without plait: all \d+ weights are equal, bit for bit[^|]*3 prompts: the same tokens, .* the same greedy answers",
    "world": r"without plait: all \d+ weights are equal, bit for bit[^|]*3 prompts: the same tokens, .* the same greedy answers",
    "adapters": r"without plait: all 28 weights are equal, bit for bit[^|]*logits of 48 positions are within .*vision",
    "nanodit": r"without plait: all \d+ weights are equal, bit for bit[^|]*6 pictures of the same seeds are equal, byte for byte",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_that_is_the_model_passes_in_a_process_of_its_own(exported, trained, caplog, name):
    out, said = exported(name, caplog)
    assert re.search(EQUAL[name], said.replace("\n", " ")), said
    assert out.is_dir() and not out.with_name(f"{out.name}.unchecked").exists()
    assert cli.main(["verify", str(out), "--run", str(trained(name))]) == 0, "loading it has changed no file"


def test_a_whole_world_passes_with_plait(trained, tmp_path, forked, caplog):
    words = ["--to=theworld-with-encoder", "--check=transformers"]
    assert cli.main(["export", str(trained("world")), str(tmp_path / "out"), *words]) == 0
    assert "in a process of its own: all" in caplog.text and (tmp_path / "out/config.json").is_file()
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_adapters_over_4_bits_pass_over_the_values_that_they_stand_for(tmp_path, forked, caplog):
    pytest.importorskip("bitsandbytes")
    (tmp_path / "a.yaml").write_text(FAMILIES["adapters"].replace("alpha: 8", "quantize: nf4"))
    assert cli.main(["train", str(tmp_path / "a.yaml"), f"--run={tmp_path / 'run'}", "--distributed.strategy=ddp"]) == 0
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), *TRUSTED["adapters"]]) == 0
    assert "all 28 weights are equal, bit for bit" in caplog.text and (tmp_path / "out").is_dir()


def weights_of(folder):
    """A weights file of an export, and its tensors: of adapters those of the language model."""
    path = min(path for path in folder.rglob("*.safetensors") if path.name != "projector.safetensors")
    return path, load_file(path)


def change(edit):
    """A fault: `edit` changes the tensors of the weights file by name."""

    def fault(folder):
        path, tensors = weights_of(folder)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return fault


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(name, old, new):
    """A fault: a text in a file is another."""

    def fault(folder):
        text = (folder / name).read_text()
        assert old in text, text
        (folder / name).write_text(text.replace(old, new))

    return fault


def torn(folder):
    path, _ = weights_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def renamed(name, new):
    return change(lambda tensors: tensors.update({new: tensors.pop(name)}))


def exchanged(one, other):
    def edit(tensors):
        tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()

    return change(edit)


def nudged(name):
    def edit(tensors):
        row = tensors[name].flatten()
        row[0] = torch.nextafter(row[0], torch.tensor(9.0))

    return change(edit)


def misshapen(name):
    return change(lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


halved = change(lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))
W1, W2 = "connector.projector.w1.weight", "connector.projector.w2.weight"
QUERY, OUTPUT = (f"language.model.layers.0.self_attn.{name}_proj.weight" for name in "qo")
MOLMO = {
    "no weights": (remove("model.safetensors"), "transformers cannot load and ask it: OSError"),
    "no configuration": (remove("config.json"), "transformers cannot load and ask it: "),
    "no code": (remove("connector.py"), "transformers cannot load and ask it: .*connector"),
    "no tokenizer": (remove("tokenizer.json"), "transformers cannot load and ask it: "),
    "torn weights": (torn, "transformers cannot load and ask it: "),
    "a renamed tensor": (renamed(W2, "connector.projector.w9.weight"), f"it lacks 1 of the weights: {W2}"),
    "a misshapen tensor": (misshapen(W2), r"connector\.projector\.w2\.weight|size mismatch|mismatch"),
    "exchanged tensors": (exchanged(QUERY, OUTPUT), f"2 of 117 weights have other values: {QUERY}"),
    "the last digit of one number": (nudged(W1), f"1 of 117 weights have other values: {W1}$"),
    "halved weights": (halved, r"117 weights have other values"),
    "another dtype": (
        replace("config.json", '"dtype": "float32"', '"dtype": "bfloat16"'),
        r"weights have other dtypes or shapes: .*\(bfloat16",
    ),
    "another stop": (replace("generation_config.json", '"eos_token_id": [\n', '"eos_token_id": [\n    7,\n'), "its eos_token_id is"),
    "another template": (replace("chat_template.jinja", '"format": "role"', '"format": "none"'), "prompt 1 becomes other tokens"),
    "other tiles": (replace("preprocessor_config.json", '"max_crops": 1', '"max_crops": 4'), "prompt 1 becomes other tokens"),
    "other code": (replace("modeling_plait_molmo.py", "features_TD.to(", "2 * features_TD.to("), "logits of prompt 1 are up to"),
}
NANODIT = {
    "no index": (remove("model_index.json"), "diffusers cannot load and ask it: "),
    "torn weights": (torn, "diffusers cannot load and ask it: "),
    "halved weights": (halved, "21 of 23 weights have other values: transformer.embed.weight"),
    "the last digit of one number": (nudged("embed.bias"), "1 of 23 weights have other values: transformer.embed.bias$"),
    "no weights": (remove("transformer/diffusion_pytorch_model.safetensors"), "diffusers cannot load and ask it: "),
    "no part's code": (remove("transformer/transformer_plait_nanodit.py"), "diffusers cannot load and ask it: "),
    "other guidance": (replace("model_index.json", '"text_scale": 3.0', '"text_scale": 1.0'), "its sampling is"),
    "other code": (
        replace("pipeline_plait_nanodit.py", "mul_(127.5)", "mul_(120.0)"),
        r"\d+% of the values of the pictures of call 1 differ",
    ),
    "another seed": (
        replace("pipeline_plait_nanodit.py", 'key("generate", ', 'key("generates", '),
        "of the pictures of call 1 differ, by up to",
    ),
    "a renamed tensor": (
        renamed("embed.bias", "embed.bias2"),
        "it lacks 1 of the weights: embed.bias|diffusers cannot load and ask it: ",
    ),
}


def pickled(out):
    weights = out / "language" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def without(folder):
    return lambda out: shutil.rmtree(out / folder)


A = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
ADAPTERS = {
    "no configuration": (remove("language/adapter_config.json"), "peft cannot load and ask it: .*Can't find 'adapter_config.json'"),
    "no folder of a component": (without("vision"), "peft cannot load and ask it: .*there is no adapter_model.safetensors"),
    "torn weights": (torn, "peft cannot load and ask it: SafetensorError"),
    "a renamed tensor": (renamed(A, f"{A}2"), r"1 of 28 weights have other values: .*layers.0.self_attn.q_proj.lora_A.default.weight$"),
    "halved weights": (halved, "28 of 28 weights have other values: "),
    "the last digit of one number": (nudged(A), r"1 of 28 weights have other values: .*layers.0.self_attn.q_proj.lora_A.default.weight$"),
    "no weights": (remove("language/adapter_model.safetensors"), "peft cannot load and ask it: .*there is no adapter_model.safetensors"),
    "a pickle": (pickled, "peft cannot load and ask it: .*there is no adapter_model.safetensors"),
    "another alpha": (replace("language/adapter_config.json", '"lora_alpha": 8', '"lora_alpha": 9'), "logits are up to"),
    "other targets": (replace("vision/adapter_config.json", "layers.0.mlp.fc1", "layers.0.mlp.fc2"), "they differ in "),
}
BROKEN = [("adapters", name) for name in ADAPTERS] + [("molmo", name) for name in MOLMO] + [("nanodit", name) for name in NANODIT]


@pytest.mark.parametrize(("family", "name"), BROKEN)
def test_a_broken_export_is_refused_with_what_differs(trained, exported, forked, tmp_path, caplog, capsys, family, name):
    fault, line = {"adapters": ADAPTERS, "molmo": MOLMO, "nanodit": NANODIT}[family][name]
    out = shutil.copytree(exported(family, caplog)[0], tmp_path / "out")
    fault(out)
    assert cli.main(["export", str(trained(family)), str(out), *TRUSTED[family]]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"plait: {out}(/\w+)? is no export to pass on: ", told) and re.search(line, told), told


def test_an_export_that_is_not_equal_does_not_get_its_name(trained, tmp_path, forked, monkeypatch, capsys):
    real = check.load_file
    monkeypatch.setattr(check, "load_file", lambda path: {name: value + 1 for name, value in real(path).items()})
    command = ["export", str(trained("nanodit")), str(tmp_path / "out"), *TRUSTED["nanodit"]]
    assert cli.main(command) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.unchecked"]
    assert cli.main(command) == 2
    assert "out.unchecked exists already, an export that was not equal to its run: look at it, and remove it" in capsys.readouterr().err


REFUSED = {
    ("molmo", "--check=transformers"): "an export --to hf is loaded by the code in it: add --trust-remote-code to have that run",
    ("world", "--check=transformers --trust-remote-code"): "an export --to hf has no code: leave --trust-remote-code out",
    ("molmo", "--check=diffusers --trust-remote-code"): "hf is a layout of family 'molmo' that is loaded by transformers; known: --to hf",
    ("molmo", "--to=molmo --check=transformers"): "molmo is a layout of family 'molmo' that no check loads; known: --to hf --check",
    ("adapters", "--to=hf --check=peft"): "hf is a layout of family 'theworld' that is loaded by transformers; known: ",
    ("molmo", "--trust-remote-code"): "--trust-remote-code goes with --check",
}


@pytest.mark.parametrize(("asked", "line"), REFUSED.items())
def test_a_check_that_cannot_be_is_told_before_anything_is_written(trained, tmp_path, capsys, asked, line):
    assert cli.main(["export", str(trained(asked[0])), str(tmp_path / "out"), *asked[1].split()]) == 2
    assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_with_an_export_stays_in_its_folder(exported, tmp_path, caplog, capsys):
    out = shutil.copytree(exported("nanodit", caplog)[0], tmp_path / "out")
    capsys.readouterr()
    assert cli.main(["generate", str(out), "--prompt=a red circle"]) == 0
    assert f"{out}/generated/a-red-circle-32x32-seed-0-export.png: 'a red circle', 32x32, seed 0" in capsys.readouterr().out
    assert cli.main(["eval", str(out), "--bench=grid", f"--data=[{SCENES.replace('TASK', 'caption')}]", "--samples=2"]) == 0
    assert len([*out.glob("validation/export/*.png")]) == 3 and len([*out.glob("generated/*.png")]) == 2


def test_a_folder_of_adapters_alone_is_no_model(trained, exported, tmp_path, caplog, capsys):
    out, recipe = exported("adapters", caplog)[0], trained("adapters").with_suffix(".yaml")
    line = f"plait: {out} holds adapters alone, for peft: give the run that trained them, or export that in another layout"
    begun = ["train", str(recipe), f"--from={out}", f"--run={tmp_path / 'new'}"]
    for words in (["generate", str(out), "--prompt=a"], ["eval", str(out), "--bench=loss"], begun):
        assert cli.main(words) == 2 and capsys.readouterr().err.strip().endswith(line)
