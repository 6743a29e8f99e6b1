"""What every test shares: no network, one thread, and the folder of real shards when it is at hand."""

import gc
import os
import sys
from pathlib import Path

import pytest
from xdist.scheduler import WorkStealingScheduling

from plait.engine.monitoring import reporter

reporter.install()

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"


def leave_to_the_kernel(descriptor):
    """Flush no file to the disk: tests kill processes, which lose nothing that was written, and a toy's run would wait as long again."""
    os.fstat(descriptor)  # fails where a flush would: the file is closed


os.fsync = leave_to_the_kernel

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("PLAIT_DATA", ROOT.parent / "shared" / "data"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process tests that stand one after the other: what a file's tests share, such as a trained run, is made once."""
    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish():
    """Leave what all tests share, modules and the tests themselves, out of the garbage collections to come."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache_of_the_tests(tmp_path_factory):
    """Keep the indices that tests make out of the user's cache, also those of processes that they start."""
    os.environ.setdefault("PLAIT_CACHE", str(tmp_path_factory.mktemp("plait-cache")))


@pytest.fixture
def real_data() -> Path:
    """The real shards (CIFAR-10 photos, NLVR), when present; a test that needs them is passed over elsewhere."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real shards are not here; set PLAIT_DATA to their folder")
    return REAL_DATA


@pytest.fixture
def calls():
    """How many function calls, Python's and C's, a thunk makes: work that can be counted, where time would measure the machine."""

    def count(thunk):
        seen = 0

        def note(frame, event, argument):
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            thunk()
        finally:
            sys.setprofile(None)
        return seen

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Write half surrogate pairs, which hostile names put into captured logs, as escapes: workers cannot send them."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report
