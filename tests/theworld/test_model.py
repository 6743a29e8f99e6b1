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


@pytest.fixture(scope="module")
def clips(folder):
    """A run whose world encoder sees clips, and one without a world."""
    scenes = {"source": "scenes", "limit": 8, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour"], "frames": 5}}
    recipe = {**CONFIG, "data": {"train": [scenes], "workers": 0}, "train": {"steps": 1, "global_batch": 4}, "checkpoint": {}}
    (folder / "clips.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", str(folder / "clips.yaml"), f"--run={folder / 'clips'}", "--model.world.steps=1"]) == 0
    blind = ("--model.world=off", "--trainable=[language]")
    assert cli.main(["train", str(folder / "clips.yaml"), f"--run={folder / 'blind'}", *blind]) == 0
    return folder


def test_a_clip_is_given_as_frames(clips, tmp_path):
    theworld = TheWorld.from_pretrained(clips / "clips")
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    frames = [photo(number) for number in range(5)]
    of_folder = theworld.generate(clips / "1.png", ASK, frames=tmp_path, max_new_tokens=8)
    assert theworld.generate([clips / "1.png"] * 2, [ASK] * 2, frames=[frames, str(tmp_path)], max_new_tokens=8) == [of_folder] * 2


NEEDS = "this model was trained on clips or futures: it has a single picture, and model.world.steps 1 takes 1 + 4 k frames, k from 1 on"
NO_WORLD = "changes nothing: this model has no world encoder (model.world is off); leave it out"


