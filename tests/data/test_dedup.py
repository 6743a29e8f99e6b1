"""`plait data dedup`: exact and near copies of pictures, between training and held-out data too, and the filter that leaves them out."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.selection.duplicates import HASHED, READ, Copy, copies, perceptual_hash
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests.test_cli import CONFIG


def drawn(seed, size=(96, 64)):
    """Pixels of smooth random blobs, which differ from seed to seed as photos do."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def encoded(pixels, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def written(folder, pictures, captions=None, name="data.jsonl"):
    """A list of pictures by name, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, body in pictures.items():
        (folder / file).write_bytes(body)
    rows = [{"id": file, "image": file, "caption": (captions or {}).get(file, "a picture")} for file in pictures]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_the_perceptual_hash_is_the_sign_of_low_cosine_terms_against_their_median():
    pixels = drawn(3)
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    terms = [
        sum(
            grey[y, x] * math.cos(math.pi * u * (2 * y + 1) / 64) * math.cos(math.pi * v * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for u in range(8)
        for v in range(8)
    ]
    bits = [term > sorted(terms)[31] / 2 + sorted(terms)[32] / 2 for term in terms]
    assert perceptual_hash(pixels) == int("".join(map(str, map(int, bits))), 2)


def test_a_picture_of_one_grey_has_no_perceptual_hash():
    assert perceptual_hash(np.full((40, 40, 3), 200, np.uint8)) is None


@pytest.mark.parametrize("distance", [0, 3, 4, 10])
@pytest.mark.parametrize("same_text", [False, True])
def test_copies_are_those_of_a_comparison_of_all_pairs(distance, same_text):
    random = np.random.default_rng(distance)
    bits = random.integers(0, 1 << 63, 60, dtype=np.uint64)
    for i in range(60, 300):
        flips = sum(1 << int(bit) for bit in random.choice(64, int(random.integers(0, 7)), replace=False))
        bits = np.append(bits, bits[random.integers(0, i)] ^ np.uint64(flips))
    rows = np.zeros((300, 5), np.uint64)
    rows[:, 0], rows[:, 3] = READ | HASHED, bits
    rows[:, 1] = np.arange(300)
    rows[:, 4] = random.integers(0, 3, 300)
    rows[random.choice(300, 20, replace=False), 0] = READ
    rows[:5, 0] = 0
    found, kept = [], []
    for i in np.flatnonzero(rows[:, 0] == READ | HASHED).tolist():
        fits = [k for k in kept if int(bits[i] ^ bits[k]).bit_count() <= distance and (not same_text or rows[i, 4] == rows[k, 4])]
        found += [Copy(i, fits[0], int(bits[i] ^ bits[fits[0]]).bit_count())] if fits else []
        kept += [] if fits else [i]
    assert copies(rows, distance, same_text=same_text) == found and found


def test_many_pictures_with_one_hash_cost_no_more_than_their_number():
    """All pairs of 200,000 rows would be 2e10."""
    count = 200_000
    rows = np.zeros((count, 5), np.uint64)
    rows[:, 0], rows[:, 1], rows[:, 3] = READ | HASHED, np.arange(1, count + 1), 0b1011
    rows[7, 3] = 0b1010
    found = copies(rows, 4, same_text=False)
    assert len(found) == count - 1
    assert {copy.of for copy in found} == {0}
    assert [copy.distance for copy in found if copy.row in (6, 7)] == [0, 1]


def test_the_copy_of_a_copy_is_one_of_the_sample_that_is_kept():
    rows = np.array([[3, 1, 0, 0b0, 0], [3, 2, 0, 0b1, 0], [3, 2, 0, 0b1, 0], [1, 2, 0, 0, 1], [0, 2, 0, 0, 0]], np.uint64)
    assert copies(rows, 1, same_text=False) == [Copy(1, 0, 1), Copy(2, 0, 1), Copy(3, 0, 1)]
    assert copies(rows, 0, same_text=False) == [Copy(2, 1, None), Copy(3, 1, None)]
    assert copies(rows, 0, same_text=True) == [Copy(2, 1, None)]


def pictures():
    first = Image.fromarray(drawn(0))
    return {
        "a.png": encoded(drawn(0)),
        "b.png": encoded(drawn(1)),
        "same.png": encoded(drawn(0)),
        "jpeg.jpg": encoded(drawn(1), "JPEG", quality=60),
        "small.png": encoded(np.asarray(first.resize((48, 32), Image.Resampling.LANCZOS))),
        "c.png": encoded(drawn(2)),
        "grey.png": encoded(np.full((20, 20, 3), 90, np.uint8)),
        "grey2.png": encoded(np.full((30, 20, 3), 90, np.uint8)),
        "broken.png": b"no picture",
    }


def test_copies_within_a_source_are_listed_and_a_filter_leaves_them_out(tmp_path, capsys):
    path, out = written(tmp_path, pictures()), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    assert capsys.readouterr().out == (
        "jsonl:data.jsonl 9 samples: 1 exact copies, 2 near copies (4 of 64 bits or fewer differ)\n"
        "1 samples have no picture that can be read, and are in no group\n"
        "2 samples, of one grey or of several pictures, were compared by their files alone\n"
        f"written to {out}; on a source, `filter: {{dedup: {out}}}` leaves its copies out\n"
    )
    _, *rows = map(json.loads, out.read_text().splitlines())
    assert [(row["id"], row["of"]["id"], row["distance"] is None) for row in rows] == [
        ("same.png", "a.png", True),
        ("jpeg.jpg", "b.png", False),
        ("small.png", "a.png", False),
    ]
    source = open_source(SourceEntry(source="jsonl", path=str(path), filter={"dedup": str(out)}), seed=0)
    assert source.filtered == {"dedup": 3}
    assert [source.peek(i)["id"] for i in (0, 1, 2, 3, 4)] == ["a.png", "b.png", "c.png", "grey.png", "grey2.png"]
    before = out.read_bytes()
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    assert out.read_bytes() == before


def test_names_with_separators_of_lines_stay_on_their_line(tmp_path):
    named = {f"a{mark}b.png": pictures()["a.png"] for mark in ("\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\x1e")}
    path, out = written(tmp_path, named), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    source = open_source(SourceEntry(source="jsonl", path=str(path), filter={"dedup": str(out)}), seed=0)
    assert (source.filtered, len(source)) == ({"dedup": 5}, 1)


def test_with_same_text_other_questions_of_a_picture_stay(tmp_path):
    captions = {"same.png": "another question", "small.png": "a picture"}
    path, out = written(tmp_path, pictures(), captions), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out), "--same-text"]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()[1:]] == ["jpeg.jpg", "small.png"]


def configured(tmp_path, validation):
    path = tmp_path / "run.yaml"
    text = CONFIG.partition("data:")[0]
    path.write_text(f"{text}data:\n  train: [{{source: jsonl, path: train/data.jsonl}}]\n  validation: {validation}\ntrain: {{steps: 1}}\n")
    return path


def test_of_a_held_out_picture_the_copy_that_would_be_trained_on_is_left_out(tmp_path, capsys):
    held = {"held.png": encoded(drawn(0)), "other.jpg": encoded(drawn(1), "JPEG", quality=70)}
    written(tmp_path / "train", pictures())
    written(tmp_path / "held", held)
    path, out = configured(tmp_path, "[{source: jsonl, path: held/data.jsonl}]"), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    assert "held out too: 5 training samples are copies of held-out ones (2 exact, 3 near)\n" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert {row["id"]: row["of"]["id"] for row in rows} == {
        **dict.fromkeys(["a.png", "same.png", "small.png"], "held.png"),
        **dict.fromkeys(["b.png", "jpeg.jpg"], "other.jpg"),
    }
    assert all(row["of"]["held_out"] and not row["held_out"] for row in rows)
    (tmp_path / "run.yaml").write_text(path.read_text().replace("train/data.jsonl}", "train/data.jsonl, filter: {dedup: copies.jsonl}}"))
    assert cli.main(["data", "index", str(path)]) == 0
    assert "jsonl:data.jsonl: 4 samples; filtered: 5 by dedup, 5 of 9\n" in capsys.readouterr().out


def of_several(folder, rows):
    """A list of samples, each with several pictures, or with the frames of a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in pictures().items():
        (folder / name).write_bytes(body)
    lines = [json.dumps({"id": f"s{k}", **row}) + "\n" for k, row in enumerate(rows)]
    (folder / "data.jsonl").write_text("".join(lines))
    return folder / "data.jsonl"


