"""Pictures as the crops and pools of an exported model, tiled by the code that training uses. Needs neither plait nor torchvision."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image

from plait.data.pixels.rgb import to_rgb
from plait.families.molmo.hf.sizes import Tiling, Tower
from plait.families.molmo.hf.tiling import TiledImage, tile


class PlaitMolmoImageProcessor(BaseImageProcessor):
    """Cuts pictures into crops. `tower`: the fields of Tower, in sizes.py; the others: those of Tiling."""

    model_input_names = ["crops", "marks", "pools"]  # noqa: RUF012  transformers' own attribute

    def __init__(
        self,
        tower: dict[str, Any] | None = None,
        max_crops: int = 12,
        overlap: int = 4,
        preprocessing: Literal["corrected", "published"] = "corrected",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tower, self.max_crops, self.overlap, self.preprocessing = tower or {}, max_crops, overlap, preprocessing

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Return the model's inputs for a picture, the list of a row's, or a list of lists, one a row."""
        rows = images if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple) else [_listed(images)]
        return BatchFeature(self.batch([[self.tiled(image) for image in row] for row in rows]))

    def tiled(self, image: Any) -> TiledImage:
        """Tile a picture: a PIL image, a uint8 array (H, W, 3), an address, a path, or the content of a file."""
        pixels = torch.from_numpy(to_rgb(opened(image)).transpose(2, 0, 1))
        return tile(pixels, Tiling(Tower(**self.tower), self.max_crops, self.overlap, self.preprocessing))

    def batch(self, rows: Sequence[Sequence[TiledImage]]) -> dict[str, Tensor]:
        """Collate tiled pictures by row. Returns `crops` (B, N, 3, S, S), `marks` (B, N, P), `pools` (B, T, 4), with zeros at the ends."""
        tower = Tower(**self.tower)
        crops_of_a_row = max(1, *(sum(len(tiled.crops) for tiled in row) for row in rows), 1)
        pools_of_a_row = max(1, *(sum(len(tiled.pools) for tiled in row) for row in rows), 1)
        crops = torch.zeros(len(rows), crops_of_a_row, 3, tower.image, tower.image, dtype=torch.uint8)
        marks = torch.zeros(len(rows), crops_of_a_row, tower.side**2, dtype=torch.int64)
        pools = torch.zeros(len(rows), pools_of_a_row, 4, dtype=torch.int64)
        for number, row in enumerate(rows):
            crop = pool = 0
            for tiled in row:
                count, ends = len(tiled.crops), pool + len(tiled.pools)
                crops[number, crop : crop + count] = tiled.crops
                marks[number, crop : crop + count] = 1 + (tiled.real < 1).long() + (tiled.real == 0).long()
                pools[number, pool:ends] = torch.where(tiled.pools >= 0, tiled.pools + crop * tower.side**2 + 1, 0)
                crop, pool = crop + count, ends
        return {"crops": crops, "marks": marks, "pools": pools}

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open pictures in lists as they are nested, and leave their pixels as they are: `tiled` makes RGB of them."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        return opened(image_url_or_urls)


def _listed(images: Any) -> list[Any]:
    return [] if images is None else list(images) if isinstance(images, list | tuple) else [images]


def opened(image: Any) -> Image.Image:
    """Open a picture: PIL's, a uint8 array (H, W, 3), the content of a file, or a path.

    Other texts are loaded by transformers (addresses, base64), which leaves transparency out. Raises TypeError for anything else.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes):
        return Image.open(BytesIO(image))
    if isinstance(image, np.ndarray | Tensor):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise TypeError(f"a picture as an array is uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
        return Image.fromarray(pixels)
    if isinstance(image, Path) or (isinstance(image, str) and len(image) < 4096 and Path(image).is_file()):
        return Image.open(image)
    if isinstance(image, str):
        loaded: Image.Image = load_image(image)
        return loaded
    raise TypeError(f"a picture is a PIL image, an array, a path, an address or the content of a file, not {type(image).__name__}")
