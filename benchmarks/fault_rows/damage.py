"""Damaged bytes: every bit of an index's header, mutated images and mutated tars, through the product's own readers.

Each try runs in a forked process with a limit on its memory and a time in which it must be done.
"""

import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import tarfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fault_rows import bench, mutations
from fault_rows.bench import Bench, Row
from plait.config.schema import SourceEntry
from plait.data import image_files, images
from plait.data.sources import contract, shards
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError, sample_errors
from plait.keys import rng

MEMORY_BYTES = 2 << 30
"""More than this may no try add to what the process has: 67 megapixels of RGBA, put over white, take 1.1 GB."""
TRY_S = 20.0
BATCH = 50


class Start:
    """A forked process that makes tries one after the other and says of each what came of it."""

    def __init__(self, tries: Sequence[Callable[[], str]]) -> None:
        self.count = len(tries)
        self.answers, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.answers)
            _child(tries, write)
        os.close(write)

    def words(self, limit_s: float) -> list[str]:
        """Return the words of the tries, up to and with the first that ended the process or took longer than `limit_s`."""
        words, part, hangs = [], b"", False
        while True:
            if not select.select([self.answers], [], [], limit_s)[0]:
                hangs = True
                os.kill(self.pid, signal.SIGKILL)
            if not (body := os.read(self.answers, 1 << 16)):
                break
            *whole, part = (part + body).split(b"\n")
            words += [json.loads(line) for line in whole]
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.answers)
        if len(words) < self.count:
            words.append(f"lost: {'it hangs' if hangs else f'the process ended by {status}'}")
        return words


def guarded(tries: Sequence[Callable[[], str]]) -> list[str]:
    """Call each of `tries` in a forked process and return its word; what else came of it, as a hang or a death, begins with "lost: "."""
    words: list[str] = []
    while len(words) < len(tries):
        words += Start(tries[len(words) : len(words) + BATCH]).words(TRY_S)
    return words


def _child(tries: Sequence[Callable[[], str]], write: int) -> None:
    """Call all tries, write a line for each, and end the process."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        for thunk in tries:
            os.write(write, json.dumps(_word(thunk)).encode() + b"\n")
    finally:
        os._exit(0)


def _word(thunk: Callable[[], str]) -> str:
    try:
        return thunk()
    except PlaitError as error:
        if "\n" in str(error):
            return f"lost: the refusal has several lines: {error!r}"
        return "bad sample" if isinstance(error, BadSample) else "refused"
    except BaseException as error:  # noqa: BLE001  this is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"lost: {type(error).__name__}: {str(error)[:120]} ({Path(frame.filename).name}:{frame.lineno})"


def add_words(row: Row, words: Sequence[str]) -> Row:
    """Count words in a row."""
    for word in words:
        row.add(word.removeprefix("lost: ") if word.startswith("lost: ") else None, **({} if word.startswith("lost: ") else {word: 1}))
    return row


def encoded() -> dict[str, bytes]:
    """Return small pictures in all kinds of encodings, by name."""
    rgb = bench.picture(0, (41, 29))[0]
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    grey16 = Image.fromarray(np.arange(41 * 29, dtype=np.uint16).reshape(29, 41) * 50)
    palette = rgb.quantize(32)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "png": (rgb, "PNG", {}),
        "png-alpha": (alpha, "PNG", {}),
        "png-16": (grey16, "PNG", {}),
        "png-palette": (palette, "PNG", {"transparency": 3}),
        "jpeg": (rgb, "JPEG", {}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True, "exif": exif.tobytes()}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff-lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (alpha, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "webp": (rgb, "WEBP", {}),
        "webp-lossless": (alpha, "WEBP", {"lossless": True}),
        "webp-animated": (rgb, "WEBP", {"save_all": True, "append_images": [alpha.convert("RGB")]}),
        "gif": (palette, "GIF", {"transparency": 3}),
        "gif-animated": (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)]}),
    }
    bodies = {}
    for name, (image, form, options) in kinds.items():
        body = io.BytesIO()
        image.save(body, form, **options)
        bodies[name] = body.getvalue()
    return bodies


def decode(body: bytes, at_least: tuple[int, int] | None) -> str:
    """Decode a picture as a sample's is; its size alone must not fail otherwise."""
    with contextlib.suppress(BadSample):
        image_files.size(body)
    image = images.decode(body, at_least=at_least)
    assert image.dim() == 3, image.shape
    assert image.shape[0] == 3, image.shape
    return "image"


