"""Whether blocks are compiled by themselves (`distributed.compile: auto`), as the machine and the settings are."""

import importlib.util
import logging
import shutil
import sysconfig
from types import SimpleNamespace

import pytest
import torch

from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.engine.compilation import choice
from plait.engine.parallel.distributed import Ranks

CUDA = torch.device("cuda")


def config(**settings):
    return RunConfig(family="theworld", distributed={"compile": "auto"}, train={"steps": 1}).model_copy(
        update={name: SimpleNamespace(**value) for name, value in settings.items()}
    )


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with all that it takes."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return monkeypatch


def test_a_gpu_with_triton_and_a_compiler_compiles(gpu):
    assert choice.why_not(config(), CUDA) is None
    assert choice.why_not(config(), torch.device("cpu")) == "the device is cpu"


def test_what_is_missing_is_named(gpu, tmp_path):
    def found(name, function):
        with gpu.context() as patch:
            patch.setattr(*name, function)
            return choice.why_not(config(), CUDA)

    assert found((torch.cuda, "get_device_capability"), lambda device: (6, 1)) == "the GPU has compute capability 6.1, and Triton needs 7.0"
    assert found((importlib.util, "find_spec"), lambda name: None) == "Triton is not installed (pip install triton)"
    missing = "there is no C compiler: {} is not found (install gcc, or set CC)"
    assert found((shutil, "which"), lambda name: None) == missing.format("gcc")
    assert found((shutil, "which"), lambda name: name if name == "clang" else None) is None
    gpu.setenv("CC", "icc")
    assert found((shutil, "which"), lambda name: name if name == "gcc" else None) == missing.format("icc")
    (tmp_path / "Python.h").unlink()
    version = sysconfig.get_python_version()
    assert choice.why_not(config(), CUDA) == (
        f"Triton needs {tmp_path / 'Python.h'} to compile, which is not there (install python{version}-dev)"
    )


def test_packed_rows_whose_blocks_are_recomputed_are_compiled_too(gpu):
    assert choice.why_not(config(data={"pad": "none"}, distributed={"activation_checkpointing": "full"}), CUDA) is None


@pytest.mark.parametrize("others", [[None], ["there is no C compiler"]], ids=["all can", "one cannot"])
def test_all_ranks_compile_or_none(gpu, caplog, monkeypatch, others):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value, *others])
    view = choice.decide(StageView(1, "train", config()), Ranks(0, 2, CUDA), None)
    assert view.config.distributed.compile is (others == [None])
    told = "blocks are compiled" if others == [None] else "blocks are not compiled, as there is no C compiler"
    assert caplog.messages == [f"distributed.compile is auto: {told}"]
