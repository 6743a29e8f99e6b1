"""Open a checkpoint in Python, `plait.open`: its model, what it generates, its figures on benches, and the metrics of its run."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait.api.metrics import rows, table
from plait.assembly import saved
from plait.assembly.model import ModelBundle
from plait.commands.actions import generate as generating
from plait.commands.actions.evaluation import evaluate as evaluating
from plait.commands.actions.evaluation.evaluate import EvaluateOptions, Result
from plait.commands.actions.evaluation.subject import Saved
from plait.config.messages import NUMBER, PLACE, SWITCH, TEXT, WHOLE, check_arguments, optional
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import moment_of
from plait.engine.parallel.distributed import Ranks
from plait.files import expanded


def open(spec: str | Path, *, averaged: bool = True, length: float | None = None) -> "Checkpoint":
    """Return the checkpoint that `spec` names: RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder.

    `averaged`: use its EMA weights, where it has any. `length`: use instead the post-hoc average that reaches back this share of the run.
    Its files are verified now, its model is built when it is first used. Raises PlaitError if there is no such checkpoint.
    """
    check_arguments("plait.open", spec=(spec, PLACE), averaged=(averaged, SWITCH), length=(length, optional(NUMBER)))
    return Checkpoint(spec, averaged=averaged, length=length)


class Checkpoint:
    """A saved checkpoint of a run. `folder`: where it is; `run`: its run's directory; `step`: after how many steps it was saved.

    The checkpoint is chosen when it is opened: a run that trains on changes none of this. One process is enough; the model is on the GPU
    where there is one. Raises PlaitError if there is no such checkpoint.
    """

    def __init__(self, spec: str | Path, *, averaged: bool = True, length: float | None = None) -> None:
        self._saved = saved.locate(spec)
        self._averaged, self._length = averaged, length
        self.folder: Path = self._saved.checkpoint.folder
        self.run: Path = checkpoint.run_of(self.folder)
        self.step: int = self._saved.checkpoint.step

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    @property
    def config(self) -> RunConfig:
        """The settings of the stage that wrote the checkpoint, typed: `config.optim.lr`."""
        return self._saved.config

    @property
    def model(self) -> nn.Module:
        """The trained model, a torch module of its family, in evaluation mode. Built at the first use; always the same object."""
        return self._bundle.model

    @functools.cached_property
    def _bundle(self) -> ModelBundle:
        alone = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return saved.open_checkpoint(self._saved, alone, averaged=self._averaged, length=self._length)

    def generate(self, *, out: str | Path | None = None, **options: Any) -> list[str]:
        """Generate with `model`, as it is now; returns the answers, or a line with the name of each file that was written.

        `options`: those of `plait generate` for the family, such as `prompt="How many?"`, `image="a.png"`, `max_new_tokens=20`. `out`:
        folder for files; None: the family's default. Raises PlaitError for an option that is unknown or wrong, and if the family generates
        nothing.
        """
        check_arguments("Checkpoint.generate", out=(out, optional(PLACE)))
        given = generating.checked_options(generating.options_class(self._bundle.family, self.folder), options)
        folder = None if out is None else expanded(out)
        device, moment = next(self.model.parameters()).device, moment_of(self.step)
        return list(generating.answers(self._bundle, self.config, given, moment=moment, out=folder, device=device))

    def evaluate(
        self,
        bench: str,
        *,
        samples: int | None = None,
        batch: int = 16,
        data: str | Path | None = None,
        split: str | None = None,
        ablate: str | None = None,
        out: str | Path | None = None,
    ) -> Result:
        """Measure the checkpoint, as it was saved, on a bench: "loss", one of the family's, or a dataset such as "vqa2:validation".

        What `plait eval` does, with its files in RUN/eval or `out`; what was measured already is read from there. Returns a result with
        `.figures`, numbers by name, and `.rows`, a dict for each answer. `samples`: at most so many (None: all); `batch`: so many at a
        time; `data`, `split`: in place of the run's held-out data; `ablate`: an input, such as "image", to measure without too. Raises
        PlaitError for an unknown name.
        """
        check_arguments(
            "Checkpoint.evaluate",
            bench=(bench, TEXT),
            samples=(samples, optional(WHOLE)),
            batch=(batch, WHOLE),
            data=(data, optional(PLACE)),
            split=(split, optional(TEXT)),
            ablate=(ablate, optional(TEXT)),
            out=(out, optional(PLACE)),
        )
        options = EvaluateOptions(
            samples=samples,
            batch=batch,
            show=0,
            averaged=self._averaged,
            length=self._length,
            ablate=ablate,
            data=None if data is None else str(data),
            split=split,
            out=None if out is None else expanded(out),
        )
        return evaluating.evaluate(Saved(self.folder), bench, options).result

    def metrics(self) -> Any:
        """Return what the run recorded up to this checkpoint's step, as a pandas DataFrame.

        Without pandas it is a list of dicts, one per row.
        """
        return table([row for row in rows(self.run) if row["step"] <= self.step])