def test_a_training_sample_with_any_picture_or_the_clip_of_a_held_out_one_is_left_out(tmp_path, capsys):
    caption = {"caption": "a picture"}
    train = [
        {"images": ["c.png", "a.png"], **caption},  # s0: its second picture is held out
        {"images": ["grey.png", "small.png"], "caption": "other"},  # s1: a smaller copy of it
        {"image": "jpeg.jpg", **caption},  # s2: nearly one of the two pictures of a held-out sample
        {"images": ["c.png", "c.png"], **caption},  # s3: none of its pictures
        {"frames": ["c.png", "grey.png"], **caption},  # s4: a clip that is held out
        {"frames": ["grey.png", "c.png"], **caption},  # s5: another clip
    ]
    held = [{"image": "a.png", **caption}, {"images": ["b.png", "grey2.png"], **caption}, {"frames": ["c.png", "grey.png"], "caption": "x"}]
    of_several(tmp_path / "train", train), of_several(tmp_path / "held", held)
    path, out = configured(tmp_path, "[{source: jsonl, path: held/data.jsonl}]"), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    said = capsys.readouterr().out
    assert "held out too: 1 training samples are copies of held-out ones (1 exact, 0 near)\n" in said
    assert "held out too: 3 more training samples have one of the pictures, or the clip, of a held-out sample (1 exact, 2 near)\n" in said
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines()[1:])}
    assert {name: (row["of"]["id"], row.get("shared", False)) for name, row in rows.items()} == {
        **{"s0": ("s0", True), "s1": ("s0", True), "s2": ("s1", True)},
        "s4": ("s2", False),
    }
    assert rows["s0"]["distance"] is None and 0 <= rows["s1"]["distance"] <= 4
    (tmp_path / "run.yaml").write_text(path.read_text().replace("train/data.jsonl}", "train/data.jsonl, filter: {dedup: copies.jsonl}}"))
    assert cli.main(["data", "inspect", str(path), f"--out={tmp_path / 'out'}"]) == 0
    assert "jsonl:data.jsonl: 2 samples, all looked at: " in (said := capsys.readouterr().out) and "with a held-out" not in said
    assert cli.main(["data", "dedup", str(tmp_path / "run.yaml"), str(out), "--same-text"]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()[1:]] == ["s0", "s2"]


