"""Encoders without weights, for offline work: images to latents and back, captions to states, images to one feature vector.

Each is a fixed formula that needs no file. They have the interfaces of a VAE, a T5 encoder and DINOv3 (encoders.py). They keep enough of
images and captions for a model to learn from them. An export holds a copy of this code.
"""

import functools
import math
import re
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from plait.keys import rng

_REVISION = "1"  # of the formulas below: a change of any digit is another encoder

# Orthonormal opponent colours (grey, red against blue, green against both): rows of a rotation of RGB.
_OPPONENT = torch.tensor([[3**-0.5] * 3, [2**-0.5, 0.0, -(2**-0.5)], [-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)]], dtype=torch.float64)
_PIXEL_SCALE = 0.5  # about the root mean square of images in [-1, 1]
_CHROMA_COST = 4.0  # a colour's detail is worth as much as grey detail of twice the frequency


def pin(name: str, body: bytes = b"") -> dict[str, Any]:
    """Return {"name", "revision", "xxh3"}, which identify an encoder in data made with it.

    `xxh3`: hash of the name and `body`, the encoder's numbers as bytes where it has any. `revision`: that of the formulas in this file.
    """
    return {"name": name, "revision": _REVISION, "xxh3": xxhash.xxh3_64_hexdigest(name.encode() + body)}


