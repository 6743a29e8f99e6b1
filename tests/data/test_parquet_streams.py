"""Parquet that is streamed: row groups in the order of a stream, the same records as of a table, and what is copied for a step."""

import io
import json
import pickle
import re

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.sources import datasets as tables
from plait.data.sources.open import open_source
from plait.data.sources.part import Part
from plait.data.streaming.failures import WrongCount
from plait.errors import BadSample, PlaitError
from tests import hub_server
from tests.data.faulty_server import serving
from tests.data.packing import picture
from tests.data.test_streaming import Labels, quick, walked  # noqa: F401  `quick` is a fixture
from tests.test_cli import CONFIG

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
TEMPLATE = {"user": "?", "assistant": "{label}"}


def body(first, rows, group):
    """A parquet file of pictures whose number is their label, so many rows to a row group."""
    import pyarrow.parquet

    cells = [{"bytes": picture(number % 256), "path": None} for number in range(first, first + rows)]
    out = io.BytesIO()
    table = pa.table({"image": cells, "label": list(range(first, first + rows))})
    pyarrow.parquet.write_table(table, out, row_group_size=group)
    return out.getvalue()


def files(rows=(10, 7, 12), group=3):
    starts = [sum(rows[:number]) for number in range(len(rows))]
    return {f"{number}.parquet": body(start, count, group) for number, (start, count) in enumerate(zip(starts, rows, strict=True))}


def opened(path, cache, split="train", **options):
    entry = SourceEntry(source="datasets", path=str(path), template=TEMPLATE, options={"stream": True, **options})
    return open_source(entry, seed=0, cache=cache, split=split)


def written(folder, bodies):
    folder.mkdir(exist_ok=True)
    for name, content in bodies.items():
        (folder / name).write_bytes(content)
    return folder


def spans(server):
    """The ranges that were asked of each file, but for sizes and footers."""
    found = {}
    for path, span in server.asked:
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
        if (start, end) != (0, 0):
            found.setdefault(path.removeprefix("/"), []).append((start, end))
    return found


RICH = {
    "image": [{"bytes": picture(i), "path": None} for i in range(5)],
    "images": [[{"bytes": picture(i + 9), "path": None}] * (i % 3) for i in range(5)],
    "label": [0, 1, -1, None, 1],
    "score": [0.1, 2.0, None, 1e-7, 3.5],
    "box": [{"xs": [0.1, 0.2], "kind": 1}, None, {"xs": [], "kind": None}, {"xs": None, "kind": 2}, {"xs": [1.0], "kind": 3}],
    "text": ["a", None, "ü", "", "null"],
}


def rich(datasets):
    image = datasets.Image()
    box = {"xs": datasets.List(datasets.Value("float32")), "kind": datasets.Value("int8")}
    kinds = {"image": image, "images": datasets.List(image), "label": datasets.ClassLabel(names=["cat", "dog"]), "box": box}
    kinds |= {"score": datasets.Value("float32"), "text": datasets.Value("string")}
    return datasets.Dataset.from_dict(RICH, features=datasets.Features(kinds))


@pytest.mark.parametrize("features", [True, False], ids=["of datasets", "plain"])
def test_records_are_those_of_the_table(tmp_path, features):
    if features:
        rich(datasets).to_parquet(str(tmp_path / "a.parquet"), batch_size=2)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table(RICH), tmp_path / "a.parquet", row_group_size=2)
    readers = [
        open_source(
            SourceEntry(
                source="datasets", path=str(tmp_path / "a.parquet"), allow_blank=True, options=options, template={"user": "{text}"}
            ),
            seed=0,
            cache=tmp_path / "cache",
        ).reader
        for options in ({}, {"stream": True})
    ]
    table, stream = ([reader.read(i) for i in range(5)] for reader in readers)
    assert stream == table and len(readers[1].groups) == 3
    assert [one.fields["label"] for one in stream] == (["cat", "dog", None, None, "dog"] if features else RICH["label"])


