"""A Hub on loopback: what the client of huggingface_hub asks for when it looks at repositories, checks access and downloads files."""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.hf_api
from huggingface_hub import constants

from tests import loopback

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCH = "diffusers/base/post-trained"
TOKEN = "hf_" + "sesame" * 4


@dataclass
class Repository:
    """`files`: bodies, or sizes alone, by name. `gated`, `private`: read with the token only. `fault`: a status, or "slow"."""

    files: dict = field(default_factory=dict)
    card: dict = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    fault: object = None


def blob(body):
    """The hash by which git knows a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(headers.pop("length", len(body))))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status, code, message="no"):
        self.answer(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def do_GET(self):
        path, token = unquote(urlsplit(self.path).path), self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server.asked.append((self.command, path, token))
        if token and token != TOKEN:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return self.answer(*self.server.account)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]  # the name of a branch may have a /
        kind, parts = (parts[1], parts[2:]) if parts[0] == "api" else ("models", parts)
        kind, parts = ("datasets", parts[1:]) if parts[:1] == ["datasets"] else (kind, parts)
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.server.repositories.get((kind, name))
        if repository is None or (repository.private and not token):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.fault == "slow":
            self.server.closing.wait(60)
            return None
        if repository.fault:
            return self.refuse(repository.fault, "", f"the secret is {token}")
        return self.about(name, repository, rest, allowed=bool(token) or not repository.gated)

    do_HEAD = do_GET

    def about(self, name, repository, rest, allowed):
        if rest[:1] == ["revision"] and rest[1] not in ("main", "v2", BRANCH, COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if (rest == ["auth-check"] or rest[:1] == ["resolve"]) and not allowed:
            return self.refuse(403, "GatedRepo", f"Access to {name} is restricted")
        if rest == ["auth-check"]:
            return self.answer(200, b"{}")
        if rest[:1] == ["resolve"]:
            return self.file(repository, "/".join(rest[2:]))
        if rest[:1] == ["tree"]:
            return self.tree(repository, "".join(f"{part}/" for part in rest[2:]))
        sizes = {file: body if isinstance(body, int) else len(body) for file, body in repository.files.items()}
        files = [{"rfilename": file, "size": size, "blobId": "0"} for file, size in sizes.items()]
        about = {"id": name, "sha": COMMIT, "gated": "manual" if repository.gated else False, "private": repository.private}
        return self.answer(200, json.dumps({**about, "siblings": files, "cardData": repository.card, "tags": []}).encode())

    def tree(self, repository, below):
        """Answer with the files and folders below a folder, all of them or the next ones."""
        within = {name: body for name, body in repository.files.items() if name.startswith(below)}
        if below and not within:
            return self.refuse(404, "EntryNotFound")
        tree = [{"type": "file", "path": name, "size": len(body), "oid": blob(body)} for name, body in within.items()]
        folders = {str(parent) for name in within for parent in PurePosixPath(name).parents if f"{parent}/".startswith(below)}
        tree += [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted(folders - {".", below.rstrip("/")})]
        if parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() != "true":
            tree = [entry for entry in tree if "/" not in entry["path"].removeprefix(below)]
        return self.answer(200, json.dumps(tree).encode())

    def file(self, repository, name):
        if name not in repository.files:
            return self.refuse(404, "EntryNotFound")
        body = repository.files[name]
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
            return self.answer(206, body[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(body)}")
        return self.answer(200, body, ETag=f'"{blob(body)}"', X_Repo_Commit=COMMIT)


class Hub(loopback.Server):
    """`repositories`: by (models or datasets, owner/name). `asked`: (method, path, token) of every request."""

    def __init__(self):
        super().__init__(Handler)
        self.is_of()
        self.repositories, self.asked = {}, []

    def is_of(self, role="write", org="write", **more):
        """Have the token be of the account `someone`, with this role, and of a member of `team` with that one."""
        told = {"name": "someone", "orgs": [{"name": "team", "roleInOrg": org}]}
        self.account = 200, json.dumps({**told, "auth": {"accessToken": {"role": role, **more}}}).encode()

    def downloaded(self):
        """The files whose content was asked for."""
        return sorted(
            path.split("/resolve/")[1].partition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path
        )


def point(monkeypatch, url, folder):
    """Have this process ask the Hub at `url`, with its cache and token below `folder`, and without a token of the environment."""
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def serving(monkeypatch, folder):
    """A Hub that this process asks while the block lasts; its cache is below `folder`, and there is no token."""
    with loopback.running(Hub()) as hub:
        point(monkeypatch, hub.url, folder)
        yield hub
