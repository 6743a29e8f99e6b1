"""A web server on loopback for lists of links: /KIND/N gives picture N, or fails in the way of KIND; all of 127.0.0.0/8 leads to it.

`python -m tests.data.link_server PORT` serves until it is ended, for benchmarks.
"""

import asyncio
import contextlib
import gzip
import hashlib
import io
import socket
import struct
import sys
import threading
import zlib

import numpy as np
from PIL import Image

HOSTS = 8  # 127.0.1.1 and on: servers of their own, as far as a client knows
ALLOWED = "127.0.1.0/24"  # where the links lead; redirects of the kind `private` leave it
PICTURES = 32


def picture(number, side=256):
    """The bytes of a JPEG that differs from number to number; about 20 kB at 256 pixels."""
    random = np.random.default_rng(number)
    cells = np.kron(random.integers(0, 255, (16, 16, 3)), np.ones((side // 16, side // 16, 1)))
    noise = random.normal(0, 14, (side, side, 3)).clip(-60, 60)
    file = io.BytesIO()
    Image.fromarray((cells + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def bomb():
    """The bytes of a small PNG that declares 60,000 x 60,000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


KINDS = {
    "missing": "http_404",
    "error": "http_500",
    "busy": "http_429",
    "never": "http_503",
    "hang": "timeout",
    "drip": "timeout",
    "circle": "redirects",
    "chain": "redirects",
    "html": "html",
    "cut": "truncated",
    "torn": "damaged",
    "large": "too_large",
    "endless": "too_large",
    "bomb": "too_many_pixels",
    "unpacks": "too_large",
    "private": "private_address",
    "metadata": "private_address",
    "elsewhere": "bad_url",
    "forbidden": "opt_out",
    "nothing": "empty",
    "garbage": "not_a_picture",
    "rude": "broken_answer",
    "tiny": "too_small",
    "brotli": "encoding",
    "wrong": "hash",
    "dead": "connect",
    "ok": "saved",
    "moved": "saved",
    "later": "saved",
    "packed": "saved",
}
"""The outcome of a link of each kind. `wrong` has a hash of its own in the list, and `dead` leads to a port where nobody listens."""


class Pictures:
    """Bodies by number, made once. `small` of them, where rates are not measured."""

    def __init__(self, count=PICTURES, side=256):
        self.bodies = [picture(number, side) for number in range(count)]
        self.bomb, self.tiny = bomb(), picture(1, 16)
        self.unpacks = gzip.compress(bytes(30_000_000))
        self.hashes = [hashlib.sha256(body).hexdigest() for body in self.bodies]

    def body(self, number):
        return self.bodies[number % len(self.bodies)]


class LinkProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, server):
        self.server, self.buffer, self.task = server, b"", None

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, error):
        self.server.connections.discard(self)
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data):
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            path = head.split(b" ", 2)[1].decode()
            _, kind, number = path.split("/")
            self.server.asked.append(path)
            if kind == "ok":  # quickly, for benchmarks
                body = self.server.pictures.body(int(number))
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                if self.server.ending:
                    self.transport.close()
            else:
                self.answer(kind, int(number), path)

    def send(self, body=b"", status=200, length=None, **headers):
        told = {"Content-Length": len(body) if length is None else length, **{n.replace("_", "-"): v for n, v in headers.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value != "")
        self.transport.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)

    def answer(self, kind, number, path):
        pictures, body, port = self.server.pictures, self.server.pictures.body(number), self.server.port
        first_time = self.server.first_time(path)
        plain = {
            "missing": (b"no", 404),
            "error": (b"sorry", 500),
            "busy": (b"busy", 429),
            "html": (b"<!DOCTYPE html><html>no such picture</html>",),
            "torn": (body[: len(body) * 2 // 3],),
            "bomb": (pictures.bomb,),
            "nothing": (b"",),
            "garbage": (b"\x01\x02\x03" * 50,),
            "tiny": (pictures.tiny,),
            "wrong": (body,),
        }
        targets = {
            "circle": f"/circle/{number + (1 if number % 2 == 0 else -1)}",
            "chain": f"/chain/{number + 2}",
            "moved": f"http://127.0.1.{1 + number % HOSTS}:{port}/ok/{number}",
            "private": f"http://127.0.2.1:{port}/reached/{number}",
            "metadata": "http://169.254.169.254/latest/meta-data",
            "elsewhere": "ftp://example.org/a.jpg",
        }
        if kind in plain:
            self.send(*plain[kind])
        elif kind in targets:
            self.send(status=302, Location=targets[kind])
        elif kind == "forbidden":
            self.send(body, X_Robots_Tag="noai, noimageai")
        elif kind == "packed":
            self.send(gzip.compress(body), Content_Encoding="gzip")
        elif kind == "unpacks":
            self.send(pictures.unpacks, Content_Encoding="gzip")
        elif kind == "brotli":
            self.send(body, Content_Encoding="br")
        elif kind == "later":
            self.send(*((b"later", 429) if first_time else (body,)), **({"Retry_After": "1"} if first_time else {}))
        elif kind == "never":
            self.send(b"never", 503, Retry_After="1")
        elif kind == "large":
            self.send(body, length=1 << 40)
        elif kind == "cut":
            self.send(body[:1000], length=len(body))
            self.transport.close()
        elif kind == "rude":
            self.transport.write(b"220 this is no HTTP\r\n\r\n")
        elif kind == "drip":
            self.send(length=len(body))
            self.task = asyncio.get_running_loop().create_task(self.drip(body))
        elif kind == "endless":
            self.send(length="")
            self.task = asyncio.get_running_loop().create_task(self.pour())
        elif kind == "reached":
            self.send(body)
        else:
            assert kind == "hang", kind

    async def drip(self, body):
        for byte in body:
            self.transport.write(bytes([byte]))
            await asyncio.sleep(0.3)

    async def pour(self):
        while not self.transport.is_closing():
            if self.transport.get_write_buffer_size() < 1 << 20:
                self.transport.write(bytes(1 << 16))
            await asyncio.sleep(0)


class LinkServer:
    """The state of a server: `asked`, the paths of all requests."""

    def __init__(self, pictures):
        self.pictures, self.asked, self.connections, self.port, self._seen = pictures, [], set(), 0, set()
        self.ending = False  # connections end after their next answer

    def first_time(self, path):
        new = path not in self._seen
        self._seen.add(path)
        return new

    async def start(self, port=0):
        self.ending = False
        made = socket.create_server(("0.0.0.0", port), backlog=1024)
        self.port = made.getsockname()[1]
        return await asyncio.get_running_loop().create_server(lambda: LinkProtocol(self), sock=made)

    def url(self, kind, number):
        """The address of a link. A list whose links are spread over hosts has one with a name of its own for hosts that fail."""
        if kind == "dead":
            return f"http://127.0.1.{1 + number % HOSTS}:1/ok/{number}"
        own = 100 + sorted(KINDS).index(kind) if kind in ("busy", "never", "hang", "drip", "later", "error", "rude") else 1 + number % HOSTS
        return f"http://127.0.1.{own}:{self.port}/{kind}/{number}"

    def row(self, kind, number):
        """A row of a list as DataComp has them."""
        body = self.pictures.body(number)
        digest = "0" * 64 if kind == "wrong" else hashlib.sha256(body).hexdigest() if kind in ("ok", "moved", "later", "packed") else None
        return {"uid": f"u{number}", "url": self.url(kind, number), "text": f"picture number {number}", "sha256": digest}


class ServerThread:
    """A server in a thread, which `stop` and `start` take down and up again at the same port."""

    def __init__(self, pictures):
        self.server, self.loop = LinkServer(pictures), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def start(self):
        self.listening = self.run(self.server.start(self.server.port))

    def stop(self, *, graceful=False):
        """Take the server down; a graceful one goes on with what it was asked for."""

        async def close():
            self.listening.close()
            self.server.ending = graceful
            for connection in [] if graceful else list(self.server.connections):
                connection.transport.abort()

        self.run(close())

    def end(self):
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@contextlib.contextmanager
def serving_links(pictures):
    """A ServerThread while the block lasts."""
    thread = ServerThread(pictures)
    try:
        yield thread
    finally:
        thread.end()


async def serve(port):
    """Serve until the process is ended."""
    async with await LinkServer(Pictures()).start(port) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
