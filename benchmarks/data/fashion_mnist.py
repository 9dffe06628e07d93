"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) in the IDX form of its authors, plain or gzip.

It is looked for in $FASHION_MNIST_DIR, Debian's package `dataset-fashion-mnist`, ~/.cache and
./data (torchvision's layout); as root the package is installed.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.data.dataset import IMAGES, DataError, Dataset, Split

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGE_SIDE = 28
REMEDY = (
    f"Fashion-MNIST was not found: install Debian's package {DEBIAN_PACKAGE}, or set "
    "FASHION_MNIST_DIR to a folder with its four IDX files, or take --data digits"
)


@dataclass(frozen=True)
class Source:
    """The folder of the four files, and how it was found, in words."""

    folder: Path
    origin: str


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or gzip: uint8[sizes in its header].

    The header is two zero bytes, the type (8: unsigned byte), the number of dimensions, then each
    size as a big-endian uint32. Raises DataError when the file is anything else.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes (it begins 00 00 08), "
            f"got {raw[:3].hex(' ') or 'an empty file'}"
        )
    dims = raw[3]
    header = 4 + 4 * dims
    shape = tuple(np.frombuffer(raw[4:header], ">u4", count=(min(len(raw), header) - 4) // 4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(shape) != dims or len(raw) != expected:
        raise DataError(f"{path}: its header announces {expected} bytes, the file has {len(raw)}")
    return np.frombuffer(bytearray(raw), np.uint8, offset=header).reshape(shape)


def find() -> Source | None:
    """An existing copy; None if there is none. $FASHION_MNIST_DIR, when set, must hold one."""
    named = os.environ.get("FASHION_MNIST_DIR")
    if named:
        for folder in (Path(named), Path(named) / "FashionMNIST" / "raw"):
            if _is_complete(folder):
                return Source(folder.resolve(), "$FASHION_MNIST_DIR")
        raise DataError(
            f"FASHION_MNIST_DIR={named}: expected {_idx_path(Path(named), 'train')[0]} "
            "and its three companions (plain or .gz) there or in FashionMNIST/raw"
        )
    if _is_complete(DEBIAN_DIR):
        return Source(DEBIAN_DIR, f"Debian package {DEBIAN_PACKAGE}")
    for parent in (Path("data"), Path.home() / ".cache", Path.home() / ".cache" / "torch"):
        folder = parent / "FashionMNIST" / "raw"
        if _is_complete(folder):
            return Source(folder.resolve(), "an existing download")
    return None


def install() -> Source | None:
    """Installs Debian's package when we are root on a system with apt; None if that fails."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", DEBIAN_PACKAGE]
    for command in (install, ["apt-get", "update", "-qq"], install):
        try:
            subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                timeout=180,
                capture_output=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        if _is_complete(DEBIAN_DIR):
            return Source(DEBIAN_DIR, f"Debian package {DEBIAN_PACKAGE}")
    return None


def find_or_install() -> Source | None:
    """A copy of the data set; None if it cannot be had."""
    return find() or install()


def load(source: Source, limit: int | None = None, test_limit: int | None = None) -> Dataset:
    """Images uint8[N, 1, 28, 28] of ten classes, at most so many. Raises DataError."""
    return Dataset(
        name="fashion-mnist",
        title="Fashion-MNIST",
        origin=source.origin,
        kind=IMAGES,
        classes=10,
        train=_load_split(source.folder, "train").first(limit),
        test=_load_split(source.folder, "test").first(test_limit),
    )


def _idx_path(folder: Path, split: str) -> tuple[Path, Path]:
    images, labels = (folder / name for name in FILES[split])
    return _plain_or_gz(images), _plain_or_gz(labels)


def _plain_or_gz(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() and not path.exists() else path


def _is_complete(folder: Path) -> bool:
    return all(path.exists() for split in FILES for path in _idx_path(folder, split))


def _load_split(folder: Path, split: str) -> Split:
    image_path, label_path = _idx_path(folder, split)
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE):
        raise DataError(f"{image_path}: expected images [N, 28, 28], got {list(images.shape)}")
    if labels.ndim != 1 or len(labels) != len(images) or labels.max(initial=0) > 9:
        raise DataError(
            f"{label_path}: expected {len(images)} labels from 0 to 9, got "
            f"{list(labels.shape)} up to {labels.max(initial=0)}"
        )
    return Split(images[:, np.newaxis], labels.astype(np.int64))
