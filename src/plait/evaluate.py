"""`plait eval` and `plait generate`: a checkpoint measured, or asked."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plait import files, gallery, parts, saved
from plait.data import images
from plait.engine import distributed, evaluation
from plait.engine.loop import autocast
from plait.errors import PlaitError
from plait.schema import Evaluate

_PICTURES = 48
"""Answers shown in the page; predictions.json has all."""


def evaluate(path: Path, bench: str, *, samples: int | None, batch: int, show: int, averaged: bool, out: Path | None) -> dict[str, float]:
    """Measure the checkpoint at `path` on a bench of its family over its run's held-out data; prints the figures.

    Writes metrics.json, and for benches with answers predictions.json and a page with pictures, into `out` (RUN/eval/BENCH-step-N).
    """
    with distributed.world() as world:
        built, found, config = saved.open_checkpoint(path, world, averaged=averaged)
        entry = Evaluate(bench=bench, samples=samples, batch=batch)
        evaluation.check([entry], built.family.benches)
        held = parts.held_out(built, config, world)
        loss = built.family.Loss(built.section)
        rows: list[dict[str, Any]] = []
        if bench == evaluation.LOSS:
            figures = evaluation.held_out_loss(built.model, loss, held.batches(entry), world, config.train.precision)
        else:
            judge, chosen, inputs = built.family.benches[bench], held.samples(entry), built.inputs(config, train=False)
            if judge.pictures is not None:
                inputs.moment = f"step-{found.step:08d}"
            figures, rows = evaluation.run_bench(judge, built.model, chosen, inputs, batch, world, config.train.precision)
            if judge.pictures is not None and world.first:
                judge.pictures(rows)
        folder = out or found.folder.parent.parent / "eval" / f"{bench}-step-{found.step:08d}"
        if world.first:
            files.write_json(folder / "metrics.json", {"checkpoint": str(found.folder), "bench": bench, "samples": samples, **figures})
            print(f"{found.folder}, {'averaged' if averaged and found.tensors('ema') else 'last'} weights")
            print("\n".join(f"  {name:<24} {value:.4f}" for name, value in figures.items()))
            if rows:
                _answers(folder, bench, rows, chosen, show)
            print(f"written to {folder}")
        return figures


def _answers(folder: Path, bench: str, rows: Sequence[dict[str, Any]], samples: Sequence[Any], show: int) -> None:
    files.write_json(folder / "predictions.json", list(rows))
    cards = [card(row, sample) for row, sample in zip(rows[:_PICTURES], samples[:_PICTURES], strict=True)]
    sheet, page = gallery.write(folder, f"{bench}: {len(rows)} held-out answers", cards)
    print(f"  pictures and answers     {sheet} and {page}")
    for row in [row for row in rows if "answer" in row][:show]:
        mark = {True: "right", False: "wrong"}.get(row.get("correct"), "")  # type: ignore[arg-type]
        print(f"  {row['id']}: {row.get('question', '')} -> {row.get('answer', '')!r} (gold {row.get('gold', '')!r}) {mark}")


def card(row: dict[str, Any], sample: Any) -> gallery.Card:
    """One answer beside its pictures; a drawn one is shown last."""
    drawn = [Path(row["picture"]).read_bytes()] if "picture" in row else []
    pictures = [images.decode(data).permute(1, 2, 0).numpy() for data in [*sample["images"], *drawn]]
    text = [(row.get("question", row.get("caption", "")), False)]
    if "answer" in row:
        text += [("\n", False), (str(row["answer"]), True), (f"\ngold: {row.get('gold', '')}", False)]
    return gallery.Card(pictures=pictures, text=text, title=str(row["id"]), verdict=row.get("correct"), notes={})


def generate(path: Path, options: Sequence[str], *, averaged: bool, out: Path | None) -> None:
    """Ask the checkpoint at `path`; `options` are the family's own, as name=value. Prints what the family returns, line by line."""
    with distributed.world() as world:
        built, _, config = saved.open_checkpoint(path, world, averaged=averaged)
        chosen = generate_options(built.family.GenerateOptions, options)
        if not world.first:  # one question has one answer, however many ranks are asked
            return
        with autocast(config.train.precision, world.device):
            for line in built.family.generate(built.model, built.inputs(config, train=False), chosen, out):
                print(line)


def generate_options(kind: Any, options: Sequence[str]) -> Any:
    """The family's typed options from name=value texts; a list is given by repeating its name. One line names a wrong one and lists all."""
    given: dict[str, Any] = {}
    for item in options:
        name, _, value = item.partition("=")
        name = name.replace("-", "_")
        if name in given:
            given[name] = [*given[name], value] if isinstance(given[name], list) else [given[name], value]
        else:
            given[name] = value
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise PlaitError(_wrong_option(kind, error.errors()[0])) from error


def _wrong_option(kind: Any, first: Any) -> str:
    """One line for the first of pydantic's errors: the nearest option, or what its value must be."""
    known = [f"--{name.replace('_', '-')}" for name in kind.model_fields]
    option = "--" + str(first["loc"][0] if first["loc"] else "").replace("_", "-")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(option, known, 1)
        return f"generate has no option {option}: " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}")
    wanted = first["msg"].replace("Input should be ", "").replace("Value error, ", "")
    return f"generate: {option} must be {wanted}, got {first['input']!r}"
