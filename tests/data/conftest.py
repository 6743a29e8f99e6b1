"""The index cache of the tests is their own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def _importable_in_worker_processes(monkeypatch):
    """A new process imports the test's own classes by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
