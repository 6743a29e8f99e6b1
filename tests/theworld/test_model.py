"""`plait.theworld.TheWorld`: a run, its export and a Hub repository answer as `plait generate` does, from a fresh process too."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from plait import cli
from plait.errors import PlaitError
from plait.theworld import TheWorld
from tests import hub_server
from tests.families.theworld.conftest import photo
from tests.hub_server import Repository

CONFIG = {
    "family": "theworld",
    "preset": "tiny",
    "model": {"tiny": {"initializer_range": 0.08}},
    "trainable": ["projector", "language", "world"],
    "data": {
        "train": [{"source": "scenes", "limit": 64, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour", "caption"]}}],
        "workers": 0,
    },
    "train": {"steps": 12, "global_batch": 8},
    "optim": {"lr": 0.01, "ema": {"decay": 0.5}},
    "checkpoint": {"every_steps": 6},
    "evaluate": [],
    "track": {"tensorboard": False},
}
ASK = "What colour is the circle?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run that has learnt to say several things, its export and two pictures."""
    folder = tmp_path_factory.mktemp("theworld")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(photo(number))
    for command in ("train run.yaml --run=run", "export run out --to=theworld"):
        words = [str(folder / word) if word in ("run.yaml", "run", "out") else word for word in command.split()]
        assert cli.main([word.replace("--run=run", f"--run={folder / 'run'}") for word in words]) == 0
    return folder


def commanded(capsys, folder, *options):
    """What `plait generate` prints."""
    capsys.readouterr()
    assert cli.main(["generate", str(folder), f"--prompt={ASK}", "--max-new-tokens=12", *options]) == 0
    return capsys.readouterr().out.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize("name", ["run", "run@latest", "out"])
def test_a_run_and_its_export_answer_as_the_command_does(folder, name, capsys):
    said = [commanded(capsys, folder / "run", f"--image={folder / picture}") for picture in ("1.png", "2.png")]
    theworld = TheWorld.from_pretrained(folder / name)
    assert theworld.generate(folder / "1.png", ASK, max_new_tokens=12) == said[0]
    both = theworld.generate([folder / "1.png", Image.open(folder / "2.png")], [ASK, ASK], max_new_tokens=12)
    assert both == said
    assert theworld.generate(folder / "1.png", ASK, world=False, max_new_tokens=12) == commanded(
        capsys, folder / "run", f"--image={folder / '1.png'}", "--world=false"
    )
    assert len(said[0]) > 3


