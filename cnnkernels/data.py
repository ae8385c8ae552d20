"""Image sets: MNIST, Fashion-MNIST, handwritten digits, CIFAR-10, and folders of image files.

MNIST and sets in its format are read from IDX files (LeCun, Cortes and Burges, "The MNIST
database", section "file formats"), CIFAR-10 from its binary version (Krizhevsky, "The CIFAR-10
dataset"), and the digits come with scikit-learn. MNIST and Fashion-MNIST are downloaded if they
are asked for by name, and only then. Of a folder of image files, each class is a subfolder; Pillow
reads them, when they are needed.
"""

import contextlib
import gzip
import hashlib
import http.client
import importlib
import math
import os
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

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
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of package dataset-fashion-mnist
DIGITS_TEST_IMAGES = 297  # of 1797

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_CIFAR10_SHAPE = (3, 32, 32)
_CIFAR10_RECORD = 1 + math.prod(_CIFAR10_SHAPE)  # the label goes first
_TIMEOUT_SECONDS = 30
_FOLDER_TEST_SHARE = 1 / 5  # of a folder of image files that has no part for tests


@dataclass(frozen=True)
class Source:
    """Where a data set of IDX files is downloaded from: its files' SHA-256 by their names."""

    title: str
    url: str
    classes: tuple[str, ...]
    checksums: dict[str, str]


