"""All benchmarks that compare, by one command: one table, each row beside its peer of the same run, and beside the record.

    OMP_NUM_THREADS=1 python -m benchmarks [NAME ...] [--quick] [--record]

Each benchmark is a script of its own in this folder, run in turn; its figures are medians of rounds that take plait and its peer by turns.
Printed is a table in Markdown below the machine and its versions, with a mark at every ratio that is over 5 % from the record
(results/table.json), for the worse or the better. `--record` writes the table as the new record, with table.md and table.svg, after each
benchmark. `--quick` takes few rounds: it shows that all run. One that fails, or takes five times what it should, has a line at the end; it
and one that is interrupted (Ctrl-C) lose no row of the others. How long each takes: `--help`.
"""

import argparse
import dataclasses
import html
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from plait.files import write_json

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results" / "table.json"
CHANGED = 0.05
"""Share of the record from which on a ratio is marked."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure beside its peer's. `ratio`: plait's by the peer's; `better`: which ratios are, "higher" or "lower"."""

    name: str
    figure: str
    peer: str
    of_peer: str
    ratio: float
    better: str


Figures = Mapping[str, Any]


def overhead(found: Figures, _: str) -> Iterator[Row]:
    """Microseconds of a step beside every other loop."""
    for row in found["rows"]:
        median = {name: values["wall"] for name, values in row["median"].items()}
        for peer in (name for name in median if name != "plait"):
            ratio = median["plait"] / median[peer]
            yield Row(f"step: {row['title']}", f"{median['plait']:.0f} us", peer, f"{median[peer]:.0f} us", ratio, "lower")


def loader(found: Figures, _: str) -> Iterator[Row]:
    """Pictures a second beside the fastest peer with plait's own functions."""
    for row in found["rows"]:
        rates = {name: values["samples_per_s"] for name, values in row["median"].items()}
        peers = {name: rate for name, rate in rates.items() if name.endswith("our functions")}
        for kind in ("plait, threads", "plait, processes"):
            for peer, rate in peers.items():
                yield Row(f"load {row['title']}: {kind}", f"{rates[kind]:,.0f}/s", peer, f"{rate:,.0f}/s", rates[kind] / rate, "higher")


def packing(_: Figures, printed: str) -> Iterator[Row]:
    """Samples a CPU second, packed with supervised logits, beside padded with all logits."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines() if line.startswith("| ")]
    rates = {(cells[0], cells[1]): cells for cells in lines if len(cells) == 5 and re.fullmatch(r"[\d.]+", cells[2])}
    for (family, layout), cells in rates.items():
        if layout == "packed":
            peer = rates[family, "padded, all logits"][2]
            yield Row(f"packing {family}", f"{cells[2]}/s", "padded, all logits", f"{peer}/s", float(cells[3].split()[0]), "higher")


def logits(found: Figures, _: str) -> Iterator[Row]:
    """Processor seconds of a head."""
    median = found["median_s"]
    yield Row(
        "logits of supervised positions", f"{median['supervised']:.2f} s", "of all", f"{median['all']:.2f} s", found["ratio"], "higher"
    )


def cache(found: Figures, _: str) -> Iterator[Row]:
    """Seconds of the last of three epochs."""
    off, on = (found["results"][f"heavy {mode}"]["epochs_s"][-1] for mode in ("off", "on"))
    yield Row("third epoch with stored features", f"{on:.2f} s", "without", f"{off:.2f} s", off / on, "higher")


def saving(found: Figures, _: str) -> Iterator[Row]:
    """Seconds that a save holds training up, and the steps after it by the clock and by the training thread's processor time."""
    for size, part in found["stall"].items():
        median = part["median_s"]
        behind, there = (1e3 * median[name] for name in ("behind", "on_the_spot"))
        yield Row(f"save {size} behind", f"{behind:.0f} ms", "on the spot", f"{there:.0f} ms", behind / there, "lower")
        after, others = 1e3 * part["step_after_s"], 1e3 * part["step_s"]
        yield Row(f"three steps after a save of {size}", f"{after:.0f} ms", "others", f"{others:.0f} ms", after / others, "lower")
        ratio = part["after_processor"]
        yield Row(f"their processor time, {size}", f"{100 * ratio:.1f} %", "others", "100 %", ratio, "lower")


def resume(found: Figures, _: str) -> Iterator[Row]:
    """Seconds to the first step of a start."""
    median = found["median_s"]
    yield Row("resume at step 100,000", f"{median['100000']:.2f} s", "at step 10", f"{median['10']:.2f} s", found["ratio"], "lower")


def start(found: Figures, _: str) -> Iterator[Row]:
    """Processor seconds to the first step and checkpoint."""
    median = found["median_s"]
    torch_s = median["import torch"]
    for name in ("theworld", "molmo", "nanodit"):
        yield Row(f"start of a tiny {name}", f"{median[name]:.2f} s", "import torch", f"{torch_s:.2f} s", median[name] / torch_s, "lower")


