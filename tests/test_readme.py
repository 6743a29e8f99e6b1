"""The README is held to what it says: its commands run, its links and paths exist, and what a newcomer needs is within 80 lines.

Long commands run on a shortened budget: the same words, with the settings of SHORT behind them.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from plait import cli
from plait.data.synthetic.scenes import Scenes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOP = "\n".join(README.splitlines()[:80])
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
DEMO = yaml.safe_load((ROOT / "configs" / "theworld" / "demo.yaml").read_text(encoding="utf-8"))

SHORT = {
    "plait train": [
        *("--stages.0.train.steps=1", "--stages.1.train.steps=2", "--optim.schedule.warmup_steps=0", "--train.global_batch=4"),
        *("--evaluate=[]", "--track.tensorboard=false", "--data.train.0.limit=40"),
    ],
    "plait eval": ["--samples=4"],
    "plait generate": ["--max-new-tokens=2"],
    "plait prove": ["--steps=1", "--kills=0", "--warm", "--train.global_batch=4"],
}


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def words(command: str) -> list[str]:
    """The command as typed, then what shortens it; `--samples 100` gives way to `--samples=4`."""
    typed = [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*")+', re.sub(r" (--[\w-]+) (?=\d)", r" \1=", command))]
    short = SHORT.get(" ".join(typed[:2]), [])
    replaced = {option.partition("=")[0] for option in short}
    return [*(word for word in typed[1:] if word.partition("=")[0] not in replaced), *short]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What the commands read, in a folder of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "docs" / "images", folder / "docs" / "images")
    return folder


PLAIT = [command for command in commands(README) if command.startswith("plait")]


@pytest.mark.parametrize("command", PLAIT)
def test_readme_command_runs(command: str, checkout, monkeypatch, capsys) -> None:
    monkeypatch.chdir(checkout)
    if any(name in command for name in ("stages runs/demo", "eval", "generate")) and not (checkout / "runs" / "demo").is_dir():
        assert cli.main(words("plait train configs/theworld/demo.yaml")) == 0  # when this test runs alone
    assert cli.main(words(command)) == 0, capsys.readouterr().err


def test_readme_has_no_command_but_make_and_plait() -> None:
    assert {command.split()[0] for command in commands(README)} == {"make", "plait"}
    assert commands(README)[0] == "make demo"


def test_demo_target_trains_measures_and_shows(tmp_path) -> None:
    dry = subprocess.run(["make", "-n", "-W", "pyproject.toml", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "install_plait ." in dry
    assert "plait train configs/theworld/demo.yaml" in dry
    assert re.search(r"plait eval runs/demo --bench accuracy .*--show 3", dry)
    assert DEMO["run"] == "runs/demo"


def test_demo_shows_the_product() -> None:
    stages = [(stage["name"], stage["trainable"]) for stage in DEMO["stages"]]
    assert stages == [("projection", ["projector"]), ("all", ["projector", "vision", "language"])]
    assert DEMO["model"]["world"], "the world encoder is on"
    assert DEMO["checkpoint"]["every_steps"]
    assert DEMO["data"]["train"][0]["source"] == DEMO["data"]["validation"][0]["source"] == "scenes"


def test_demo_is_measured_by_one_question_about_scenes_as_it_has_learned_from_several() -> None:
    learned, measured = (DEMO["data"][part][0]["options"] for part in ("train", "validation"))
    assert {key: value for key, value in learned.items() if key not in ("questions", "asked_as", "tasks")} == {
        key: value for key, value in measured.items() if key != "tasks"
    }, "the scenes are alike"
    assert measured["tasks"] == {"colour": 1, "shape": 1, "count": 1}, "every kind of question is asked as often"
    assert (measured["size"], measured["objects"]) == ([32, 32], [1, 2])
    assert measured["shapes"] == ["circle", "triangle", "cross"]
    in_training, held_out = Scenes(learned, seed=0, split="train"), Scenes(measured, seed=0, split="validation")
    assert {len(in_training[i]["messages"]) for i in range(20)} == {2, 4}, "a question that comes twice is left out"
    assert {len(held_out[i]["messages"]) for i in range(20)} == {2}


def test_readme_top_says_what_two_commands_results_and_map() -> None:
    assert README.startswith("# plait\n\nplait trains multimodal models")
    for text in ("## Two commands", "make demo", "plait train configs/theworld/demo.yaml", "| recipe | data | result |", "## The house"):
        assert text in TOP, f"{text!r} comes after line 80"
    assert TOP.count("```") % 2 == 0, "line 80 cuts a block"
    assert not re.search("@[A-Z]+@", README), "a figure is missing"


def test_readme_map_names_what_exists() -> None:
    house = re.search(r"## The house\n```\n(.*?)```", README, re.S)
    assert house is not None
    inside = set(re.findall(r"[a-z_]+\.py|[a-z_]+(?=/)", house[1])) - {"src", "plait"}
    rooms = {path.name for path in (ROOT / "src/plait").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= inside
    known = {path.name for path in [*ROOT.iterdir(), *(ROOT / "src/plait").rglob("*")]}
    assert inside <= known, f"the map names {sorted(inside - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "theworld").glob("*.yaml")), ids=lambda path: path.name)
def test_recipe_opens_with_command_hardware_time_and_expectation(path: Path) -> None:
    opening = path.read_text(encoding="utf-8").split("\nrun:")[0]
    for word in ("Run:", f"plait train configs/theworld/{path.name}", "Hardware:", "Time:", "Expect:"):
        assert word in opening, f"{path.name} does not say {word}"
