"""The kind `jsonl`: JSON records that name their image files. A file has one object per line (JSONL), or one JSON array as LLaVA publishes.

Image paths are relative to the file's folder, or to `options.images`, and stay below it unless `options.outside` is true.
"""

from pathlib import Path

from plait.config.schema import SourceEntry
from plait.data import addresses, paths
from plait.data.sources.contract import Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.indexed import JSON, IndexedRecords
from plait.data.sources.kind import Opening, SourceKind, path_of
from plait.errors import PlaitError

_ENDINGS = (".jsonl", ".json", ".ndjson")
_TABLES = (".csv", ".tsv", ".parquet", ".arrow")


def local_path_of(entry: SourceEntry) -> str:
    """Return the `path` of an entry of the `data:` section as written. Raises PlaitError for an address such as s3://."""
    path = path_of(entry)
    if addresses.is_remote(path):
        raise PlaitError(
            f"{addresses.shown(path)} is remote, which only the sources shards and datasets can be; name one of these, or copy it to disk"
        )
    return path


def _open(entry: SourceEntry, opening: Opening) -> Source:
    files = paths.files(local_path_of(entry), _ENDINGS, split=entry.split, default_split=opening.split)
    if (ending := Path(files[0]).suffix.lower()) in _TABLES:
        raise PlaitError(f"{files[0]} ends in {ending}, which is no JSON: `source: datasets` reads it")
    if len(files) > 1:
        raise PlaitError(f"{entry.path!r} names {len(files)} files; give each its own entry")
    file, outside = Path(files[0]), bool(entry.options.get("outside", False))
    images = paths.folder_of_images(str(entry.options["images"])) if "images" in entry.options else file.parent
    records = IndexedRecords(file, JSON, opening.cache, entry.columns, images=images, outside=outside)
    records.left_out = {**records.left_out, **paths.left_out(local_path_of(entry), (*_ENDINGS, *_TABLES), files)}
    return open_conversations(entry, records)


KIND = SourceKind("jsonl", options=("images", "outside"), paths=("images",), open=_open)
