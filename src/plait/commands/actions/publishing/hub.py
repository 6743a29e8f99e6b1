"""Send an item of a run's queue to the Hub: its files in one commit, of which readers see all or nothing.

The same item may be sent again, after a lost answer or a kill: what is there already is not sent, and no second commit is made.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_hub_download, set_client_factory, utils
from huggingface_hub.utils import _http

from plait import files
from plait.commands.actions.publishing import card, contents, passports
from plait.commands.actions.publishing.outbox import Item, Job
from plait.commands.actions.publishing.passports import Damaged
from plait.errors import PlaitError

ANSWER_S, FIRST_ANSWER_S = 300.0, 30.0
"""Seconds without a byte after which a request is given up, to be made again: a commit of many files takes its time, the first request of
an item does not. The client itself would wait for ever."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt")
_THREADS = 2


def prepare() -> None:
    """Have the Hub's client of this process wait for no answer longer than ANSWER_S, and draw no bars."""

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = ANSWER_S
        return made

    set_client_factory(client)
    utils.disable_progress_bars()  # type: ignore[attr-defined]


def send(item: Item, branches: Sequence[str]) -> tuple[str, str]:
    """Send the files of an item to branches of its repository; return owner/name, and the commit of the first branch.

    Raises PlaitError where it must not be sent, as the repository holds something else, or (Damaged) a file is damaged, and what the
    client raises.
    """
    job = item.job
    _check(item)
    api = HfApi()
    with _answered_within(FIRST_ANSWER_S):
        repo = api.create_repo(job.repo, private=job.private, exist_ok=True).repo_id
    if job.private and not api.model_info(repo).private:
        raise PlaitError(f"{repo} is public, and is to be private: make it private there, or push with hub.private=false (or --public)")
    commits: list[str] = []
    for branch in branches:
        if branch != "main":
            api.create_branch(repo, branch=branch, revision=commits[0] if commits else "main", exist_ok=True)
        commits.append(_commit(api, repo, branch, item))
    return repo, commits[0]


@contextlib.contextmanager
def _answered_within(seconds: float) -> Iterator[None]:
    """Have the client wait for so long in the block, in place of ANSWER_S."""
    session = get_session()
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = ANSWER_S


def address(repo: str, commit: str) -> str:
    """Return where people see a commit of a repository."""
    return f"{HfApi().endpoint}/{repo}/tree/{commit}"


def _check(item: Item) -> None:
    """Raise Damaged where a file is not as the manifest of a checkpoint, or the passport, says: such a one is never sent."""
    path = item.files / contents.MANIFEST
    try:
        listed = dict(json.loads(path.read_bytes())["files"]) if item.job.layout is None else {}
    except (ValueError, KeyError, TypeError):
        listed, damaged = {}, [contents.MANIFEST]
    else:
        damaged = passports.damaged(item, listed)
    damaged += [name for name, one in listed.items() if not _is_file(item, name) or files.xxh3(item.files / name) != one["xxh3"]]
    if damaged:
        raise Damaged(f"{item.job.title} is not pushed to {item.job.repo}: {item.files / damaged[0]} is damaged; push another checkpoint")


def _is_file(item: Item, name: str) -> bool:
    return (item.files / name).is_file()


def _commit(api: HfApi, repo: str, branch: str, item: Item) -> str:
    """Make the branch hold the files of an item, with one commit or, where it holds them, none; return its newest commit.

    What an earlier push of the run has written and this one has not goes; other files of the repository stay.
    """
    about = api.model_info(repo, revision=branch)
    there = {sibling.rfilename for sibling in about.siblings or []}
    before = _pushed_before(repo, str(about.sha), there, item.job)
    new = {str(path.relative_to(item.files)): path for path in sorted(item.files.rglob("*")) if path.is_file()}
    if card.NAME in there and card.NAME in new and not card.is_ours(_body(repo, card.NAME, str(about.sha))):
        del new[card.NAME]  # somebody has written a better one
    stale = sorted((there & before) - new.keys() - {card.NAME})
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in new.items()]
    return str(
        api.create_commit(
            repo,
            [*operations, *(CommitOperationDelete(path_in_repo=name) for name in stale)],
            commit_message=f"plait: {item.job.title}",
            revision=branch,
            parent_commit=about.sha,
            num_threads=_THREADS,
        ).oid
    )


def _pushed_before(repo: str, revision: str, there: set[str], job: Job) -> set[str]:
    """Return the files that the last push of this run wrote there; of another model that is to be replaced, its weights.

    Raises PlaitError where a repository holds weights that are not those of this run, unless they are to be replaced.
    """
    weights = {name for name in there if name.endswith(_WEIGHTS)}
    told: Any = None
    if contents.RUN in there:
        with contextlib.suppress(ValueError):
            told = json.loads(_body(repo, contents.RUN, revision))
    run = told.get("run") if isinstance(told, dict) else None
    if weights and run != job.identity and not job.replace:
        whose = f"weights of run {run}" if isinstance(run, str) else "weights that no run of plait has pushed"
        raise PlaitError(
            f"{repo} holds {whose}, and this is run {job.identity}: name another repository, or push with --replace, which keeps the old "
            "ones in its history"
        )
    listed = told.get("files") if isinstance(told, dict) else None
    return {str(name) for name in listed} if isinstance(listed, list) and run == job.identity else weights | {contents.MANIFEST}


def _body(repo: str, name: str, revision: str) -> bytes:
    return Path(hf_hub_download(repo, name, revision=revision)).read_bytes()
