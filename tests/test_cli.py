"""The command line as a user meets it: what goes wrong gives exit code 2 and one line that says what to do, without a traceback."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plait import cli
from plait.commands import command_line
from plait.families.theworld.catalogue.datasets import scored
from tests import toy_family as toy

CONFIG = """
family: theworld
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
data:
  train: [{source: scenes, limit: 30, options: &scenes {size: [32, 32], objects: 1, tasks: [colour]}}]
  validation: [{source: scenes, limit: 8, options: *scenes}]
train: {steps: 2, global_batch: 4}
optim: {schedule: {warmup_steps: 0}}
track: {tensorboard: false}
"""
FORMS = "give a run, RUN@STEP, RUN/STAGE, RUN/STAGE@best, RUN/stepN, RUN/latest or a step folder"
BENCHES = "loss, accuracy, captions"
COMPONENTS = "projector, vision, language, world"

# Found wrong before torch is imported.
TYPED = {
    "": "the following arguments are required: VERB (see plait --help)",
    "trian good.yaml": "VERB 'trian' is unknown: did you mean train? (see plait --help)",
    "train": "the following arguments are required: config (see plait train --help)",
    "train good.yaml extra": (
        "'extra' is not understood: a setting is written --name=value or --name value, for example --optim.lr=3e-6 (see plait --help)"
    ),
    "train good.yaml --train.steps": (
        "'--train.steps' is not understood: a setting is written --name=value or --name value, for example --optim.lr=3e-6 "
        "(see plait --help)"
    ),
    "train good.yaml --run=": "command line: --run= has no value: is a variable of the shell unset? --run=null means none",
    "train good.yaml --from=": "command line: --from= has no value: is a variable of the shell unset? --from=null means none",
    "data inspect good.yaml --out=": "--out is empty: is a variable of the shell unset? (see plait data inspect --help)",
    "eval x --bench=": "--bench is empty: is a variable of the shell unset? (see plait eval --help)",
    "train good.yaml --steps 3": "command line: steps is not a key: did you mean stages?",
    "train good.yaml --optim.lr fast": "command line: optim.lr must be a number, got 'fast'",
    "train --optim.lr fast good.yaml": "command line: optim.lr must be a number, got 'fast'",
    "train good.yaml --train.steps -5": "command line: train.steps must be greater than or equal to 1, got -5",
    "train good.yaml --optim.lr=1 --optim.lr 2": "--optim.lr is given twice: give it once (see plait --help)",
    "train good.yaml --nproc 2 --nproc=2": "--nproc is given twice: give it once (see plait --help)",
    "train good.yaml --fresh --fresh": "--fresh is given twice: give it once (see plait --help)",
    "fork a b --run x --run y": "--run is given twice: give it once (see plait --help)",
    "eval nowhere --bench loss --foo 3": "'--foo' is not an option of this command (see plait --help)",
    "train godo.yaml": "godo.yaml: no such file; did you mean good.yaml?",
    "train good.yaml --optim.lrr=1": "command line: optim.lrr is not a key: did you mean optim.lr?",
    "train good.yaml --optim.lr=fast": "command line: optim.lr must be a number, got 'fast'",
    "train good.yaml --train.steps=-5": "command line: train.steps must be greater than or equal to 1, got -5",
    "train good.yaml --optim.schedule.warmup_steps=2": (
        "command line: optim.schedule.warmup_steps is 2, but the stage has 2 steps: warm up for fewer, or train longer"
    ),
    "train good.yaml --model.world.tokens=poled": (
        "command line: model.world.tokens must be 'pooled', 'patches', 'spatial' or 'channel', got 'poled': did you mean 'pooled'?"
    ),
    "train good.yaml --preset=tny": (
        "command line: preset 'tny' is not one of family 'theworld': did you mean 'tiny'? known: gemma3-4b, tiny"
    ),
    "train good.yaml --family=gemma": "command line: family 'gemma' is unknown: known: molmo, nanodit, theworld",
    "train good.yaml --data.train.0.source=scene": (
        "command line: data.train.0.source must be 'shards', 'folder', 'jsonl', 'datasets', 'dataset', 'latents', 'nlvr' or 'scenes', "
        "got 'scene': did you mean 'scenes'?"
    ),
    "eval nowhere": "the following arguments are required: --bench (see plait eval --help)",
    "eval nowhere --bench loss --samples=-3": (
        "argument --samples: must be a whole number of at least 1, got '-3' (see plait eval --help)"
    ),
    "eval nowhere --bench loss --foo=3": "'--foo=3' is not an option of this command (see plait --help)",
    "eval nowhere --bench loss --bench=accuracy": "--bench is given twice: give it once (see plait --help)",
    "ckpt inspct run": "WHAT 'inspct' is unknown: did you mean inspect? (see plait ckpt --help)",
    "data inspect good.yaml --split=test": "--split 'test' is unknown: known: train, validation (see plait data inspect --help)",
}

# Found wrong with torch at hand: the same entry point, in this process.
BEGUN = {
    "train good.yaml --run=new --trainable=[projectr,language]": (
        f"trainable names 'projectr', which is no component of this model; components: {COMPONENTS}"
    ),
    "train good.yaml --run=new --evaluate=[{bench:\u00a0acuracy}]": f"evaluate names bench 'acuracy', which is unknown; known: {BENCHES}",
    "train good.yaml --run=new --data.train=[{source:\u00a0folder,\u00a0path:\u00a0nowhere}]": (
        "data source folder:nowhere: {place}/nowhere is not a folder"
    ),
    "train good.yaml --run=new --data.train.0.options.tasks=[colur]": "scenes: there is no task 'colur'; did you mean 'colour'?",
    "train good.yaml --run=new --data.train.0.options.objets=3": "scenes have no option 'objets'; did you mean 'objects'?",
    "train good.yaml --run=new --data.max_tokens=8": (
        "scenes train: none of the 30 samples looked at can be used: 41 tokens: data.max_tokens 8 would cut an image or world block: "
        "raise it"
    ),
    "train good.yaml --run=new --data.max_tokens=2049": (
        "data.max_tokens is 2049, but the model has 2048 positions: set it to 2048 or less"
    ),
    "data inspect good.yaml --data.max_tokens=2049": ("data.max_tokens is 2049, but the model has 2048 positions: set it to 2048 or less"),
    "train good.yaml --run=mine": "mine holds letter.txt but no config.yaml: it is no run directory; give another --run",
    "train good.yaml --run=done --optim.lr=1e-2": (
        "done was begun with another configuration (optim.lr: 0.001 -> 0.01); "
        "undo that, go on with it from here on (--allow-inexact), give another --run, or --restart (keeps the old run aside)"
    ),
    "train good.yaml --run=done --stage=second": ("stage 'second' is not one to run next: the stages are train, and the run is in train"),
    "eval nowhere --bench accuracy": f"'nowhere' does not exist; {FORMS}",
    "eval mine --bench accuracy": "mine holds no checkpoint; give a run, a stage folder or a step folder",
    "eval done --bench acuracy": "--bench 'acuracy' is unknown: did you mean accuracy?",
    "eval done --bench speed": f"--bench 'speed' is unknown: known: {', '.join([*sorted(BENCHES.split(', ')), *scored()])}",
    "generate done --promt=hi": "generate has no option --promt: did you mean --prompt?",
    "generate done --prompt=hi --temperature=hot": (
        "generate: --temperature must be a valid number, unable to parse string as a number, got 'hot'"
    ),
    "generate done --prompt=hi --image=missing.png": "generate: --image: no file missing.png",
    "ckpt verify nowhere": f"'nowhere' does not exist; {FORMS}",
    "ckpt inspect done@999": "done has no checkpoint at step '999'; it has 2",
    "generate don": f"'don' does not exist; did you mean done? {FORMS}",
    "ckpt inspect mine": "mine holds no checkpoint; checkpoints are RUN/stage-N-NAME/step-NNNNNNNN",
    "data index nowhere.tar": "there is no file 'nowhere.tar'",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a configuration, a run that is done, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "good.yaml").write_text(CONFIG)
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").write_text("not a run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "good.yaml", "--run=done"]) == 0
    return folder


@pytest.fixture
def say(place, monkeypatch, capsys):
    """say(arguments): the exit code of the command line and what it printed, as (code, out, err)."""
    monkeypatch.chdir(place)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return command


TRY = """
import contextlib, io, json, sys
from plait import cli
found = {}
for line in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(line.split())
    found[line] = [code, said.getvalue(), "torch" in sys.modules]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def typed(place):
    """What each wrong command gives in one process, where torch would be seen: exit code, error, whether torch was imported."""
    said = subprocess.run([sys.executable, "-c", TRY], cwd=place, input=json.dumps([*TYPED]), capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


@pytest.mark.parametrize("line", TYPED, ids=lambda line: line or "nothing")
def test_a_wrong_command_gives_one_line_without_torch(line: str, typed) -> None:
    assert typed[line] == [2, f"plait: {TYPED[line]}\n", False]


def test_a_wrong_command_as_typed_ends_with_code_2(place) -> None:
    line = "train good.yaml --optim.lrr=1"
    done = subprocess.run([sys.executable, "-m", "plait", *line.split()], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"plait: {TYPED[line]}\n")


@pytest.mark.parametrize("line", BEGUN)
def test_a_wrong_wish_gives_one_line(line: str, say, place) -> None:
    code, _, err = say(*(word.replace("\u00a0", " ") for word in line.split(" ")))
    assert (code, err) == (2, f"plait: {BEGUN[line]}\n".replace("{place}", str(place)))


def test_help_names_every_verb_without_torch() -> None:
    code = "import sys; from plait import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"train", "config", "eval", "generate", "ckpt", "data"} <= set(re.findall(r"^    (\w+)", done.stdout, re.M))


def test_train_ends_with_where_everything_is(say, place) -> None:
    code, out, _ = say("train", "good.yaml", "--run=done")
    assert code == 0
    assert out.splitlines()[-7:] == [
        "run          done, 2 steps done",
        "metrics      done/metrics.jsonl; curves: tensorboard --logdir done",
        "checkpoint   done/stage-1-train/step-00000002",
        "measure      plait eval done --bench loss",
        "ask          plait generate done --prompt=...",
        "export       plait export done done-export --to hf",
        "more steps   plait train done --train.steps=...",
    ]
    assert (place / "done" / "stage-1-train" / "step-00000002" / "manifest.json").is_file()


def test_config_prints_where_a_value_comes_from(say) -> None:
    code, out, _ = say("config", "good.yaml", "--optim.lr=3e-6")
    assert code == 0
    assert re.search(r"^optim\.lr\s+= 3e-06\s+command line$", out, re.M), out


def test_config_refuses_an_unknown_mixture_in_one_line(say) -> None:
    code, out, err = say("config", "molmo/multitask", "3.2-sythetic", "runs/captioner")
    assert (code, out) == (2, "")
    assert err.startswith("plait: data.mixture '3.2-sythetic' is neither a .yaml or .json file nor a mixture of family 'molmo'")
    assert err.endswith("did you mean '3.2-synthetic'? known: 3.2-synthetic\n")
    assert err.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(command_line, "parse", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config", "good.yaml"])


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        ("configs/nanodit/tiny.yaml", ">&-", 1),
        ("none.yaml", ">&-", 2),
        ("none.yaml", ">&- 2>&-", 2),
        ("configs/nanodit/tiny.yaml", "| head -1", 0),
    ],
)
def test_a_closed_output_is_told_and_one_without_a_reader_changes_no_exit_code(arguments, closed, code):
    command = f"set -o pipefail; {sys.executable} -m plait config {arguments} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    told = "plait: standard output cannot be written to (it is closed): what was printed is not complete\n"
    assert (done.stderr == told) == (code == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["config", "configs/nanodit/tiny.yaml"], ["completion", "bash"], ["--help"], ["train", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_is_told_and_is_no_success(words, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "plait", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[1], env=environment
        )
    assert done.returncode == 1
    wanted = "plait: standard output cannot be written to (No space left on device): what was printed is not complete"
    assert done.stderr == wanted + "\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_goes_on_to_its_end_whose_output_is_full(monkeypatch, tmp_path, capsys):
    recipe = toy.install(monkeypatch, tmp_path)
    short = ("--stages=[]", "--train.steps=2", "--evaluate=[]", "--checkpoint.best=null")
    codes = []
    for words in (["train", str(recipe), f"--run={tmp_path}/run", *short], ["stages", f"{tmp_path}/run"]):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            codes.append(cli.main(words))
    assert (codes, toy.at(tmp_path / "run", 2).step) == ([0, 1], 2)
    told = [line for line in capsys.readouterr().err.splitlines() if "standard output cannot" in line]
    assert [line.rpartition(": ")[2] for line in told] == [
        "lines of this run are missing in what it printed",
        "what was printed is not complete",
    ]


def test_an_output_of_few_letters_takes_every_line():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "plait", "config", "configs/nanodit/tiny.yaml", "--run=ü"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1], env=environment)
    assert done.returncode == 0 and "\\xfc" in done.stdout