def test_of_a_share_that_is_held_out_none_is_left_out_for_a_copy_in_training(tmp_path):
    written(tmp_path / "train", {f"{n}{k}.png": encoded(drawn(n)) for k in "ab" for n in range(10)})
    path, out = configured(tmp_path, "30%"), tmp_path / "copies.jsonl"
    assert cli.main(["data", "dedup", str(path), str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert len(rows) == 10 and all(row["of"]["held_out"] or not row["held_out"] for row in rows)
    assert any(row["of"]["held_out"] and not row["held_out"] for row in rows)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "filter.dedup: cannot read {file}: No such file or directory; make it with `plait data dedup CONFIG {file}`"),
        (
            "{}\n",
            "filter.dedup: {file} is no file of `plait data dedup` (KeyError: 'plait_dedup'); make it with "
            "`plait data dedup CONFIG {file}`",
        ),
        (
            '{"plait_dedup": 2}\n',
            "filter.dedup: {file} is of format 2, not 1: make it with `plait data dedup CONFIG {file}`",
        ),
        (
            '{"plait_dedup": 1, "sources": [{"name": "cats", "fingerprint": "0", "samples": 3}]}\n',
            "filter.dedup: {file} is of other data (cats), or its limit, template or columns were others: make it with "
            "`plait data dedup CONFIG {file}`",
        ),
    ],
)
def test_a_file_that_is_not_of_this_data_is_refused(tmp_path, content, told):
    path, file = written(tmp_path, pictures()), tmp_path / "copies.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PlaitError) as caught:
        open_source(SourceEntry(source="jsonl", path=str(path), filter={"dedup": str(file)}), seed=0)
    assert str(caught.value) == f"data source jsonl:data.jsonl: {told.format(file=file)}"


def test_another_file_is_not_written_over(tmp_path, capsys):
    path = written(tmp_path, pictures())
    assert cli.main(["data", "dedup", str(path), str(path)]) == 2
    assert capsys.readouterr().err == f"plait: {path} is there already, and is no file of `plait data dedup`: name a new file\n"
    assert len(path.read_text().splitlines()) == 9


def test_pictures_that_were_saved_again_or_changed_a_little_are_found_and_others_are_not():
    hashes, found = [perceptual_hash(drawn(seed, (160, 120))) for seed in range(300)], []
    for seed in range(0, 300, 10):
        picture = Image.fromarray(drawn(seed, (160, 120)))
        for changed in (
            np.asarray(Image.open(io.BytesIO(encoded(np.asarray(picture), "JPEG", quality=40)))),
            np.asarray(picture.resize((80, 60), Image.Resampling.LANCZOS)),
            np.asarray(picture.point(lambda value: int(value * 0.9))),
        ):
            near = [other for other, bits in enumerate(hashes) if (bits ^ perceptual_hash(changed)).bit_count() <= 4]
            assert near in ([], [seed])
            found.append(len(near))
    assert sum(found) >= 0.95 * len(found)