@pytest.mark.parametrize("remote_files", [True, False])
def test_each_row_comes_once_an_epoch_on_any_ranks_and_workers(tmp_path, remote_files):
    bodies = files()
    with serving(bodies) as server:
        place = f"{server.url}/{{0..2}}.parquet" if remote_files else written(tmp_path / "data", bodies)
        source = opened(place, tmp_path / "cache", block=2)
        order, stop = order_of([source], [1.0], 5, 4), 15
        assert source.stream.text() == "streamed, 11 row groups in blocks of 2"
        for ranks, workers, kind in [(2, 2, "threads"), (1, 2, "processes")] if remote_files else [(1, 0, "threads"), (3, 1, "threads")]:
            options = {"workers": workers, "kind": kind, "world_size": ranks, "micro_batch": 2}
            of_ranks = [walked([source], order, 0, stop, rank=rank, **options) for rank in range(ranks)]
            taken = [label for step in range(stop) for labels in of_ranks for label in labels[step]]
            assert sorted(taken[:29]) == sorted(taken[29:58]) == list(range(29)) and taken[:29] != taken[29:58]
            assert taken == [one.index for step in range(stop) for one in order.ids(step)]


def test_a_resume_copies_the_row_groups_of_its_steps_and_asks_for_no_footer_again(tmp_path):
    bodies = files(rows=(60, 60, 60), group=3)
    with serving(bodies) as server:
        whole = opened(f"{server.url}/{{0..2}}.parquet", tmp_path / "cache", block=2)
        order = order_of([whole], [1.0], 5, 6)
        straight = walked([whole], order, 0, 30, workers=1)
        footers = sum(len(found) for found in spans(server).values())
        for left in (tmp_path / "cache" / "streamed").glob("*.arrow"):
            left.unlink()
        server.asked.clear()
        again = opened(f"{server.url}/{{0..2}}.parquet", tmp_path / "cache", block=2)
        assert (len(server.asked), again.fingerprint) == (0, whole.fingerprint) and footers > 60
        picked = pickle.loads(pickle.dumps(again))
        assert walked([picked], order, 28, 30, workers=1, prefetch=0) == straight[28:]
        copied = sum(len(found) for found in spans(server).values())
        assert copied == 4  # the blocks of steps 28 and 29, of two row groups each


def test_the_cache_of_row_groups_keeps_to_its_bound(tmp_path):
    bodies = files(rows=(60, 60), group=3)
    with serving(bodies) as server:
        source = opened(f"{server.url}/{{0..1}}.parquet", tmp_path / "cache", block=2, cache_gb=1e-6)
        order, most = order_of([source], [1.0], 5, 6), 0
        with Loader([source], order, Labels(), seed=5, workers=1, stop_step=20) as loader:
            for _ in loader:
                most = max(most, len(list((tmp_path / "cache" / "streamed").glob("*.arrow"))))
    assert 2 <= most <= 7  # three blocks, and one that is being written


def test_a_damaged_row_group_costs_its_rows_and_a_changed_file_ends_the_run(tmp_path):
    bodies = files(rows=(12, 12), group=4)
    whole = bytearray(bodies["1.parquet"])
    source = opened(written(tmp_path / "data", bodies), tmp_path / "cache", block=2)
    group = source.reader.footers[1].groups[1]
    whole[group.start + 8 : group.end - 110] = bytes(group.end - group.start - 118)
    with serving(bodies | {"1.parquet": bytes(whole)}) as server:
        source = opened(f"{server.url}/{{0..1}}.parquet", tmp_path / "cache", block=2)
        with Loader([source], order_of([source], [1.0], 5, 6), Labels(), seed=5, workers=2, stop_step=4) as loader:
            bad = [one for batch in loader for one in batch.bad if one.attempt == 0]
        assert sorted(one.id.index for one in bad) == [16, 17, 18, 19]
        assert all(one.reason.startswith(f"row group 1 of {server.url}/1.parquet is damaged (") for one in bad)
    data = written(tmp_path / "data", bodies)
    source = opened(data, tmp_path / "cache")
    (data / "1.parquet").write_bytes(body(12, 13, 4))
    with pytest.raises(WrongCount, match=r"1.parquet has changed since its rows were counted.*start again, and they are counted anew"):
        [source[i] for i in range(24)]
    assert len(opened(data, tmp_path / "cache")) == 25


