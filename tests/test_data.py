"""Image sets: files whole and damaged, downloads that fail midway, and which set is taken."""

import dataclasses
import gzip
import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from cnnkernels import data
from cnnkernels.data import DataError, MissingExtra, load, read_idx

REAL_MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
REAL_CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


def idx(shape: tuple[int, ...], content: bytes, element_type: int = 8) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, element_type, len(shape), *shape) + content


def pixels(count: int) -> bytes:
    return bytes(i % 256 for i in range(count * 28 * 28))


def write_mnist(folder: Path, train: int = 5, test: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = idx((count, 28, 28), pixels(count))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = idx((count,), bytes(9 - i for i in range(count)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "idx")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which cache and Fashion-MNIST are looked for; there is no network."""
    monkeypatch.setenv("CNNKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "DEBIAN_FASHION", tmp_path / "fashion")
    with socket.socket() as silent:  # bound and not listening: its port refuses connections
        silent.bind(("127.0.0.1", 0))
        serve_from(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        yield tmp_path


def serve_from(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    for key, source in data.SOURCES.items():
        monkeypatch.setitem(data.SOURCES, key, dataclasses.replace(source, url=url))


def test_values_shapes_and_dtypes(mnist: Path) -> None:
    found = load(str(mnist))
    assert found.train_images.shape == (5, 1, 28, 28)
    assert found.train_images.dtype == torch.float32
    assert found.train_labels.dtype == torch.int64
    assert found.train_labels.tolist() == [9, 8, 7, 6, 5]
    assert found.test_images.shape == (3, 1, 28, 28)
    assert found.test_labels.tolist() == [9, 8, 7]
    bytes_ = torch.tensor(list(pixels(5))).view(5, 1, 28, 28)
    torch.testing.assert_close(found.train_images, bytes_ / 255, rtol=0, atol=0)
    assert found.train_images.max() == 1
    assert str(mnist) in found.name


def compress(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def compress_keeping_the_name(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def rename_with_a_dot(path: Path) -> None:
    path.rename(path.with_name(path.name.replace("-idx", ".idx")))


@pytest.mark.parametrize("change", [compress, compress_keeping_the_name, rename_with_a_dot])
def test_other_forms_of_the_files(mnist: Path, change: Callable[[Path], None]) -> None:
    plain = load(str(mnist))
    for path in sorted(mnist.iterdir()):
        change(path)
    other = load(str(mnist))
    assert torch.equal(plain.train_images, other.train_images)
    assert torch.equal(plain.test_labels, other.test_labels)


IMAGES = idx((5, 28, 28), pixels(5))
LABELS = idx((5,), bytes(5))
PACKED = gzip.compress(IMAGES)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "truncated: 0 bytes"),
        (IMAGES[:15], "truncated: 15 bytes"),
        (IMAGES[:-1], "truncated: the header says 5x28x28, which is 3936 bytes"),
        (IMAGES + b"\0", "trailing bytes: .* there are 3937"),
        (b"\x01" + IMAGES[1:], "not an IDX file"),
        (b"<!DOCTYPE html><html>", "not an IDX file"),
        (idx((5, 28, 28), bytes(4 * 3920), element_type=13), "element type 0x0d"),
        (LABELS + bytes(20), "1 dimensions, not 3"),
        (idx((5, 28, 28, 1), pixels(5)), "4 dimensions, not 3"),
        (idx((0, 28, 28), b""), "empty: the header says 0x28x28"),
        (idx((2**32 - 1,) * 3, pixels(5)), "truncated"),
        (idx((5, 14, 56), pixels(5)), "14x56 pixels"),
        (idx((4, 28, 28), pixels(4)), "5 labels for the 4 images"),
        (PACKED[:-1], "damaged gzip file"),
        (PACKED[:100], "damaged gzip file"),
        (PACKED[:30] + bytes([PACKED[30] ^ 0xFF]) + PACKED[31:], "damaged gzip file"),
        (PACKED[:-8] + bytes(4) + PACKED[-4:], "damaged gzip file"),  # the checksum
        (PACKED + b"more", "damaged gzip file"),
        (gzip.compress(IMAGES[:-1]), "truncated: the header"),
        (gzip.compress(IMAGES + b"\0"), "trailing bytes"),
    ],
)
def test_damaged_images(mnist: Path, content: bytes, fault: str) -> None:
    (mnist / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.*{fault}|{fault}.*train-images"):
        load(str(mnist))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (idx((5,), bytes([0, 1, 2, 3, 10])), "label 10, not in 0..9"),
        (idx((4,), bytes(4)), "4 labels for the 5 images"),
        (LABELS[:-1], "truncated"),
        (IMAGES, "3 dimensions, not 1"),
    ],
)
def test_damaged_labels(mnist: Path, content: bytes, fault: str) -> None:
    (mnist / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=f"train-labels-idx1-ubyte.*{fault}"):
        load(str(mnist))


def test_a_damaged_test_part_is_named(mnist: Path) -> None:
    path = mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: trailing bytes"):
        load(str(mnist))


def test_absent_files_and_folders(mnist: Path) -> None:
    (mnist / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: no such file, plain or \.gz"):
        load(str(mnist))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load(str(mnist / "nowhere"))


def test_a_folder_in_place_of_a_file(mnist: Path) -> None:
    path = mnist / "train-images-idx3-ubyte"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="train-images-idx3-ubyte: Is a directory"):
        load(str(mnist))


def test_a_data_error_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: No such file"):
        read_idx(tmp_path / "absent", 1)


def test_auto_takes_the_first_that_is_there(elsewhere: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    assert load().name.startswith("handwritten digits")
    write_mnist(elsewhere / "fashion", train=2)
    assert load().name == "Fashion-MNIST"
    write_mnist(elsewhere / "cache" / "fashion-mnist", train=3)
    assert len(load().train_labels) == 3
    (elsewhere / "cache" / "mnist").mkdir()
    assert load().name == "Fashion-MNIST"
    write_mnist(elsewhere / "cache" / "mnist", train=4)
    found = load("auto")
    assert (found.name, len(found.train_labels)) == ("MNIST", 4)


def test_auto_does_not_pass_over_a_damaged_set(elsewhere: Path) -> None:
    write_mnist(elsewhere / "fashion")
    (write_mnist(elsewhere / "cache" / "mnist") / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: no such file"):
        load()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNKERNELS_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data.cache_folder() == Path("/own")
    monkeypatch.delenv("CNNKERNELS_CACHE")
    assert data.cache_folder() == Path("/xdg/cnnkernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder() == Path.home() / ".cache" / "cnnkernels"


def test_fashion_mnist_of_debian(elsewhere: Path) -> None:
    write_mnist(elsewhere / "fashion")
    found = load("fashion-mnist")
    assert found.classes[9] == "Ankle boot"
    assert len(found.train_labels) == 5


@dataclasses.dataclass
class Answer:
    body: bytes
    status: int = 200
    announced: int | None = None  # the length in the header, if not the body's


class Server:
    """Serves what `answers` has, and counts what it is asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path[1:])
                answer = server.answers.get(self.path[1:], Answer(b"", 404))
                self.send_response(answer.status)
                length = len(answer.body) if answer.announced is None else answer.announced
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(answer.body)  # and then the connection is closed

            def log_message(self, *args: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a small set under MNIST's names, with the checksums to match."""
    server = Server()
    for path in write_mnist(elsewhere / "published").iterdir():
        server.answers[path.name + ".gz"] = Answer(gzip.compress(path.read_bytes()))
    checksums = {n: hashlib.sha256(a.body).hexdigest() for n, a in server.answers.items()}
    serve_from(monkeypatch, server.url)
    for key, source in data.SOURCES.items():
        assert set(checksums) == set(source.checksums)
        monkeypatch.setitem(data.SOURCES, key, dataclasses.replace(source, checksums=checksums))
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_download(server: Server, elsewhere: Path, name: str) -> None:
    found = load(name)
    assert (found.name, len(found.train_labels)) == (data.SOURCES[name].title, 5)
    assert found.classes == data.SOURCES[name].classes
    assert sorted(server.asked) == sorted(server.answers)
    assert {p.name for p in (elsewhere / "cache" / name).iterdir()} == set(server.answers)
    load(name)
    load("auto")
    assert len(server.asked) == 4  # what is there is not asked for again


def test_auto_does_not_download(server: Server) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    load("auto")
    assert server.asked == []


BAD = "train-images-idx3-ubyte.gz"


def corrupt(body: bytes) -> Answer:
    return Answer(body[:50] + bytes([body[50] ^ 1]) + body[51:])


def truncated(body: bytes) -> Answer:
    return Answer(body[:-20])


def cut_midway(body: bytes) -> Answer:
    return Answer(body[: len(body) // 2], announced=len(body))


def absent(body: bytes) -> Answer:
    return Answer(b"<html>gone</html>", status=404)


def broken(body: bytes) -> Answer:
    return Answer(b"", status=503)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (corrupt, "not the published file: SHA-256 [0-9a-f]{64}"),
        (truncated, "not the published file: SHA-256 [0-9a-f]{64}"),
        (cut_midway, r"cut short: \d+ of \d+ bytes"),
        (absent, "cannot be downloaded to .*mnist: Not Found"),
        (broken, "cannot be downloaded to .*mnist: Service Unavailable"),
    ],
)
def test_failed_downloads(
    server: Server, elsewhere: Path, fault: Callable[[bytes], Answer], message: str
) -> None:
    good = server.answers[BAD]
    server.answers[BAD] = fault(good.body)
    with pytest.raises(DataError, match=f"^{server.url}{BAD}: {message}$") as caught:
        load("mnist")
    assert "\n" not in str(caught.value)
    folder = elsewhere / "cache" / "mnist"
    here = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert here <= set(server.answers) - {BAD}
    server.answers[BAD] = good
    assert len(load("mnist").train_labels) == 5
    assert len(server.asked) == 5  # of which four were right


def test_download_without_a_network(elsewhere: Path) -> None:
    for name in ("mnist", "fashion-mnist"):
        with pytest.raises(DataError, match="cannot be downloaded to .*: .*refused"):
            load(name)
    assert not (elsewhere / "cache").exists()


def test_an_interrupted_file_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with data.atomic_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), data.atomic_file(path) as file:
        file.write(b"sec")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def cifar10_record(label: int, *rgb: int) -> bytes:
    return bytes([label]) + b"".join(bytes([value]) * 1024 for value in rgb)


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    red, blue = cifar10_record(3, 255, 0, 0), cifar10_record(9, 0, 0, 51)
    (tmp_path / "data_batch_1.bin").write_bytes(red + blue)
    (tmp_path / "data_batch_2.bin").write_bytes(blue)
    (tmp_path / "test_batch.bin").write_bytes(red)
    return tmp_path


def test_cifar10(cifar10: Path) -> None:
    found = load(str(cifar10))
    assert found.train_images.shape == (3, 3, 32, 32)
    assert found.test_images.shape == (1, 3, 32, 32)
    assert found.train_images.dtype == torch.float32
    assert found.train_labels.tolist() == [3, 9, 9]
    assert found.train_labels.dtype == torch.int64
    assert found.classes[found.test_labels[0]] == "cat"
    assert found.train_images.mean((2, 3)).tolist() == [
        [1, 0, 0],
        [0, 0, pytest.approx(0.2)],
        [0, 0, pytest.approx(0.2)],
    ]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("data_batch_2.bin", b"", "0 bytes are no whole number of records of 3073"),
        ("data_batch_2.bin", cifar10_record(0, 1, 2, 3)[:-1], "3072 bytes are no whole number"),
        ("test_batch.bin", cifar10_record(0, 1, 2, 3) + b"\0", "3074 bytes are no whole number"),
        ("test_batch.bin", cifar10_record(10, 1, 2, 3), "label 10, not in 0..9"),
        ("test_batch.bin", None, "No such file or directory"),
    ],
)
def test_damaged_cifar10(cifar10: Path, file: str, content: bytes | None, fault: str) -> None:
    (cifar10 / file).unlink()
    if content is not None:
        (cifar10 / file).write_bytes(content)
    with pytest.raises(DataError, match=f"{file}: {fault}"):
        load(str(cifar10))


