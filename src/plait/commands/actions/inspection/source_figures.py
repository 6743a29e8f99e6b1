"""Present what was measured of a source as lines of text, as JSON values, and as a section of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.commands.actions.index_data import byte_text
from plait.commands.pages.charts import chart
from plait.commands.pages.figures import Group, Section, Thumb
from plait.config.secrets import masked
from plait.data import image_files
from plait.data.figures import languages
from plait.data.figures.alike import DISTANCE
from plait.data.figures.measure import Figures, samples_of
from plait.data.figures.series import Hashes
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, sample_errors

_REASONS, _REPEATS, _GROUPS, _PAIRS = 12, 10, 6, 100
_SHOWN, _SHOWN_SIDE = 24, 320
_TEXT = 80  # characters of a repeated text in a line


def details(figures: Figures, source: Source) -> list[tuple[str, str]]:
    """Return what was measured of a source as (name, text), without zeros."""
    drawn = "drawn at random" if source.stream is None else "of a few shards drawn at random"
    looked = "all" if figures.read == figures.samples else f"{figures.read:,} of them, {drawn},"
    how = "; of pictures only the headers were read" if figures.headers_only else ""
    rows = [("samples", f"{figures.samples:,}, {looked} measured{how}")]
    if figures.pictures:
        more = f", {figures.with_several:,} samples with several pictures" if figures.with_several else ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in figures.formats.most_common())
        size = byte_text(float(figures.file_bytes.values.sum()))
        rows.append(("pictures", f"{figures.pictures:,}{more}; {size}: {kinds}"))
        width, height = figures.width.summary(), figures.height.summary()
        sides = f"width {_range(width)}, height {_range(height)} px; shorter side under 256 px: {_share(figures.shorter.values < 256)}"
        rows.append(("sides", sides))
        rows.append(("aspect", f"width / height {_range(figures.aspect.summary())}"))
    rows += _clips(figures)
    if figures.without_either:
        rows.append(("without pictures", f"{figures.without_either:,} samples of text alone"))
    rows += _texts(figures, source)
    rows += _twice(figures)
    if figures.broken:
        rows.append(("broken", f"{figures.broken.total():,} of {figures.read:,} samples ({figures.broken.total() / figures.read:.2%})"))
        for reason, count in figures.broken.most_common(_REASONS):
            rows.append(("", f"{count:,} x {reason} ({', '.join(figures.broken_examples[reason])})"))
        if len(figures.broken) > _REASONS:
            rows.append(("", f"and {len(figures.broken) - _REASONS} more reasons"))
    return rows + [("left out", f"{count:,} of {reason}") for reason, count in figures.left_out.items()]


def _clips(figures: Figures) -> list[tuple[str, str]]:
    """Return what was measured of clips: how many, of how many frames, their files and the sides of their first frames."""
    if not figures.clips:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in figures.clip_formats.most_common())
    size = byte_text(float(figures.clip_bytes.values.sum()))
    sides = f"width {_range(figures.clip_width.summary())}, height {_range(figures.clip_height.summary())} px"
    return [("clips", f"{figures.clips:,} of {_range(figures.frames.summary())} frames; {size}: {kinds}"), ("sides of clips", sides)]


def _texts(figures: Figures, source: Source) -> list[tuple[str, str]]:
    rows = []
    if len(figures.words):
        rows.append(("answers", f"{_range(figures.words.summary())} words, {_range(figures.characters.summary())} characters a sample"))
        scripts = ", ".join(f"{count / len(figures.words):.1%} {name}" for name, count in figures.scripts.most_common(6))
        rows.append(("scripts", scripts))
        rows.append(("languages", languages.shares(figures.languages)))
    if len(figures.tokens):
        rows.append(("tokens", f"{_range(figures.tokens.summary())} a sample, of {len(figures.tokens):,} samples"))
    empty = {"without an answer or caption": figures.without_text, "with an empty one": figures.empty}
    for what, count in empty.items():
        rows += [("no text", f"{count:,} of {figures.read:,} samples {what} ({count / figures.read:.1%})")] if count else []
    repeated, kinds, frequent = figures.same_texts.repeated(_REPEATS)
    if repeated:
        total = len(figures.same_texts)
        share = f"{repeated:,} of {total:,} samples ({repeated / total:.1%})"
        rows.append(("repeated text", f"{share} have the text of an earlier one; {kinds:,} texts come again"))
        for count, owners in frequent[:3]:
            rows.append(("", f"{count:,} x {_quoted(_text_of(source, owners[0]))}"))
    return rows


def _twice(figures: Figures) -> list[tuple[str, str]]:
    """Return what is there more than once, byte for byte."""
    rows = []
    kinds_of = {"pictures": figures.same_pictures, "clips": figures.same_clips, "samples": figures.same_samples}
    for what, hashes in kinds_of.items():
        repeated, kinds, _ = hashes.repeated(0)
        if repeated:
            share = f"{repeated:,} of {len(hashes):,} {what} ({repeated / len(hashes):.1%})"
            name = "duplicates" if what == "samples" else f"repeated {what}"
            rows.append((name, f"{share} are an earlier one to the byte; {kinds:,} come again"))
    if near := figures.alike.pairs():
        bits = f"{DISTANCE} of 64 bits or fewer of their perceptual hashes differ"
        rows.append(("near copies", f"{len(near):,} pictures look like an earlier one ({bits}); `plait data dedup` lists copies"))
    return rows


def shared(figures: Figures, other: Figures) -> list[tuple[str, str]]:
    """Return how much of a source is in another one too, which is held out."""
    sides = f"{figures.usable:,} samples compared with {other.usable:,} of {other.name}"
    found = {}
    for what, own, theirs in (
        ("samples held out too", figures.same_samples, other.same_samples),
        ("pictures held out too", figures.same_pictures, other.same_pictures),
        ("clips held out too", figures.same_clips, other.same_clips),
    ):
        count, pairs = own.shared(theirs)
        if count:
            found[what] = f"{count:,} {what}, such as {figures.name}[{pairs[0][0]}] and {other.name}[{pairs[0][1]}]"
    if near := figures.alike.like(other.alike):
        such = f"{figures.name}[{near[0].sample}] and {other.name}[{near[0].of}]"
        found["near"] = f"{len(near):,} pictures look like held-out ones, such as {such}"
    return [("leakage", f"{'; '.join(found.values()) or 'none'} ({sides})")]


def _range(summary: Mapping[str, float]) -> str:
    """Return the smallest and the largest number: "16 to 2,048 (median 512, 95 % up to 1,024)"."""
    low, high, median, most = (_number(summary[name]) for name in ("min", "max", "median", "p95"))
    return low if low == high else f"{low} to {high} (median {median}, 95 % up to {most})"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _share(flags: np.ndarray) -> str:
    return f"{flags.mean():.1%}"


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    return f'"{flat}"' if len(flat) <= _TEXT else f'"{flat[:_TEXT]}..."'


def _text_of(source: Source, index: int) -> str:
    """Return the answers of a sample; what is wrong with it where it cannot be read any more."""
    try:
        with sample_errors:
            return _answers(read(source, index))
    except BadSample as error:
        return masked(str(error))


def _answers(sample: Sample) -> str:
    conversations = [item["messages"] for item in sample.get("annotations", ())] or [sample["messages"]]
    return "\n".join(turn["content"] for turns in conversations for turn in turns if turn["role"] == "assistant")


def as_dict(figures: Figures, source: Source) -> dict[str, Any]:
    """Return what was measured as JSON values."""

    def repeats(hashes: Hashes) -> dict[str, Any]:
        repeated, kinds, groups = hashes.repeated(_REPEATS)
        return {"repeated": repeated, "kinds": kinds, "most_frequent": [{"count": count, "samples": owners} for count, owners in groups]}

    near = figures.alike.pairs()
    texts = repeats(figures.same_texts)
    texts["most_frequent"] = [{**row, "text": _text_of(source, row["samples"][0])} for row in texts["most_frequent"]]
    of_pictures = ("width", "height", "shorter", "aspect", "file_bytes", "frames", "clip_width", "clip_height", "clip_bytes")
    series = (*of_pictures, "words", "characters", "tokens", "turns")
    counts = ("samples", "read", "headers_only", "pictures", "with_pictures", "with_several", "clips", "without_text", "empty")
    return {
        "name": figures.name,
        **{name: getattr(figures, name) for name in counts},
        "all": figures.read == figures.samples,
        **{name: getattr(figures, name).plain() for name in series},
        "formats": dict(figures.formats.most_common()),
        "clip_formats": dict(figures.clip_formats.most_common()),
        "scripts": dict(figures.scripts.most_common()),
        "languages": dict(figures.languages.most_common()),
        "broken": {reason: {"count": n, "such_as": figures.broken_examples[reason]} for reason, n in figures.broken.most_common()},
        "repeated_texts": texts,
        "repeated_pictures": repeats(figures.same_pictures),
        "repeated_clips": repeats(figures.same_clips),
        "duplicates": repeats(figures.same_samples),
        "near_copies": {"count": len(near), "bits": DISTANCE, "such_as": [pair._asdict() for pair in near[:_PAIRS]]},
        "left_out": figures.left_out,
    }


def section(figures: Figures, source: Source, rows: Sequence[tuple[str, str]], *, title: str = "") -> Section:
    """Return the section of a page. `rows`: what `details` returned."""
    drawn = [
        ("Width", figures.width, "pictures"),
        ("Height", figures.height, "pictures"),
        ("Aspect ratio", figures.aspect, "pictures"),
        ("File size", figures.file_bytes, "pictures"),
        ("Frames of the clips", figures.frames, "clips"),
        ("Words of the answers", figures.words, "samples"),
        ("Tokens", figures.tokens, "samples"),
    ]
    if len(figures.turns) and figures.turns.summary()["max"] > 2:
        drawn.append(("Turns of the conversation", figures.turns, "samples"))
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    if figures.broken:
        broken = [[f"{n:,}", reason, ", ".join(figures.broken_examples[reason])] for reason, n in figures.broken.most_common(_REASONS)]
        tables.append(("Broken samples", ("samples", "why", "such as"), broken))
    repeated = figures.same_texts.repeated(_REPEATS)[2]
    if repeated:
        texts = [[f"{count:,}", _text_of(source, owners[0])[:400]] for count, owners in repeated]
        tables.append(("Most frequent texts", ("samples", "text"), texts))
    charts = [chart(name, series, what) for name, series, what in drawn if series.varies]
    return Section(title, rows, charts, tables, _groups(figures, source))


def _groups(figures: Figures, source: Source) -> list[Group]:
    """Return samples to look at: some from all over the source, the extremes, and those that are there more than once."""
    spread = np.unique(np.linspace(0, figures.samples - 1, _SHOWN).astype(int)) if figures.samples else np.zeros(0, int)
    groups = [Group("Samples", "from all over the source", _thumbs(source, [(int(index), "") for index in spread]))]
    notes: dict[int, str] = {}
    for name, (_, index) in figures.extremes.items():
        notes[index] = f"{notes[index]}, {name}" if index in notes else name
    if figures.usable > 1 and notes:
        groups.append(Group("Extremes", "", _thumbs(source, list(notes.items()))))
    repeated, kinds, frequent = figures.same_pictures.repeated(_GROUPS)
    if repeated:
        again = [(owners[0], f"{count:,} times") for count, owners in frequent]
        groups.append(Group("Pictures that come again", f"{kinds:,} pictures, the most frequent first", _thumbs(source, again)))
    shown: dict[int, str] = {}
    for pair in figures.alike.pairs()[:_GROUPS]:
        shown.setdefault(pair.of, "")
        shown[pair.sample] = f"looks like {_name(source, pair.of)}"
    groups.append(Group("Pictures that look alike", "each beside an earlier one", _thumbs(source, list(shown.items()))))
    return [group for group in groups if group.thumbs]


def _name(source: Source, index: int) -> str:
    """Return the name of a sample."""
    return next((str(sample["id"]) for _, sample in samples_of(source, [index])), f"{source.name}[{index}]")


def _thumbs(source: Source, wanted: Sequence[tuple[int, str]]) -> list[Thumb]:
    """Return samples in small. `wanted`: (index, note) of each; those that cannot be read are left out."""
    thumbs, notes = [], dict(wanted)
    for index, sample in samples_of(source, list(notes)):
        try:
            with sample_errors:
                shown = sample["images"] or sample.get("frames", ())
                pictures = [image_files.decode_rgb(image, at_least=(_SHOWN_SIDE, _SHOWN_SIDE)) for image in shown[:4]]
        except BadSample:
            continue
        more = [np.zeros((1, 1, 3), np.uint8)] * max(0, len(shown) - 4)
        thumbs.append(Thumb([*pictures, *more], str(sample["id"]), _answers(sample), notes[index]))
    return thumbs