@pytest.mark.parametrize(
    ("line", "overrides", "words"),
    [
        ("train good.yaml --optim.lr 3e-6 --run runs/x", ["optim.lr=3e-6", "run=runs/x"], []),
        ("train --optim.lr 3e-6 good.yaml --nproc 2", ["optim.lr=3e-6"], []),
        ("train good.yaml --x.a -3 --x.b .5 --x.c [a,b]", ["x.a=-3", "x.b=.5", "x.c=[a,b]"], []),
        ("data inspect good.yaml --train.steps 3 --split train", ["train.steps=3"], []),
        ("fork a@3 b --train.steps 3", ["train.steps=3"], []),
        ("generate run --prompt hello --image a.png --image=b.png --raw", ["prompt=hello", "image=a.png", "image=b.png"], []),
        (
            "train molmo/captioner qwen2_7b --save_overwrite --optimizer.learning_rate 3e-6 --run runs/x",
            ["save_overwrite=true", "optimizer.learning_rate=3e-6", "run=runs/x"],
            ["qwen2_7b"],
        ),
        ("train molmo/captioner --save_overwrite qwen2_7b", ["save_overwrite=true"], ["qwen2_7b"]),
    ],
)
def test_a_setting_is_written_with_a_space_as_well(line: str, overrides: list[str], words: list[str]) -> None:
    given = command_line.parse(line.split())
    assert (given.overrides, given.words, given.typed) == (overrides, words, line.split())


