"""Where what is compiled is kept, and the seconds that compiling takes."""

import logging
import os

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.compilation.cache import kept_below

# torch's compiler looks at .grad of activations while it traces, and hides its own warning only where warnings are no errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def unnamed(monkeypatch):
    """An environment that names no folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def named():
    return [os.environ.get(name) for name in VARIABLES]


def test_what_is_compiled_is_kept_in_the_users_own_folder_of_the_cache(unnamed, tmp_path):
    folder = tmp_path / "compiled" / str(os.getuid())
    with kept_below(tmp_path):
        assert named() == [str(folder / "inductor"), str(folder / "triton")]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert named() == [None, None]


def test_folders_that_the_environment_names_stay(unnamed, tmp_path):
    unnamed.setenv("TRITON_CACHE_DIR", "/mine")
    with kept_below(tmp_path):
        assert named() == [None, "/mine"]
    assert not list(tmp_path.iterdir())


def test_torchs_own_default_is_no_choice_of_the_user(unnamed, tmp_path):
    unnamed.setenv("TMPDIR", str(tmp_path))
    unnamed.setattr("tempfile.tempdir", None)
    default = str(tmp_path / "torchinductor_someone")
    unnamed.setenv("TORCHINDUCTOR_CACHE_DIR", default)
    with kept_below(tmp_path / "cache"):
        assert named()[0] == str(tmp_path / "cache" / "compiled" / str(os.getuid()) / "inductor")
    assert named() == [default, None]


def test_a_cache_that_cannot_be_written_is_told_and_done_without(unnamed, tmp_path, caplog):
    (tmp_path / "compiled").touch()
    with caplog.at_level(logging.WARNING), kept_below(tmp_path):
        assert named() == [None, None]
    assert caplog.messages[0].startswith(f"what is compiled is not kept in {tmp_path / 'compiled' / str(os.getuid())} (")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_a_later_start_finds_what_was_compiled(unnamed, tmp_path):
    found = []
    for _ in range(2):
        net, settings = nn.Linear(4, 4, bias=False), Distributed(compile=True)  # a product, which is called and not compiled: no C++
        counters.clear()
        with blocks.changed([net], settings, cache=tmp_path) as compilations:  # it resets the compiler, as a new process would begin
            net(torch.ones(2, 4)).sum().backward()
        found.append((counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"]))
        assert compilations.clock.seconds > 0
    assert found == [(0, 1), (1, 0)]


def test_compiling_is_timed_in_both_passes_and_running_is_not(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("plait.engine.compilation.clock.time.perf_counter", lambda: float(next(ticks)))
    net, settings = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Distributed(compile=True, compile_backend="aot_eager")
    seconds = []
    with blocks.changed(list(net), settings) as compilations:
        for _ in range(3):
            net(torch.ones(2, 4)).sum().backward()
            seconds.append(compilations.clock.seconds)
    assert seconds[0] >= 2 and seconds == [seconds[0]] * 3  # a forward pass and a backward one of each kind of block at the least
    with blocks.changed([], settings):
        torch.compile(torch.sin, backend="eager")(torch.ones(2))
    assert compilations.clock.seconds == seconds[0]
