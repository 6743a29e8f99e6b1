"""Make training samples with `messages` of records (raw samples of a reader: shards, folder, jsonl, datasets).

The messages come from the template of an entry (one item of the configuration's `data:` section) if it has one, else from the record:
from its `annotations` where these are conversations, or else from its own text.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import xxhash

from plait.config.schema import SourceEntry
from plait.data import text
from plait.data.addresses import is_remote
from plait.data.field_names import field_list
from plait.data.link_lists.refusal import LinkList, RemotePicture, address_column, links_refusal
from plait.data.records import Record
from plait.data.selection import choices
from plait.data.sources.contract import Reader, Sample, Source
from plait.data.sources.kind import title
from plait.errors import BadSample, PlaitError, sample_errors

_PROBES = 20  # records tried, at most, to check columns and template before the run


@runtime_checkable
class TextReader(Protocol):
    """A reader that can read a record without its pictures, which are empty bytes then."""

    def read_text(self, index: int, /) -> Record:
        """Return record `index` (from 0) with empty pictures. Raises BadSample if it is broken."""


class Conversations(Source):
    """A reader's records as a source, with messages made of them as the `data:` entry says (template, columns, limit, allow_blank)."""

    def __init__(self, entry: SourceEntry, reader: Reader) -> None:
        self.reader, self.name, self.template, self.templates = reader, title(entry), entry.template, tuple(entry.templates)
        self.captions = entry.captions
        self.has_template = bool(entry.template or entry.templates or entry.captions)
        self.allow_blank, self.left_out = entry.allow_blank, reader.left_out
        self.may_wait = entry.path is not None and is_remote(entry.path)
        self.stored = not self.may_wait
        self._length = len(reader) if entry.limit is None else min(entry.limit, len(reader))
        patterns = None if entry.template is None else [pattern for _, pattern in text.patterns(entry.template)]
        content = [reader.digest, self._length, patterns, sorted(entry.columns.items())]
        content += ["allow_blank"] if entry.allow_blank else []
        content += [entry.captions, entry.templates] if entry.captions or entry.templates else []
        self.fingerprint = xxhash.xxh3_64(repr(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return record `index` as a sample with messages. Raises BadSample if it is broken or does not fit the template."""
        return self.sample(self.reader.read(index), None)

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return record `index` with one of its captions and one of the templates, drawn by the 64-bit `sample_key`."""
        return self.sample(self.reader.read(index), sample_key)

    def sample(self, record: Record, sample_key: int | None) -> Sample:
        """Return a record as a sample with messages; None: none of them drawn. Raises BadSample if it does not fit the template."""
        try:
            conversations = self._conversations(record, sample_key)
        except BadSample as error:
            error.sample = record.id
            raise
        sample: Sample = {"id": record.id, "images": record.images, **conversations}
        return sample | {"frames": record.frames} if record.frames else sample

    def peek(self, index: int) -> Sample:
        """Return record `index` for what is measured of it, without messages where they are unfit. Raises BadSample if it is broken."""
        return self.peeked(self.reader.read(index))

    def peek_text(self, index: int) -> Sample:
        """Return what `peek` does, with empty pictures where the reader can do without reading them."""
        return self.peeked(self.reader.read_text(index) if isinstance(self.reader, TextReader) else self.reader.read(index))

    def peeked(self, record: Record) -> Sample:
        """Return a record for what is measured of it."""
        sample: Sample = {"id": record.id, "images": record.images, "messages": [], "fields": record.fields}
        sample |= {"frames": record.frames} if record.frames else {}
        with contextlib.suppress(BadSample):
            sample |= self._conversations(record, None)
        return sample | {"fields": record.fields}

    def _conversations(self, record: Record, sample_key: int | None) -> dict[str, Any]:
        """Return a sample's `messages` and `fields`, and `annotations` where the record has several conversations about its images."""
        fields = record.fields
        if self.captions is not None or self.templates:
            return {"messages": self._drawn(record, sample_key), "fields": fields}
        if self.template is None and text.has_annotations(fields):
            annotations = text.annotations(fields["annotations"], len(record.images), allow_blank=self.allow_blank)
            others = {name: value for name, value in fields.items() if name != "annotations"}
            return {"messages": annotations[0]["messages"], "fields": others, "annotations": annotations}
        conversation = text.messages(fields, self.template, allow_blank=self.allow_blank)
        text.check(conversation, len(record.images), allow_blank=self.allow_blank)
        return {"messages": conversation, "fields": fields}

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise PlaitError if a template, or `captions`, names a field that is not in `fields`, those of the first record."""
        captions = self.captions.columns if self.captions is not None else {}
        if unknown := next((name for name in captions if name not in fields), None):
            raise PlaitError(f"captions.columns wants the field {unknown!r}; the records have {field_list(fields)}")
        for template in (*self.templates, *([self.template] if self.template is not None else [])):
            text.check_template(template, {**fields, **({choices.CAPTION: ""} if captions else {})})

    def _drawn(self, record: Record, sample_key: int | None) -> list[dict[str, str]]:
        """Return a conversation of one of the record's captions and one of the templates."""
        fields, template = record.fields, self.template
        if self.captions is not None:
            chosen = choices.caption(fields, self.captions.columns, sample_key, allow_blank=self.allow_blank)
            fields = {**(fields if template or self.templates else {}), choices.CAPTION: chosen}
        if self.templates:
            template = choices.template(self.templates, sample_key)
        conversation = text.messages(fields, template, allow_blank=self.allow_blank)
        text.check(conversation, len(record.images), allow_blank=self.allow_blank)
        return conversation


def _links(reader: Reader, record: Record, probes: int) -> str | None:
    """Return the column of addresses if the first records have no pictures and are those of a list of links; else None."""
    if address_column([record.fields]) is None and not any(str(name).lower() == "url" for name in record.fields):
        return None
    rows = []
    for index in range(probes):
        with contextlib.suppress(BadSample):
            with sample_errors:
                other = reader.read(index)
            if other.images:
                return None
            rows.append(other.fields)
    return address_column(rows)


def open_conversations(
    entry: SourceEntry, reader: Reader, made: Callable[[SourceEntry, Reader], Conversations] = Conversations
) -> Conversations:
    """Return the source of an entry of `data:` from the reader of its files. Its template is checked on the first readable record.

    `made`: makes the source.
    Raises PlaitError if the template names a missing field, if none of the first 20 records can be read, and LinkList for a list of links
    without pictures.
    """
    source = made(entry, reader)
    probes, first_error = min(_PROBES, len(source)), None
    for index in range(probes):
        try:
            with sample_errors:
                record = reader.read(index)
        except BadSample as error:
            first_error = first_error or error
            continue
        if not record.images and (column := _links(reader, record, probes)) is not None:
            raise LinkList(links_refusal(entry, column))
        source.check(record.fields)
        return source
    if isinstance(first_error, RemotePicture) and first_error.field is not None:
        raise LinkList(links_refusal(entry, first_error.field))
    raise PlaitError(f"none of the first {probes} samples can be read: {first_error}")
