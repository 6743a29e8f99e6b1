"""PixMo as it is published (parquet with URLs, images downloaded apart): captions, questions, answers with points, counts.

Points of PixMo-Points and its explanations are percentages, those of PixMo-Count pixels. Sets without a published validation split hold out
one image in a hundred, by the hash of its URL.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plait.data.link_lists.refusal import ROWS_PER_S, duration
from plait.errors import BadSample, command
from plait.families.molmo import points
from plait.families.molmo.catalogue.wordings import CAPTION, COUNT, NO_POINTS, POINT, one_of
from plait.families.published_openers import in_parquet
from plait.families.published_rows import PIXMO_IMAGES, Conversation, Converter, DatasetFiles, Opener, Random, Row, Size, Spec

POINTS_EVAL = "pixmo_points_eval"
"""Name of the dataset by which pointing is evaluated."""
MARK = "<|POINT|>"
"""What stands in `parsed_response` where a point is."""
_MOST_POINTS = 60  # of one answer: more would not fit into 2304 tokens beside an image

_BRACKETS = re.compile(r"^\s*\[USER\]|\[ASSISTANT\]\s*$")


def _pairs(listed: Any) -> list[points.Point]:
    """Return points however parquet holds them: a list of {x, y}, or {x: [...], y: [...]}."""
    if isinstance(listed, Mapping):
        return list(zip(map(float, listed["x"]), map(float, listed["y"]), strict=True))
    return [(float(point["x"]), float(point["y"])) for point in listed or []]


def _caption(row: Row, random: Random, size: Size) -> list[Conversation]:
    return [Conversation(one_of(CAPTION, random), row["caption"].strip(), "long_caption", bare="")]


def _caption_and_transcript(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return two conversations: the caption, and what one of the people who described the picture aloud said, drawn each time."""
    if not row["transcripts"]:
        raise BadSample("a caption without a transcript")
    return [*_caption(row, random, size), Conversation("", one_of(row["transcripts"], random).strip(), "transcript")]


def _answer(row: Row, random: Random, size: Size) -> list[Conversation]:
    answer = row["answer"].strip()
    return [Conversation(_without_points(row["question"].strip(), random), answer, "user_qa", {"answers": [answer]})]


def _without_points(question: str, random: Random) -> str:
    """Put a wish for no points before a question "how many ...", whose answer has none."""
    return one_of(NO_POINTS, random) + question if question.lower().startswith("how many") else question


