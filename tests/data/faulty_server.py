"""A web server on loopback that answers byte ranges, and fails as it is told to."""

import contextlib
import re
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler

from tests import loopback

STATUS = re.compile(r"\d{3}")


class Handler(BaseHTTPRequestHandler):
    """Answers GET of the server's `files`; the next of its `faults` that fits the request spoils the answer."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0].removeprefix("/")
        server.asked.append((self.path, self.headers.get("Range")))
        fault = server.fault(path, self.headers.get("Range"))
        with contextlib.suppress(OSError):
            self.answer(server.files.get(path), fault)

    def answer(self, body, fault):
        if fault.startswith("status"):
            number, _, retry_after = fault.removeprefix("status ").partition(" ")
            return self.send(int(number), b"sorry", {"Retry-After": retry_after} if retry_after else {})
        if fault == "redirect loop":
            return self.send(302, b"", {"Location": self.path})
        if fault == "stall":
            return self.server.closing.wait(60)
        if body is None:
            return self.send(404, b"")
        if fault == "no ranges":
            return self.send(200, body)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if first >= len(body):
            return self.send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        last = min(last, len(body) - 1)
        part, shift = body[first : last + 1], 1 if fault == "wrong range" else 0
        headers = {
            "Content-Range": f"bytes {first + shift}-{last + shift}/{len(body)}",
            "ETag": f'"{fault}"' if fault == "changed" else '"1"',
        }
        if fault == "endless size":
            headers["Content-Range"] = f"bytes {first}-{last}/{'9' * 5000}"
        if fault == "no content range":
            del headers["Content-Range"]
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        if fault in ("short", "reset", "drip"):
            return self.break_off(part, headers, fault)
        return self.send(206, part + (b"more" if fault == "long" else b""), headers)

    def send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def break_off(self, part, headers, fault):
        """Promise all of the part, send half of it, and then nothing, a reset, or a byte now and then."""
        self.close_connection = True
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2])
        self.wfile.flush()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        for byte in part[len(part) // 2 :] if fault == "drip" else b"":
            if self.server.closing.wait(0.05):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()


class FaultyServer(loopback.Server):
    """`files`: bodies by path. `fault(path, range)` names what goes wrong with a request, "" for nothing. `asked`: all requests."""

    def __init__(self, files):
        super().__init__(Handler)
        self.files, self.asked = dict(files), []
        self.fault = lambda path, asked: ""

    def next_faults(self, *faults):
        """Spoil the next requests, one fault each."""
        coming = iter(faults)
        self.fault = lambda path, asked: next(coming, "")


def serving(files):
    """A FaultyServer of `files` while the block lasts."""
    return loopback.running(FaultyServer(files))


def wait_until(condition, limit_s=60):
    """Wait until `condition()` holds; fails after `limit_s`."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)