def dct(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (size, size) in float64 (Ahmed, Natarajan and Rao 1974).

    Row u is cos(pi u (2 x + 1) / (2 size)), scaled; mirroring x multiplies it by (-1)^u.
    """
    x, u = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(math.pi * u * (2 * x + 1) / (2 * size)) * (2 / size) ** 0.5
    return torch.cat([rows[:1] * 0.5**0.5, rows[1:]])


class TinyLatents:
    """A codec of images to latents: each patch of `downsample` pixels a side in `channels` functions of a DCT-times-colours basis.

    The basis is orthonormal; low frequencies and grey come first. With channels = 3 downsample^2 decoding is exact (in uint8); with fewer
    it gives the nearest image of those frequencies. Patches in the right half of an image are mirrored, so that mirroring the image mirrors
    its latents and changes nothing else (on grids of even width), as with the latents of a trained VAE.

    `published`: (mean, std) of each channel, as a VAE's configuration gives them to normalise its latents: here one scale for all channels,
    so that a model sees pixels in another basis. Statistics measured per channel would amplify the finest detail, which is all but absent
    from most images, to the level of everything else.
    Raises ValueError unless 1 <= downsample <= 32 and 1 <= channels <= 3 downsample^2.
    """

    def __init__(self, downsample: int = 4, channels: int = 48) -> None:
        if (reason := self.unfit(downsample, channels)) is not None:
            raise ValueError(reason)
        self.downsample, self.channels = downsample, channels
        self.published: tuple[list[float], list[float]] | None = ([0.0] * channels, [_PIXEL_SCALE] * channels)
        functions = [(c, v, u) for c in range(3) for v in range(downsample) for u in range(downsample)]
        chosen = sorted(functions, key=lambda f: ((f[1] ** 2 + f[2] ** 2 + 0.25) * (_CHROMA_COST if f[0] else 1.0), f))[:channels]
        waves = dct(downsample)
        basis = torch.stack([torch.einsum("c,y,x->cyx", _OPPONENT[c], waves[v], waves[u]) for c, v, u in chosen])
        self._basis = basis.reshape(channels, -1).float()  # rows orthonormal
        self._odd_across = torch.tensor([u % 2 == 1 for _, _, u in chosen])  # these change sign when their patch is mirrored
        self.pin = pin(f"tiny:{downsample}x{channels}", np.round(basis.numpy() * 1e6).astype(np.int64).tobytes())

    @staticmethod
    def unfit(downsample: int, channels: int) -> str | None:
        """Return why there is no such codec, None where there is one."""
        most = 3 * downsample**2
        if 1 <= downsample <= 32 and 1 <= channels <= most:
            return None
        return f"tiny:{downsample}x{channels} cannot be: patches of {downsample} (1 to 32) pixels have 1 to {most} channels"

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) uint8 to latents (B, C, H / downsample, W / downsample) float32.

        H and W are multiples of `downsample`.
        """
        d, (b, _, h, w) = self.downsample, images.shape
        patches = (images.float() / 127.5 - 1).reshape(b, 3, h // d, d, w // d, d).permute(0, 2, 4, 1, 3, 5).reshape(b, h // d, w // d, -1)
        return self._mirrored((patches @ self._basis.T).permute(0, 3, 1, 2))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) uint8 of latents (B, C, h, w), clamped and rounded."""
        d, (b, _, h, w) = self.downsample, latents.shape
        patches = (self._mirrored(latents.float()).permute(0, 2, 3, 1) @ self._basis).reshape(b, h, w, 3, d, d).permute(0, 3, 1, 4, 2, 5)
        return ((patches.reshape(b, 3, h * d, w * d) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _mirrored(self, latents: Tensor) -> Tensor:
        """Mirror each patch of the right half of the grid; this is its own inverse."""
        right = torch.arange(latents.shape[-1]) >= (latents.shape[-1] + 1) // 2
        return torch.where(self._odd_across.view(-1, 1, 1) & right, -latents, latents).contiguous()


class TinyTexts:
    """A text encoder: a fixed random vector per word or punctuation mark, plus that of its position. The last token marks the end.

    `width`: features of a state; captions are truncated to `max_tokens`. Case is ignored; each letter of a script without spaces is a word.
    The states have mean square about 1.
    """

    def __init__(self, width: int = 64, max_tokens: int = 64) -> None:
        self.width, self.max_tokens = width, max_tokens
        self.pin = pin(f"tiny:{width}")

    def encode(self, captions: list[str]) -> list[tuple[np.ndarray, int]]:
        """Return for each caption its states (L, width) float32, L at most `max_tokens`, and its number of tokens before truncation."""
        return [self._states(caption) for caption in captions]

    def _states(self, caption: str) -> tuple[np.ndarray, int]:
        words = [*re.findall(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W\u2e80-\u9fff\uac00-\ud7af]+|[^\w\s]", caption.lower()), "</s>"]
        kept = words if len(words) <= self.max_tokens else [*words[: self.max_tokens - 1], words[-1]]
        states = np.stack([_word(word, self.width) for word in kept]) + _positions(len(kept), self.width)
        return states * np.float32(2**-0.5), len(words)


@functools.lru_cache(maxsize=1 << 16)
def _word(word: str, width: int) -> np.ndarray:
    return rng("tiny text", word).standard_normal(width).astype(np.float32)


@functools.lru_cache(maxsize=1024)
def _positions(length: int, width: int) -> np.ndarray:
    """Return sines and cosines (length, width) of mean square 1 (Vaswani et al. 2017, with periods from 6 to 600 tokens)."""
    angles = np.arange(length)[:, None] / 100 ** (np.arange(width // 2) / (width // 2))
    return (np.concatenate([np.sin(angles), np.cos(angles), np.zeros((length, width % 2))], 1) * 2**0.5).astype(np.float32)


class TinyImages:
    """An image encoder: colours and shape in 64 numbers, the same for an image and its mirror image.

    2 x 27 numbers: the shares of 3 x 3 x 3 colours, in the image and in its foreground, which is what differs from the mean colour of the
    border (square roots, so that distances are Hellinger's). 10 numbers: the foreground's amount, height, extent, and central moments up
    to the fourth, those of odd order across as magnitudes.
    """

    width = 64

    def __init__(self) -> None:
        self.pin = pin("tiny")

    def encode(self, images: Tensor) -> Tensor:
        """Return features (B, 64) float32, of mean square about 1, of images (B, 3, H, W) uint8."""
        pixels = images.double() / 255
        border = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], -1).mean(-1)
        foreground = (pixels - border[:, :, None, None]).abs().amax(1).sub(0.1).clamp(min=0)  # (B, H, W)
        mass = foreground.sum((1, 2), keepdim=True).clamp(min=1e-9)
        uniform = torch.full_like(foreground, 1 / foreground[0].numel())
        parts = [_colours(pixels, uniform), _colours(pixels, foreground / mass), _shape(foreground, foreground / mass)]
        return torch.cat(parts, 1).float()


def _colours(pixels: Tensor, weight: Tensor) -> Tensor:
    """Return the square roots (B, 27) of 27 times the weighted share of each colour. The colours are a 3 x 3 x 3 grid.

    Pixels (B, 3, H, W) are split linearly between neighbouring colours; `weight` (B, H, W) sums to 1 per image.
    """
    closeness = (1 - (pixels[:, :, None] * 2 - torch.arange(3.0).view(1, 1, 3, 1, 1)).abs()).clamp(min=0)  # (B, RGB, level, H, W)
    share = torch.einsum("bihw,bjhw,bkhw,bhw->bijk", closeness[:, 0], closeness[:, 1], closeness[:, 2], weight)
    return (27 * share.flatten(1)).clamp(min=0).sqrt()


def _shape(foreground: Tensor, weight: Tensor) -> Tensor:
    """Return amount, height, extent and moments (B, 10) of a foreground (B, H, W); `weight` is the foreground over its sum."""
    h, w = foreground.shape[1:]
    y = (torch.arange(h, dtype=torch.float64) + 0.5).view(1, h, 1) / h * 2 - 1
    x = (torch.arange(w, dtype=torch.float64) + 0.5).view(1, 1, w) / w * 2 - 1

    def mean(values: Tensor) -> Tensor:
        return (weight * values).sum((1, 2), keepdim=True)

    middle = mean(y)
    dx, dy = x - mean(x), y - middle
    size = (mean(dx**2) + mean(dy**2)).clamp(min=1e-6).sqrt()
    dx, dy = dx / size, dy / size
    moments = [mean(dx**2), mean(dx * dy).abs(), mean(dy**3), mean(dx**2 * dy), mean(dx**3).abs(), mean(dx * dy**2).abs()]
    rest = [mean((dx**2 + dy**2) ** 2) - 1, foreground.mean((1, 2), keepdim=True), middle, size]
    return torch.cat([value.flatten(1) for value in moments + rest], 1) * 2
