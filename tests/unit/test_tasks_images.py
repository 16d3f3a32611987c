"""Reading images of every odd kind: the colours that come out are known."""

import io
import multiprocessing
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

from budwood.core.errors import UserError
from budwood.core.task import Preprocessing
from budwood.tasks import samples
from budwood.tasks.images import ImageError, Seeded, read_rgb, transforms
from budwood.tasks.samples import Pixels, Samples, kept


def pixel(path: Path, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    image = read_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def near(one: tuple[int, ...], other: tuple[int, ...], by: int = 3) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    # cyan and yellow at full, no magenta, no black: green
    Image.new("CMYK", (16, 16), (255, 0, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert near(pixel(tmp_path / "a.jpg"), (0, 255, 0))


def test_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert pixel(tmp_path / "a.png", 0) == (255, 255, 255)
    assert pixel(tmp_path / "a.png", 1) == (200, 100, 50)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (60, 255), (60, 60, 60)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    Image.new(mode, (3, 3), colour).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == expected


def test_16_bit_png_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert [pixel(tmp_path / "a.png", x)[0] for x in range(3)] == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 40.0, 200.0]], np.float32), [0, 40, 200]),
        (np.array([[0, 257 * 7, 65535]], np.int32), [0, 7, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 1, 1]], np.int32), [0, 1, 1]),
        (np.array([[-5, -5, -5]], np.int32), [0, 0, 0]),
    ],
)
def test_32_bit_grey_by_its_range(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert [pixel(tmp_path / "a.tiff", x)[0] for x in range(3)] == expected


def test_nan_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="not finite"):
        read_rgb(tmp_path / "a.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (31, 15)), (6, (15, 0)), (8, (0, 31)), (2, (31, 0)), (5, (0, 0))]
)
def test_exif_turns_the_image(tmp_path: Path, suffix: str, orientation: int, corner: tuple[int, int]) -> None:
    # A red patch at the stored top left must come to `corner` of the upright image.
    image = Image.new("RGB", (32, 16), "blue")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    assert read_rgb(path).size == ((32, 16) if orientation < 5 else (16, 32))
    assert near(pixel(path, *corner), (255, 0, 0), by=15)  # a JPEG is not exact


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.jpg")
    assert pixel(tmp_path / "a.jpg") == (255, 0, 0)


