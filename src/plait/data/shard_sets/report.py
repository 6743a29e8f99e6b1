"""Count what is in tar shards as they are packed: samples, pictures, bytes, sides and texts, and what was skipped and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from plait.data.shard_sets.members import Packed

_SUMS = ("samples", "pictures", "bytes_before", "bytes", "encoded_anew", "captions", "conversations", "answers", "answer_characters")
_COUNTS = ("formats", "longer_sides", "lost_fields", "skipped")


class ShardReport:
    """Counts of one shard as JSON values, in `counts`; `skipped`: (position, id, reason, detail) of each sample that is not in it."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = dict.fromkeys(_SUMS, 0)
        self._named: dict[str, Counter[str]] = {name: Counter() for name in _COUNTS}
        self.skipped: list[dict[str, Any]] = []

    def add(self, packed: Packed) -> None:
        """Count one sample."""
        kinds = [kind.rpartition(".")[2] for kind, _ in packed.members]
        bodies = [len(body) for _, body in packed.members]
        self._add("samples", 1)
        self._add("pictures", len(packed.sizes))
        self._add("bytes_before", packed.before)
        self._add("bytes", sum(bodies))
        self._add("encoded_anew", packed.encoded)
        self._add("captions", packed.caption)
        self._add("conversations", bool(packed.answers) and not packed.caption)
        self._add("answers", len(packed.answers))
        self._add("answer_characters", sum(map(len, packed.answers)))
        self._named["formats"].update(kinds)
        self._named["longer_sides"].update(side_name(max(size)) for size in packed.sizes)
        self._named["lost_fields"].update(packed.lost)

    def skip(self, position: int, identity: str, reason: str, detail: str) -> None:
        """Count one sample that is not packed."""
        self.skipped.append({"position": position, "id": identity, "reason": reason, "detail": detail})
        self._named["skipped"][reason] += 1

    def _add(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def plain(self) -> dict[str, Any]:
        """Return the counts as JSON values; those by name are sorted, the most frequent first."""
        return {**self.counts, **{name: _sorted(counts) for name, counts in self._named.items()}, "skipped_samples": self.skipped}


def side_name(pixels: int) -> str:
    """Return the range of sides, between powers of two, that a side is in: "512 to 1023"."""
    low = 1 << (pixels.bit_length() - 1)
    return f"{low} to {2 * low - 1}"


def merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of several shards together, without the list of skipped samples."""
    sums = {name: sum(report[name] for report in reports) for name in _SUMS}
    return {**sums, **{name: _sorted(sum((Counter(report[name]) for report in reports), Counter())) for name in _COUNTS}}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
