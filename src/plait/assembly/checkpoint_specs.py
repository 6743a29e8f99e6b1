"""Find the checkpoint that a spec names: RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best, RUN/step15000, RUN/latest, or a step folder.

A stage is a part of a run; the mark is what follows the @. Specs are resolved to folders; training/from_weights.py reads weights. `stepN`
and `latest` are how launch scripts' guides name checkpoints; a folder of exactly that name has precedence.
"""

import difflib
import glob
import re
from pathlib import Path

from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.errors import PlaitError
from plait.files import expanded

FORMS = "give a run, RUN@STEP, RUN/STAGE, RUN/STAGE@best, RUN/stepN, RUN/latest or a step folder"
START = f"from: {FORMS}, a folder of safetensors, or a Hub repository as owner/name"
"""What `from:` may be, and above it what a spec may be, as the end of an error message."""
LATEST = "latest"
"""The mark of the newest checkpoint."""
_STEP = re.compile(rf"step-?(\d+)|{LATEST}")


def split(spec: str) -> tuple[Path, str]:
    """Split a checkpoint's name into a folder and the mark after @, "" without one: "runs/a@500" and "runs/a/step500" -> (runs/a, "500").

    An @ in the name of an existing file or folder is part of the name. Nothing is checked or raised.
    """
    whole = _at_stage(expanded(spec))
    name, at, mark = spec.rpartition("@")
    in_name = whole.exists() or ("/" in mark and whole.parent.exists())
    path, mark = (whole, "") if in_name or not at else (expanded(name), mark)
    named = _STEP.fullmatch(path.name)
    if named and not path.exists() and not mark:
        path, mark = path.parent, named[1] or LATEST
    return _at_stage(path), mark


def _at_stage(path: Path) -> Path:
    """Return RUN/stage-2-vision for RUN/vision; any other path as it is."""
    staged = [] if path.exists() else sorted(path.parent.glob(f"stage-*-{glob.escape(path.name)}"))
    return staged[-1] if staged else path


def locate(spec: str, forms: str = FORMS) -> Checkpoint:
    """Return the checkpoint that `spec` names (RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best, a step folder), after verifying its files.

    Of a run or a stage, it is the newest intact one. Raises PlaitError if there is none; `forms`, a text that says what a spec may look
    like, ends the message.
    """
    path, mark = split(spec)
    if not path.exists():
        if _STEP.fullmatch(Path(spec).name):
            raise PlaitError(f"{spec!r} does not exist: there is no {path}; {forms}")
        known = [re.sub(r"^stage-\d+-", "", other.name) for other in path.parent.glob("*")]
        near = difflib.get_close_matches(path.name, known, 1)
        hint = f"did you mean {path.parent / near[0]}? " if near else ""
        raise PlaitError(f"{spec!r} does not exist; {hint}{forms}")
    return integrity.locate(marked(path, mark) if mark else path)


def run_named(spec: str) -> Path | None:
    """Return the run directory of the checkpoint that `spec` names (RUN, RUN@STEP, RUN/STAGE@best, ...); None if it names none.

    Raises PlaitError for a run, stage or step that has no intact checkpoint there.
    """
    path, mark = split(spec)
    if not mark and not (checkpoint.run_of(path) / "config.yaml").is_file():
        return None
    return checkpoint.run_of(locate(spec).folder)


def marked(path: Path, mark: str) -> Path:
    """Return the step folder that `mark` (a step, "best" or "latest") names in a run or stage folder `path`. Its files are not verified.

    Raises PlaitError, with a list of the steps that exist, if there is none.
    """
    folders = [folder for folder in checkpoint.published(checkpoint.run_of(path)) if path in folder.parents]
    if mark == LATEST and folders:
        return folders[0]
    if mark == "best":
        best = integrity.locate(path).manifest["state"]["best"]
        if best is None:
            raise PlaitError(f"{path} has no best checkpoint: its configuration sets no checkpoint.best")
        mark = str(best["step"])
    steps = {str(int(folder.name.removeprefix("step-"))): folder for folder in reversed(folders)}
    mark = mark.lstrip("0") or "0" if mark.isdecimal() else mark
    if mark not in steps:
        raise PlaitError(f"{path} has no checkpoint at step {mark!r}; it has {', '.join(steps) or 'none'}")
    return steps[mark]


def may_be_hub(name: str) -> bool:
    """Return whether `name`, which is no folder here, has the form of a Hub repository, owner/name; nothing is looked up."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not _STEP.fullmatch(Path(name).name)


def assets(spec: str) -> Path | None:
    """Return the folder RUN/assets, with the model's tokenizer and such, of the run that `spec` (RUN, RUN@STEP, ...) names, or None."""
    path, _ = split(spec)
    folder = checkpoint.run_of(path) / "assets"
    return folder if path.exists() and folder.is_dir() else None


def tokenizer(spec: str) -> Path | None:
    """Return the path of tokenizer.json where `spec` is a directory with one, such as an export; None for anything else."""
    path = expanded(spec) / "tokenizer.json"
    return path if path.is_file() else None
