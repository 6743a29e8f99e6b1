"""The kind `nlvr`: tar shards of Cornell NLVR, with questions made from the boxes of their records (data/synthetic/nlvr.py)."""

from plait.config.schema import SourceEntry
from plait.data.sources.contract import Source
from plait.data.sources.kind import Opening, SourceKind, title
from plait.data.sources.shards import open_shards
from plait.data.synthetic.nlvr import Nlvr


class NlvrSource(Nlvr, Source):
    """Samples of Cornell NLVR as a `Source`: a picture of three boxes of items, and a question made from its items.

    `reader`: reads the shards; `name`: a title for reports; `options`: the fields of NlvrOptions; `limit`: samples (None: all).
    """


def _open(entry: SourceEntry, opening: Opening) -> Source:
    source = NlvrSource(open_shards(entry, opening), title(entry), entry.options, entry.limit)
    source[0]  # shards of another kind should not wait for step 1
    return source


KIND = SourceKind(
    "nlvr",
    own_text="nlvr makes its own questions; take out `template` and `columns`, or read the shards as source shards",
    options=None,
    open=_open,
)
