"""The poems kind of source: verses about bottles, made on the spot."""

from dataclasses import dataclass
from typing import ClassVar

from plait.data.sources.contract import Source
from plait.data.sources.kind import SourceKind
from plait.errors import PlaitError


@dataclass(frozen=True)
class Poems(Source):
    """So many verses."""

    name: ClassVar[str] = "poems"
    lines: int

    @property
    def fingerprint(self):
        return f"bottles-{self.lines}"

    def __len__(self):
        return self.lines

    def __getitem__(self, index, /):
        talk = [{"role": "user", "content": f"Verse {index}?"}, {"role": "assistant", "content": f"{index} green bottles on the wall"}]
        return {"id": f"poems:{index}", "images": [], "messages": talk, "fields": {}}


def open_poems(entry, opening):
    lines = entry.options.get("lines", 16)
    if not (isinstance(lines, int) and lines > 0):
        raise PlaitError(f"options.lines must be a positive whole number, got {lines!r}")
    return Poems(lines)


KIND = SourceKind("poems", open=open_poems, needs="nothing", options=("lines",), own_text="poems have their own words: leave out template")
