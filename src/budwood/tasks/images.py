"""From a file of any common kind to an RGB image, from an image to a tensor, and randomness that can be repeated."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from budwood.core.errors import UserError
from budwood.core.task import Preprocessing

MEGAPIXELS = 100
"""An image of more is refused: decoded it takes 300 MB and more, in every loader worker."""

# Named, because Pillow's full list has readers that start other programs (EPS) or that only some builds have.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

Fault = Literal["unreadable", "truncated", "zero-byte", "enormous"]


class ImageError(UserError):
    """A file that is no usable image; `fault` says in which way."""

    def __init__(self, path: Path, fault: Fault, reason: str) -> None:
        super().__init__(f"{path} is {fault}: {reason}; repair or remove it")
        self.fault: Fault = fault
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """An image as RGB, and how it was stored: `orientation` is EXIF's 1..8, `deep` is more than 8 bits a channel."""

    image: Image.Image
    format: str
    mode: str
    orientation: int
    deep: bool


def read_rgb(path: Path | str) -> Image.Image:
    """The image in `path` as 8-bit RGB, upright as its EXIF orientation says; of an animation the first frame.

    Transparency is laid on white. 16-bit grey is divided by 257. 32-bit integer and float grey says nothing of its
    range, so its values decide: inside 0..1 (float only) they are times 255, inside 0..255 kept, inside 0..65535
    divided by 257, and otherwise stretched from their least and greatest to 0..255. Raises ImageError for a file that
    is empty, cut short, no image, or of more than 100 megapixels.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(path, "unreadable", error.strerror or str(error)) from None
    return decode(data, path).image


def decode(data: bytes, path: Path) -> Decoded:
    """`read_rgb` of bytes already read; `path` is for the message only."""
    if not data:
        raise ImageError(path, "zero-byte", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MEGAPIXELS * 10**6:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            # Before load, which turns a TIFF itself and forgets that it did.
            stored = _orientation(image)
            image.load()
            turn = _TURNS.get(_orientation(image))
            mode = image.mode
            rgb = _to_rgb(image)
            deep = mode.startswith(("I", "F")) or _is_deep_png(data)
            upright = rgb.transpose(turn) if turn is not None else rgb
            return Decoded(upright, image.format or "", mode, stored, deep)
    except Image.DecompressionBombError as error:
        raise ImageError(path, "enormous", f"more than {MEGAPIXELS} megapixels ({error})") from None
    except UnidentifiedImageError:
        raise ImageError(path, "unreadable", f"not one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers raise whatever the broken bytes led them to, SyntaxError included
        raise ImageError(path, _fault(error), str(error) or type(error).__name__) from None


def _fault(error: Exception) -> Fault:
    text = str(error).lower()
    cut = isinstance(error, EOFError) or any(word in text for word in ("truncated", "premature", "unexpected end"))
    return "truncated" if cut else "unreadable"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none; a broken EXIF block is no reason to lose the image."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if value in _TURNS else 1


def _is_deep_png(data: bytes) -> bool:
    """Pillow reads 16-bit colour as 8-bit without saying so; byte 24 of a PNG is its bit depth."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8bit(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8bit(grey: np.ndarray, mode: str) -> np.ndarray:
    """(height, width) of any number type to uint8, by the rules `read_rgb` states."""
    values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        values /= 257
    elif mode == "F" and low >= 0 and high <= 1:
        values *= 255
    elif low >= 0 and high <= 65535:
        values /= 1 if high <= 255 else 257
    else:
        values = (values - low) * 255 / (high - low) if high > low else values * 0
    return np.rint(values).astype(np.uint8)


def transforms(preprocessing: Preprocessing, train: bool) -> v2.Compose:
    """RGB PIL image -> float32 tensor (3, size, size), normalised.

    For evaluation resized and cut from the centre; for training a random part of the image, resized, mirrored half
    the time.
    """
    how = InterpolationMode(preprocessing.interpolation)
    size = preprocessing.size
    shape: list[Any] = (
        [RandomPart(size, how)]
        if train
        else [v2.Resize(preprocessing.resize, interpolation=how, antialias=True), v2.CenterCrop(size)]
    )
    return v2.Compose([*shape, F.pil_to_tensor, Normalised(preprocessing.mean, preprocessing.std)])


# With functions: v2's classes of the same take twice as long for a small image, looking for what to change.


class RandomPart:
    """v2.RandomResizedCrop and then v2.RandomHorizontalFlip of a PIL image, with the numbers that they would draw."""

    def __init__(self, size: int, how: InterpolationMode) -> None:
        self.crop = v2.RandomResizedCrop(size, interpolation=how, antialias=True)

    def __call__(self, image: Image.Image) -> Image.Image:
        where = self.crop.make_params([image])
        part = F.resized_crop(image, **where, size=list(self.crop.size), interpolation=self.crop.interpolation)
        return F.horizontal_flip(part) if torch.rand(1) < 0.5 else part


class Normalised:
    """uint8 (..., 3, height, width) to float32, each channel from 0..1 less its mean, over its std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(numbers, dtype=torch.float32).view(3, 1, 1) for numbers in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        numbers: torch.Tensor = F.to_dtype(image, torch.float32, scale=True)
        return numbers.sub_(self.mean).div_(self.std)


class Seeded(Dataset[Any]):
    """`dataset`, its random augmentation of sample i depending on (seed, epoch, i) alone.

    So neither the number of loader workers nor where a killed run was resumed changes what a network sees. Call
    `set_epoch` before the loader is iterated: workers copy the epoch when they start, so they must not be persistent.
    Only torch's CPU generator is seeded, and it is left as it was found.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        mixed = hashlib.blake2b(f"{self.seed} {self.epoch} {int(index)}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reseed the GPUs as well.
            torch.default_generator.manual_seed(int.from_bytes(mixed, "big") >> 1)
            return self.dataset[index]
