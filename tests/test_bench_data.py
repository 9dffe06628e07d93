"""The benchmark's data: IDX files byte by byte, where they are looked for, and the digits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import DataError, Source

# Two images of 2 x 3 bytes: type 8 (unsigned byte), three dimensions, sizes big-endian.
IDX = bytes.fromhex("00000803 00000002 00000002 00000003 0102030405060708090a0bff")
PIXELS = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 255]]]


def write_fashion(folder: Path, images: int = 3, labels: bytes = b"\x00\x09\x05") -> None:
    """Four IDX files of images 28 x 28, all pixels of image i being i; the tests' ones gzip."""
    folder.mkdir(parents=True)
    pixels = b"".join(bytes([i]) * 784 for i in range(images))
    image_file = bytes.fromhex("00000803") + images.to_bytes(4, "big")
    image_file += (28).to_bytes(4, "big") * 2 + pixels
    label_file = bytes.fromhex("00000801") + len(labels).to_bytes(4, "big") + labels
    (folder / "train-images-idx3-ubyte").write_bytes(image_file)
    (folder / "train-labels-idx1-ubyte").write_bytes(label_file)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(image_file))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(label_file))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Fashion-MNIST and without the rights to install it; its home folder."""
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(data, "DEBIAN_DIR", tmp_path / "no" / "package")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_becomes_its_array(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(IDX) if packed else IDX)
    found = data.read_idx(path)
    assert found.dtype == np.uint8
    assert found.tolist() == PIXELS


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "expected an IDX file of unsigned bytes (it begins 00 00 08), got an empty file"),
        (b"\x89PNG\r\n", "got 89 50 4e"),
        (b"\x00\x00\x0d\x01" + IDX[4:], "got 00 00 0d"),
        (IDX[:-1], "its header announces 28 bytes, the file has 27"),
        (IDX + b"!", "its header announces 28 bytes, the file has 29"),
        (IDX[:10], "the file has 10"),
        (gzip.compress(IDX)[:-12], "cannot read"),
    ],
)
def test_a_file_that_is_no_idx_is_refused_in_words(tmp_path, content, complaint) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.read_idx(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_images_and_labels_are_loaded_plain_and_packed(bare: Path) -> None:
    write_fashion(bare / "given")
    for split in data.load(Source("fashion-mnist", str(bare / "given"), "")):
        assert len(split) == 3
        assert split.labels.tolist() == [0, 9, 5]
        assert split.labels.dtype == np.int64
        assert split.images[:, 27, 27].tolist() == [0, 1, 2]


def test_labels_that_do_not_fit_the_images_are_refused(bare: Path) -> None:
    write_fashion(bare / "short", labels=b"\x00\x01")
    with pytest.raises(DataError, match="expected 3 labels from 0 to 9, got \\[2\\] up to 1"):
        data.load(Source("fashion-mnist", str(bare / "short"), ""))
    write_fashion(bare / "high", labels=b"\x00\x01\x0a")
    with pytest.raises(DataError, match="up to 10"):
        data.load(Source("fashion-mnist", str(bare / "high"), ""))


def test_a_download_is_found_where_torchvision_leaves_it(bare: Path, monkeypatch) -> None:
    assert data.find_fashion_mnist() is None
    write_fashion(bare / ".cache" / "FashionMNIST" / "raw")
    found = data.resolve("auto")
    assert found.path == str(bare / ".cache" / "FashionMNIST" / "raw")
    assert found.origin == "an existing download"
    write_fashion(bare / "mine" / "FashionMNIST" / "raw")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(bare / "mine"))
    assert data.resolve("auto").origin == "$FASHION_MNIST_DIR"


def test_a_named_folder_without_data_is_an_error(bare: Path, monkeypatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", "/nowhere")
    with pytest.raises(DataError, match="FASHION_MNIST_DIR=/nowhere: expected /nowhere/train-im"):
        data.resolve("auto")


def test_without_fashion_mnist_the_digits_serve_if_that_is_allowed(bare: Path) -> None:
    assert data.resolve("auto").name == "digits"
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        data.resolve("fashion-mnist")


def test_digits_are_enlarged_to_the_same_form() -> None:
    pytest.importorskip("sklearn")
    train, test = data.load(data.resolve("digits"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (28, 28)
    # The very first digit is a 0 whose top row is 0 0 5 13 9 1 0 0 of 16.
    assert test.labels[0] == 0
    top = [0] * 6 + [79] * 3 + [207] * 3 + [143] * 3 + [15] * 3 + [0] * 6
    for row in (2, 3, 4):
        assert test.images[0, row].tolist() == [0, 0, *top, 0, 0]
    assert test.images[0, 1].sum() == 0
