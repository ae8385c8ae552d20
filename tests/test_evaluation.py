"""What a trained network answers: to whole sets, to image files, and in pictures."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cnnkernels import cli, visualize
from cnnkernels.config import TrainConfig
from cnnkernels.data import DataError, Dataset, ImageFiles, batches, load, read_image
from cnnkernels.evaluation import Normalization, evaluate, load_classifier, mistakes
from cnnkernels.train import train

IMAGES = pytest.importorskip("PIL.Image", reason="Pillow reads image files")
COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (220, 40, 30)}
SIZE = (3, 32, 32)


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 36)) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shade = tuple(min(255, value + 5 * i) for value in colour)
            suffix = "png" if i % 2 else "jpg"
            IMAGES.new("RGB", size, shade).save(folder / name / f"{i}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 8)
    write_images(folder / "val", 3)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells three colours from each other."""
    file = tmp_path_factory.mktemp("runs") / "colours.pt"
    options = ["train", "--model", "cifar", "--data", str(folder), "--epochs", "20"]
    options += ["--batch-size", "12", "--workers", "1", "--checkpoint", str(file)]
    options += ["--augment", "flip"]
    assert cli.main(options) == 0
    return file


def by_brightness(images: Tensor) -> Tensor:
    return nn.functional.one_hot((images.mean((1, 2, 3)) * 3).long().clamp(max=2), 3).float() * 9


def test_confusion_counts() -> None:
    levels = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.2])
    images, labels = levels.view(5, 1, 1, 1).expand(5, 1, 4, 4), torch.tensor([0, 1, 1, 1, 0])
    for size in (2, 100):
        found = evaluate(by_brightness, images, labels, 3, batch_size=size)
        assert found.confusion.tolist() == [[2, 0, 0], [0, 2, 1], [0, 0, 0]]
        assert found.accuracy == pytest.approx(0.8)
        assert found.class_accuracies[:2] == pytest.approx([1, 2 / 3])
        assert math.isnan(found.class_accuracies[2])
        right = math.log(1 + 2 * math.exp(-9))
        assert found.loss == pytest.approx((5 * right + 9) / 5)
    (mistake,) = mistakes(by_brightness, images, labels)
    assert (mistake.index, mistake.label, mistake.answer) == (2, 1, 2)
    assert mistake.probability == pytest.approx(1 / (1 + 2 * math.exp(-9)))


def test_normalization() -> None:
    images = torch.rand(2, 3, 4, 5)
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    found = Normalization(mean, deviation)(images)
    torch.testing.assert_close(found[:, 2], (images[:, 2] - 0.3) / 4)


def test_a_folder_of_images(folder: Path) -> None:
    data = load(str(folder), SIZE)
    assert data.classes == ("blue", "green", "red")
    assert data.train_images.shape == (24, *SIZE) and data.test_images.shape == (9, *SIZE)
    assert data.train_labels.bincount().tolist() == [8, 8, 8]
    assert data.train_labels.tolist() != sorted(data.train_labels.tolist())
    largest = data.train_images[torch.arange(24)].mean((2, 3)).argmax(1)
    assert torch.equal(largest, 2 - data.train_labels)  # of red, green and blue
    part = data.train_images[2:5]
    assert isinstance(part, ImageFiles) and len(part) == 3
    assert torch.equal(part[1], data.train_images[3])
    order = [torch.tensor([3, 1]), torch.tensor([0])]
    for workers in (0, 2):
        found = list(batches(data.train_images, data.train_labels, order, workers))
        assert [tuple(images.shape) for images, _ in found] == [(2, *SIZE), (1, *SIZE)]
        assert torch.equal(found[0][0][0], data.train_images[3])
        assert torch.equal(found[0][1], data.train_labels[[3, 1]])


def test_a_folder_without_parts_is_split(folder: Path) -> None:
    data = load(str(folder / "train"), SIZE)
    assert (len(data.train_images), len(data.test_images)) == (19, 5)
    again = load(str(folder / "train"), SIZE)
    assert data.test_images.paths == again.test_images.paths
    assert not set(data.train_images.paths) & set(data.test_images.paths)


def test_image_files_are_covered_and_cropped_to_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    image = IMAGES.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 48, 32))
    image.save(file)
    found = read_image(file, (3, 32, 32))
    assert torch.equal(found, torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 32, 32))
    assert read_image(file, (1, 8, 16)).shape == (1, 8, 16)
    image.getexif()[0x0112] = 6  # turned by 90 degrees
    image.save(file, exif=image.getexif())
    assert read_image(file, (1, 64, 32))[0, 0, 0] == read_image(file, (1, 64, 32))[0, 0, 31]


