"""The Molmo guide's command lines as its readers type them, with a script's file name and perhaps torchrun: `launch_scripts/...`.

Training scripts are run under their names here; other lines are refused with the equivalent commands. Flags are in dotted_flags.py.
"""

import re
import shlex
from collections.abc import Sequence

from plait.config.dialects.molmo_scripts import CAPTIONER, MULTITASK
from plait.errors import PlaitError, command

EVALUATION = ("eval_downstream.py", "eval_captioner.py")
"""The guide's evaluation scripts by file name."""
FILES = {"train_captioner.py": CAPTIONER, "train_multitask_model.py": MULTITASK}
"""The guide's training scripts by file name, and what each is called here."""
GROUPS = {
    "low-res": ("android_control_ll", "countbench_qa", "pixmo_count_counting"),
    "high-res": (
        *("vqa2", "text_vqa", "okvqa", "chart_qa", "doc_qa", "info_qa", "science_qa", "ai2d", "a_okvqa_mc", "a_okvqa_da"),
        *("mmmu", "real_world_qa", "math_vista"),
    ),
}
"""The guide's groups of evaluations: {name: benches of `plait eval`}."""
_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_SAME = {"nproc-per-node": True, "standalone": False}  # torchrun's options that plait's --nproc stands for: whether a value follows
_SCRIPT = re.compile(r"(?:.*/)?launch_scripts/([\w.]+)")
EVAL_FLAGS = {
    "high_res": "--high-res",
    "fsdp": "",
    "pbar": "",
    "save_to_checkpoint_dir": "",
    "device_batch_size": "--batch={}",
    "max_examples": "--samples={}",
    "save_dir": "--out={}",
    "task": "",
    "split": "",
}
"""What a flag of the evaluation scripts is for `plait eval`; "": nothing, because plait does that by itself, or the bench has it."""
_EVAL_SWITCHES = ("high_res", "fsdp", "pbar", "save_to_checkpoint_dir", "overwrite")
_OTHER_SPLIT = ":huggingface"
"""What the reference writes after a dataset that has one split, on the Hub."""


def rewritten(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a training script's file after `train` or `config` replaced by its name here, such as molmo/captioner.

    `arguments`: those of plait's command line; they are unchanged if no script of the guide is among them. Raises PlaitError, with the
    equivalent command, for a script after other words (torchrun, python), or an evaluation script.
    """
    at = next((number for number, item in enumerate(arguments) if _SCRIPT.fullmatch(item)), None)
    if at is None:
        return list(arguments)
    match = _SCRIPT.fullmatch(arguments[at])
    assert match is not None
    before, file, after = list(arguments[:at]), match[1], list(arguments[at + 1 :])
    if file in FILES and before in (["train"], ["config"]):
        return [*before, FILES[file], *after]
    ranks, options = torchrun(before)
    if file in FILES:
        words = ["train", FILES[file], *after]
        line = shlex.join(["torchrun", *options, "-m", "plait", *words]) if options else command(*words, *ranks)
    elif file in EVALUATION:
        begin = shlex.join(["torchrun", *options, "-m", "plait"]) if options else "plait"
        line = " && ".join(f"{begin} {words}" for words in _evaluations(after, [] if options else ranks))
    else:
        known = ", ".join([*FILES, *EVALUATION])
        raise PlaitError(f"{arguments[at]} is no script of the Molmo guide: known: {known}")
    raise PlaitError(f"{arguments[at]} is typed in plait as: {line}")


def torchrun(before: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return plait's option for the ranks of one machine, and torchrun's own options if some of them have no equivalent in plait.

    `before`: the words before a script, such as ["torchrun", "--nproc-per-node=8"], which gives ["--nproc", "8"] and []. Options of several
    machines (--nnodes, --rdzv-endpoint), a number of ranks that is no number (gpu) and --max-restarts are torchrun's own.
    """
    at = launcher(before)
    if at is None:
        return [], []
    given = list(before[at + 1 :])
    items, own = iter(given), False
    ranks: list[str] = []
    for item in items:
        name, equals, value = item.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        if not item.startswith("--") or name not in _SAME:
            own = True
        elif _SAME[name]:
            ranks = ["--nproc", value if equals else next(items, "")]
    return ranks, given if own or (ranks and ranks[1] in ("auto", "cpu", "gpu", "xpu")) else []


def launcher(words: Sequence[str]) -> int | None:
    """Return the index of torchrun, or of a module that it stands for (torch.distributed.run), among `words`; None without one."""
    return next((number for number, word in enumerate(words) if word.rsplit("/", 1)[-1] in _LAUNCHERS), None)


def _evaluations(after: Sequence[str], ranks: Sequence[str]) -> list[str]:
    """Return the words after plait for each task of an evaluation script. Raises PlaitError for an unknown flag or without a task."""
    words, flags = _words_and_flags(after)
    unknown = next((flag for flag in flags if flag not in EVAL_FLAGS), None)
    if unknown is not None:
        raise PlaitError(f"{unknown} is a flag of an evaluation script without an equivalent here; known: {', '.join(EVAL_FLAGS)}")
    checkpoint, *tasks = words or [""]
    tasks += [f"{flags['task']}:{flags.get('split') or 'validation'}"] if "task" in flags else []
    if not tasks:
        raise PlaitError("the evaluation scripts take CHECKPOINT and TASKS: plait eval CHECKPOINT --bench TASK")
    benches = [bench.removesuffix(_OTHER_SPLIT) for task in tasks for name in task.split(",") for bench in GROUPS.get(name, (name,))]
    options = [EVAL_FLAGS[flag].format(value) for flag, value in flags.items() if EVAL_FLAGS[flag]]
    return [shlex.join(["eval", checkpoint, "--bench", bench, *options, *ranks]) for bench in dict.fromkeys(benches)]


def _words_and_flags(after: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return what follows an evaluation script: its words, and its flags with their values, given as `--flag=value` or `--flag value`."""
    words: list[str] = []
    flags: dict[str, str] = {}
    waiting = None  # a flag whose value comes next
    for item in after:
        if item.startswith("-"):
            flag, given, value = item.removeprefix("--").partition("=")
            flags[flag], waiting = value, None if given or flag in _EVAL_SWITCHES else flag
        elif waiting is not None:
            flags[waiting], waiting = item, None
        else:
            words.append(item)
    return words, flags
