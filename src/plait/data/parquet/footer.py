"""The footer of a parquet file: how many rows each row group has, where its bytes lie, and what the columns are.

It is read from the end of the file, a few kilobytes, and kept in the cache folder as the index of a file is: a later start asks for none.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plait.data import addresses
from plait.data.formats import index
from plait.data.formats.open_file import OpenFile
from plait.data.parquet.rows import holds_short
from plait.data.remote import RemoteFile
from plait.errors import PlaitError
from plait.files import write_whole

_TAIL_BYTES = 64 << 10  # read at once: most footers are smaller
_MAGIC, _MAGIC_ENCRYPTED, _END_BYTES = b"PAR1", b"PARE", 8
_PADDING_BYTES = 100  # that the first writers of parquet counted too little of a column

Read = Callable[[int, int], bytes]
"""Reads so many bytes of a file: (offset, length)."""


class RowGroup(NamedTuple):
    """How many rows a row group has, and which bytes of its file it takes, from `start` to before `end`."""

    rows: int
    start: int
    end: int


@dataclass(frozen=True)
class Footer:
    """The footer of the file `path` (a path or an address), from the index `head`."""

    path: str
    head: index.IndexHead

    @property
    def groups(self) -> list[RowGroup]:
        """The row groups in the order of the file."""
        return [RowGroup(*numbers) for numbers in self.head.facts["groups"]]

    @property
    def columns(self) -> dict[str, str]:
        """The type of each column, by name."""
        return dict(self.head.facts["columns"])

    @property
    def pictures(self) -> list[str]:
        """The columns of images."""
        return list(self.head.facts["pictures"])

    @property
    def labels(self) -> dict[str, list[str]]:
        """The names of the classes of each column of classes, where the file tells them."""
        return dict(self.head.facts["labels"])

    @property
    def short(self) -> dict[str, Any]:
        """Where columns hold numbers of 16 or 32 bits, as `RowRecords.short`."""
        return dict(self.head.facts["short"])

    def metadata(self) -> Any:
        """Return pyarrow's FileMetaData. Raises PlaitError if the index is gone."""
        return _parsed(index.map_arrays(self.head)["footer"].tobytes(), addresses.shown(self.path))


def cached_footer(path: str, cache: str | Path | None) -> Footer | None:
    """Return the footer of a file at an address from the cache folder; None where it is not there. No server is asked.

    A file that has changed since is noticed when it is read.
    """
    head = index.read_head(index.cached_path(addresses.shown(path), cache, addresses.identity(path))) if addresses.is_remote(path) else None
    return Footer(path, head) if head is not None and "groups" in head.facts else None


def read_footer(path: str, cache: str | Path | None) -> Footer:
    """Return the footer of a parquet file, read from it unless the cache folder has it. Raises PlaitError for what is none."""
    if not addresses.is_remote(path):
        file = OpenFile(path)
        make = partial(_made, file.read, file.size, path)
        return Footer(path, index.obtain(Path(path), cache, make, fits=lambda facts: "groups" in facts)[0])
    remote, cached = RemoteFile(path, None), index.cached_path(addresses.shown(path), cache, addresses.identity(path))
    head = index.read_head(cached)
    if head is None or head.stamp != remote.stamp or "groups" not in head.facts:
        facts, arrays = _made(remote.read, remote.size, addresses.shown(path))
        write_whole(cached, index.pack(remote.stamp, facts, arrays))
        head = index.read_head(cached)
    if head is None:
        raise PlaitError(f"the footer {cached} cannot be read, though it was written just now: mend the disk, or set data.cache to another")
    return Footer(path, head)


def _made(read: Read, size: int, shown: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (facts, arrays) of the footer of a file of `size` bytes, for its index. Raises PlaitError for what is no parquet file."""
    tail = read(max(0, size - _TAIL_BYTES), min(size, _TAIL_BYTES))
    length = int.from_bytes(tail[-_END_BYTES:-4], "little") + _END_BYTES
    if tail[-4:] == _MAGIC_ENCRYPTED:
        raise PlaitError(f"{shown} is encrypted, which is not read: write it again without")
    if tail[-4:] != _MAGIC or length > size:
        raise PlaitError(f"{shown} is no whole parquet file: copy or download it again")
    body = tail[-length:] if length <= len(tail) else read(size - length, length)
    metadata = _parsed(body, shown)
    schema = metadata.schema.to_arrow_schema()
    features = dict(_features(schema))
    facts = {
        "groups": [_group(metadata.row_group(number), size) for number in range(metadata.num_row_groups)],
        "columns": {column.name: str(column.type) for column in schema},
        "pictures": [column.name for column in schema if _is_picture(features.get(column.name), column.type)],
        "labels": {name: feature["names"] for name, feature in features.items() if "names" in feature},
        "short": {column.name: places for column in schema if holds_short(places := _short_places(column.type))},
    }
    return facts, {"footer": np.frombuffer(body, np.uint8)}


def _parsed(body: bytes, shown: str) -> Any:
    """Return pyarrow's FileMetaData of the last bytes of a parquet file. Raises PlaitError for damaged ones, and without the package."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PlaitError("parquet that is streamed needs the package `pyarrow`: pip install 'plait[hub-data]'") from error
    try:
        return pyarrow.parquet.read_metadata(pyarrow.BufferReader(body))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise PlaitError(f"{shown} is no whole parquet file ({reason}): copy or download it again") from error


def _group(group: Any, size: int) -> tuple[int, int, int]:
    """Return (rows, start, end) of a row group: the bytes from its first column to its last."""
    starts, ends = [0], [0]
    if group.num_columns and group.num_rows:
        columns = [group.column(number) for number in range(group.num_columns)]
        starts = [_start(column) for column in columns]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return group.num_rows, min(starts), min(size, max(ends) + _PADDING_BYTES)


def _start(column: Any) -> int:
    """Return the byte at which a column of a row group begins: its dictionary's, if there is one before its data."""
    dictionary, data = column.dictionary_page_offset, column.data_page_offset
    return int(dictionary if dictionary and 0 < dictionary < data else data)


def _features(schema: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (column, what the package `datasets` has noted of it, such as {"_type": "ClassLabel", "names": [...]})."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return
    for name, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and name in schema.names:
            yield name, feature


def _is_picture(feature: Mapping[str, Any] | None, kind: Any) -> bool:
    """Return whether a column holds pictures, one or a list: by what the file notes of it, or as {"bytes", "path"}."""
    import pyarrow.types

    inner = (feature or {}).get("feature", feature) or {}
    of_one = kind.value_type if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) else kind
    if isinstance(inner, Mapping) and inner.get("_type") == "Image":
        return True
    names = {field.name: field.type for field in of_one} if pyarrow.types.is_struct(of_one) else {}
    return set(names) == {"bytes", "path"} and (pyarrow.types.is_binary(names["bytes"]) or pyarrow.types.is_large_binary(names["bytes"]))


def _short_places(kind: Any) -> Any:
    """Return where a column of this type holds numbers of 16 or 32 bits, as RowRecords takes it."""
    import pyarrow.types

    if pyarrow.types.is_struct(kind):
        return {field.name: _short_places(field.type) for field in kind}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return [_short_places(kind.value_type)]
    return {"halffloat": "float16", "float": "float32"}.get(str(kind))