def _synthetic(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the conversation of a caption's questions; those of "how many" get a prefix that forbids points."""
    texts = [_BRACKETS.sub("", text).strip() for text in row.get("messages") or [row["question"], row["answer"]]]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    if not pairs:
        raise BadSample("a conversation without an answer")
    pairs = [(_without_points(question, random), answer) for question, answer in pairs]
    return [Conversation(*pairs[0], "synthetic_qa", more=tuple(pairs[1:]))]


def _explained(row: Row, random: Random, size: Size) -> list[Conversation]:
    texts = row["parsed_response"].split(MARK)
    marked = list(zip(row["points"], row["inline_text"], row["alt_text"], strict=True))
    if len(texts) != len(marked) + 1:
        raise BadSample(f"{len(texts) - 1} {MARK} marks for {len(marked)} lists of points")
    tags = [points.write(_pairs(listed), inline, alt) for listed, inline, alt in marked]
    answer = "".join(part for pair in zip(texts, [*tags, ""], strict=True) for part in pair)
    return [Conversation(row["question"].strip(), answer.strip(), "point_qa")]


def _pointing(counting: bool) -> Converter:
    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        return [_pointing_conversation(row, _pairs(row["points"]), counting, random)]

    return convert


def _pointing_conversation(row: Row, targets: list[points.Point], counting: bool, random: Random) -> Conversation:
    label = str(row["label"]).strip().lower()
    if len(targets) > _MOST_POINTS:
        raise BadSample(f"{len(targets)} points for {label!r}, more than {_MOST_POINTS}")
    gold: dict[str, Any] = {"points": targets, "count": len(targets), "label": label}
    if row.get("masks") is not None:
        gold["masks"] = row["masks"]
    write = points.write_count if counting else points.write
    question = one_of(COUNT if counting else POINT, random).format(label)
    return Conversation(question, write(targets, label), "point_count" if counting else "pointing", gold, bare=label)


def _pixmo_count(counting: bool) -> Converter:
    """Return the converter of PixMo-Count, whose points are pixels; its validation and test sets have counts and no points."""

    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        pixels = _pairs(row.get("points"))
        if pixels:
            width, height = size()
            return [_pointing_conversation(row, [points.percent(x, y, width, height) for x, y in pixels], counting, random)]
        label = str(row["label"]).strip().lower()
        return [
            Conversation(one_of(COUNT, random).format(label), str(row["count"]), "point_count", {"count": int(row["count"])}, bare=label)
        ]

    return convert


def _downloaded(files: DatasetFiles, row: Row) -> Path:
    return files.image_of_url(row["image_url"])


def _published(hub: str, *splits: str, **settings: Any) -> dict[str, Opener]:
    return {split: in_parquet(f"allenai/{hub}", split, **settings) for split in splits}


def _whole(hub: str, **settings: Any) -> dict[str, Opener]:
    """Return the openers of a set published as one split, which is split in two by the images' URLs."""
    return dict.fromkeys(("train", "validation"), in_parquet(f"allenai/{hub}", "train", **settings))


def _spec(hub: str, splits: dict[str, Opener], convert: Converter, rule: str | None = None, **more: Any) -> Spec:
    get = f"the parquet files of allenai/{hub} and its images, downloaded and named by the sha256 of their addresses"
    return Spec(hub, splits, convert, get, rule=rule, picture=_downloaded, group="image_url", by_url=True, **more)


PICTURES_OF = {
    "pixmo-cap": 712_000,
    "pixmo-cap-qa": 165_000,
    "pixmo-ask-model-anything": 73_000,
    "pixmo-point-explanations": 29_000,
    "pixmo-points": 223_000,
    "pixmo-count": 37_000,
    "pixmo-points-eval": 430,
}
"""About how many pictures each set has, by its name on the Hub (Deitke et al. 2024, section 3)."""
_A_LINK = 230_000  # bytes: 0.3 MB x 77 %
ESTIMATE = f"estimates assume 0.3 MB a picture, 77 % of the links alive, as they were of PixMo-Cap, and {ROWS_PER_S} links a second"
"""What sizes and times of `fetch_commands` come from."""


def fetch_commands(name: str, root: Path) -> tuple[str, str]:
    """Return the commands that fetch a set's parquet files and its pictures into `root`, with GB and time of the latter.

    `name`: of the set on the Hub, one of PICTURES_OF. Pictures that several sets share are fetched once.
    """
    hub = f"allenai/{name}"
    files = shlex.join(["hf", "download", hub, "--repo-type", "dataset", "--local-dir", str(root / name)])
    pictures = command("data", "download", f"hf://datasets/{hub}", root / PIXMO_IMAGES, "--as-files")
    size, time = PICTURES_OF[name] * _A_LINK / 1e9, duration(PICTURES_OF[name] / ROWS_PER_S / 3600)
    return files, f"{pictures} (about {size:,.0f} GB, {time})"


def _docs(kind: str) -> Spec:
    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        listed = row["questions"]
        pairs = (
            zip(listed["question"], listed["answer"], strict=True)
            if isinstance(listed, Mapping)
            else ((pair["question"], pair["answer"]) for pair in listed)
        )
        return [Conversation(question, answer, f"pixmo_docs_{kind}", {"answers": [answer]}) for question, answer in pairs]

    splits = _published("pixmo-docs", "train", "validation", config=kind)
    return Spec("pixmo-docs", splits, convert, f"the parquet files of allenai/pixmo-docs ({kind})")


def _method(method: str) -> tuple[str, Callable[[Any], bool]]:
    return "collection_method", lambda value: value == method


_POINTS = {False: _whole("pixmo-points", keep=_method("pointing")), True: _whole("pixmo-points", keep=_method("counting"))}
PIXMO: dict[str, Spec] = {
    "pixmo_cap": _spec("pixmo-cap", _whole("pixmo-cap"), _caption, "caption", held_out=True, packing="one"),
    "pixmo_cap_with_transcripts": _spec("pixmo-cap", _whole("pixmo-cap"), _caption_and_transcript, "caption", held_out=True, packing="one"),
    "pixmo_cap_qa": _spec("pixmo-cap-qa", _whole("pixmo-cap-qa"), _synthetic, held_out=True),
    "pixmo_ask_model_anything": _spec("pixmo-ask-model-anything", _whole("pixmo-ask-model-anything"), _answer, "anls", held_out=True),
    "pixmo_point_explanations": _spec(
        "pixmo-point-explanations",
        _whole("pixmo-point-explanations", keep=("parsed_response", None)),
        _explained,
        held_out=True,
        packing="half",
    ),
    "pixmo_points": _spec("pixmo-points", _POINTS[False], _pointing(False), "pointing", held_out=True),
    "pixmo_points_counting": _spec("pixmo-points", _POINTS[False], _pointing(True), "counting", held_out=True),
    "pixmo_points_high_freq": _spec("pixmo-points", _POINTS[True], _pointing(False), "pointing", held_out=True),
    "pixmo_points_high_freq_counting": _spec("pixmo-points", _POINTS[True], _pointing(True), "counting", held_out=True),
    **{
        name: _spec(
            "pixmo-count", _published("pixmo-count", "train", "validation", "test"), _pixmo_count(counting), "counting", packing="one"
        )
        for name, counting in {"pixmo_count": False, "pixmo_count_counting": True}.items()
    },
    **{f"pixmo_docs_{kind}": _docs(kind) for kind in ("charts", "tables", "diagrams", "other")},
    POINTS_EVAL: _spec("pixmo-points-eval", _published("pixmo-points-eval", "test"), _pointing(False), "pointing"),
}
"""PixMo's datasets by name."""
