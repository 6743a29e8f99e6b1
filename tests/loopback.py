"""Servers on loopback that a test starts: one that swallows everything, an address that refuses, one that keeps what it is told."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A web server on loopback, at a free port, for many clients that come at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    """Clients that wait to be accepted. Of http.server's five, the next one is dropped, and its client tries again for up to a minute."""

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running(server):
    """Serve while the block lasts; `server.closing` is set at its end, for handlers that wait."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def swallowing():
    """Yield the port of a server that takes every connection and reads what comes, and never answers: a black hole."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        taken, ended = [], threading.Event()

        def swallow(connection):
            with contextlib.suppress(OSError):
                while connection.recv(1 << 16):
                    pass

        def accept():
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    taken.append(server.accept()[0])
                    threading.Thread(target=swallow, args=(taken[-1],), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in taken:
                connection.close()


def refusing():
    """A port of loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class _Keeper(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.kept.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()


@contextlib.contextmanager
def keeping(status=200):
    """Yield (port, list of (path, JSON)) of a web server that keeps what is posted, and answers `status`."""
    with running(Server(_Keeper)) as server:
        server.kept, server.status = [], status
        yield server.server_port, server.kept