def test_a_setting_whose_value_has_spaces_is_no_argument_of_the_command():
    given = command_line.parse(["eval", "--base", "good.yaml", "--bench=loss", "--trainable=[a, b]", "--x.a=1", "--x.b={c: d}"])
    assert (given.checkpoint, given.overrides) == (None, ["trainable=[a, b]", "x.a=1", "x.b={c: d}"])
    given = command_line.parse(["generate", "--image=a b.png", "--prompt=hi", "--image=c.png", "run"])
    assert (given.checkpoint, given.overrides) == ("run", ["image=a b.png", "prompt=hi", "image=c.png"])


def test_a_setting_with_a_space_does_what_it_says(say) -> None:
    code, out, _ = say("config", "--train.steps", "7", "good.yaml", "--optim.lr", "1e-3")
    assert code == 0 and "train.steps = 7" in re.sub(" +", " ", out) and "optim.lr = 0.001" in re.sub(" +", " ", out)


def test_an_evaluation_names_run_step_data_and_date_and_says_how_sure_it_is(say, place) -> None:
    code, out, _ = say("eval", "done", "--bench", "accuracy", "--samples", "4", "--show", "4")
    metrics = json.loads((place / "done" / "eval" / "accuracy-step-00000002" / "metrics.json").read_text())
    assert code == 0 and (metrics["run"], metrics["step"], metrics["samples"], metrics["count"]) == ("done", 2, 4, 4)
    assert re.fullmatch(r"scenes validation: 4 of [\d,]+ samples", metrics["data"]) and metrics["date"].startswith("20")
    assert re.search(r"^  sheet and page +done/eval/accuracy-step-00000002/sheet\.png and done/.*/page\.html$", out, re.M)
    assert re.search(r"^  samples +4$", out, re.M) and f"  data                     {metrics['data']}" in out
    low, high = metrics["intervals"]["accuracy"]
    assert low <= metrics["accuracy"] <= high and metrics["intervals"].keys() == metrics["figures"].keys() - {"samples", "world_tokens"}
    assert f"({low:.4f} to {high:.4f} with 95 % confidence)" in out
    answers = [line.rpartition(" ")[2] for line in out.splitlines() if line.endswith((" right", " wrong"))]
    assert answers == sorted(answers, reverse=True) and len(answers) == 4  # the wrong ones first
    assert say("eval", "done", "--bench", "accuracy", "--samples", "4")[0] == 0
    again = json.loads((place / "done" / "eval" / "accuracy-step-00000002" / "metrics.json").read_text())
    assert again == metrics