def test_cifar10_without_training_files(cifar10: Path) -> None:
    for path in cifar10.glob("data_batch_*"):
        path.unlink()
    with pytest.raises(DataError, match=r"data_batch_1\.bin: no such file"):
        load(str(cifar10))


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="no copy of CIFAR-10 beside the checkout")
def test_the_real_cifar10() -> None:
    found = load(str(REAL_CIFAR10))
    assert found.train_images.shape[1:] == found.test_images.shape[1:] == (3, 32, 32)
    assert found.test_labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert found.train_labels[:5].tolist() == [6, 9, 9, 4, 1]
    # About the means that everybody normalises CIFAR-10 by.
    means = found.train_images.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    first, second = load("digits"), load("digits")
    assert first.train_images.shape == (1500, 1, 28, 28)
    assert first.test_images.shape == (297, 1, 28, 28)
    assert first.train_images.dtype == torch.float32
    assert first.train_labels.dtype == torch.int64
    assert 0 <= first.train_images.min() and 0.9 < first.train_images.max() <= 1
    assert first.test_labels.bincount().min() >= 15  # each class is tested
    assert torch.equal(first.test_images, second.test_images)
    assert torch.equal(first.test_labels, second.test_labels)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install cnnkernels\[train\]"):
        load("digits")


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="no copy of MNIST beside the checkout")
def test_the_real_mnist() -> None:
    found = load(str(REAL_MNIST))
    assert found.train_images.shape == (60_000, 1, 28, 28)
    assert found.test_images.shape == (10_000, 1, 28, 28)
    assert found.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    # The mean that everybody normalises MNIST by.
    assert found.train_images.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
