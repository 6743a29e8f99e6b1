"""Make openers of published datasets: functions that read the rows of a split.

They read the files of its authors, or the Hub. They take a DatasetFiles, and raise Absent where it has no such files. What rows are is in
published_rows.py.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import xxhash

from plait.config import hub_errors
from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import PlaitError
from plait.families.published_rows import DatasetFiles, Keep, Opener, ParquetRows, Row, RowList, Rows


def read_json(file: Path) -> Any:
    """Return the content of a JSON file. Raises PlaitError if it is not JSON."""
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise PlaitError(f"{file} is not JSON: {error}") from error


def _json_rows(file: Path, *keys: str, fields: Sequence[str] = ()) -> list[Row]:
    """Return the list of records at content[keys[0]]... of a JSON file; an object there, {id: row}, as records with that `id`.

    Raises PlaitError if there is none, or a record lacks one of `fields`.
    """
    content = read_json(file)
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            raise PlaitError(f"{file} has no {key!r}: is it the published file?")
        content = content[key]
    rows = list(content.values()) if isinstance(content, Mapping) else content
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise PlaitError(f"{file} holds no list of records: is it the published file?")
    for number, row in enumerate(rows, 1):
        if missing := [name for name in fields if name not in row]:
            raise PlaitError(f"{file}: record {number} has no {missing[0]!r}: is it the published file?")
    return [{"id": key, **row} for key, row in content.items()] if isinstance(content, Mapping) else rows


def in_json(pattern: str, *keys: str, keep: Callable[[Row], bool] = lambda row: True, mark: Row | None = None) -> Opener:
    """Return an opener (DatasetFiles -> Rows) of the list at content[keys[0]][keys[1]]... of the JSON file that matches the glob `pattern`.

    In place of a list there may be an object, {id: row}: the id is the row's field `id`, unless it has one. `keep`: function that tells
    which rows to take; `mark`: fields added to all rows. The opener raises Absent if no file matches, and PlaitError if it holds no list.
    """

    def opened(files: DatasetFiles) -> Rows:
        (file,) = files.find(pattern)
        rows = _json_rows(file, *keys)
        for row in rows:
            row.update(mark or {})
        return RowList.of_files([row for row in rows if keep(row)], [file])

    return opened


def joined(questions: str, annotations: str) -> Opener:
    """Return an opener (DatasetFiles -> Rows) that joins VQA's JSON files `questions` and `annotations` (globs) by `question_id`.

    A row has the fields of both; of one that both have, the question's value. The opener raises Absent without the two files, and
    PlaitError if a question has no annotation.
    """

    def opened(files: DatasetFiles) -> Rows:
        question_file, answer_file = files.find(questions, annotations)
        answers = {row["question_id"]: row for row in _json_rows(answer_file, "annotations", fields=["question_id"])}
        rows = _json_rows(question_file, "questions", fields=["question_id"])
        unanswered = [row["question_id"] for row in rows if row["question_id"] not in answers]
        if unanswered:
            more = f"and {len(unanswered) - 1} more"
            raise PlaitError(f"{answer_file} has no answer to question {unanswered[0]} of {question_file.name} ({more})")
        return RowList.of_files([{**answers[row["question_id"]], **row} for row in rows], [question_file, answer_file])

    return opened


def concatenated(*openers: Opener) -> Opener:
    """Return an opener (DatasetFiles -> Rows) that returns all rows of several openers, one opener's after the other's."""

    def opened(files: DatasetFiles) -> Rows:
        parts = [opener(files) for opener in openers]
        digest = xxhash.xxh3_64("".join(part.digest for part in parts).encode()).hexdigest()
        return RowList([part[i] for part in parts for i in range(len(part))], digest)

    return opened


def in_csv(pattern: str, *columns: str, mark: Row) -> Opener:
    """Return an opener (DatasetFiles -> Rows) of the CSV file that matches the glob `pattern`; its values are texts.

    Rows have all columns of the file, and `columns` are those that it must have. `mark`: fields added to all rows. The opener raises Absent
    if no file matches, and PlaitError if it lacks one of `columns`, in its header or in a row.
    """

    def opened(files: DatasetFiles) -> Rows:
        (file,) = files.find(pattern)
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = [{**row, **mark} for row in reader]
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise PlaitError(f"{file} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}: is it the published file?")
        for number, row in enumerate(rows, 1):
            if any(row[name] is None for name in columns):
                raise PlaitError(f"{file}: row {number} is cut short: download it again")
        return RowList.of_files(rows, [file])

    return opened


def in_json_lines(*patterns: str, hub: tuple[str, str] | None = None, fields: Sequence[str] = ()) -> Opener:
    """Return an opener of the rows of a file of JSON lines, the first that matches one of the glob `patterns`.

    `hub`: a Hub dataset and the file in it that is read without local files, with the dataset's option `hub: true`. `fields`: what each row
    must have. The opener raises Absent without files, and PlaitError for a line that is no such row.
    """

    def opened(files: DatasetFiles) -> Rows:
        file = next((match for pattern in patterns for match in sorted(files.folder.glob(pattern))), None)
        if file is None and not (files.hub and hub):
            raise Absent(f"no {patterns[0]} in {files.folder}")
        file = file or hub_file(*hub) if hub else file
        assert file is not None
        with file.open(encoding="utf-8") as lines:
            rows = [_json_row(line, f"{file}:{number}", fields) for number, line in enumerate(lines, 1) if line.strip()]
        return RowList.of_files(rows, [file])

    return opened


def _json_row(line: str, where: str, fields: Sequence[str]) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PlaitError(f"{where} is not JSON ({error}): is it the published file?") from error
    if not isinstance(row, dict) or (missing := [name for name in fields if name not in row]):
        lacking = f"has no {missing[0]!r}" if isinstance(row, dict) else "is no object"
        raise PlaitError(f"{where} {lacking}: is it the published file?")
    return row


def hub_file(name: str, file: str) -> Path:
    """Return the path of a downloaded file of the Hub dataset `name`. Raises PlaitError, with the cure, if the Hub refuses it."""
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:
        refused = hub_errors.refusal(error, name, dataset=True) or f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise PlaitError(f"cannot download {file} of {name}: {refused}") from error


def in_parquet(
    hub: str, split: str, config: str | None = None, keep: Keep | None = None, columns: Mapping[str, str] | None = None
) -> Opener:
    """Return an opener (DatasetFiles -> Rows) of local parquet files, or without any, where `hub: true` is set, of Hub repository `hub`.

    The files are SPLIT-*.parquet or SPLIT.parquet in the dataset's folder, or in its subfolder data or that named `config`. `keep`:
    (column, condition on its value; None: not null) of rows to take; `columns`: {field: the column that it is read from}. The opener
    raises Absent without files.
    """

    def opened(files: DatasetFiles) -> Rows:
        for folder in [files.folder / name for name in (config or "data", "data", ".")]:
            for name in (f"{split}-*.parquet", f"{split}.parquet"):
                if any(folder.glob(name)):
                    return ParquetRows(Table(str(folder / name), None, split, {}, files.cache, columns or {}), keep)
        if files.hub:
            return ParquetRows(Table(None, hub, split, {"config": config} if config else {}, files.cache, columns or {}), keep)
        raise Absent(f"no {split}-*.parquet in {files.folder}")

    return opened


def either(*openers: Opener) -> Opener:
    """Return an opener (DatasetFiles -> Rows) that calls the first of several whose files exist. It raises Absent if none do."""

    def opened(files: DatasetFiles) -> Rows:
        reasons = []
        for opener in openers:
            try:
                return opener(files)
            except Absent as error:
                reasons.append(str(error))
        raise Absent("; ".join(reasons))

    return opened