@pytest.mark.parametrize(
    ("run", "options", "line"),
    [
        ("clips", ["--image=1.png"], f"generate: {NEEDS}: give --frames a clip, or --world=off"),
        ("clips", ["--image=1.png", "--frames=1.png", "--world=off"], "generate: --frames changes nothing: only the world encoder sees"),
        ("run", ["--image=1.png", "--frames=2.png"], "--frames: model.world.steps is 0, so that the world encoder sees one picture"),
        ("run", ["--image=1.png", "--top-p=0.5"], "generate: --top-p changes nothing: at temperature 0 the likeliest token is always"),
        ("run", ["--image=1.png", "--seed=1"], "generate: --seed changes nothing: at temperature 0"),
        ("blind", ["--image=1.png", "--world=on"], f"generate: --world {NO_WORLD}"),
        ("blind", ["--image=1.png", "--frames=1.png"], f"generate: --frames {NO_WORLD}"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(clips, monkeypatch, capsys, run, options, line):
    monkeypatch.chdir(clips)
    capsys.readouterr()
    assert cli.main(["generate", run, f"--prompt={ASK}", "--max-new-tokens=2", *options]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert cli.main(["generate", run, f"--prompt={ASK}", "--max-new-tokens=2", "--image=1.png", "--world=off"]) == 0


def test_an_encoder_that_is_not_there_is_no_layout(clips, monkeypatch, capsys):
    monkeypatch.chdir(clips)
    assert cli.main(["export", "blind", "held", "--to=theworld-with-encoder"]) == 2
    line = "--to theworld-with-encoder: this model has no world encoder (model.world is off): export it --to theworld"
    assert line in capsys.readouterr().err and not (clips / "held").exists()
    with pytest.raises(PlaitError, match=r"has no world encoder .* leave `encoder` out"):
        TheWorld.from_pretrained(clips / "blind").save_pretrained(clips / "held", encoder=True)


@pytest.mark.parametrize(
    ("run", "use", "line"),
    [
        ("clips", lambda t: t.generate("1.png", ASK), f"{NEEDS}: give `frames` a clip, or world=False"),
        ("blind", lambda t: t.generate("1.png", ASK, frames="1.png"), f"`frames` {NO_WORLD}"),
        ("run", lambda t: t.generate("1.png", ASK, top_p=0.5), "`top_p` changes nothing: at temperature 0"),
        ("run", lambda t: t.generate(ASK, "1.png"), f"`prompt` names the file 1.png, and `image` is the str {ASK!r}, which is none"),
        ("run", lambda t: t.generate(ASK, Image.new("RGB", (8, 8))), "`prompt` is to be a text, or a list of texts, and is the Image"),
        ("run", lambda t: t.generate("1.png", [ASK, 3]), "`prompt` is to be a text, or a list of texts, and is the int 3"),
        ("run", lambda t: t.generate(ASK, "Hello"), f"the str {ASK!r} is no path, address or base64 of a picture"),
        ("run", lambda t: t.generate("1.png", ASK, world="perhaps"), "generate: --world must be a valid boolean"),
        ("run", lambda t: t.save_pretrained(3), "TheWorld.save_pretrained: `folder` is to be a text or a path, and is the int 3"),
        ("run", lambda t: TheWorld.from_pretrained(3), "TheWorld.from_pretrained: `name` is to be a text or a path, and is the int 3"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(clips, monkeypatch, run, use, line):
    monkeypatch.chdir(clips)
    with pytest.raises(PlaitError) as told:
        use(TheWorld.from_pretrained(run))
    assert line in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("use", "line"),
    [
        (lambda t: t.generate("no.png", ASK), "there is no picture no.png"),
        (lambda t: t.generate(3, ASK), "a picture is a PIL image, an array, a path, an address or the content of a file, not the int 3"),
        (lambda t: t.generate(np.zeros((2, 2))), r"a picture as an array is uint8 \(height, width, 3\), not float64 \(2, 2\)"),
        (lambda t: t.generate([photo(1)], [ASK, ASK]), "1 in `image` for 2 prompts: give one for each, or one that is no list for all"),
        (lambda t: t.generate(photo(1), "<image> <image>"), "the text has 2 <image> marks, the sample 1 images"),
        (lambda t: t.generate(photo(1), ASK, max_new_tokens=0), "generate: --max-new-tokens must be greater than or equal to 1, got 0"),
        (lambda t: t.generate(photo(1), ASK, frames="no.mp4"), "there is no clip no.mp4"),
        (lambda t: t.generate(None, ASK, frames=[]), "`frames` is an empty list: give a clip, or leave it out"),
    ],
)
def test_what_cannot_be_used_is_told(folder, use, line):
    with pytest.raises(PlaitError, match=line):
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


def test_a_run_whose_name_could_be_one_of_the_hub_is_the_one_on_disk(folder, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(folder / "run")
    monkeypatch.chdir(tmp_path)
    steps = sorted(int(path.name.partition("-")[2]) for path in (folder / "run").glob("stage-*/step-*"))
    asked = {"max_new_tokens": 6}
    newest = TheWorld.from_pretrained(folder / "run").generate(folder / "1.png", ASK, **asked)
    assert TheWorld.from_pretrained(f"runs/mine@{steps[-1]}").generate(folder / "1.png", ASK, **asked) == newest
    with pytest.raises(PlaitError, match=f"runs/mine has no checkpoint at step '999'; it has .*{steps[-1]}"):
        TheWorld.from_pretrained("runs/mine@999")


def test_an_export_without_its_processor_is_told(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out" / "processor_config.json").unlink()
    with pytest.raises(PlaitError, match=r"out has no processor_config.json, which says how pictures become tokens"):
        TheWorld.from_pretrained(tmp_path / "out")


def test_a_run_and_a_checkpoint_on_the_hub_are_loaded_by_name(folder, tmp_path, monkeypatch):
    files = {str(path.relative_to(folder / "run")): path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    files = {name: body for name, body in files.items() if not name.startswith(("eval/", "events/"))}
    step = "stage-1-train/step-00000012/"
    alone = {name.removeprefix(step): body for name, body in files.items() if name.startswith((step, "assets/"))}
    with hub_server.serving(monkeypatch, tmp_path) as server:
        for name, held in (("run", files), ("step", alone), ("bare", {"model.safetensors": b"x"})):
            server.repositories["models", f"me/{name}"] = Repository(held)
        monkeypatch.chdir(tmp_path)
        marks = {"me/run": "run", "me/run@6": "run@6", "me/step": "run"}
        for name, local in marks.items():
            answer = TheWorld.from_pretrained(folder / local).generate(photo(1), ASK, max_new_tokens=8)
            assert TheWorld.from_pretrained(name).generate(photo(1), ASK, max_new_tokens=8) == answer
        assert not [path for path in server.downloaded() if "metrics" in path or "lineage" in path]
        lines = {
            "me/run@7": "me/run@7 cannot be loaded: me/run has no checkpoint at step '7'; it has 6, 12",
            "me/bare": "me/bare holds neither what plait export --to theworld writes nor a run with a checkpoint",
        }
        for name, line in lines.items():
            with pytest.raises(PlaitError) as told:
                TheWorld.from_pretrained(name)
            assert line in str(told.value) and "\n" not in str(told.value)


def test_an_export_on_the_hub_is_loaded_by_name_and_revision(folder, tmp_path, monkeypatch):
    with hub_server.serving(monkeypatch, tmp_path) as server:
        files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
        server.repositories["models", "me/whole"] = Repository(files)
        answer = TheWorld.from_pretrained(folder / "out").generate(photo(1), ASK, max_new_tokens=8)
        assert TheWorld.from_pretrained("me/whole@v2").generate(photo(1), ASK, max_new_tokens=8) == answer
        with pytest.raises(PlaitError, match=r"^me/nothing cannot be loaded: there is no http://.*me/nothing, or it is private"):
            TheWorld.from_pretrained("me/nothing")
