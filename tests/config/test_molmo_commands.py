"""Command lines of the Molmo reference: script files, torchrun, tasks, W&B sweeps; the table of the docs is walked."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from plait import cli
from plait.assembly.checked_configuration import open_checked
from plait.assembly.configuration import open_config
from plait.commands import command_line
from plait.config.dialects import dotted_flags, molmo_commands
from plait.errors import PlaitError
from plait.families.molmo.catalogue import datasets

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "molmo.md").read_text().partition("### Command lines as the reference types them")[2]
ROWS = re.findall(r"^\| `([^`|]+)` \| (.*?) \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
LINES = [(typed, plait.strip("`")) for typed, plait in ROWS if typed.startswith("plait ")]
FLAGS = {flag: meaning for flag, meaning in ROWS if not flag.startswith("plait ")}


@pytest.mark.parametrize(("typed", "plait"), LINES)
def test_every_command_line_of_the_table_runs_or_is_answered_with_its_equivalent(typed, plait):
    try:
        answer = shlex.join(["plait", *molmo_commands.rewritten(shlex.split(typed)[1:])])
    except PlaitError as error:
        answer = str(error).partition(" is typed in plait as: ")[2]
        with pytest.raises(PlaitError, match=re.escape(answer)):
            command_line.parse(shlex.split(typed)[1:])
    assert answer == plait
    if plait.startswith("plait eval"):
        assert datasets.rule_of(command_line.parse(shlex.split(plait)[1:]).bench.partition(":")[0])


def test_the_table_has_every_flag_that_the_guide_lacks():
    guide = {"max_steps", "global_train_batch_size", "device_batch_size"}
    same = {flag for flag, spec in dotted_flags.FLAGS.items() if spec.path in {dotted_flags.FLAGS[name].path for name in guide}} - guide
    assert FLAGS.keys() == same | {"seq_len", "max_duration"} | dotted_flags.REFUSED.keys()


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_of_the_table_means_what_it_says(flag):
    if flag in dotted_flags.REFUSED:
        assert FLAGS[flag] == f"refused: write `--{dotted_flags.REFUSED[flag]}=`"
        with pytest.raises(PlaitError, match=re.escape(f"{flag} is written as --{dotted_flags.REFUSED[flag]}=5")):
            opened(f"molmo/captioner debug --{flag}=5")
    else:
        rows = [row for row in opened(f"molmo/captioner debug --{flag}=8").translation if row[0] == flag]
        assert [row[2] for row in rows] == [re.findall(r"`([^`]+)`", FLAGS[flag])[0]]


def opened(line):
    given = command_line.parse(["config", *shlex.split(line)])
    return open_config(given.config, given.overrides, words=given.words)


def checked(line):
    given = command_line.parse(["config", *shlex.split(line)])
    return open_checked(given.config, given.overrides, words=given.words)


def test_a_script_file_is_the_script_of_its_name():
    by_file, by_name = (opened(f"{name} debug --max_duration=4ep") for name in ("launch_scripts/train_captioner.py", "molmo/captioner"))
    assert by_file.config == by_name.config
    assert (by_file.config.train.steps, by_file.config.train.epochs) == (None, 4.0)


@pytest.mark.parametrize(
    "line",
    [
        "launch_scripts/train_captioner.py debug --save_folder X --wandb null --seq_len 300 --save_overwrite --fsdp False",
        "molmo/captioner --save_overwrite debug --seq_len 300 --fsdp False --save_folder X --wandb null",
        "molmo/captioner --wandb None --seq_len 300 --save_folder X --fsdp=False debug --save_overwrite",
    ],
)
def test_flags_take_the_next_word_as_their_value_and_switches_do_not(line):
    by_space, by_sign = (
        opened(line),
        opened("molmo/captioner debug --save_folder=X --wandb=null --seq_len=300 --save_overwrite --fsdp=False"),
    )
    assert by_space.config == by_sign.config
    assert (by_space.config.run, by_space.config.data.max_tokens, by_space.config.track.wandb) == ("X", 300, None)
    assert {row[0] for row in by_space.translation} == {row[0] for row in by_sign.translation}


def test_two_words_stand_around_flags():
    given = command_line.parse(shlex.split("train molmo/multitask 3.2-synthetic --save_folder X CKPT --max_steps -1"))
    assert (given.words, given.overrides) == (["3.2-synthetic", "CKPT"], ["save_folder=X", "max_steps=-1"])


def test_a_mixture_is_as_long_as_its_epochs():
    train = opened("launch_scripts/train_multitask_model.py 3.2-synthetic nowhere --max_duration=0.5ep").config.train
    assert (train.steps, train.epochs, train.global_batch) == (None, 0.5, 256)


@pytest.mark.parametrize("length", ["--max_duration=4ep", "--train.epochs=4", "--train.samples=900"])
def test_a_length_that_is_not_in_steps_keeps_the_presets_shares_of_warm_up(length):
    optim = opened(f"launch_scripts/train_captioner.py qwen2_7b {length}").config.optim
    assert (optim.schedule.warmup, optim.schedule.warmup_steps) == (0.089686, 0)
    parts = {name: (part.warmup, part.warmup_steps) for name, part in optim.components.items()}
    assert parts == {"connector": (0.0089686, None), "vision": (0.089686, None), "language": (0.089686, None)}
    flags = opened(f"molmo/captioner qwen2_7b {length} --scheduler.t_warmup=7").config.optim
    assert (flags.schedule.warmup, flags.schedule.warmup_steps, flags.components["connector"].warmup) == (None, 7, None)
    own = opened(f"molmo/captioner qwen2_7b {length} --optim.schedule.warmup_steps=7").config.optim
    assert (own.schedule.warmup, own.schedule.warmup_steps) == (None, 7)


def test_torchrun_over_several_machines_keeps_its_options():
    typed = "torchrun --nnodes=2 --nproc-per-node 8 launch_scripts/train_captioner.py debug --fsdp"
    with pytest.raises(PlaitError, match=r"torchrun --nnodes=2 --nproc-per-node 8 -m plait train molmo/captioner debug --fsdp$"):
        command_line.parse(shlex.split(typed))


def test_a_group_of_tasks_becomes_a_command_each():
    with pytest.raises(PlaitError) as caught:
        command_line.parse(
            ["torchrun", "--nproc_per_node=8", "launch_scripts/eval_downstream.py", "CKPT", "high-res", "low-res", "--high_res", "--fsdp"]
        )
    commands = str(caught.value).partition(": ")[2].split(" && ")
    assert commands[0] == "plait eval CKPT --bench vqa2 --high-res --nproc 8"
    assert len(commands) == 16
    for line in commands:  # each is a command that plait parses, of a dataset that it scores
        assert datasets.rule_of(command_line.parse(shlex.split(line)[1:]).bench)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval launch_scripts/eval_downstream.py", "take CHECKPOINT and TASKS"),
        ("eval launch_scripts/eval_downstream.py CKPT vqa2 --seed=3", "seed is a flag of an evaluation script without an equivalent here"),
        (
            "eval launch_scripts/eval_captioner.py CKPT --task pixmo_count --split test --max_examples 9 --pbar",
            "is typed in plait as: plait eval CKPT --bench pixmo_count:test --samples=9\n",
        ),
        (
            "eval launch_scripts/eval_downstream.py CKPT --high_res countbench_qa:huggingface --device_batch_size 2",
            "is typed in plait as: plait eval CKPT --bench countbench_qa --high-res --batch=2\n",
        ),
        ("config molmo/captioner debug --wandb=null --wandb.name=x", "wandb null switches W&B off, and wandb.name is given: leave one"),
        ("config molmo/captioner debug --wandb offline", "wandb must be null or None, got 'offline'"),
        ("config molmo/captioner debug --save_overwrite extra", "molmo/captioner takes MODEL, got debug extra"),
        ("train launch_scripts/train_other.py debug", "is no script of the Molmo guide: known: train_captioner.py"),
        ("config molmo/multitask 3.2 debug", "mixture of family 'molmo': did you mean '3.2-synthetic'?"),
    ],
)
def test_what_has_no_equivalent_is_one_line(line, message, capsys):
    assert cli.main(line.split()) == 2
    written = capsys.readouterr().err
    assert message in written and written.count("\n") == 1


def test_a_dataset_has_its_name_in_the_reference():
    assert datasets.spec_of("count_qa") is datasets.spec_of("countbench_qa")


CAPTIONER, MULTITASK = "launch_scripts/train_captioner.py", "launch_scripts/train_multitask_model.py"
SWEEPS = {  # the command of a sweep, its program, and the command that plait answers with
    "${env} ${interpreter} ${program} qwen2_7b ${args}": (CAPTIONER, "plait train molmo/captioner qwen2_7b ${args}"),
    "${env} torchrun --nproc-per-node 8 ${program} qwen2_7b --max_steps 100 --save_folder=/x/y ${args}": (
        *(CAPTIONER, "plait train molmo/captioner qwen2_7b --max_steps 100 --save_folder=/x/y --nproc 8 ${args}"),
    ),
    "torchrun --nproc-per-node=8 ${program} 3.2-synthetic /ck/step15000 --data.without=[doc_qa] ${args}": (
        *(MULTITASK, "plait train molmo/multitask 3.2-synthetic /ck/step15000 --data.without=[doc_qa] --nproc 8 ${args}"),
    ),
    "python3 -m torch.distributed.run --standalone --nproc_per_node=8 ${program} --save_overwrite debug --fsdp false ${args}": (
        *(CAPTIONER, "plait train molmo/captioner debug --save_overwrite --fsdp false --nproc 8 ${args}"),
    ),
    "/bin/torchrun --nproc_per_node 8 /m/launch_scripts/train_captioner.py debug --wandb null ${args_no_boolean_flags}": (
        *("", "plait train molmo/captioner debug --wandb null --nproc 8 ${args_no_boolean_flags}"),
    ),
    "env OMP_NUM_THREADS=4 torchrun --nnodes=2 --nproc-per-node=8 ${program} debug --max_steps 9 ${args}": (
        CAPTIONER,
        "${env} OMP_NUM_THREADS=4 torchrun --nnodes=2 --nproc-per-node=8 -m plait train molmo/captioner debug --max_steps 9 ${args}",
    ),
    "torchrun --nproc-per-node=gpu ${program} debug ${args}": (
        *(CAPTIONER, "torchrun --nproc-per-node=gpu -m plait train molmo/captioner debug ${args}"),
    ),
}


@pytest.mark.parametrize("given", SWEEPS)
def test_a_sweeps_file_is_answered_with_a_command_that_keeps_its_words_and_flags(given, tmp_path, capsys):
    program, right = SWEEPS[given]
    assert cli.main(["train", sweep_of(given.split(), program, tmp_path)]) == 2
    answer = yaml.safe_load(re.search(r"write command: (\[.*\]) in it, then", capsys.readouterr().err)[1])
    assert answer == right.split()
    config = [word for word in answer[answer.index("plait") + 2 :] if not word.startswith("${")]
    if "--nproc" in config:
        assert command_line.parse(["train", *config]).nproc == 8
        del config[config.index("--nproc") :]
    assert cli.main(["config", *config]) == 0
    assert cli.main(["train", sweep_of(answer, program, tmp_path)]) == 2
    assert "whose agents run plait: wandb sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "program", "answer"),
    [
        (None, CAPTIONER, 'command: [plait, train, molmo/captioner, MODEL, "${args}"] in it, then'),
        (
            *(["${program}", "3.2-synthetic", "--save_overwrite", "${args}"], MULTITASK),
            'command: [plait, train, molmo/multitask, 3.2-synthetic, CHECKPOINT, --save_overwrite, "${args}"] in it, then',
        ),
        (
            *(["srun", "-n1", "python", "${program}", "debug", "--seed", 7, "${args}"], CAPTIONER),
            'molmo/captioner, debug, --seed, "7", "${args}"] in it (srun -n1 has no equivalent and is left out), then',
        ),
        (["bash", "run.sh", "${args}"], CAPTIONER, 'MODEL, "${args}"] in it (bash run.sh has no equivalent and is left out), then'),
        ("python train.py ${args}", "train.py", 'command: [plait, train, CONFIG, "${args}"] in it, then'),
    ],
)
def test_what_a_sweeps_command_lacks_and_what_is_left_out_of_it_is_named(command, program, answer, tmp_path):
    with pytest.raises(PlaitError, match=re.escape(answer)):
        opened(sweep_of(command, program, tmp_path))


def sweep_of(command, program, folder):
    file = folder / "sweep.yaml"
    file.write_text(
        yaml.safe_dump({"program": program, "method": "grid", "parameters": {"max_steps": {"value": 3}}, "command": command}, width=999)
    )
    return str(file)


OWN = pytest.mark.parametrize("option", ["--max-restarts=3", "--master_port 29501", "--nproc-per-node=gpu"])


@OWN
def test_options_that_only_torchrun_has_are_kept_for_evaluations_too(option):
    typed = f"torchrun {option} --standalone launch_scripts/eval_downstream.py CKPT vqa2 ai2d --high_res"
    begin = rf"torchrun {option} --standalone -m plait eval CKPT --bench"
    with pytest.raises(PlaitError, match=rf"as: {begin} vqa2 --high-res && {begin} ai2d --high-res$"):
        command_line.parse(shlex.split(typed))


@OWN
def test_options_that_only_torchrun_has_are_kept(option):
    with pytest.raises(PlaitError, match=rf"as: torchrun {option} --standalone -m plait train molmo/captioner debug$"):
        command_line.parse(shlex.split(f"torchrun {option} --standalone launch_scripts/train_captioner.py debug"))


def test_trials_of_a_sweep_have_their_own_run_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    folders = []
    for trial in ("one", "two", "one"):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        folders.append(checked("molmo/captioner debug --save_folder=runs/x/").config.run)
    assert folders == ["runs/x/sweep-one", "runs/x/sweep-two", "runs/x/sweep-one"]
    run = Path("runs/x/sweep-one")
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "config.yaml").write_text(checked("molmo/captioner debug --save_folder=runs/x").yaml)
    monkeypatch.chdir(tmp_path)
    assert checked(str(run)).config.run == str(run)  # a run that is continued or measured keeps its folder
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert checked("molmo/captioner debug --save_folder=runs/x").config.run == "runs/x"