def huge_png(path: Path, side: int = 20_000) -> None:
    """The head of a PNG of 400 megapixels; its pixels are not there."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
def test_half_a_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, suffix.replace("jpg", "jpeg"))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(ImageError) as caught:
        read_rgb(path)
    assert caught.value.fault in ("truncated", "unreadable")
    assert suffix != "jpg" or caught.value.fault == "truncated"
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_other_faults(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    huge_png(tmp_path / "huge.png")
    huge_png(tmp_path / "large.png", side=10_001)
    faults = {"empty.jpg": "zero-byte", "text.jpg": "unreadable", "huge.png": "enormous", "absent.png": "unreadable"}
    for name, fault in faults.items():
        with pytest.raises(UserError) as caught:
            read_rgb(tmp_path / name)
        assert caught.value.fault == fault  # type: ignore[attr-defined]
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="enormous"):
        read_rgb(tmp_path / "large.png")


def test_evaluation_transform_cuts_the_centre() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 75:125] = (255, 0, 0)
    p = Preprocessing(size=50, resize=100, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    out = transforms(p, train=False)(Image.fromarray(pixels))
    assert out.shape == (3, 50, 50) and out.dtype == torch.float32
    assert torch.equal(out[0], torch.ones(50, 50)) and torch.equal(out[1:], -torch.ones(2, 50, 50))


def pictures(count: int) -> list[Pixels]:
    rng = np.random.default_rng(1)
    return [Pixels(str(k), rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for k in range(count)]


def test_numbers_are_those_of_torchvisions_classes() -> None:
    image = Image.fromarray(pictures(1)[0].data)
    p = Preprocessing(size=40, resize=40, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    classes = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(p.mean), list(p.std))]
    assert torch.equal(transforms(p, train=False)(image), v2.Compose(classes)(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_augmentation_is_that_of_torchvisions_classes(interpolation: Literal["bilinear", "bicubic"]) -> None:
    p = Preprocessing(size=16, interpolation=interpolation)
    how = InterpolationMode(interpolation)
    classes = [
        v2.RandomResizedCrop(16, interpolation=how, antialias=True), v2.RandomHorizontalFlip(),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(p.mean), list(p.std)),
    ]  # fmt: skip
    ours, theirs = transforms(p, train=True), v2.Compose(classes)
    mirrored = []
    for seed, source in enumerate(pictures(12)):
        image = Image.fromarray(source.data)
        torch.manual_seed(seed)
        found, after = ours(image), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(found, theirs(image)) and torch.equal(after, torch.rand(1))
        torch.manual_seed(seed)
        mirrored.append(not torch.equal(found, v2.Compose([classes[0], *classes[2:]])(image)))
    assert 0 < sum(mirrored) < 12


def test_kept_images_are_the_same_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{source.name}.png" for source in pictures(4)]
    for path, source in zip(paths, pictures(4), strict=True):
        Image.fromarray(source.data).save(path)
    files = Samples([(path, k) for k, path in enumerate(paths)], transforms(Preprocessing(size=16), train=False))
    expected = [files[k] for k in range(4)]
    monkeypatch.setattr(samples, "KEPT", 2 * 40 * 40 * 3)
    held = kept(files, workers=1)
    assert all(torch.equal(held[k][0], image) and held[k][1] == target for k, (image, target) in enumerate(expected))
    for path in paths:
        path.unlink()
    assert torch.equal(held[1][0], expected[1][0])
    with pytest.raises(ImageError, match=r"2\.png"):  # there was no room for the third
        held[2]
    with pytest.raises(ImageError, match=r"0\.png"):
        kept(files, workers=1)


def test_kept_leaves_other_data_sets_alone() -> None:
    other = torch.utils.data.TensorDataset(torch.zeros(2, 3))
    assert kept(other, workers=0) is other


def test_nothing_is_kept_for_loaders_that_would_be_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    files = Samples([], transforms(Preprocessing(size=16), train=False))
    assert kept(files, workers=1) is files and kept(files, workers=0) is not files


def noisy(count: int) -> Samples:
    images = [(source, k) for k, source in enumerate(pictures(count))]
    return Samples(images, transforms(Preprocessing(size=16), train=True))


def epoch_of(seed: int, epoch: int, workers: int, order: list[int] | None = None) -> torch.Tensor:
    data = Seeded(noisy(6), seed)
    data.set_epoch(epoch)
    loader = DataLoader(data, batch_size=2, num_workers=workers, sampler=order)
    images = torch.cat([images for images, _ in loader])
    return images if order is None else images[torch.argsort(torch.tensor(order))]


def test_augmentation_does_not_depend_on_workers_or_order() -> None:
    alone = epoch_of(0, 3, workers=0)
    for workers in (1, 2):
        assert torch.equal(epoch_of(0, 3, workers), alone)
    assert torch.equal(epoch_of(0, 3, workers=0, order=[5, 0, 3, 1, 4, 2]), alone)


def test_augmentation_depends_on_seed_epoch_and_sample() -> None:
    alone = epoch_of(0, 3, workers=0)
    assert not torch.equal(epoch_of(1, 3, 0), alone)
    assert not torch.equal(epoch_of(0, 4, 0), alone)
    same = Samples([noisy(1).samples[0]] * 2, transforms(Preprocessing(size=16), train=True))
    assert not torch.equal(Seeded(same, 0)[0][0], Seeded(same, 0)[1][0])


def test_seeded_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Seeded(noisy(1), 0)[0]
    assert torch.equal(torch.get_rng_state(), before)
