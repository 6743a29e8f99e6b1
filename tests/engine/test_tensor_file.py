"""A safetensors file that is written in one pass: the bytes that the library writes, hashed and flushed on the way."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from plait import files
from plait.engine.checkpoints.writing import tensor_file

TYPES = (
    *(torch.int64, torch.float64, torch.complex64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool),
)


def tensors():
    """Names with a quote and beyond ASCII, scalars and empty tensors, of all types."""
    return {
        f"{name}{i}": value.to(dtype)
        for i, dtype in enumerate(TYPES)
        for name, value in (('\u00e9"\\', torch.arange(7)), ("b", torch.tensor(1)), ("a", torch.zeros(0, 3)))
    }


@pytest.mark.parametrize("names", [True, False])
def test_the_bytes_are_those_of_safetensors_and_size_and_hash_are_theirs(tmp_path, names):
    values = tensors() if names else {}
    listed = tensor_file.write(tmp_path / "own", values, {"format": "pt"})
    save_file(values, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert listed == {"size": (tmp_path / "own").stat().st_size, "xxh3": files.xxh3(tmp_path / "own")}


def test_rows_of_another_tensor_and_a_transposed_one_are_written_as_their_values(tmp_path):
    whole = torch.arange(12.0).view(4, 3)
    tensor_file.write(tmp_path / "own", {"rows": whole[1:3], "turned": whole.T}, {})
    save_file({"rows": whole[1:3].clone(), "turned": whole.T.contiguous()}, tmp_path / "theirs", metadata={})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_large_tensors_are_written_and_flushed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(tensor_file, "_FLUSHED_BYTES", 3000)
    flushed = []
    monkeypatch.setattr(tensor_file, "_flush", lambda file: flushed.append(os.fstat(file).st_size))
    value = torch.arange(2000.0)
    listed = tensor_file.write(tmp_path / "own", {"w": value}, {})
    save_file({"w": value}, tmp_path / "theirs", metadata={})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert listed["xxh3"] == files.xxh3(tmp_path / "theirs")
    assert [size - flushed[0] for size in flushed] == [0, 3000] and 2900 <= flushed[0] <= 3200


def test_all_of_a_file_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    listed = tensor_file.write(tmp_path / "own", {"w": torch.arange(2000.0)}, {})
    assert flushed == [listed["size"]]


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    tensor_file.write(tmp_path / "own", {}, {})
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_type_that_the_format_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        tensor_file.write(tmp_path / "own", {"w": torch.zeros(2, dtype=torch.complex128)}, {})
