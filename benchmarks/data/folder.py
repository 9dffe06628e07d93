"""A folder of images as ImageNet's users lay it out: {train,val or test}/<class>/<image>.

Images are decoded once, by the launcher: each is scaled until its shorter side fits, and the middle
is cut out. What a training benchmark measures is training, not a disk or a JPEG decoder.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageOps

from benchmarks.data.dataset import IMAGES, DataError, Dataset, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TEST_FOLDERS = ("val", "test")
LARGEST_SIDE = 224  # that is chosen without --image-size
MEMORY_SHARE = 0.5  # of the free memory, for decoded images
ORDER_SEED = 0


def load(
    root: Path, side: int | None = None, limit: int | None = None, test_limit: int | None = None
) -> Dataset:
    """Decodes a folder's images: uint8[N, 3, side, side], in an order of classes that is random.

    Args:
        root: holds `train` and one of `val` and `test`, with the same classes in both.
        side: pixels; None: the shorter side of the first image, at most LARGEST_SIDE.
        limit: at most so many training images; None: all.
        test_limit: the same of the test images.

    Raises:
        DataError: a folder of another form, an empty class, a file that is no image, or more images
            than memory holds.
    """
    train_folder = _subfolder(root, ("train",))
    test_folder = _subfolder(root, TEST_FOLDERS)
    classes = _classes(train_folder)
    if _classes(test_folder) != classes:
        different = sorted(set(classes) ^ set(_classes(test_folder)))
        raise DataError(
            f"{root}: expected the same classes in {train_folder.name} and {test_folder.name}, "
            f"{different[0]!r} is in one only"
        )
    train, test = _files(train_folder, classes)[:limit], _files(test_folder, classes)[:test_limit]
    side = side or min(min(_decode(train[0][0]).size), LARGEST_SIDE)
    needed = (len(train) + len(test)) * 3 * side**2
    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise DataError(
            f"{root}: {len(train) + len(test):,} images of {side} x {side} pixels need "
            f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: take a smaller --limit, "
            "--test-limit or --image-size"
        )
    return Dataset(
        name="folder",
        title=f"images of {root.resolve().name}, {side} x {side}",
        origin=str(root),
        kind=IMAGES,
        classes=len(classes),
        train=_split(train, side),
        test=_split(test, side),
    )


def _subfolder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    expected = " or ".join(f"{name}/<class>/<image>" for name in names)
    found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise DataError(f"{root}: expected {expected} in it, got {found}")


def _classes(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(found) < 2:
        raise DataError(f"{folder}: expected a folder for each of two or more classes, got {found}")
    return found


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """All images with the number of their class, shuffled, so that any part has all classes."""
    files = []
    for label, name in enumerate(classes):
        images = [path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"{folder / name}: expected images ({', '.join(SUFFIXES)}), got none")
        files += [(path, label) for path in sorted(images)]
    return [files[i] for i in np.random.default_rng(ORDER_SEED).permutation(len(files))]


def _split(files: list[tuple[Path, int]], side: int) -> Split:
    images = np.empty((len(files), 3, side, side), np.uint8)

    def decode(row: int) -> None:
        fitted = ImageOps.fit(_decode(files[row][0]), (side, side), Image.Resampling.BILINEAR)
        images[row] = np.asarray(fitted).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(files))):
            pass
    return Split(images, np.array([label for _, label in files], np.int64))


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected an image, got {error}") from error
