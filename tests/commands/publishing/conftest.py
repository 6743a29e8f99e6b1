import shutil
import warnings

import pytest

from tests import hub_store
from tests import toy_family as toy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, a finished run of it)."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        (folder / "run" / "assets" / "tokenizer").mkdir(parents=True)
        (folder / "run" / "assets" / "tokenizer" / "words").write_text("the run's own")
        run = toy.train(recipe, folder / "run")
        yield recipe, run


@pytest.fixture
def run(made, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(made[1], tmp_path / "run")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that takes pushes; pauses of its client and of the sender are skipped."""
    warnings.filterwarnings("ignore", message="Use 'content=<...>'", category=DeprecationWarning)  # of the client's own uploads
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with hub_store.serving(monkeypatch, tmp_path) as server:
        yield server