def test_a_held_out_share_and_a_filter_take_rows_out_of_the_stream(tmp_path):
    data = written(tmp_path / "data", files())
    source = opened(data, tmp_path / "cache", block=2)
    held, rest = (Part(source, 0.3, 1, held_out=one) for one in (True, False))
    taken = [label for step in walked([rest], order_of([rest], [1.0], 5, 1), 0, len(rest), workers=1) for label in step]
    assert sorted([*taken, *(held[i]["fields"]["label"] for i in range(len(held)))]) == list(range(29))
    assert opened(data, tmp_path / "cache", split="validation").stream is None


def test_large_files_at_an_address_are_streamed_and_a_run_trains_on_them(tmp_path, monkeypatch, capsys):
    with serving(files()) as server:
        entry = {"source": "datasets", "path": f"{server.url}/{{0..2}}.parquet", "template": TEMPLATE}
        plain = open_source(SourceEntry(**entry), seed=0, cache=tmp_path / "cache")
        monkeypatch.setattr(tables, "LARGE_BYTES", 1000)
        assert plain.stream is None and open_source(SourceEntry(**entry), seed=0, cache=tmp_path / "cache").stream is not None
        off = SourceEntry(**entry, options={"stream": False})
        assert open_source(off, seed=0, cache=tmp_path / "cache").stream is None
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG)
        settings = [f"--data.train={json.dumps([entry])}", "--data.validation=20%", "--evaluate=[{bench: loss}]"]
        assert cli.main(["train", str(path), *settings, f"--run={tmp_path / 'run'}"]) == 0
    assert "streamed, 11 row groups in blocks of 11" in capsys.readouterr().out.replace("blocks of 16", "blocks of 11")


REFUSED = {
    "a.jsonl": "options.stream is of parquet, and {} is json: leave it out",
    "saved": "options.stream is of parquet, and {} is a folder that `save_to_disk` wrote: leave it out",
    "b.parquet": "{} is no whole parquet file: copy or download it again",
    "empty.parquet": "{} holds no rows; its columns are label",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path, name):
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text('{"caption": "x"}\n')
    (tmp_path / "b.parquet").write_bytes(files()["0.parquet"][:-20])
    pyarrow.parquet.write_table(pa.table({"label": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    datasets.Dataset.from_dict({"label": [1]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(PlaitError) as caught:
        opened(tmp_path / name, tmp_path / "cache")
    assert str(caught.value).endswith(REFUSED[name].format(tmp_path / name))


def test_files_of_other_columns_are_refused_and_an_unknown_class_is_a_bad_sample(tmp_path):
    import pyarrow.parquet

    rich(datasets).to_parquet(str(tmp_path / "a.parquet"))
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    table = pa.table({**RICH, "label": [7] * 5}, schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    source = opened(tmp_path / "{a,b}.parquet", tmp_path / "cache")
    with pytest.raises(BadSample, match="`label` is class 7 of 2, which are counted from 0"):
        source[5]
    pyarrow.parquet.write_table(table.drop_columns("box"), tmp_path / "b.parquet")
    with pytest.raises(
        PlaitError, match=r"b.parquet, unlike .*a.parquet, lacks the columns box: files of one source have the same columns"
    ):
        opened(tmp_path / "{a,b}.parquet", tmp_path / "cache")


def test_a_dataset_of_the_hub_is_streamed_by_its_name(tmp_path, monkeypatch):
    import fsspec

    rich(datasets).to_parquet(str(tmp_path / "a.parquet"), batch_size=2)
    with hub_server.serving(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        hub.repositories["datasets", "owner/name"] = hub_server.Repository({"train.parquet": (tmp_path / "a.parquet").read_bytes()})
        entry = SourceEntry(source="datasets", name="owner/name", template=TEMPLATE, options={"stream": True})
        source = open_source(entry, seed=0, cache=tmp_path / "cache")
        assert [source[i]["fields"]["label"] for i in (0, 1, 4)] == ["cat", "dog", "dog"] and source.may_wait
        assert source.stream.text() == "streamed, 3 row groups in blocks of 3".replace("of 3", "of 16")
        fsspec.get_filesystem_class("hf").clear_instance_cache()
