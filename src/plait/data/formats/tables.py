"""Compare the columns of the parquet or Arrow files of one source, to name file and columns that differ in an error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.errors import PlaitError


def check_columns(files: Sequence[str]) -> None:
    """Raise PlaitError if one of several tables lacks a column that the first has, or has one more. Unreadable files are passed over.

    The order of columns does not matter. `files`: paths on disk, of parquet if they end in .parquet, else of Arrow.
    """
    same_columns({file: schema.names for file, schema in (_schemas(files) if len(files) > 1 else {}).items()})


def same_columns(columns: Mapping[str, Sequence[str]]) -> None:
    """Raise PlaitError if a file lacks a column that the first one has, or has one more. `columns`: {file: names of its columns}."""
    first = next(iter(columns), "")
    for file, names in columns.items():
        lacking = [name for name in columns[first] if name not in names]
        further = [name for name in names if name not in columns[first]]
        if lacking or further:
            faults = {"lacks": lacking, "has also": further}
            what = " and ".join(f"{verb} the columns {', '.join(names)}" for verb, names in faults.items() if names)
            raise PlaitError(f"{file}, unlike {first}, {what}: files of one source have the same columns; else give each its own entry")


def fault(files: Sequence[str]) -> str | None:
    """Return why tables cannot be read together: one is damaged, none has rows, or a column is of two types. None if none of these.

    `files`: paths on disk, of parquet if they end in .parquet, else of Arrow. All of them are read through.
    """
    damaged = next(filter(None, map(_damage, files)), None)
    if damaged is not None:
        return damaged
    schemas = _schemas(files)
    first = next(iter(schemas))
    if not any(map(_rows, files)):
        others = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        return f"{first}{others}: no rows; the columns are {', '.join(schemas[first].names) or 'none'}"
    for file, schema in schemas.items():
        for name in schemas[first].names:
            types = [str(one.field(name).type) for one in (schemas[first], schema)]
            if types[0] != types[1]:
                what = f"the column {name} is {types[1]} in {file} and {types[0]} in {first}"
                return f"{what}: write it as one type, or give each its own entry"
    return None


def _damage(file: str) -> str | None:
    """Return what is wrong with a file that cannot be read to its end, in one line; None if it can be."""
    import pyarrow
    import pyarrow.parquet

    try:
        if _is_parquet(file):
            with pyarrow.parquet.ParquetFile(file) as table:
                for _ in table.iter_batches():
                    pass
        else:
            _arrow(file).read_all()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        kind, reason = "parquet" if _is_parquet(file) else "Arrow", (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return f"{file} is no whole {kind} file ({reason}): copy or download it again"
    return None


def _schemas(files: Sequence[str]) -> dict[str, Any]:
    """Return {file: pyarrow's schema} of the files that can be read."""
    import pyarrow
    import pyarrow.parquet

    schemas = {}
    for file in files:
        try:
            schemas[file] = pyarrow.parquet.read_schema(file) if _is_parquet(file) else _arrow(file).schema
        except (OSError, pyarrow.ArrowException):
            continue
    return schemas


def _rows(file: str) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(file).num_rows if _is_parquet(file) else _arrow(file).read_all().num_rows)


def _is_parquet(file: str) -> bool:
    return Path(file).suffix.lower() == ".parquet"


def _arrow(file: str) -> Any:
    """Open an Arrow file, of the streaming format or the one with a footer."""
    import pyarrow

    source = pyarrow.memory_map(file)
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_file(source)
