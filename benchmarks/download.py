"""`plait data download` against a server on loopback: pictures per second beside img2dataset, and 10,000 links of which a third fail.

    python benchmarks/download.py rate --rounds 5 [--img2dataset PYTHON]       PYTHON: of an environment that has img2dataset
    python benchmarks/download.py hostile --kills 20

The server is tests/data/link_server.py in a process of its own, on the same cores.
"""

import argparse
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.data.link_server import ALLOWED, KINDS, LinkServer, Pictures  # noqa: E402

with socket.create_server(("0.0.0.0", 0)) as free:
    PORT = free.getsockname()[1]
KNOBS = ["--allow", ALLOWED, "--per-host=256", "--max-bytes=1000000", "--min-side=32", "--timeout=5"]
IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(
        url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url", caption_col="text",
        output_format="webdataset",
        processes_count=2, thread_count=int(sys.argv[3]), number_sample_per_shard=int(sys.argv[4]), compute_hash="sha256", timeout=5,
        save_additional_columns=["uid"], **({"resize_mode": "no", "disable_all_reencoding": True} if sys.argv[5] == "plain" else {}),
    )
"""


def write_list(path, rows):
    """A list in parquet, as both programs read it."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def timed(command):
    """Run a command; returns (wall seconds, processor seconds of it and its children, largest resident memory in MB)."""
    code = (
        "import resource, subprocess, sys; rc = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE); "
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); sys.stderr.buffer.write(rc.stderr[-3000:]) if rc.returncode else None; "
        "print(u.ru_utime + u.ru_stime, u.ru_maxrss / 1000); sys.exit(rc.returncode)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    cpu_s, megabytes = map(float, done.stdout.split())
    return time.perf_counter() - began, cpu_s, megabytes


def environment():
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def serve():
    process = subprocess.Popen([sys.executable, "-m", "tests.data.link_server", str(PORT)], cwd=ROOT, env=environment())
    time.sleep(3)
    return process


def plait(path, out, *more):
    return [sys.executable, "-m", "plait", "data", "download", str(path), str(out), *KNOBS, *more]


def rate(arguments, folder):
    server = LinkServer(Pictures())
    server.port = PORT
    rows = [{"uid": f"u{n}", "url": server.url("ok", n), "text": f"picture number {n}"} for n in range(arguments.links)]
    kilobytes = statistics.mean(map(len, server.pictures.bodies)) / 1000
    write_list(folder / "list.parquet", rows)
    script = folder / "peer.py"
    script.write_text(IMG2DATASET, encoding="utf-8")
    shard = str(arguments.links // 4)
    ways = {"plait": lambda out: plait(folder / "list.parquet", out, f"--per-shard={shard}")}
    if arguments.img2dataset:
        for threads in arguments.threads:
            for how in ("plain", "default"):
                ways[f"img2dataset, {how}, 2 x {threads} threads"] = lambda out, threads=threads, how=how: [
                    *(arguments.img2dataset, str(script), str(folder / "list.parquet"), str(out), str(threads), shard, how)
                ]
    figures = {way: [] for way in ways}
    for round_ in range(arguments.rounds):
        for way, command in ways.items():
            out = folder / f"out-{round_}-{list(ways).index(way)}"
            wall_s, cpu_s, megabytes = timed(command(out))
            saved = sum(path.stat().st_size for path in out.glob("*.tar"))
            assert saved > arguments.links * 15_000 or "default" in way, f"{way} saved {saved} bytes"
            figures[way].append({"rows_per_s": arguments.links / wall_s, "cpu_us": cpu_s / arguments.links * 1e6, "peak_mb": megabytes})
            print(round_, way, {name: round(value, 1) for name, value in figures[way][-1].items()}, flush=True)
            subprocess.run(["rm", "-rf", str(out)], check=True)
    middle = {way: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for way, rows in figures.items()}
    return {"links": arguments.links, "picture_kb": kilobytes, "median": middle, "rounds": figures}


def hostile(arguments, folder):
    server = LinkServer(Pictures())
    server.port = PORT
    failing = [kind for kind, outcome in KINDS.items() if outcome != "saved"]
    dice = random.Random(7)
    kinds = dice.choices(
        ["ok", "moved", "packed", "later", *failing], [55, 8, 5, 2, *[30 / len(failing)] * len(failing)], k=arguments.links
    )
    write_list(folder / "list.parquet", [server.row(kind, number) for number, kind in enumerate(kinds)])
    more = ("--per-shard=500",)
    wall_s, cpu_s, megabytes = timed(plait(folder / "list.parquet", folder / "straight", *more))
    told = [json.loads(line) for path in sorted((folder / "straight").glob("0*.jsonl")) for line in path.read_text().splitlines()]
    assert [row["row"] for row in told] == list(range(arguments.links))
    wrong = [(kind, row) for kind, row in zip(kinds, told, strict=True) if row["status"] != KINDS[kind]]
    print(
        f"straight: {wall_s:.0f} s, {cpu_s:.0f} s of processors, {megabytes:.0f} MB; {len(wrong)} outcomes not those of their kind",
        flush=True,
    )
    kills = []
    while True:
        process = subprocess.Popen(plait(folder / "list.parquet", folder / "killed", *more), stderr=subprocess.PIPE, env=environment())
        after_s = dice.uniform(0.5, 2 * wall_s / arguments.kills) if len(kills) < arguments.kills else None
        try:
            process.communicate(timeout=after_s)
            if process.returncode == 0:
                break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills.append(round(after_s, 2))
    trees = [
        {path.name: path.read_bytes() for path in sorted((folder / name).rglob("*")) if path.is_file()} for name in ("straight", "killed")
    ]
    return {
        "links": arguments.links,
        "outcomes": dict(Counter(row["status"] for row in told).most_common()),
        "not_as_their_kind": [(kind, row) for kind, row in wrong],
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_mb": megabytes,
        "kills_after_s": kills,
        "files": len(trees[0]),
        "equal_to_the_byte": trees[0] == trees[1],
        "files_that_differ": sorted(name for name in {**trees[0], **trees[1]} if trees[0].get(name) != trees[1].get(name)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "hostile"))
    parser.add_argument("--links", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--img2dataset", help="python of an environment that has it")
    parser.add_argument("--threads", type=int, nargs="+", default=[32])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    server = serve()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = {"rate": rate, "hostile": hostile}[arguments.what](arguments, Path(folder))
    finally:
        server.terminate()
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