def test_results_on_other_data_are_kept_apart(say, place) -> None:
    rows = [{"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": str(i)}]} for i in range(3)]
    for name in ("a", "b"):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows.pop()
        assert say("eval", "done", "--bench", "loss", "--data", f"{name}.jsonl")[0] == 0
    assert say("eval", "done", "--bench", "loss", "--samples", "2")[0] == 0
    folders = sorted(path.name for path in (place / "done" / "eval").glob("loss-*"))
    assert [re.sub("jsonl-[0-9a-f]{6}$", "jsonl-HASH", name) for name in folders] == [
        "loss-step-00000002",
        "loss-step-00000002-jsonl_a.jsonl-HASH",
        "loss-step-00000002-jsonl_b.jsonl-HASH",
    ]
    counts = [json.loads((place / "done" / "eval" / name / "metrics.json").read_text())["count"] for name in folders]
    assert counts == [2, 3, 2]


def test_config_is_one_json_object_for_programs(say) -> None:
    code, out, _ = say("config", "good.yaml", "--json", "--optim.lr=1e-3")
    whole = json.loads(out)
    assert code == 0 and whole["config"]["optim"]["lr"] == 1e-3 and whole["origins"]["optim.lr"] == "command line"
    assert whole["stages"].keys() == {"train"} and whole["stages"]["train"]["train"]["steps"] == 2 and whole["warnings"] == []


