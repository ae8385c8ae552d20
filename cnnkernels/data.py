"""Image sets of ten classes in 28x28 grey pixels: MNIST, Fashion-MNIST, handwritten digits.

Nothing is downloaded. MNIST and sets in its format are read from IDX files (LeCun, Cortes and
Burges, "The MNIST database", section "file formats"), Fashion-MNIST from the Debian package that
ships it, and the digits from scikit-learn, which carries them within.
"""

import gzip
import importlib
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 28
DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_PACKAGE = "dataset-fashion-mnist"
DIGITS_TEST_IMAGES = 297  # of 1797

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


class DataError(ValueError):
    """A data set that is absent, corrupt or of the wrong kind; the message names the file."""


class MissingExtra(ImportError):
    """A package is absent that only the programs need, not the kernels."""


def import_extra(module: str, package: str) -> ModuleType:
    """Imports a module of the extra `train`; raises MissingExtra, which says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{package} is not installed; get it with: pip install cnnkernels[train]"
        ) from error


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as float32 in [0, 1], (N, 1, 28, 28), and labels as int64 in [0, 10), (N,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def load(spec: str = "auto") -> Dataset:
    """Loads the data set that `spec` names.

    `auto` takes the first that is there of MNIST in the cache folder, Fashion-MNIST and the
    digits; its choice is the `name` of what it returns. `fashion-mnist` and `digits` name
    theirs; anything else is a folder with IDX files.

    Raises:
        DataError: the data set is absent or corrupt.
        MissingExtra: the digits are asked for and scikit-learn is absent.
    """
    if spec == "auto":
        return _load_first_present()
    if spec == "fashion-mnist":
        return load_fashion_mnist()
    if spec == "digits":
        return load_digits()
    return load_idx_folder(Path(spec), f"IDX files in {spec}")


def cache_folder() -> Path:
    """CNNKERNELS_CACHE, else `cnnkernels` in the user's cache (XDG Base Directory)."""
    if own := os.environ.get("CNNKERNELS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnkernels"


def load_fashion_mnist() -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017) as Debian ships it: 60,000 + 10,000 images."""
    if not FASHION_FOLDER.is_dir():
        raise DataError(
            f"{FASHION_FOLDER}: no such folder; get it with: apt-get install {FASHION_PACKAGE}"
        )
    return load_idx_folder(FASHION_FOLDER, "Fashion-MNIST", FASHION_CLASSES)


def load_digits() -> Dataset:
    """Scikit-learn's 1,797 handwritten digits, scaled from 8x8 to 28x28, always split alike."""
    digits = import_extra("sklearn.datasets", "scikit-learn").load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # 0..16 in the source
    images = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:DIGITS_TEST_IMAGES], order[DIGITS_TEST_IMAGES:]
    return Dataset(
        "handwritten digits (scikit-learn)",
        images[train],
        labels[train],
        images[test],
        labels[test],
        DIGITS,
    )


def load_idx_folder(folder: Path, name: str, classes: tuple[str, ...] = DIGITS) -> Dataset:
    """A data set of four IDX files under MNIST's file names, each plain or compressed.

    Raises:
        DataError: a file is absent, truncated, too long, damaged, of the wrong element type,
            image size or number of dimensions, or images and labels differ in number.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    train_images, train_labels = _load_part(folder, "train", len(classes))
    test_images, test_labels = _load_part(folder, "t10k", len(classes))
    return Dataset(name, train_images, train_labels, test_images, test_labels, classes)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The content of one IDX file of unsigned bytes with so many dimensions, as uint8.

    Raises:
        DataError: the file is not exactly that.
    """
    content = _read_unpacked(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: truncated: {len(content)} bytes are no IDX header")
    if content[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file: it starts with 0x{content[:4].hex()}")
    if content[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path}: element type 0x{content[2]:02x}, not unsigned byte (0x08)")
    if content[3] != dimensions:
        raise DataError(f"{path}: {content[3]} dimensions, not {dimensions}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path}: empty: the header says {_times(shape)}")
    if len(content) != header + size:
        fault = "truncated" if len(content) < header + size else "trailing bytes"
        raise DataError(
            f"{path}: {fault}: the header says {_times(shape)}, which is {header + size} bytes "
            f"in all, but there are {len(content)}"
        )
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def _load_first_present() -> Dataset:
    mnist = cache_folder() / "mnist"
    if mnist.is_dir():
        return load_idx_folder(mnist, "MNIST")
    if FASHION_FOLDER.is_dir():
        return load_fashion_mnist()
    return load_digits()


def _load_part(folder: Path, part: str, classes: int) -> tuple[Tensor, Tensor]:
    image_path = _find(folder, f"{part}-images", 3)
    label_path = _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}"
        )
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise DataError(
            f"{image_path}: images of {_times(images.shape[1:])} pixels, "
            f"not {IMAGE_SIZE}x{IMAGE_SIZE}"
        )
    if labels.max() >= classes:
        raise DataError(f"{label_path}: label {labels.max()}, not in 0..{classes - 1}")
    return images.unsqueeze(1).float().div_(255), labels.long()


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    name = f"{stem}-idx{dimensions}-ubyte"
    for spelling in (name, f"{stem}.idx{dimensions}-ubyte"):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.exists():
                return path
    raise DataError(f"{folder / name}: no such file, plain or .gz")


def _read_unpacked(path: Path) -> bytearray:
    # Compression is told by content: some browsers unpack a .gz file and keep its name.
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if content[:2] == _GZIP_MAGIC else content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _times(shape: list[int] | torch.Size) -> str:
    return "x".join(str(size) for size in shape)
