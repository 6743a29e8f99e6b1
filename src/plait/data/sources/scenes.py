"""The kind `scenes`: pictures with questions, generated from a seed, which need no files (data/synthetic/scenes.py)."""

from plait.config.schema import SourceEntry
from plait.data.sources.contract import Source
from plait.data.sources.kind import Opening, SourceKind
from plait.data.synthetic.scenes import Scenes


class SceneSource(Scenes, Source):
    """Generated pictures of moving shapes with questions, as a `Source` without files.

    `options`: the fields of SceneOptions. `seed`, `split`: which pictures are drawn. `length`: samples; None: the split's default.
    """


def _open(entry: SourceEntry, opening: Opening) -> Source:
    return SceneSource(entry.options, seed=opening.seed, split=entry.split or opening.split, length=entry.limit)


KIND = SourceKind(
    "scenes",
    needs="nothing",
    own_text="scenes write their own text; take out `template` and `columns`, and use `options`",
    options=None,
    open=_open,
    names_itself=True,
)
