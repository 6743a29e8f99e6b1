"""One row group of a parquet file as an Arrow file, of which any row is read at once."""

import io
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from plait.data import addresses
from plait.data.parquet.footer import Footer
from plait.errors import PlaitError

_BATCH_BYTES, _BATCH_ROWS = 64 << 10, 256  # of the Arrow file: what is read for one row


class _Window(io.RawIOBase):
    """The bytes of a file from `start` on, which are those of `part`, at the offsets that they have in the whole file."""

    def __init__(self, part: IO[bytes], start: int, size: int) -> None:
        self._part, self._start, self._size, self._at = part, start, size, start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._start + self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        if self._at < self._start:
            return 0
        body = os.pread(self._part.fileno(), len(buffer), self._at - self._start)
        buffer[: len(body)] = body
        self._at += len(body)
        return len(body)


def convert(path: Path, footer: Footer, number: int) -> None:
    """Replace the bytes of a parquet row group, in the file `path`, by its rows as an Arrow file. `number`: of the row group.

    The file stays the same one, so that a lock on it stays. Raises PlaitError for a damaged row group, OSError where the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    group = footer.groups[number]
    rows_at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.rows // max(1, group.end - group.start)))
    shown = f"row group {number} of {addresses.shown(footer.path)}"
    with tempfile.TemporaryFile(dir=path.parent) as part, path.open("r+b") as file:
        shutil.copyfileobj(file, part)
        part.flush()
        size = part.tell()
        file.seek(0)
        file.truncate()
        try:
            window = pyarrow.PythonFile(_Window(part, group.start, size), mode="r")
            table = pyarrow.parquet.ParquetFile(window, metadata=footer.metadata(), pre_buffer=False)
            written = _write(file, table, number, rows_at_once)
        except (ValueError, pyarrow.ArrowException) as error:
            raise PlaitError(f"{shown} is damaged ({_line(error)}): copy or download its file again") from error
        except OSError as error:
            if error.errno is not None:  # the disk's; pyarrow's own, of damaged bytes, have none
                raise
            raise PlaitError(f"{shown} is damaged ({_line(error)}): copy or download its file again") from error
        if written != group.rows:
            raise PlaitError(f"{shown} has {written:,} rows, and its footer lists {group.rows:,}: write its file again")
        file.flush()
        os.fsync(file.fileno())


def _write(file: IO[bytes], table: Any, number: int, rows_at_once: int) -> int:
    """Write a row group to an Arrow file, so many rows to a batch but for the last one. Returns the number of its rows."""
    import pyarrow

    written, pending = 0, None
    with pyarrow.ipc.new_file(file, table.schema_arrow) as writer:
        for batch in table.iter_batches(batch_size=8 * rows_at_once, row_groups=[number], use_threads=False):
            more = pyarrow.Table.from_batches([batch])
            pending = more if pending is None else pyarrow.concat_tables([pending, more])
            whole = pending.num_rows - pending.num_rows % rows_at_once
            for first in range(0, whole, rows_at_once):
                writer.write_table(pending.slice(first, rows_at_once).combine_chunks())
            written, pending = written + whole, pending.slice(whole)
        if pending is not None and pending.num_rows:
            writer.write_table(pending.combine_chunks())
            written += pending.num_rows
    return written


class ArrowRows:
    """The rows of an Arrow file that `convert` wrote, read from any thread. Raises FileNotFoundError where it is gone."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._lock, self._reader = threading.Lock(), pyarrow.ipc.open_file(pyarrow.OSFile(str(path)))
        self._at_once = self._reader.get_batch(0).num_rows if self._reader.num_record_batches else 1

    def row(self, i: int) -> dict[str, Any]:
        """Return row `i` as {column: value}."""
        with self._lock:
            batch = self._reader.get_batch(i // self._at_once)
        row: dict[str, Any] = batch.slice(i % self._at_once, 1).to_pylist()[0]
        return row

    def first(self, count: int) -> bytes:
        """Return the first `count` rows, or all if there are fewer, as an Arrow file."""
        import pyarrow

        with self._lock:
            batches = [
                self._reader.get_batch(number) for number in range(-(-count // self._at_once)) if number < self._reader.num_record_batches
            ]
        out, table = io.BytesIO(), pyarrow.Table.from_batches(batches).slice(0, count).combine_chunks()
        with pyarrow.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