def mutated_images(setting: Bench) -> list[Row]:
    """2,500 mutated PNG, JPEG, TIFF, WebP and GIF files: each gives an image or a bad sample, in time and memory."""
    bodies, tries = list(encoded().items()), []
    for number in range(setting.count(2500)):
        draw = rng(setting.seed, "image", number)
        body, other = bodies[number % len(bodies)][1], bodies[int(draw.integers(len(bodies)))][1]
        mutation = mutations.ALL[(number // len(bodies)) % len(mutations.ALL)]
        mutant = mutation(draw, body, other)
        at_least = (8, 8) if draw.integers(2) else None
        tries.append(lambda mutant=mutant, at_least=at_least: decode(mutant, at_least))
    return [add_words(Row("mutated image"), guarded(tries))]


def samples_of(source: contract.Source) -> list[object]:
    """Return what each sample of a source is, "bad sample" for a bad one."""
    found: list[object] = []
    for i in range(len(source)):
        try:
            with sample_errors:
                sample = source[i]
        except BadSample:
            found.append("bad sample")
        else:
            found.append((sample["id"], sample["images"], sample["messages"]))
    return found


def open_tars(path: str | Path, cache: Path | None) -> contract.Source:
    """Open a shard, or the shards of a folder, as a run does."""
    entry = SourceEntry(source="shards", path=str(path), template={"user": "What?", "assistant": "{label}"})
    return open_source(entry, seed=0, cache=cache)


def index_bits(setting: Bench) -> list[Row]:
    """Flip every bit of an index's header, then of its arrays: the index is made anew or refused, and no sample is another."""
    place = setting.place("index")
    bench.write_tars(place / "data", 1, 4)
    wanted = samples_of(open_tars(place / "data", place / "cache"))
    (tar,) = (place / "data").glob("*.tar")
    head = shards.open_shard(str(tar), place / "cache").head
    path, edge = head.path, head.body_at
    body = path.read_bytes()

    def flip(bit: int) -> str:
        mutant = bytearray(body)
        mutant[bit // 8] ^= 1 << bit % 8
        path.write_bytes(mutant)
        found = samples_of(open_tars(place / "data", place / "cache"))
        if found != wanted:
            return f"lost: other samples after bit {bit}"
        return "made anew" if path.read_bytes() == body else "unharmed"

    rows = []
    for name, bits in (
        ("flipped bit of an index's header", range(8 * edge)),
        ("flipped bit of an index's arrays", range(8 * edge, 8 * len(body))),
    ):
        chosen = [bit for bit in bits if setting.share >= 1 or bit % round(1 / setting.share) == 0]
        rows.append(add_words(Row(name), guarded([lambda bit=bit: flip(bit) for bit in chosen])))
    return rows


def mutated_tars(setting: Bench) -> list[Row]:
    """300 mutated tars through the source `shards`: refused in one line, or every sample is one or a bad one."""
    place, tries = setting.place("tars"), []
    bench.write_tars(place / "data", 1, 6)
    (whole,) = (place / "data").glob("*.tar")
    body = whole.read_bytes()
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a" * 150 + ".png", "ü" * 60 + ".json"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"{ }"))
    for number in range(setting.count(300)):
        draw = rng(setting.seed, "tar", number)
        mutation = mutations.ALL[number % len(mutations.ALL)]
        mutant = mutation(draw, (body, pax.getvalue())[number % 5 == 4], pax.getvalue())
        tries.append(lambda number=number, mutant=mutant: read_tar(place / f"{number}", mutant, indexed=number % 3 == 0, body=body))
    return [add_words(Row("mutated tar"), guarded(tries))]


def read_tar(folder: Path, mutant: bytes, *, indexed: bool, body: bytes) -> str:
    """Read all samples of a mutated tar; `indexed`: the index was made before it was damaged."""
    folder.mkdir()
    try:
        path = folder / "a.tar"
        if indexed:
            path.write_bytes(body)
            shards.open_shard(str(path), folder / "cache")
        path.write_bytes(mutant)
        found = samples_of(open_tars(folder, folder / "cache"))
    finally:
        shutil.rmtree(folder)
    return "bad samples" if "bad sample" in found else "all samples"
