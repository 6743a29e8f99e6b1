"""Statements about pictures that are true or false: VSR (Liu et al. 2023, arXiv:2205.00363) and Cornell NLVR (Suhr et al. 2017).

Both are asked as "True or false? ..."; the sample's field `statement_is_true` says whether the statement is true. VSR's pictures are those
of COCO, of 2017. NLVR has six pictures for each sentence, the orders of three boxes; each is a sample, as its authors count.
"""

from collections.abc import Sequence
from pathlib import Path

from plait.data.remote_files import fetched
from plait.errors import BadSample
from plait.families.published_openers import in_json_lines
from plait.families.published_rows import COCO, Conversation, DatasetFiles, Opener, Random, Row, RowList, Rows, Size, Spec
from plait.families.theworld.benchmarks.judge import STATEMENT

VSR_HUB = "cambridgeltl/vsr_{}"
_ORDERS = 6  # pictures of a sentence of NLVR
_RELATIONS = {
    "adjacency": "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, at the back of, "
    "ahead of, against, at the edge of",
    "directional": "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, across from, through, "
    "down from",
    "orientation": "facing, facing away from, parallel to, perpendicular to",
    "projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, in the middle of",
    "proximity": "by, close to, near, far from, far away from",
    "topological": "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, surrounding, consists of, "
    "out of, between, inside, outside, touching",
    "unallocated": "beyond, next to, opposite to, after, among, enclosed by",
}
"""VSR's relations by its authors' categories."""
_CATEGORIES = {relation: category for category, listed in _RELATIONS.items() for relation in listed.split(", ")}


def asked(sentence: str, label: bool, **fields: object) -> list[Conversation]:
    """Return the question whether a sentence is true, its answer "True" or "False", and the fields by which answers are scored."""
    answer = "True" if label else "False"
    return [Conversation(f"True or false? {sentence}", answer, "statement", {STATEMENT: label, **fields})]


def _vsr(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the statement of a row of VSR. Raises BadSample for a label other than 0 and 1."""
    if row["label"] not in (0, 1):
        raise BadSample(f"the label {row['label']!r} is neither 0 nor 1")
    relation = str(row.get("relation") or "")
    return asked(str(row["caption"]), bool(row["label"]), task=_CATEGORIES.get(relation), relation=relation)


def _vsr_picture(files: DatasetFiles, row: Row) -> Path:
    """Return the file of a row's picture, in the folders that VSR's guide makes, or where COCO lies; read from the Hub, also by its link.

    Raises BadSample for a picture that is in none of them and has no link of the web.
    """
    name, link = str(row["image"]), str(row.get("image_link") or "")
    folders = ("images", "trainval2017", "train2017", "val2017", f"{COCO}/train2017", f"{COCO}/val2017", f"{COCO}/images")
    try:
        return files.image(*(f"{folder}/{name}" for folder in folders))
    except BadSample:
        if not files.hub or not link.startswith(("http://", "https://")) or "$" in link:  # a `$NAME` would be filled in
            raise
    return fetched(link, files.cache)


def _vsr_rows(kind: str, split: str) -> Opener:
    """Return an opener of a split of VSR as it is on the Hub, or in the authors' repository."""
    file, folders = f"{split}.jsonl", ("", f"{kind}/", f"vsr_{kind}/", f"splits/{kind}/", f"data/splits/{kind}/")
    fields = ("image", "caption", "label")
    return in_json_lines(*(f"{folder}{file}" for folder in folders), hub=(VSR_HUB.format(kind), file), fields=fields)


def _vsr_spec(kind: str) -> Spec:
    splits = {name: _vsr_rows(kind, file) for name, file in {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}.items()}
    get = (
        f"the .jsonl files of {VSR_HUB.format(kind)}, and COCO's pictures of 2017 in images/, or coco/train2017/ and coco/val2017/ below "
        "data.root, or read both from the Hub (options {hub: true}, --data=hub)"
    )
    return Spec("vsr", splits, _vsr, get, "accuracy", _vsr_picture)


def _nlvr(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the statement of an example of NLVR. Raises BadSample for a label other than true and false."""
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise BadSample(f"the label {row['label']!r} is neither true nor false")
    return asked(str(row["sentence"]), label == "true")


def _nlvr_picture(files: DatasetFiles, row: Row) -> Path:
    name = f"{row['split']}/images/{row['directory']}/{row['split']}-{row['id']}.png"
    return files.image(name, f"nlvr/{name}")


def _nlvr_rows(split: str) -> Opener:
    """Return an opener of a split of NLVR, with a row for each of the six pictures of an example."""
    read = in_json_lines(f"{split}/{split}.json", f"nlvr/{split}/{split}.json", fields=("sentence", "label", "identifier", "directory"))

    def opened(files: DatasetFiles) -> Rows:
        examples = read(files)
        return RowList([_order(examples[i], split, order) for i in range(len(examples)) for order in range(_ORDERS)], examples.digest)

    return opened


def _order(example: Row, split: str, order: int) -> Row:
    kept = {name: value for name, value in example.items() if name not in ("structured_rep", "evals")}
    return {**kept, "split": split, "id": f"{example['identifier']}-{order}"}


def _nlvr_splits(names: Sequence[str]) -> dict[str, Opener]:
    return {name: _nlvr_rows("dev" if name == "validation" else name) for name in names}


STATEMENTS: dict[str, Spec] = {
    "vsr_random": _vsr_spec("random"),
    "vsr_zeroshot": _vsr_spec("zeroshot"),
    "nlvr": Spec("nlvr", _nlvr_splits(("train", "validation", "dev", "test", "hidden")), _nlvr,
        "the folder nlvr/ of https://github.com/lil-lab/nlvr, with its pictures", "accuracy", _nlvr_picture),
}  # fmt: skip
"""VSR in its two divisions into splits, and NLVR."""
