"""A server on loopback that answers what the W&B client asks when it opens, resumes, fills and ends a run, and keeps what it is sent.

It imitates as much of W&B as version 0.31 of the client uses: GraphQL for the viewer, for whether a run is there, for opening one and for
where files go; the file stream, in which each line of the history has its place; and uploads.
"""

import contextlib
import gzip
import json
from http.server import BaseHTTPRequestHandler

from tests.loopback import Server, running

OWNER = {"id": "p1", "name": "toy", "entity": {"id": "e1", "name": "me"}}


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_PUT(self):
        self.server.uploaded[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def do_POST(self):
        told = json.loads(self._body())
        if self.path != "/graphql":
            _, _, entity, project, run, _ = self.path.split("/")
            self.server.stream(f"{entity}/{project}/{run}", told)
            self._answer({"exitcode": None, "limits": {}})
            return
        self._answer({"data": self.server.asked(told["query"], told.get("variables") or {})})

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class WandbServer(Server):
    """`history`: the rows of each run by "entity/project/id", in their places; `opened`: ids in order; `uploaded`: files by name."""

    def __init__(self):
        super().__init__(_Answers)
        self.history, self.opened, self.ended, self.uploaded = {}, [], [], {}

    def stream(self, run, told):
        """Put the lines of a piece of the file stream where they belong."""
        history = told.get("files", {}).get("wandb-history.jsonl")
        if history is not None:
            rows = self.history.setdefault(run, [])
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]
        if told.get("complete"):
            self.ended.append(run)

    def asked(self, query, variables):
        """Answer a question of GraphQL by the field that it asks for."""
        if "upsertBucket" in query:
            self.opened.append(variables["name"])
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": len(set(self.opened)) == 1}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "model(" in query:
            known = variables["name"] in self.opened
            return {"model": {**OWNER, "bucket": self._bucket(variables["name"]) if known else None}}
        viewer = {"id": "v1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}, "entity": {"organization": None}}

    def _bucket(self, name):
        rows = self.history.get(f"me/toy/{name}", [])
        told = {"historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]])}
        empty = {"eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0, "config": "{}", "tags": [], "notes": None, "sweepName": None}
        last = {"summaryMetrics": json.dumps(rows[-1] if rows else {}), "wandbConfig": "{}", "description": None}
        return {"id": f"bucket-{name}", "name": name, "displayName": name, "project": OWNER, **told, **empty, **last}


@contextlib.contextmanager
def imitated():
    """Yield the server while it runs."""
    with running(WandbServer()) as server:
        yield server