def order(found: Figures, _: str) -> Iterator[Row]:
    """Milliseconds to any place of the order."""
    first, *_others, last = found["sizes"]
    here, there = last["seek_ms"], first["seek_ms"]
    yield Row(
        f"seek in {last['samples']:,} samples", f"{here:.2f} ms", f"in {first['samples']:,}", f"{there:.2f} ms", here / there, "lower"
    )


def monitor(found: Figures, _: str) -> Iterator[Row]:
    """Milliseconds of a step with the learning monitor."""
    for family, row in found["families"].items():
        ratio = 1 + row["percent"] / 100
        yield Row(f"step with monitor, {family}", f"{ratio * row['step_ms']:.2f} ms", "without", f"{row['step_ms']:.2f} ms", ratio, "lower")


def bus(found: Figures, _: str) -> Iterator[Row]:
    """Bytes of a sample on the way to the device."""
    for family, row in found["families"].items():
        ratio = row["float32_bytes"] / row["bytes"]
        ours, wide = (f"{row[name] / 1e6:.2f} MB" for name in ("bytes", "float32_bytes"))
        yield Row(f"bytes of a sample, {family}", ours, "in float32", wide, ratio, "higher")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A script with its arguments, and what reads its figures: (the JSON that it writes, what it prints) -> rows.

    `minutes`: that it takes in full on two idle cores, about.
    """

    script: str
    read: Callable[[Figures, str], Iterator[Row]]
    minutes: float
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    writes: bool = True


BENCHMARKS = {
    "overhead": Benchmark("overhead", overhead, 3, ("--rounds=9", "--steps=400"), ("--rounds=1", "--steps=100")),
    "loader": Benchmark("loader", loader, 4, (), ("--rounds=1", "--samples=512")),
    "packing": Benchmark("packing", packing, 5, ("nlvr",), ("nlvr", "32", "16", "1"), writes=False),
    "packing-theworld": Benchmark(
        "packing", packing, 2, ("nlvr", "64", "32", "3", "32768", "theworld"), ("nlvr", "8", "8", "1", "32768", "theworld"), writes=False
    ),
    "packing-molmo": Benchmark(
        "packing", packing, 2, ("nlvr", "16", "8", "3", "32768", "molmo"), ("nlvr", "4", "4", "1", "32768", "molmo"), writes=False
    ),
    "logits": Benchmark("logits", logits, 1, (), ("--rounds=1",)),
    "cache": Benchmark("feature_cache", cache, 5, ("--rounds=5",), ("--rounds=1",)),
    "saving": Benchmark("saving", saving, 3, ("--only=stall",), ("--only=stall", "--rounds=2", "--megabytes", "20")),
    "resume": Benchmark("resume_time", resume, 1, (), ("--rounds=1",)),
    "start": Benchmark("start_up", start, 3, (), ("--rounds=1",)),
    "order": Benchmark("order", order, 1),
    "monitor": Benchmark("monitor", monitor, 3, ("--rounds=5", "--steps=120"), ("--rounds=1", "--steps=72")),
    "bus": Benchmark("bus", bus, 0.5),
}


class Failed(Exception):
    """A benchmark has no rows; the message says why."""


def ran(words: Sequence[str], timeout_s: float) -> str:
    """Run a script of this folder with all that it starts; return what it prints. Raises Failed with the last line of its errors."""
    paths = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    script = [sys.executable, *words]
    environment = {**os.environ, "PYTHONPATH": paths}
    if data := os.environ.get("PLAIT_DATA"):
        environment["PLAIT_DATA"] = str(Path(data).resolve())  # scripts run elsewhere
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent, env=environment, start_new_session=True
    ) as process:
        try:
            printed, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its children too, which would disturb the next one
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"not done in {timeout_s / 60:.0f} minutes") from error
            raise
    if process.returncode:
        raise Failed((errors.strip().splitlines() or [f"ended by {process.returncode}"])[-1])
    return printed


def measured(name: str, *, quick: bool) -> list[Row]:
    """Run a benchmark; its rows. A quick one leaves the file of figures as it was.

    Raises Failed where it fails, takes five times what it should, or gives no figures that can be read.
    """
    asked = BENCHMARKS[name]
    path = HERE / "results" / f"{asked.script}.json"
    before = path.read_bytes() if path.exists() else None
    try:
        words = [str(HERE / f"{asked.script}.py"), *(asked.quick if quick else asked.full)]
        printed = ran(words, 60 * max(10.0, 5 * asked.minutes))
        rows = list(asked.read(json.loads(path.read_bytes()) if asked.writes else {}, printed))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Failed(f"its figures cannot be read: {type(error).__name__}: {error}") from error
    finally:
        if quick and before is not None:
            path.write_bytes(before)
        elif quick:
            path.unlink(missing_ok=True)
    if not rows:
        raise Failed("it gave no figures")
    return rows


def left_out(names: Sequence[str]) -> Iterator[str]:
    """A line for each peer that is not installed, and how to have its rows."""
    if "overhead" in names and importlib.util.find_spec("lightning_fabric") is None:
        yield "overhead: lightning-fabric is not installed, and its rows are left out: pip install lightning-fabric"


Record = Mapping[tuple[str, str], float]
"""Ratios by name of the row and of its peer."""


def mark(row: Row, record: Record) -> str:
    """How a ratio compares with the record: empty within 5 %, or where it is new."""
    before = record.get((row.name, row.peer))
    if before is None or abs(row.ratio / before - 1) <= CHANGED:
        return ""
    better = (row.ratio > before) == (row.better == "higher")
    return f"{'better' if better else '**worse**'}: was {before:.2f}"


def table(rows: Sequence[Row], record: Record) -> Iterator[str]:
    """The lines of the table."""
    yield "| what | plait | peer | ratio | better | since the record |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        yield f"| {row.name} | {row.figure} | {row.peer} {row.of_peer} | {row.ratio:.2f} | {row.better} | {mark(row, record)} |"


def plot(rows: Sequence[Row]) -> str:
    """Bars of the ratios in SVG, on a scale of logarithms, with a line at 1: right of it plait has more."""
    height, left, middle, width = 20, 430, 640, 1000
    spread = max((max(row.ratio, 1 / row.ratio) for row in rows), default=1.0)
    size = f'width="{width}" height="{height * (len(rows) + 1)}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    for i, row in enumerate(rows):
        good = (row.ratio >= 1) == (row.better == "higher")
        length = abs(torch.tensor(row.ratio).log() / torch.tensor(max(spread, 1.01)).log()).item() * (middle - left - 30)
        x = middle if row.ratio >= 1 else middle - length
        y = i * height + 4
        lines.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{html.escape(row.name)[:64]}</text>')
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="13" fill="{"#2a7" if good else "#c63"}"/>')
        lines.append(f'<text x="{middle + 215}" y="{y + 11}">{row.ratio:.2f} of {html.escape(row.peer)[:30]}</text>')
    lines.append(f'<line x1="{middle}" x2="{middle}" y1="0" y2="{height * len(rows)}" stroke="#888"/></svg>')
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], kept: Sequence[Mapping[str, Any]], took_s: Mapping[str, float], about: dict[str, Any]) -> None:
    """Write the record: rows, and of those `kept` what was not measured again. `took_s`: seconds by benchmark; `about`: the machine."""
    here, names = machine.line(about, load=False), {(row.name, row.peer) for row in rows}
    earlier = [row for row in kept if (row["name"], row["peer"]) not in names]
    whole = [*earlier, *({**dataclasses.asdict(row), "machine": here} for row in rows)]
    before = json.loads(RECORD.read_text(encoding="utf-8")).get("took_s", {}) if RECORD.exists() else {}
    write_json(RECORD, {"machine": about, "took_s": {**before, **took_s}, "rows": whole})
    shown = [Row(**{field.name: row[field.name] for field in dataclasses.fields(Row)}) for row in whole]
    elsewhere: dict[str, list[str]] = {}
    for row in earlier:
        if row.get("machine") != here:
            elsewhere.setdefault(row.get("machine", "a machine that is not told"), []).append(f"{row['name']} ({row['peer']})")
    others = [f"\nOn {told}: {'; '.join(which)}." for told, which in elsewhere.items()]
    lines = [machine.line(about), "", *table(shown, {}), *others]
    RECORD.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    RECORD.with_suffix(".svg").write_text(plot(shown), encoding="utf-8")


def durations() -> str:
    """Say how many minutes each benchmark takes in full, and all."""
    each = ", ".join(f"{name} {asked.minutes:g}" for name, asked in BENCHMARKS.items())
    return f"Minutes in full on two idle cores, about: {each}; all {sum(asked.minutes for asked in BENCHMARKS.values()):g}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are asked for, or all, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0], epilog=durations(), allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; without: all")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that all run; no figures to record")
    parser.add_argument("--record", action="store_true", help="write the table as the record, after each benchmark")
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if asked.quick and asked.record:
        parser.error("--quick gives no figures to record")
    kept = json.loads(RECORD.read_text(encoding="utf-8"))["rows"] if RECORD.exists() else []
    record = {(row["name"], row["peer"]): row["ratio"] for row in kept}
    rows, failed, took_s = list[Row](), list[str](), dict[str, float]()
    about, names = machine.about(), asked.names or list(BENCHMARKS)
    for name in names:
        print(f"{name} ..." if asked.quick else f"{name} ... (about {BENCHMARKS[name].minutes:g} min)", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            rows += measured(name, quick=asked.quick)
        except Failed as error:
            failed.append(f"{name}: {error}")
            continue
        except KeyboardInterrupt:
            failed.append(f"{name}: interrupted; what came before is in the table")
            break
        took_s[name] = round(time.monotonic() - began, 1)
        if asked.record:
            write(rows, kept, took_s, about)
    print(machine.line(about), "", *table(rows, record), *left_out(names), *failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
