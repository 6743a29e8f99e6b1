"""Servers on loopback that a test starts: one that swallows everything, an address that refuses, one that keeps what it is told."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Keeper)
    server.kept, server.status = [], status
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], server.kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