ROOT = Path(__file__).resolve().parents[1]
NAMED = [
    path for folder in ("src", "configs", "docs") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md", ".html")
]


def test_every_verb_that_messages_presets_and_pages_name_is_one() -> None:
    _, parsers = command_line.build_parsers()
    groups, named = {words[0] for words in parsers if len(words) == 2}, set()
    for path in [*NAMED, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]:
        for first, second in re.findall(r"[`(]plait ([a-z][a-z-]*)(?: ([a-z]+))?", path.read_text(encoding="utf-8")):
            if first == "torchrun":  # a line of Molmo's reference, which is answered with plait's (test_molmo_commands.py)
                continue
            words = (first, second) if first in groups and second else (first,)
            assert words in parsers or (len(words) == 1 and first in groups), f"{path.name} names `plait {' '.join(words)}`"
            named.add(words)
    assert {("train",), ("data", "inspect"), ("ckpt", "ema")} <= named


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_after_all_is_done_does_not_hide_the_exit_code(name):
    program = (
        "import atexit, os, runpy, signal, plait.cli\n"
        "plait.cli.main = lambda: 75\n"
        f"atexit.register(lambda: os.kill(os.getpid(), signal.{name}))\n"
        "runpy.run_module('plait', run_name='__main__', alter_sys=True)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 75


@pytest.mark.parametrize("line", ["train ''", "eval '' --bench=loss", "data index a.tar ''", "export a ' '", "data inspect x --out ''"])
def test_an_empty_argument_is_not_the_folder_at_hand(line, capsys):
    assert cli.main(shlex.split(line)) == 2
    name = "--out" if "--out" in line else "an argument"
    assert capsys.readouterr().err.startswith(f"plait: {name} is empty: is a variable of the shell unset? (see plait ")


def test_an_option_that_may_be_repeated_makes_a_list():
    words = ["data", "shard", "pictures", "out", "--bucket", "64x64", "--bucket=32x64"]
    assert command_line.parse(words).bucket == ["64x64", "32x64"]
