"""Pictures with several captions each: COCO (Chen et al. 2015, arXiv:1504.00325) and Flickr30k (Young et al. 2014).

COCO is read from its annotation files, or by the splits of Karpathy and Fei-Fei (2015), as Flickr30k is. The field `references` of a sample
holds all its captions, with which the bench `captions` compares; the first is its answer.
"""

from pathlib import Path

from plait.errors import BadSample, PlaitError
from plait.families.published_openers import either, in_parquet, read_json
from plait.families.published_rows import COCO, PICTURES, Conversation, DatasetFiles, Opener, Random, Row, RowList, Rows, Size, Spec

COCO_HUB, FLICKR_HUB = "lmms-lab/COCO-Caption2017", "lmms-lab/flickr30k"
PROMPT = "Provide a one-sentence caption for the provided image."
"""The question, which is lmms-eval's of both."""


def _captions(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of a row with all its captions. Raises BadSample for a row without any."""
    listed = next((row[name] for name in ("references", "caption", "answer") if isinstance(row.get(name), list)), None)
    references = [str(caption).strip() for caption in listed or () if str(caption).strip()]
    if not references:
        raise BadSample("a row without captions")
    return [Conversation(PROMPT, references[0], "caption", {"references": references})]


def _annotated(year: str) -> Opener:
    """Return an opener of COCO's annotation file of a validation set, such as val2017: a row for each picture."""

    def opened(files: DatasetFiles) -> Rows:
        (file,) = files.find(f"**/captions_{year}.json")
        content = read_json(file)
        rows = {
            image["id"]: {"id": image["id"], "file_name": image["file_name"], "references": []} for image in _list(content, "images", file)
        }
        for annotation in _list(content, "annotations", file):
            if annotation["image_id"] not in rows:
                raise PlaitError(f"{file}: a caption of picture {annotation['image_id']}, which is not listed: is it the published file?")
            rows[annotation["image_id"]]["references"].append(annotation["caption"])
        return RowList.of_files([{**row, "folder": year} for row in rows.values()], [file])

    return opened


def _karpathy(name: str, *splits: str) -> Opener:
    """Return an opener of `splits` of the file dataset_NAME.json of Karpathy and Fei-Fei."""

    def opened(files: DatasetFiles) -> Rows:
        (file,) = files.find(f"**/dataset_{name}.json")
        images = [image for image in _list(read_json(file), "images", file) if image["split"] in splits]
        rows = [
            {
                "id": image.get("cocoid", image["imgid"]),
                "file_name": image["filename"],
                "folder": image.get("filepath"),
                "references": [sentence["raw"] for sentence in image["sentences"]],
            }
            for image in images
        ]
        return RowList.of_files(rows, [file])

    return opened


def _list(content: object, name: str, file: Path) -> list[Row]:
    """Return a list of a JSON file. Raises PlaitError where it has none of this name."""
    listed = content.get(name) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise PlaitError(f"{file} has no list {name!r}: is it the published file?")
    return listed


def _picture(files: DatasetFiles, row: Row) -> Path | None:
    """Return the file of a picture, in the folder that its annotations name, or that its authors' archive makes; None if a row has it."""
    if PICTURES in row:
        return None
    folders = [f"{row['folder']}/", f"{COCO}/{row['folder']}/", "images/"] if row["folder"] else ["flickr30k-images/", "images/", ""]
    return files.image(*(f"{folder}{row['file_name']}" for folder in folders))


_COCO_GET = (
    f"its annotations (captions_val2017.json) and pictures (val2017/), or the parquet files of {COCO_HUB} (also from the Hub: options "
    "{hub: true}, --data=hub)"
)
_KARPATHY_GET = "dataset_{name}.json of Karpathy and Fei-Fei's splits, and its pictures"
_VAL2017 = either(_annotated("val2017"), in_parquet(COCO_HUB, "val"))
CAPTIONS: dict[str, Spec] = {
    "coco_captions": Spec(COCO, {"validation": _VAL2017, "val2017": _VAL2017, "val2014": _annotated("val2014")}, _captions, _COCO_GET,
        "captions", _picture),
    "coco_karpathy": Spec(COCO, {"train": _karpathy("coco", "train", "restval"), "validation": _karpathy("coco", "val"),
        "test": _karpathy("coco", "test")}, _captions, _KARPATHY_GET.format(name="coco"), "captions", _picture),
    "flickr30k": Spec("flickr30k", {"train": _karpathy("flickr30k", "train"), "validation": _karpathy("flickr30k", "val"),
        "test": either(_karpathy("flickr30k", "test"), in_parquet(FLICKR_HUB, "test"))}, _captions,
        f"{_KARPATHY_GET.format(name='flickr30k')}; test also from the Hub (options {{hub: true}}, --data=hub)", "captions", _picture),
}  # fmt: skip
"""Sets of captions by name."""