def test_damaged_image_files(tmp_path: Path, folder: Path) -> None:
    whole = (folder / "train" / "red" / "1.png").read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        file = tmp_path / "bad.png"
        file.write_bytes(content)
        with pytest.raises(DataError, match="bad.png: no image that Pillow can read, or damaged"):
            read_image(file, SIZE)
    with pytest.raises(DataError, match="absent.png: No such file"):
        read_image(tmp_path / "absent.png", SIZE)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "train", 1)
    with pytest.raises(DataError, match="a folder train, but none that is test or val"):
        load(str(tmp_path / "a"))
    (tmp_path / "a" / "val" / "red").mkdir(parents=True)
    with pytest.raises(DataError, match="red: no image files"):
        load(str(tmp_path / "a"))
    IMAGES.new("L", (4, 4)).save(tmp_path / "a" / "val" / "red" / "x.png")
    with pytest.raises(DataError, match="other classes than"):
        load(str(tmp_path / "a"))


def test_evaluate(checkpoint: Path, folder: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "confusion.png"
    options = ["--data", str(folder), "--confusion", str(picture)]
    for backend in ("cnnkernels", "torch"):
        assert cli.main(["evaluate", str(checkpoint), *options, "--backend", backend]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines[3:6]] == [[name, "3"] for name in COLOURS]
        assert all(line.endswith("100.00 %") for line in lines[3:6]), lines
        assert lines[6].endswith("test accuracy 100.00 %")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_predict(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    files = [str(folder / "val" / name / "1.png") for name in COLOURS]
    assert cli.main(["predict", str(checkpoint), *files, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, file, name in zip(lines, files, COLOURS, strict=True):
        assert line.startswith(f"{file}: {name} ")
        shares = [float(part.split()[-2]) for part in line.removeprefix(file).split(", ")]
        assert len(shares) == 2 and 100.1 > sum(shares) >= shares[0] > shares[1]


def test_what_cannot_be_used(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    for options, message in (
        (["predict", str(checkpoint), "/nonexistent.png"], "/nonexistent.png: No such file"),
        (["predict", str(checkpoint), __file__], f"{__file__}: no image that Pillow can read"),
        (["predict", str(checkpoint), "x.png", "--top", "0"], "top must be positive, not 0"),
        (["predict", __file__, "x.png"], f"{__file__}: damaged, or not a checkpoint"),
        (["evaluate", str(checkpoint), "--data", "digits"], "handwritten digits"),
        (["visualize", "maps", "x.png"], "visualize maps needs a --checkpoint"),
    ):
        assert cli.main(options) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}"), options


def test_the_classifier_takes_images_as_they_are(checkpoint: Path, folder: Path) -> None:
    """Mean and deviation come with the checkpoint, and so do the classes."""
    ours, torchs = (load_classifier(checkpoint, convert) for convert in (True, False))
    data = load(str(folder), SIZE)
    pixels = data.train_images[torch.arange(24)]
    torch.testing.assert_close(ours.normalization.mean, pixels.mean((0, 2, 3)))
    assert ours.classes == tuple(COLOURS)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), torchs(pixels))
        assert torch.equal(ours(pixels).argmax(1), data.train_labels)


PICTURES = {
    "filters": [],
    "maps": ["IMAGE"],
    "fixed": ["IMAGE", "--kernels", "[[[1, 0], [0, -1]], [[0, 1], [-1, 0]]]"],
    "excite": ["--layer", "0", "--filters", "3", "5"],
    "saliency": ["IMAGE"],
    "occlusion": ["DATA", "--index", "2"],
    "scores": ["DATA"],
}


@pytest.mark.parametrize("what", PICTURES)
def test_pictures(what: str, checkpoint: Path, folder: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures")
    places = {"IMAGE": ["--image", str(folder / "val" / "red" / "1.png")]}
    places["DATA"] = ["--data", str(folder)]
    options = [word for part in PICTURES[what] for word in places.get(part, [part])]
    picture = tmp_path / "new" / "picture.png"
    command = ["visualize", what, str(picture), *options]
    assert cli.main([*command, "--checkpoint", str(checkpoint)]) == 0, capsys.readouterr().err
    image = IMAGES.open(picture)
    assert image.format == "PNG" and min(image.size) > 150
    assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn
    assert capsys.readouterr().out.endswith(f"picture: {picture}\n")


def test_a_picture_of_mistakes(folder: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures")
    data = load(str(folder), SIZE)
    wrong = Dataset("wrong", data.train_images, (data.train_labels + 1) % 3, **_test_part(data))
    file, picture = tmp_path / "run.pt", tmp_path / "mistakes.png"
    train(TrainConfig(wrong, model="cifar", epochs=6, batch_size=6, checkpoint=file))
    options = ["--checkpoint", str(file), "--data", str(folder)]
    assert cli.main(["visualize", "mistakes", str(picture), *options]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def _test_part(data: Dataset) -> dict:
    return {name: getattr(data, name) for name in ("test_images", "test_labels", "classes")}


def test_drawings_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install cnnkernels\[viz\]"):
        visualize.save_confusion(torch.eye(2), ("a", "b"), tmp_path / "c.png")
