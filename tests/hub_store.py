"""A Hub on loopback that is written to: repositories with branches and commits, large files, and faults of any kind.

It speaks what the client of huggingface_hub speaks: repos/create, preupload, LFS batch and uploads (whole and in parts), commit, branch. A
commit is made whole or not at all.
"""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.hub_server import blob, point

TOKEN = "hf_" + "sesame" * 4
PART = 1 << 16
"""Bytes of a part of a large file."""


def large(path, body):
    """What the Hub tells of a file in large-file storage."""
    told = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return {"lfs": told} if path.endswith(".safetensors") else {}


class Repo:
    """`branches`: commit by name; `commits`: {name: {path: body}}; `log`: (branch, commit, message) in order."""

    def __init__(self, private):
        self.private, self.commits, self.branches, self.log = private, {}, {}, []
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    def commit(self, branch, files, message):
        oid = hashlib.sha1(json.dumps([branch, message, len(self.log), sorted(files)]).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        self.log.append((branch, oid, message))
        return oid

    def files(self, revision="main"):
        return self.commits[self.branches.get(revision, revision)]

    def of(self, branch):
        """The messages of a branch's commits but the first."""
        return [message for name, _, message in self.log if name == branch and message != "initial commit"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message="no"):
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_one(self):
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = self.body()
        with self.server.lock:
            self.server.asked.append((self.command, path, token))
            self.server.bodies.append(body)
        fault = self.server.fault(self.command, path)
        if fault == "cut":  # before anything is done
            return self.close()
        if isinstance(fault, int | tuple):
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            return self.answer(status, {"error": "no"}, X_Error_Message=f"the server fails with {status}", **headers)
        if fault == "lost":  # done, and nobody is told
            self.answer = lambda *args, **headers: self.close()
        with self.server.lock:
            return self.act(path, token, body)

    def body(self):
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def close(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def act(self, path, token, body):
        hub = self.server
        if path.startswith("/lfs/"):
            return self.upload(path, body)
        if token and token != hub.token:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if self.command not in {"GET", "HEAD"} and not token:
            return self.refuse(401, "", "no token")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.startswith("/api/datasets/"):
            return self.answer(200, {"id": path[14:], "sha": "0" * 40, "siblings": [], "cardData": {"license": "cc-by-4.0"}, "tags": []})
        parts = path.removesuffix("/info/lfs/objects/batch").removesuffix(".git").strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts
        repo, rest = hub.repos.get("/".join(parts[:2])), parts[2:]
        if repo is None or (repo.private and not token):
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if self.command in ("GET", "HEAD"):
            return self.read("/".join(parts[:2]), repo, rest)
        if hub.forbidden:
            return self.refuse(403, "", f"you may not write with {token}")
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        return getattr(self, rest[0])(repo, "/".join(rest[1:]), body)

    def create(self, wanted):
        owner = wanted.get("organization") or "someone"
        name = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo", **url})
        self.server.repos[name] = Repo(wanted.get("private") or wanted.get("visibility") == "private")
        return self.answer(200, url)

    def read(self, name, repo, rest):
        if rest[:1] == ["resolve"]:
            files, path = repo.files(rest[1]), "/".join(rest[2:])
            if path not in files:
                return self.refuse(404, "EntryNotFound")
            return self.answer(200, files[path], ETag=f'"{blob(files[path])}"', X_Repo_Commit=repo.branches.get(rest[1], rest[1]))
        revision = "/".join(rest[1:]) if rest[:1] in (["revision"], ["tree"]) else "main"
        if revision not in repo.branches and revision not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repo.files(revision)
        if rest[:1] == ["tree"]:
            return self.answer(200, [{"type": "file", "path": path, "size": len(each), "oid": blob(each)} for path, each in files.items()])
        siblings = [{"rfilename": path, "size": len(each), "blobId": blob(each), **large(path, each)} for path, each in files.items()]
        sha = repo.branches.get(revision, revision)
        return self.answer(200, {"id": name, "sha": sha, "private": repo.private, "gated": False, "siblings": siblings, "tags": []})

    def preupload(self, repo, revision, body):
        if revision not in repo.branches:
            return self.refuse(404, "RevisionNotFound")
        there, told = repo.files(revision), []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            known = there.get(file["path"])
            oid = None if known is None else hashlib.sha256(known).hexdigest() if mode == "lfs" else blob(known)
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": told})

    def batch(self, wanted):
        objects = []
        for file in wanted["objects"]:
            one = {"oid": file["oid"], "size": file["size"]}
            if file["oid"] not in self.server.large:
                to, count = f"{self.server.url}/lfs/{file['oid']}", -(-file["size"] // PART)
                parts = {str(n + 1): f"{to}/{n + 1}" for n in range(count)} | {"chunk_size": str(PART)} if count > 1 else {}
                verify = {"href": f"{to}/verify", "header": {}}
                one["actions"] = {"upload": {"href": f"{to}/complete" if parts else to, "header": parts}, "verify": verify}
            objects.append(one)
        return self.answer(200, {"objects": objects, "transfer": "multipart"})

    def upload(self, path, body):
        hub, (oid, *rest) = self.server, path.removeprefix("/lfs/").split("/")
        if rest == ["verify"]:
            return self.answer(200 if oid in hub.large else 404)
        if rest == ["complete"]:
            count = len(json.loads(body)["parts"])
            body = b"".join(hub.parts.get((oid, n + 1), b"") for n in range(count))
        elif rest:
            hub.parts[oid, int(rest[0])] = body
            return self.answer(200, ETag=f'"{rest[0]}"')
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, b"another content")
        hub.large[oid] = body
        return self.answer(200)

    def commit(self, repo, branch, body):
        head, *lines = [json.loads(line) for line in body.splitlines()]
        parent = head["value"].get("parentCommit")
        if branch not in repo.branches:
            return self.refuse(404, "RevisionNotFound")
        if parent is not None and parent != repo.branches[branch]:
            return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files(branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    return self.answer(400, {"error": "LFS pointer pointed to a file that does not exist"})
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                del files[value["path"]]
        oid = repo.commit(branch, files, head["value"]["summary"])
        name = next(name for name, one in self.server.repos.items() if one is repo)
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def branch(self, repo, name, body):
        if name in repo.branches:
            return self.answer(409, {"error": "Reference already exists"})
        start = json.loads(body).get("startingPoint", "main")
        repo.branches[name] = repo.branches.get(start, start)
        return self.answer(200, b"{}")


class Store(ThreadingHTTPServer):
    """`repos`: by owner/name. `asked`: (method, path, token) and `bodies` of all requests.

    `fault(method, path)`: a status, alone or with headers, "cut" (before anything is done) or "lost" (after it), None for an answer.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.large, self.parts, self.asked, self.bodies = {}, {}, {}, [], []
        self.lock, self.token, self.forbidden = threading.RLock(), TOKEN, False
        self.fault, self.silent = lambda method, path: None, threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(monkeypatch, folder):
    """A Hub that this process and those that it starts ask while the block lasts, with a token that may write."""
    hub = Store()
    point(monkeypatch, hub.url, folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    told = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
