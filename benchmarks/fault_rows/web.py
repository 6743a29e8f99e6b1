"""Faults of a web server: shards read from a server of this machine that fails once or from some request on."""

import contextlib
import http.server
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from fault_rows import bench
from fault_rows.bench import Bench, Row
from fault_rows.damage import Start, open_tars, samples_of
from plait.errors import PlaitError
from plait.keys import rng

TRY_S = 300.0
DRIP_S = 0.5  # between the bytes of a slow answer


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the file for GET with ranges and HEAD; /KIND-AT-HOW-.../name fails at request AT, HOW: once or always."""

    protocol_version = "HTTP/1.1"
    body = b""
    seen: ClassVar[Counter[str]] = Counter()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, *, head: bool) -> None:
        plan = self.path.split("/")[1]
        with self.lock:
            count = self.seen[plan]
            self.seen[plan] += 1
        kind, at, how = plan.split("-")[:3]
        fails = {"always": count >= int(at), "once": count == int(at), "never": False}[how]
        with contextlib.suppress(OSError):
            self.fault(kind, head=head) if fails else self.send_range(head=head)

    def range(self) -> tuple[int, int]:
        """Return the bytes asked for, from and to."""
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return 0, len(self.body)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return int(first), min(int(last or len(self.body) - 1) + 1, len(self.body))

    def send_range(self, *, head: bool, shift: int = 0, kept: float = 1.0, pause_s: float = 0.0) -> None:
        """Send the range: `shift` bytes further on than asked, a part `kept` of it, or with pauses."""
        start, end = self.range()
        start, end = (max(0, start - shift), end - shift) if start >= shift else (start + shift, min(end + shift, len(self.body)))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.body)}")
        self.end_headers()
        if head:
            return
        body = self.body[start:end][: int((end - start) * kept)]
        for i in range(0, len(body), 1) if pause_s else [None]:
            self.wfile.write(body if i is None else body[i : i + 1])
            self.wfile.flush()
            time.sleep(pause_s)
        if kept < 1:
            self.close_connection = True

    def fault(self, kind: str, *, head: bool) -> None:
        """Answer with the fault."""
        if kind.isdigit():
            self.send_response(int(kind))
            if kind in ("429", "503"):
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif kind == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            options = {"short": {"kept": 0.5}, "range": {"shift": 512}, "drip": {"pause_s": DRIP_S}}[kind]
            self.send_range(head=head, **options)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were reset on purpose."""


KINDS = ("503", "429", "500", "short", "reset", "loop", "range", "drip")


def serve(body: bytes, port: Connection) -> None:
    """Run the server until it is ended."""
    Handler.body = body
    server = Server(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


def read_all(address: str, cache: Path, wanted: list[object]) -> str:
    """Read all samples of a remote shard: each must be itself or a bad one."""
    os.environ["PLAIT_CACHE"] = str(cache)
    found = samples_of(open_tars(address, None))
    if len(found) != len(wanted):
        return f"lost: {len(found)} samples of {len(wanted)}"
    bad = sum(one == "bad sample" for one in found)
    if any(one not in ("bad sample", true) for one, true in zip(found, wanted, strict=True)):
        return "lost: other samples than the file's"
    return "bad samples" if bad else "retried"


def faults(setting: Bench) -> list[Row]:
    """40 faults of a server on loopback: the file's samples after another attempt, bad samples that are counted, or one line."""
    place = setting.place("web")
    bench.write_tars(place / "data", 1, 6)
    (path,) = (place / "data").glob("*.tar")
    wanted = samples_of(open_tars(str(path), place / "cache"))
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    server = fork.Process(target=serve, args=(path.read_bytes(), sender), daemon=True)
    server.start()
    root, row = f"http://127.0.0.1:{receiver.recv()}", Row("fault of a web server")
    started: list[tuple[str, Start]] = []
    try:
        (word,) = Start([lambda: read_all(f"{root}/none-0-never-0/train-000.tar", place / "none", wanted)]).words(TRY_S)
        if word != "retried":
            raise PlaitError(f"a server without faults is not read: {word}")
        for number in range(setting.count(40)):
            kind, how = KINDS[number % len(KINDS)], ("once", "always")[number // len(KINDS) % 2]
            plan = f"{kind}-{int(rng(setting.seed, 'web', number).integers(6))}-{how}-{number}"
            thunk: Callable[[], str] = lambda plan=plan: read_all(f"{root}/{plan}/train-000.tar", place / plan, wanted)  # noqa: E731
            started.append((plan, Start([thunk])))
        for plan, start in started:
            (word,) = start.words(TRY_S)
            if word.startswith("lost: "):
                row.add(f"{plan}: {word.removeprefix('lost: ')}")
            else:
                row.add(None, **{word: 1})
    finally:
        server.terminate()
        server.join()
    return [row]
