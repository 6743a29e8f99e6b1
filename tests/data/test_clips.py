"""Clips as folders of pictures and as videos: frames in order, the first 65, and one clear line where there are none."""

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.formats import clips
from plait.data.images import decode
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests.data.packing import pack


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def record(folder: Path, frames: object) -> dict:
    (folder / "0.png").write_bytes(picture(0))
    (folder / "a.jsonl").write_text(json.dumps({"image": "0.png", "caption": "a", "frames": frames}) + "\n")
    return open_source(SourceEntry(source="jsonl", path=str(folder / "a.jsonl")), seed=0)[0]


def write_video(path: Path, levels: list[int]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def test_a_folder_gives_its_pictures_by_name(tmp_path):
    (tmp_path / "clip").mkdir()
    for name, level in (("02.png", 2), ("01.png", 1), ("10.png", 3), (".hidden.png", 9)):
        (tmp_path / "clip" / name).write_bytes(picture(level))
    (tmp_path / "clip" / "notes.txt").write_text("x")
    assert record(tmp_path, "clip")["frames"] == [picture(1), picture(2), picture(3)]
    assert record(tmp_path, ["clip/01.png", "clip/02.png"])["frames"] == [picture(1), picture(2)]


@pytest.mark.parametrize("names", [["frame0", "frame1", "frame2", "frame10", "frame11"], ["1", "01", "2²", "10", "a"]])
def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path, names):
    (tmp_path / "clip").mkdir()
    for level, name in sorted(enumerate(names), key=lambda row: row[1]):
        (tmp_path / "clip" / f"{name}.png").write_bytes(picture(level))
    levels = [0, 1, 2, 3, 4] if names[0] == "frame0" else [1, 0, 2, 3, 4]  # of equal numbers the text decides
    assert record(tmp_path, "clip")["frames"] == [picture(level) for level in levels]


@pytest.mark.parametrize("picture_too", [False, True])
def test_a_clip_is_the_same_in_a_shard_as_in_a_list(tmp_path, picture_too):
    frames, first = [picture(10 + i) for i in range(13)], [picture(0)] * picture_too
    members = [(f"x.frame{i}.png", body) for i, body in enumerate(frames)]
    pack(tmp_path / "a.tar", [*sorted(members), *(("x.png", body) for body in first), ("x.txt", b"a")])
    for i, body in enumerate(frames):
        (tmp_path / f"f{i}.png").write_bytes(body)
    listed = record(tmp_path, [f"f{i}.png" for i in range(13)]) | ({} if picture_too else {"images": []})
    packed = open_source(SourceEntry(source="shards", path=str(tmp_path / "a.tar")), seed=0)[0]
    assert (packed["images"], packed["frames"]) == (listed["images"], listed["frames"]) == (first, frames)
    assert cli.main(["data", "shard", str(tmp_path / "a.tar"), str(tmp_path / "again"), "--plain"]) == 0
    again = open_source(SourceEntry(source="shards", path=str(tmp_path / "again")), seed=0)[0]
    assert (again["images"], again["frames"]) == (first, frames)


def test_a_video_gives_its_first_frames_in_order(tmp_path):
    levels = [20 + 3 * i for i in range(70)]
    write_video(tmp_path / "a.mp4", levels)
    seen = [float(decode(frame).float().mean()) for frame in record(tmp_path, "a.mp4")["frames"]]
    assert len(seen) == clips.MOST_FRAMES == 65
    np.testing.assert_allclose(seen, levels[:65], atol=8)  # a lossy codec, of which a level of 255 is a colour's step


def test_a_video_is_read_from_a_shard_and_from_a_record_where_there_is_no_picture(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", [20, 40, 60])
    body = (tmp_path / "a.mp4").read_bytes()
    pack(tmp_path / "a.tar", [("x.mp4", body), ("x.txt", b"a"), ("y.mp4", body), ("y.png", picture(1)), ("y.txt", b"b")])
    (tmp_path / "a.jsonl").write_text('{"video": "a.mp4", "caption": "a"}\n{"video": "https://a.example/b.mp4", "caption": "b"}\n')
    shards = open_source(SourceEntry(source="shards", path=str(tmp_path / "a.tar")), seed=0)
    listed = open_source(SourceEntry(source="jsonl", path=str(tmp_path / "a.jsonl")), seed=0)
    assert len(shards[0]["frames"]) == 3 and shards[0]["frames"] == listed[0]["frames"] and not shards[0]["images"]
    assert shards[1]["images"] == [picture(1)] and not shards[1].get("frames")
    assert shards.left_out == {"kinds of videos, such as 'mp4', which are read only where a sample has no picture": 1}
    assert shards.peek(0)["messages"][-1]["content"] == "a"
    with pytest.raises(BadSample, match=r"b\.mp4 is on the network; download it first"):
        listed[1]
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(PlaitError, match=r"x\.mp4 is a video, which PyAV decodes .*pip install 'plait\[video\]'"):
        shards[0]


def test_a_file_of_sound_alone_is_told_as_one_without_pictures(tmp_path):
    pytest.importorskip("av")
    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(PlaitError, match=r"a.mp4 has no pictures: it is cut off, or sound alone"):
        record(tmp_path, "a.mp4")


def test_clips_without_frames_are_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    with pytest.raises(PlaitError, match="of a clip has no pictures"):
        record(tmp_path, "clip")
    pytest.importorskip("av")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(PlaitError, match=r"b.mp4 cannot be read after 0 frames") as error:
        record(tmp_path, "b.mp4")
    assert "\n" not in str(error.value)
    with pytest.raises(PlaitError, match="leaves the folder"):
        record(tmp_path, "../c.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(PlaitError, match=r"is a video, which PyAV decodes .*pip install 'plait\[video\]'"):
        record(tmp_path, "b.mp4")
