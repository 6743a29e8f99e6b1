"""`plait doctor CONFIG` with `hub:` or `checkpoint.mirror`: one line each on whether the run could write there, and nothing is made."""

import threading

import pytest

from plait import cli
from plait.commands.actions.publishing import access
from plait.commands.actions.publishing.mirror import Store
from tests import hub_server
from tests import toy_family as toy
from tests.hub_server import TOKEN, Repository


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving(monkeypatch, tmp_path) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def found(monkeypatch, tmp_path, hub, capsys):
    """(exit code, the line that begins with MEND or ok and this word, the cures) of `plait doctor` with these settings."""
    recipe = toy.install(monkeypatch, tmp_path)

    def asked(what, *settings):
        code = cli.main(["doctor", str(recipe), f"--run={tmp_path / 'run'}", *settings])
        out, cures = capsys.readouterr()
        assert TOKEN not in out + cures and "sesame" not in out + cures
        (line,) = [line for line in out.splitlines() if line[6:].startswith(f"{what} ")]
        return code, line, cures

    return asked


def test_a_token_that_may_write_is_told_with_what_is_there(found, hub):
    hub.repositories["models", "someone/toy"] = Repository(private=True)
    for repo, state in {
        "someone/toy": "it is there, private",
        "toy": "it is there, private",
        "team/new": "it is made private with the first push",
    }.items():
        code, line, _ = found("push", f"--hub.repo={repo}")
        name = repo if "/" in repo else f"someone/{repo}"
        assert code == 0 and line == f"ok    push       {name} (hub.repo): the token of HF_TOKEN may write there; {state}"
    assert {method for method, _, _ in hub.asked} == {"GET"}


SCOPED = {"fineGrained": {"scoped": [{"entity": {"name": "someone", "type": "user"}, "permissions": ["repo.content.read"]}]}}
MAY_NOT = {
    "read": ({"role": "read"}, "someone/toy", "the token of HF_TOKEN may not write to someone/toy: it is one that reads"),
    "stranger": ({}, "other/toy", "the token of HF_TOKEN may not write to other/toy: its account someone is no member of other"),
    "member": ({"org": "read"}, "team/toy", "the token of HF_TOKEN may not write to team/toy: its account someone may only read in team"),
    "fine": (
        {"role": "fineGrained", **SCOPED},
        "someone/toy",
        "the token of HF_TOKEN may not write to someone/toy: it is a fine-grained one without that right",
    ),
}


@pytest.mark.parametrize("case", MAY_NOT)
def test_a_token_that_may_not_write_is_one_line_with_its_cure(found, hub, case):
    account, repo, line = MAY_NOT[case]
    hub.is_of(**account)
    code, told, cures = found("push", f"--hub.repo={repo}")
    assert code == 1 and told == f"MEND  push       {repo} (hub.repo): {line}"
    assert f"1 thing to mend: give it that right at {hub.url}/settings/tokens, or name another hub.repo" in cures


def test_a_fine_grained_token_with_the_right_is_enough(found, hub):
    scope = {"entity": {"name": "someone/toy", "type": "model"}, "permissions": ["repo.content.read", "repo.write"]}
    hub.is_of(role="fineGrained", fineGrained={"scoped": [scope]})
    assert found("push", "--hub.repo=someone/toy")[0] == 0


def test_no_token_a_refused_one_a_public_repository_and_a_silent_hub_are_told(found, hub, monkeypatch):
    hub.repositories["models", "someone/toy"] = Repository()
    code, line, cures = found("push", "--hub.repo=someone/toy")
    assert code == 1 and line.endswith("someone/toy is public, and is to be private") and "or set hub.private=false" in cures
    hub.account = (503, b"sesame")
    _, line, cures = found("push", "--hub.repo=someone/toy")
    assert line.endswith(f"the Hub at {hub.url} could not be asked (it answered with status 503)") and "pushes wait until it does" in cures
    monkeypatch.setattr(access.HfApi, "whoami", lambda self: threading.Event().wait(20))
    monkeypatch.setattr(access, "WITHIN_S", 0.05)
    assert found("push", "--hub.repo=someone/toy")[1].endswith("someone/toy (hub.repo): no answer in 0.05 s")


def test_a_token_that_the_hub_refuses_and_none_are_told(found, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame" + "x" * 20)
    code, line, cures = found("push", "--hub.repo=someone/toy")
    assert code == 1 and line.endswith("the Hub refuses the token of HF_TOKEN (401)")
    assert "set HF_TOKEN to a token that is valid and may write" in cures
    monkeypatch.delenv("HF_TOKEN")
    code, line, cures = found("push", "--hub.repo=someone/toy")
    assert line.endswith("no token is set") and "set HF_TOKEN to one that may write, or run `hf auth login`" in cures


def test_a_mirror_is_written_read_and_left_as_it_was(found, tmp_path, monkeypatch):
    address, folder = f"file://{tmp_path / 'mirror'}", tmp_path / "mirror"
    code, line, _ = found("mirror", f"--checkpoint.mirror={address}")
    assert code == 0 and line == f"ok    mirror     {address} (checkpoint.mirror): a small file was written, read and removed"
    assert not folder.exists()
    folder.mkdir()
    (folder / "identity").write_text("a run")
    assert found("mirror", f"--checkpoint.mirror={address}")[0] == 0 and [path.name for path in folder.iterdir()] == ["identity"]


@pytest.mark.parametrize(
    ("error", "cure"),
    [(PermissionError("Access Denied"), "mend checkpoint.mirror, its keys or its rights"),
     (FileNotFoundError("no bucket"), "mend checkpoint.mirror, its keys or its rights"),
     (TimeoutError("late"), "see that this machine reaches it")],
    ids=repr,
)  # fmt: skip
def test_a_mirror_that_cannot_be_written_is_one_line_with_its_cure(found, tmp_path, monkeypatch, error, cure):
    monkeypatch.setattr(Store, "write", lambda *_: (_ for _ in ()).throw(error))
    code, line, cures = found("mirror", f"--checkpoint.mirror=file://{tmp_path / 'mirror'}")
    assert code == 1 and line.endswith(f"(checkpoint.mirror) cannot be written, read and removed from: {error}") and cure in cures


def test_a_mirror_of_an_unknown_protocol_is_one_line(found):
    code, line, _ = found("mirror", "--checkpoint.mirror=nowhere://x/y")
    assert code == 1 and "nowhere://x/y (checkpoint.mirror): cannot open nowhere://x/y: Protocol not known" in line
