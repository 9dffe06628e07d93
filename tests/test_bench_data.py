"""The benchmarks' data: IDX files byte by byte, folders of images, texts, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from benchmarks.data import IMAGES, TOKENS, DataError, Shape, fashion_mnist

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
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "no" / "package")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist.os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_becomes_its_array(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(IDX) if packed else IDX)
    found = fashion_mnist.read_idx(path)
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
        fashion_mnist.read_idx(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def loaded(folder: Path, **limits: int) -> data.Dataset:
    return fashion_mnist.load(fashion_mnist.Source(folder, ""), **limits)


def test_images_and_labels_are_loaded_plain_and_packed(bare: Path) -> None:
    write_fashion(bare / "given")
    found = loaded(bare / "given", limit=2)
    assert (found.shape, found.classes) == ((1, 28, 28), 10)
    assert found.train.labels.tolist() == [0, 9]
    assert found.test.labels.tolist() == [0, 9, 5]
    assert found.test.labels.dtype == np.int64
    assert found.test.inputs[:, 0, 27, 27].tolist() == [0, 1, 2]


def test_labels_that_do_not_fit_the_images_are_refused(bare: Path) -> None:
    write_fashion(bare / "short", labels=b"\x00\x01")
    with pytest.raises(DataError, match="expected 3 labels from 0 to 9, got \\[2\\] up to 1"):
        loaded(bare / "short")
    write_fashion(bare / "high", labels=b"\x00\x01\x0a")
    with pytest.raises(DataError, match="up to 10"):
        loaded(bare / "high")


def test_a_download_is_found_where_torchvision_leaves_it(bare: Path, monkeypatch) -> None:
    assert fashion_mnist.find() is None
    write_fashion(bare / ".cache" / "FashionMNIST" / "raw")
    found = fashion_mnist.find()
    assert found.folder == bare / ".cache" / "FashionMNIST" / "raw"
    assert found.origin == "an existing download"
    write_fashion(bare / "mine" / "FashionMNIST" / "raw")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(bare / "mine"))
    assert data.load("auto", Shape(IMAGES)).origin == "$FASHION_MNIST_DIR"


def test_a_named_folder_without_data_is_an_error(bare: Path, monkeypatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", "/nowhere")
    with pytest.raises(DataError, match="FASHION_MNIST_DIR=/nowhere: expected /nowhere/train-im"):
        data.load("auto", Shape(IMAGES))


def test_without_fashion_mnist_the_digits_serve_if_that_is_allowed(bare: Path) -> None:
    pytest.importorskip("sklearn")
    assert data.load("auto", Shape(IMAGES)).name == "digits"
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        data.load("fashion-mnist", Shape(IMAGES))


def test_digits_are_enlarged_to_the_same_form() -> None:
    pytest.importorskip("sklearn")
    found = data.load("digits", Shape(IMAGES))
    assert (len(found.train), len(found.test)) == (1437, 360)
    assert found.shape == (1, 28, 28)
    # The very first digit is a 0 whose top row is 0 0 5 13 9 1 0 0 of 16.
    assert found.test.labels[0] == 0
    image = found.test.inputs[0, 0]
    top = [0] * 6 + [79] * 3 + [207] * 3 + [143] * 3 + [15] * 3 + [0] * 6
    for row in (2, 3, 4):
        assert image[row].tolist() == [0, 0, *top, 0, 0]
    assert image[1].sum() == 0


RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def write_images(root: Path, size: tuple[int, int] = (6, 4)) -> Path:
    """Three red and one blue image for training, one of each for testing; all of one colour."""
    for place, colour in (
        *((f"train/red/{name}", RED) for name in ("1.png", "2.JPG", "3.bmp")),
        ("train/blue/1.png", BLUE),
        ("val/red/1.png", RED),
        ("val/blue/1.png", BLUE),
    ):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
    return root


def test_a_folder_of_images_becomes_pixels_and_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "colours")
    found = data.load(str(root), Shape(IMAGES))
    # The shorter side of 6 x 4 is 4; classes are numbered by name: blue, red.
    assert (found.shape, found.classes, found.title) == ((3, 4, 4), 2, "images of colours, 4 x 4")
    assert sorted(found.train.labels.tolist()) == [0, 1, 1, 1]
    for split in (found.train, found.test):
        for image, label in zip(split.inputs, split.labels, strict=True):
            expected = np.array([BLUE, RED][label]).reshape(3, 1, 1)
            assert abs(image.astype(int) - expected).max() < 10  # JPEG loses a little


def test_images_are_scaled_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    root = write_images(tmp_path / "colours")
    wide = Image.new("RGB", (8, 4), GREEN)
    wide.paste(BLUE, (2, 0, 6, 4))
    for path in (root / "val" / "blue").iterdir():
        wide.save(path)
    found = data.load(str(root), Shape(IMAGES, side=2), test_limit=2)
    (blue,) = found.test.inputs[found.test.labels == 0]
    assert blue.shape == (3, 2, 2)
    assert blue[2].min() > 200
    assert blue[1].max() < 50


def test_a_limit_leaves_all_classes_in(tmp_path: Path) -> None:
    for label in range(4):
        for split in ("train", "test"):
            for image in range(20):
                path = tmp_path / split / f"class{label}" / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2), 60 * label).save(path)
    found = data.load(str(tmp_path), Shape(IMAGES), limit=30)
    assert len(found.train) == 30
    assert set(found.train.labels.tolist()) == {0, 1, 2, 3}
    assert (found.train.inputs[:, 0, 0, 0] == 60 * found.train.labels).all()


def spoil_no_train(root: Path) -> str:
    (root / "train").rename(root / "training")
    return "expected train/<class>/<image> in it, got training, val"


def spoil_no_test(root: Path) -> str:
    (root / "val").rename(root / "later")
    return "expected val/<class>/<image> or test/<class>/<image> in it, got later, train"


def spoil_empty_class(root: Path) -> str:
    (root / "train" / "blue" / "1.png").unlink()
    return "train/blue: expected images (.jpg, .jpeg, .png, .bmp, .webp), got none"


def spoil_other_classes(root: Path) -> str:
    (root / "val" / "green").mkdir()
    return "expected the same classes in train and val, 'green' is in one only"


def spoil_image(root: Path) -> str:
    (root / "train" / "red" / "2.JPG").write_bytes(b"no image")
    return "train/red/2.JPG: expected an image, got"


@pytest.mark.parametrize(
    "spoil",
    [spoil_no_train, spoil_no_test, spoil_empty_class, spoil_other_classes, spoil_image],
)
def test_a_folder_of_the_wrong_form_is_refused_in_words(tmp_path: Path, spoil) -> None:
    complaint = spoil(write_images(tmp_path / "colours"))
    with pytest.raises(DataError) as error:
        data.load(str(tmp_path / "colours"), Shape(IMAGES))
    assert complaint in str(error.value)


def test_more_images_than_memory_holds_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "colours")
    with pytest.raises(DataError, match="take a smaller --limit, --test-limit or --image-size"):
        data.load(str(root), Shape(IMAGES, side=10_000_000))


def test_a_text_is_cut_into_bytes_and_the_next_ones(tmp_path: Path) -> None:
    path = tmp_path / "alphabet.txt"
    path.write_bytes(b"abcdefghijklmnopqrstuvwxyz" * 2)  # 52: the last 5 are held out
    found = data.load(str(path), Shape(TOKENS, sequence=4))
    assert (found.shape, found.classes) == ((4,), 256)
    assert len(found.train) == 11  # (47 - 1) // 4
    assert bytes(found.train.inputs[1]) == b"efgh"
    assert bytes(found.train.labels[1]) == b"fghi"
    assert [bytes(row) for row in found.test.inputs] == [b"vwxy"]
    assert [bytes(row) for row in found.test.labels] == [b"wxyz"]


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(b"x" * 49)
    with pytest.raises(DataError, match=r"expected more than 49 bytes, .* a sample of 4 .* got 49"):
        data.load(str(path), Shape(TOKENS, sequence=4))
    path.write_bytes(b"x" * 50)
    assert len(data.load(str(path), Shape(TOKENS, sequence=4)).test) == 1


def test_synthetic_data_are_within_bounds_and_the_same_again() -> None:
    shape = Shape(TOKENS, sequence=6, vocabulary=1000, seed=3)
    tokens, again = data.load("auto", shape), data.load("synthetic", shape)
    assert (tokens.name, tokens.shape, len(tokens.test)) == ("synthetic", (6,), 0)
    assert 900 < tokens.train.inputs.max() < 1000
    assert (tokens.train.inputs == again.train.inputs).all()
    images = data.load("synthetic", Shape(IMAGES, side=8, classes=3))
    assert images.shape == (3, 8, 8)
    assert set(images.train.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("wanted", "kind", "complaint"),
    [
        ("nowhere", IMAGES, "expected auto, fashion-mnist, .*, a folder of .*, got 'nowhere'"),
        ("a.txt", IMAGES, "the model takes images, and --data names a text, a.txt"),
        (".", TOKENS, "the model takes tokens, and --data names images, ."),
        ("digits", TOKENS, "the model takes tokens, and --data names images, digits"),
    ],
)
def test_data_that_the_model_does_not_take(tmp_path, monkeypatch, wanted, kind, complaint) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a text")
    with pytest.raises(DataError, match=complaint):
        data.load(wanted, Shape(kind))


def test_ranks_find_what_the_launcher_stored(tmp_path: Path) -> None:
    made = data.load("synthetic", Shape(IMAGES, side=4))
    data.store(made, tmp_path)
    train, test = data.stored(tmp_path)
    assert (train.inputs == made.train.inputs).all()
    assert (train.labels == made.train.labels).all()
    assert test.inputs.shape == (0, 3, 4, 4)
