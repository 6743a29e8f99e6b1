"""What the Hub refuses is one line with its cure, through every way that leads to it; the client's retries are not shown."""

from http.server import BaseHTTPRequestHandler

import huggingface_hub
import pytest
from huggingface_hub import constants

from plait import cli
from plait.data.sources import hub_files
from plait.data.sources.datasets import Table
from plait.errors import PlaitError
from plait.nn import pretrained
from tests import hub_server, loopback
from tests.hub_server import TOKEN, Repository

RECIPE = "family: theworld\nmodel: {base: tiny}\ndata: {train: [{source: scenes}]}\ntrain: {steps: 1}\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with hub_server.serving(monkeypatch, tmp_path) as server:
        server.repositories["models", "owner/gated"] = Repository({"config.json": b"{}", "vae/config.json": b"{}"}, gated=True)
        server.repositories["models", "owner/down"] = Repository({"config.json": b"{}"}, fault=503)
        yield server


def train(capsys, base):
    """The one line of `plait train` with this base model."""
    assert cli.main(["train", "recipe.yaml", "--run=run", f"--model.base={base}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"plait: model.base: cannot load {base!r} as a Hub name or a local directory: ") and err.count("\n") == 1
    return err.partition("local directory: ")[2].rstrip()


def test_a_gated_model_says_which_licence_and_which_variable(hub, capsys, monkeypatch):
    line = f"it is gated: accept its licence at {hub.url}/owner/gated, and set HF_TOKEN to a token of that account (or `hf auth login`)"
    assert train(capsys, "owner/gated") == line
    with pytest.raises(PlaitError) as error:
        pretrained.locate("owner/gated/vae")
    assert str(error.value) == f"encoder 'owner/gated/vae' is neither a folder nor a repository that can be fetched: {line}"


def test_a_model_that_is_not_there_may_be_private(hub, capsys):
    assert train(capsys, "owner/absent") == (
        f"there is no {hub.url}/owner/absent, or it is private: mend the name, or set HF_TOKEN to a token that may read it"
    )


def test_a_token_that_is_refused_is_named_without_its_value(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
    line = train(capsys, "owner/gated")
    assert line == "the Hub refuses the token (401): set HF_TOKEN to one that is valid, or run `hf auth login` again"


def test_a_token_without_the_licence_names_its_account(hub, capsys, monkeypatch):
    monkeypatch.setattr(hub_server.Handler, "about", lambda self, name, *_, **__: self.refuse(403, "GatedRepo", "restricted"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert f"accept its licence at {hub.url}/owner/gated, with the account of the token that is set" in train(capsys, "owner/gated")


def test_offline_names_the_variable_and_the_download(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = train(capsys, "owner/gated")
    assert line == "it is not in the cache, and HF_HUB_OFFLINE is set: unset it, or download it before: hf download owner/gated"


def test_an_unreached_hub_is_one_line_and_no_retry_is_shown(hub, capsys, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(PlaitError) as error:
        pretrained.locate("owner/model")
    assert "cannot be reached (HF_ENDPOINT, proxies): download it elsewhere: hf download owner/model" in str(error.value)
    assert [record for record in caplog.records if record.name.startswith("huggingface_hub")] == []
    assert "Retry" not in capsys.readouterr().err


def test_a_server_that_fails_is_one_line_and_no_retry_is_shown(hub, capsys, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    assert "\n" not in train(capsys, "owner/down")
    assert [record for record in caplog.records if record.name.startswith("huggingface_hub")] == []


def test_a_dataset_that_is_gated_or_absent_says_so(hub, monkeypatch):
    pytest.importorskip("datasets")
    hub.repositories["datasets", "owner/set"] = Repository({"train.parquet": b"x"}, gated=True)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(PlaitError) as error:
        Table(None, "owner/set", "train", {}, None, {})
    assert f"it is gated: accept its licence at {hub.url}/datasets/owner/set, and set HF_TOKEN" in str(error.value)
    with pytest.raises(PlaitError) as error:
        Table(None, "owner/absent", "train", {}, None, {})
    assert f"there is no {hub.url}/datasets/owner/absent, or it is private: mend the name, or set HF_TOKEN" in str(error.value)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_a_dataset_offline_names_the_variable_that_is_set(hub, monkeypatch, variable):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    with pytest.raises(
        PlaitError,
        match=rf"not in the cache, and {variable} is set: unset it, or download it before: plait data inspect CONFIG, with",
    ):
        Table(None, "owner/set", "train", {}, None, {})


class RefusingProxy(BaseHTTPRequestHandler):
    """A proxy that passes nothing on."""

    def log_message(self, *args):
        pass

    def do_CONNECT(self):
        self.server.asked.append(self.path)
        self.send_error(self.server.status)


@pytest.fixture
def proxied(monkeypatch, tmp_path, hub):
    """A Hub behind a proxy that answers with its `status`."""
    pytest.importorskip("datasets")
    proxy = loopback.Server(RefusingProxy)
    proxy.asked, proxy.status = [], 403
    hub_server.point(monkeypatch, "https://hub.invalid", tmp_path)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    huggingface_hub.close_session()
    with loopback.running(proxy):
        yield proxy
    huggingface_hub.close_session()


@pytest.mark.parametrize(("status", "waits"), [(403, 0), (404, 0), (502, 3)])
def test_a_definite_answer_is_not_asked_for_again(proxied, monkeypatch, capsys, status, waits):
    waited = []
    monkeypatch.setattr(hub_files.time, "sleep", waited.append)
    monkeypatch.setattr(hub_files, "_silent", set())
    proxied.status = status
    assert cli.main(["train", "recipe.yaml", "--run=run", "--data.train=[{source: datasets, name: owner/set}]"]) == 2
    assert waited == [1.0, 4.0, 15.0][:waits] and proxied.asked
    assert "cannot be reached (HF_ENDPOINT, proxies)" in capsys.readouterr().err


def test_a_name_that_the_hub_does_not_know_is_asked_for_once(hub, monkeypatch, capsys):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_files.time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s"))
    assert cli.main(["train", "recipe.yaml", "--run=run", "--data.train=[{source: datasets, name: owner/none}]"]) == 2
    assert "there is no " in capsys.readouterr().err
    assert [path for _, path, _ in hub.asked if "owner/none" in path] == ["/api/datasets/owner/none"]


NO_FOLDER = "there is no folder ./nodir, and it is no name of a repository, owner/name"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("--model.world.source=./nodir", f"model.world.source: cannot load './nodir' as a Hub name or a local directory: {NO_FOLDER}"),
        ("--model.base=./nodir", f"model.base: cannot load './nodir' as a Hub name or a local directory: {NO_FOLDER}"),
        ("--data.train=[{source: datasets, name: ./nodir}]", f"datasets cannot load ./nodir (train): {NO_FOLDER}"),
    ],
)
def test_a_folder_that_does_not_exist_is_told_as_that(monkeypatch, tmp_path, capsys, setting, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert cli.main(["train", "recipe.yaml", "--run=run", setting]) == 2
    assert capsys.readouterr().err.rstrip("\n").endswith(line)