SOURCES = {
    "mnist": Source(
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        DIGITS,
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea37026"
            "5605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cc"
            "a23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e3"
            "3eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd"
            "2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        "Fashion-MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        FASHION_CLASSES,
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed27"
            "1626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc"
            "97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a4"
            "84bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3c"
            "d6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


class DataError(ValueError):
    """A data set that is absent, corrupt or of the wrong kind; the message names the file."""


class MissingExtra(ImportError):
    """A package is absent that only the programs need, not the kernels."""


def import_extra(module: str, package: str, extra: str = "train") -> ModuleType:
    """Imports a module of an extra; raises MissingExtra, which says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{package} is not installed; get it with: pip install cnnkernels[{extra}]"
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that stands at `path`, whole and on the disk, once the block is done.

    If the block raises, there is nothing new at `path`, and no trace of the attempt.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class ImageFiles:
    """Image files that can be indexed as the tensor of their pixels, (N, C, H, W), could.

    A file is read, scaled and cropped when it is asked for. See read_image.
    """

    def __init__(self, paths: Sequence[Path], image_shape: tuple[int, int, int]) -> None:
        self.paths = paths
        self.shape = torch.Size((len(paths), *image_shape))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | slice | Tensor) -> "Tensor | ImageFiles":
        """One image; the files of a slice; the images at a tensor of indices, in one tensor."""
        shape = self.shape[1:]
        if isinstance(index, slice):
            return ImageFiles(self.paths[index], shape)
        if isinstance(index, int):
            return read_image(self.paths[index], shape)
        images = [read_image(self.paths[i], shape) for i in index.tolist()]
        return torch.stack(images) if images else torch.empty(0, *shape)


Images = Tensor | ImageFiles


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as float32 in [0, 1], (N, C, H, W), and labels as int64, (N,), indices of classes."""

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    classes: tuple[str, ...]


class _Part:
    """Images with labels, fetched by the batch."""

    def __init__(self, images: Images, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitems__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def batches(
    images: Images, labels: Tensor, order: Sequence[Tensor], workers: int = 0
) -> Iterable[tuple[Tensor, Tensor]]:
    """Images and labels at each of the index tensors in `order`.

    `workers` is the number of processes that read ahead what is not in memory.
    """
    workers = 0 if isinstance(images, Tensor) else workers
    part = _Part(images, labels)
    return DataLoader(part, batch_sampler=order, collate_fn=_as_it_is, num_workers=workers)


def load(spec: str = "auto", image_shape: tuple[int, int, int] = (3, 224, 224)) -> Dataset:
    """Loads the data set that `spec` names.

    `mnist` and `fashion-mnist` are downloaded into the cache folder unless they are there;
    `digits` comes with scikit-learn. `auto` downloads nothing: it takes the first that is there of
    MNIST, Fashion-MNIST and the digits; its choice is the `name` of what it returns. Anything
    else is a folder with IDX files, with CIFAR-10's binary files, or with a subfolder of image
    files for each class: these are brought to `image_shape`, (C, H, W).

    Raises:
        DataError: the data set is absent or corrupt, or cannot be downloaded.
        MissingExtra: the digits are asked for and scikit-learn is absent, or image files and
            Pillow is.
    """
    if spec == "auto":
        return _load_first_present()
    if spec in SOURCES:
        return _load_or_download(spec)
    if spec == "digits":
        return load_digits()
    folder = Path(spec)
    if (folder / "test_batch.bin").exists() or any(folder.glob("data_batch_*.bin")):
        return load_cifar10_folder(folder, f"CIFAR-10 files in {spec}")
    if folder.is_dir() and _subfolders(folder) and not any(folder.glob("*-ubyte*")):
        return load_image_folder(folder, f"image files in {spec}", image_shape)
    return load_idx_folder(folder, f"IDX files in {spec}")


def cache_folder() -> Path:
    """CNNKERNELS_CACHE, else `cnnkernels` in the user's cache (XDG Base Directory)."""
    if own := os.environ.get("CNNKERNELS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnkernels"


def download(source: Source, folder: Path) -> None:
    """Downloads those of a data set's files that the folder lacks, and checks them.

    A file is either there, whole and right, or not at all.

    Raises:
        DataError: a file cannot be had, or is not the one that was published.
    """
    for name in sorted(_lacking(source, folder)):
        _download(source.url + name, folder / name, source.checksums[name])


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


def load_cifar10_folder(folder: Path, name: str) -> Dataset:
    """CIFAR-10 from its binary version: any number of `data_batch_*.bin`, and `test_batch.bin`.

    Raises:
        DataError: a file is absent or not a whole number of records, or a label is not in 0..9.
    """
    batches = sorted(folder.glob("data_batch_*.bin"))
    if not batches:
        raise DataError(f"{folder / 'data_batch_1.bin'}: no such file")
    images, labels = zip(*map(_read_cifar10, batches), strict=True)
    test = _read_cifar10(folder / "test_batch.bin")
    return Dataset(name, torch.cat(images), torch.cat(labels), *test, CIFAR10_CLASSES)


def load_image_folder(
    folder: Path, name: str, image_shape: tuple[int, int, int] = (3, 224, 224)
) -> Dataset:
    """A folder of image files: `train/CLASS/*`, and `test/CLASS/*` or `val/CLASS/*`.

    With `CLASS/*` alone, a fifth of the files are for tests, always the same. The files are in
    an order without meaning, always the same.

    Raises:
        DataError: a part or a class is empty, or the parts' classes differ.
        MissingExtra: Pillow is absent.
    """
    import_extra("PIL", "Pillow")
    if not (folder / "train").is_dir():
        paths, labels, classes = _list_images(folder)
        test = round(_FOLDER_TEST_SHARE * len(paths))
        if test == 0:
            raise DataError(f"{folder}: {len(paths)} image files are too few to hold out a fifth")
        parts = (paths[:-test], labels[:-test]), (paths[-test:], labels[-test:])
    else:
        test_folder = next((p for p in (folder / "test", folder / "val") if p.is_dir()), None)
        if test_folder is None:
            raise DataError(f"{folder}: a folder train, but none that is test or val")
        *train, classes = _list_images(folder / "train")
        *held_out, others = _list_images(test_folder)
        if classes != others:
            raise DataError(f"{test_folder}: other classes than {folder / 'train'}")
        parts = train, held_out
    (train_paths, train_labels), (test_paths, test_labels) = parts
    train, test = ImageFiles(train_paths, image_shape), ImageFiles(test_paths, image_shape)
    return Dataset(name, train, train_labels, test, test_labels, classes)


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """An image file as float32 in [0, 1] of a shape (C, H, W), C = 1 (grey) or 3.

    It is turned upright as its EXIF data say, scaled until it covers H x W, and cropped to the
    middle.

    Raises:
        DataError: there is no such file, or it is no image, or damaged.
        MissingExtra: Pillow is absent.
    """
    image_module = import_extra("PIL.Image", "Pillow")
    image_ops = import_extra("PIL.ImageOps", "Pillow")
    channels, height, width = shape
    try:
        with image_module.open(path) as file:
            upright = image_ops.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "no image that Pillow can read, or damaged"
        raise DataError(f"{path}: {reason}") from error
    image = image_ops.fit(upright, (width, height), image_module.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1).float().div_(255)


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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _list_images(folder: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """The image files of each class's subfolder, shuffled; their labels; the classes' names."""
    suffixes = import_extra("PIL.Image", "Pillow").registered_extensions()
    paths, labels, classes = [], [], _subfolders(folder)
    for label, subfolder in enumerate(classes):
        found = sorted(path for path in subfolder.iterdir() if path.suffix.lower() in suffixes)
        if not found:
            raise DataError(f"{subfolder}: no image files")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder}: no subfolders of image files")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    names = tuple(subfolder.name for subfolder in classes)
    return [paths[i] for i in order.tolist()], torch.tensor(labels)[order], names


def _load_first_present() -> Dataset:
    for key, source in SOURCES.items():
        for folder in _folders(key):
            if _lacking(source, folder) < set(source.checksums):  # some are there
                return load_idx_folder(folder, source.title, source.classes)
    return load_digits()


def _load_or_download(key: str) -> Dataset:
    source, folders = SOURCES[key], _folders(key)
    folder = next((folder for folder in folders if not _lacking(source, folder)), folders[0])
    download(source, folder)
    return load_idx_folder(folder, source.title, source.classes)


def _folders(key: str) -> list[Path]:
    """Where a data set is looked for: first, the folder that it is downloaded into."""
    return [cache_folder() / key, *([DEBIAN_FASHION] if key == "fashion-mnist" else [])]


def _lacking(source: Source, folder: Path) -> set[str]:
    """The names of a data set's files that the folder has in no spelling."""
    return {name for name in source.checksums if not _spellings(folder, name.removesuffix(".gz"))}


def _download(url: str, path: Path, sha256: str) -> None:
    digest, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                while block := response.read(1 << 16):
                    digest.update(block)
                    received += len(block)
                    file.write(block)
                expected = response.headers["Content-Length"]
                if expected is not None and received != int(expected):
                    raise DataError(f"{url}: cut short: {received} of {expected} bytes")
                if digest.hexdigest() != sha256:
                    raise DataError(f"{url}: not the published file: SHA-256 {digest.hexdigest()}")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url}: cannot be downloaded to {path.parent}: {reason}") from error


def _read_cifar10(path: Path) -> tuple[Tensor, Tensor]:
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if len(content) == 0 or len(content) % _CIFAR10_RECORD != 0:
        raise DataError(
            f"{path}: {len(content)} bytes are no whole number of records of {_CIFAR10_RECORD}"
        )
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, _CIFAR10_RECORD)
    labels = records[:, 0].long()
    if labels.max() >= len(CIFAR10_CLASSES):
        raise DataError(f"{path}: label {labels.max()}, not in 0..{len(CIFAR10_CLASSES) - 1}")
    return records[:, 1:].reshape(-1, *_CIFAR10_SHAPE).float().div_(255), labels


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
    if found := _spellings(folder, name):
        return found[0]
    raise DataError(f"{folder / name}: no such file, plain or .gz")


def _spellings(folder: Path, name: str) -> list[Path]:
    """The files there are for one of MNIST's names: some distributions spell it with a dot."""
    names = (name, name.replace("-idx", ".idx"))
    paths = (folder / f"{spelling}{suffix}" for spelling in names for suffix in ("", ".gz"))
    return [path for path in paths if path.exists()]


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