def test_a_fresh_process_answers_with_the_world_on(folder, capsys):
    code = f"""if True:
        from plait.theworld import TheWorld
        theworld = TheWorld.from_pretrained({str(folder / "out")!r})
        print(theworld.generate({str(folder / "1.png")!r}, {ASK!r}, max_new_tokens=12))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.rstrip("\n") == commanded(capsys, folder / "run", f"--image={folder / '1.png'}")


def test_a_run_and_what_it_saves_are_the_same_model(folder, tmp_path, capsys):
    of_run = TheWorld.from_pretrained(folder / "run")
    of_run.save_pretrained(tmp_path / "saved")
    saved = TheWorld.from_pretrained(tmp_path / "saved")
    given = of_run.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": photo(1)}, {"type": "text", "text": ASK}]}],
        **{"add_generation_prompt": True, "tokenize": True, "return_dict": True},
    )
    with torch.no_grad():
        assert torch.equal(of_run.model(**given).logits, saved.model(**given).logits)
    for name in ("config.json", "processor_config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / "out" / name).read_bytes()
    assert "world.vae.encoder.conv_in.weight" in {name for name, _ in saved.model.named_parameters()}
    asked = f"--image={folder / '1.png'}"
    assert commanded(capsys, tmp_path / "saved", asked) == commanded(capsys, folder / "run", asked)
    with pytest.raises(PlaitError, match="saved exists already: save to a new directory, or remove it"):
        saved.save_pretrained(tmp_path / "saved")
    assert repr(saved).startswith("TheWorld(") and "parameters, on cpu)" in repr(saved)


def test_pictures_prompts_and_options_of_every_form(folder):
    theworld = TheWorld.from_pretrained(folder / "out")
    path = folder / "1.png"
    alike = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        np.asarray(Image.open(path)),
        torch.from_numpy(np.array(Image.open(path))),
    ]
    assert len({theworld.generate(picture, ASK, max_new_tokens=8) for picture in alike}) == 1
    assert theworld.generate(path, [ASK, ASK], max_new_tokens=8) == [theworld.generate(path, ASK, max_new_tokens=8)] * 2
    several = theworld.generate([path, folder / "2.png"], "Is <image> like <image>?", max_new_tokens=8)
    assert theworld.generate([[path, folder / "2.png"], None], ["Is <image> like <image>?", "Hello"], max_new_tokens=8)[0] == several
    drawn = [theworld.generate(path, ASK, temperature=1.0, seed=seed, max_new_tokens=8) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and theworld.generate([], [], max_new_tokens=8) == []


def test_a_clip_is_given_as_frames(folder, tmp_path):
    theworld = TheWorld.from_pretrained(folder / "out")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    frames = [photo(number) for number in range(3)]
    of_folder = theworld.generate(folder / "1.png", ASK, frames=tmp_path, max_new_tokens=8)
    assert theworld.generate([folder / "1.png"] * 2, [ASK] * 2, frames=[frames, str(tmp_path)], max_new_tokens=8) == [of_folder] * 2


@pytest.mark.parametrize(
    ("use", "line"),
    [
        (lambda t: t.generate("no.png", ASK), "there is no picture no.png"),
        (lambda t: t.generate(3, ASK), "a picture is a PIL image, an array, a path, an address or the content of a file, not int"),
        (lambda t: t.generate(np.zeros((2, 2))), r"a picture as an array is uint8 \(height, width, 3\), not float64 \(2, 2\)"),
        (lambda t: t.generate([photo(1)], [ASK, ASK]), "1 in `image` for 2 prompts: give one for each, or one that is no list for all"),
        (lambda t: t.generate(photo(1), "<image> <image>"), "the text has 2 <image> marks, the sample 1 images"),
        (lambda t: t.generate(photo(1), ASK, max_new_tokens=0), "generate: --max-new-tokens must be greater than or equal to 1, got 0"),
        (lambda t: t.generate(photo(1), ASK, frames="no.mp4"), "there is no clip no.mp4"),
    ],
)
def test_what_cannot_be_used_is_told(folder, use, line):
    with pytest.raises((PlaitError, TypeError), match=line):
        use(TheWorld.from_pretrained(folder / "out"))


def test_another_model_and_nothing_are_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(PlaitError, match="holds a model of type 'gemma3', not all of a theworld model: export its run with --to theworld"):
        TheWorld.from_pretrained(tmp_path)
    with pytest.raises(PlaitError, match=r"'runs/no/where' does not exist"):
        TheWorld.from_pretrained("runs/no/where")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlaitError, match="empty holds no checkpoint"):
        TheWorld.from_pretrained(tmp_path / "empty")


def test_an_export_without_its_processor_is_told(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out" / "processor_config.json").unlink()
    with pytest.raises(PlaitError, match=r"out has no processor_config.json, which says how pictures become tokens"):
        TheWorld.from_pretrained(tmp_path / "out")


def test_an_export_on_the_hub_is_loaded_by_name_and_revision(folder, tmp_path, monkeypatch):
    with hub_server.serving(monkeypatch, tmp_path) as server:
        files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        server.repositories["models", "me/whole"] = Repository(files)
        answer = TheWorld.from_pretrained(folder / "out").generate(photo(1), ASK, max_new_tokens=8)
        assert TheWorld.from_pretrained("me/whole@v2").generate(photo(1), ASK, max_new_tokens=8) == answer
        with pytest.raises(PlaitError, match=r"^me/nothing cannot be loaded: there is no http://.*me/nothing, or it is private"):
            TheWorld.from_pretrained("me/nothing")
