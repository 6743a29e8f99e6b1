"""Records (raw samples of a reader: shards, folder, jsonl, datasets) as training samples with `messages`.

An entry, one item of the configuration's `data:` section, may have a template that makes the messages; else the record's own text does.
"""

from collections.abc import Mapping

import xxhash

from plait.config.schema import Source as Entry
from plait.config.schema import Template
from plait.data import text
from plait.data.sources.contract import Reader, Sample, Source
from plait.data.sources.kind import title
from plait.errors import BadSample, PlaitError

_PROBES = 20  # records tried, at most, to check columns and template before the run


class Conversations(Source):
    """A reader's records as a source, with messages made of them. `columns`: new field name -> the record's; `limit`: the first so many."""

    def __init__(self, reader: Reader, name: str, template: Template | None, columns: Mapping[str, str], limit: int | None) -> None:
        self.reader, self.name, self.template, self.has_template = reader, name, template, template is not None
        self._length = len(reader) if limit is None else min(limit, len(reader))
        patterns = None if template is None else [pattern for _, pattern in text.patterns(template)]
        content = [reader.digest, self._length, patterns, sorted(columns.items())]
        self.fingerprint = xxhash.xxh3_64(repr(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return record `index` with its messages. Raises BadSample for a broken record or one that does not fit the template."""
        record = self.reader.read(index)
        conversation = text.messages(record.fields, self.template)
        text.check_marks(conversation, len(record.images))
        sample: Sample = {"id": record.id, "images": record.images, "messages": conversation, "fields": record.fields}
        return sample | {"frames": record.frames} if record.frames else sample


def open_conversations(entry: Entry, reader: Reader) -> Conversations:
    """Return the samples of `entry`, after checking its template against the first readable record.

    Raises PlaitError for a wrong field, so that it does not wait for step 1, and when none of the first records can be read.
    """
    source = Conversations(reader, title(entry), entry.template, entry.columns, entry.limit)
    probes, first_error = min(_PROBES, len(source)), None
    for index in range(probes):
        try:
            record = reader.read(index)
        except BadSample as error:
            first_error = first_error or error
            continue
        if entry.template is not None:
            text.check_template(entry.template, record.fields)
        return source
    raise PlaitError(f"none of the first {probes} samples can be read: {first_error}")
