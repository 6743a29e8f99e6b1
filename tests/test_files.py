"""Files that appear whole or not at all, and rows of which a bad one costs that row alone."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from plait import files

BAD = [b"\x00\x00", b'{"n": "\xff"}', b"5", b'{"n": ', b"[" * 100_000]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_costs_that_line_alone_and_is_told(tmp_path, caplog, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n' + bad + b'\n{"n": 2, "text": "a\xe2\x80\xa8b"}\n{"n": 3}\n')
    assert [row["n"] for row in files.read_rows(path)] == [1, 2, 3]
    assert files.read_rows(path)[1]["text"] == "a\u2028b"
    assert f"line 2 of {path} cannot be read and is left out" in caplog.text
    files.keep_rows(path, lambda row: row["n"] != 3)
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2, "text": "a\xe2\x80\xa8b"}\n'


def test_a_line_that_a_kill_cut_short_is_left_out_without_a_word(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    assert files.read_rows(path) == [{"n": 1}]
    files.keep_rows(path, lambda row: True)
    assert path.read_bytes() == b'{"n": 1}\n'
    assert caplog.text == ""
    assert files.read_rows(tmp_path / "none.jsonl") == []


def test_half_of_a_surrogate_pair_is_written_as_json_escapes_it(tmp_path):
    row = {"sample": "a\udcff ü 😀", "step": 1}
    files.append_rows(tmp_path / "a.jsonl", [row])
    files.write_json(tmp_path / "a.json", row)
    files.write_whole(tmp_path / "b.json", files.json_text(row))
    assert files.read_rows(tmp_path / "a.jsonl") == [row]
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"sample": "a\\udcff ü 😀", "step": 1}\n'
    assert json.loads((tmp_path / "a.json").read_bytes()) == json.loads((tmp_path / "b.json").read_bytes()) == row


def test_rows_make_no_folder_that_has_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.append_rows(tmp_path / "gone" / "rows.jsonl", [{"n": 1}])
    assert not (tmp_path / "gone").exists()


def test_a_file_of_a_library_gets_the_permissions_of_any_other(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "plain").write_text("")
    files.follow_umask(tmp_path / "x.safetensors")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("x.safetensors", "plain")}
    assert len(modes) == 1
