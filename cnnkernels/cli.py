"""The command line: train, evaluate, predict, visualize, summary, explain, demo, bench and info."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cnnkernels
from cnnkernels import bench, demo, inspection, parallel, visualize
from cnnkernels.augment import AUGMENTATIONS
from cnnkernels.checkpoint import CheckpointError
from cnnkernels.config import (
    BACKENDS,
    DEVICES,
    HYPERPARAMETERS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    ConfigError,
    TrainConfig,
)
from cnnkernels.data import DataError, Dataset, load, read_image
from cnnkernels.evaluation import Classifier, Evaluation, evaluate, load_classifier, mistakes
from cnnkernels.models import MODELS, build_model
from cnnkernels.summary import summary
from cnnkernels.train import EpochReport, Stopped, train

DESCRIPTION = "Hand-written convolution and pooling kernels for PyTorch: train, compare, inspect."
TERMINATED = 143  # a shell's status of what SIGTERM has ended

_Commands = argparse._SubParsersAction
_OF_THE_MODEL = "by default the model's own"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (DataError, ConfigError, CheckpointError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cnnkernels", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        *(_add_train, _add_evaluate, _add_predict, _add_visualize),
        *(_add_summary, _add_explain, _add_demo, _add_bench, _add_info),
    ):
        add(commands)
    return parser


def _command(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    command.set_defaults(run=run)
    return command


def _take_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        default="auto",
        metavar="SET",
        help="auto (default), mnist, fashion-mnist, digits, or a folder with IDX files, with "
        "CIFAR-10's binary files or with image files by class; mnist and fashion-mnist are "
        "downloaded if need be; auto is the first of the three that is there",
    )


def _take_backend(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--backend", choices=BACKENDS, default="cnnkernels", help="whose kernels: ours (default)"
    )


# ---------------------------------------------------------------- train


def _add_train(commands: _Commands) -> None:
    command = _command(
        commands, "train", _train, "train a network; under torchrun, by all its processes"
    )
    _take_data(command)
    command.add_argument("--model", choices=HYPERPARAMETERS, default="a")
    command.add_argument("--device", choices=DEVICES, default="cpu")
    _take_backend(command)
    command.add_argument("--seed", type=int, default=0, metavar="S")
    command.add_argument("--steps", type=int, metavar="N", help="stop after N steps")

    group = command.add_argument_group("hyperparameters", _OF_THE_MODEL)
    group.add_argument("--epochs", type=int, metavar="N")
    group.add_argument("--batch-size", type=int, metavar="N", help="of all processes together")
    group.add_argument("--optimizer", choices=OPTIMIZERS)
    group.add_argument("--lr", type=float, metavar="X", help="learning rate")
    group.add_argument("--momentum", type=float, metavar="X", help="of sgd")
    group.add_argument("--weight-decay", type=float, metavar="X")
    group.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate")
    group.add_argument(
        "--validation-share", type=float, metavar="X", help="part of the training images held out"
    )
    group.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop after N epochs without a smaller validation loss; keep the best epoch's weights",
    )
    group.add_argument("--augment", nargs="*", choices=AUGMENTATIONS, metavar="KIND")
    group.add_argument("--normalize", action=argparse.BooleanOptionalAction)
    group.add_argument("--precision", choices=PRECISIONS, help="the 16-bit ones by autocast")

    group = command.add_argument_group("how it runs")
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="passes that a batch is cut into"
    )
    group.add_argument("--channels-last", action="store_true", help="in that memory format")
    group.add_argument("--compile", action="store_true", help="by torch.compile")
    group.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read image files"
    )
    group.add_argument("--no-progress", action="store_true", help="show no progress bar")

    group = command.add_argument_group("what it leaves")
    group.add_argument(
        "--log", type=Path, metavar="DIR", help="loss and accuracies, for TensorBoard"
    )
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="save the run each epoch, and on SIGTERM"
    )
    group.add_argument("--save-every", type=int, metavar="N", help="and each N steps")
    group.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on from a checkpoint of the same run"
    )
    group.add_argument("--confusion", type=Path, metavar="PNG", help="draw the confusion matrix")


def _train(options: argparse.Namespace) -> int:
    config = TrainConfig(
        data=_load(options),
        learning_rate=options.lr,
        max_steps=options.steps,
        progress=not options.no_progress,
        augment=None if options.augment is None else tuple(options.augment),
        **{
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(TrainConfig)
            if field.name in options and field.name not in ("data", "augment")
        },
    )
    _say(
        f"model {config.model}, backend {config.backend}, device {config.device}, "
        f"{torch.get_num_threads()} threads, seed {config.seed}"
    )
    result = train(config, _show_epoch)
    _say(f"test accuracy {100 * result.accuracy:.2f} %")
    _draw_confusion(options.confusion, result.test, config.data.classes, f"Model {config.model}")
    return 0


def _show_epoch(report: EpochReport) -> None:
    validation = report.validation
    held_out = "" if validation is None else f"validation accuracy {100 * validation:.2f} %   "
    print(
        f"epoch {report.epoch:2}   loss {report.loss:.4f}   {held_out}"
        f"test accuracy {100 * report.accuracy:.2f} %   {report.seconds:.1f} s",
        flush=True,
    )


# ---------------------------------------------------------------- evaluate, predict


def _add_evaluate(commands: _Commands) -> None:
    command = _command(
        commands, "evaluate", _evaluate, "test a trained network, as a whole and class by class"
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    _take_data(command)
    _take_backend(command)
    command.add_argument("--confusion", type=Path, metavar="PNG", help="draw the confusion matrix")


def _evaluate(options: argparse.Namespace) -> int:
    classifier = load_classifier(options.checkpoint, options.backend != "torch")
    data = _load_for(classifier, options)
    with _emulation(options):
        found = evaluate(classifier, data.test_images, data.test_labels, len(data.classes))
    rows = [
        (name, f"{count:,}", "" if count == 0 else f"{100 * share:.2f} %")
        for name, count, share in zip(
            data.classes, found.confusion.sum(1).tolist(), found.class_accuracies, strict=True
        )
    ]
    print(demo.table(("class", "images", "accuracy"), rows))
    print(f"loss {found.loss:.4f}   test accuracy {100 * found.accuracy:.2f} %")
    _draw_confusion(options.confusion, found, data.classes, f"Model {classifier.name}")
    return 0


def _add_predict(commands: _Commands) -> None:
    command = _command(commands, "predict", _predict, "say what image files show")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    command.add_argument("--top", type=int, default=3, metavar="K", help="as many classes (3)")
    _take_backend(command)


def _predict(options: argparse.Namespace) -> int:
    if options.top < 1:
        raise ConfigError(f"top must be positive, not {options.top}")
    classifier = load_classifier(options.checkpoint, options.backend != "torch")
    with _emulation(options):
        for file, found in zip(
            options.images, classifier.predict(options.images, options.top), strict=True
        ):
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found)
            print(f"{file}: {shares}", flush=True)
    return 0


# ---------------------------------------------------------------- visualize


def _add_visualize(commands: _Commands) -> None:
    command = _command(commands, "visualize", _visualize, "draw what a network sees, as a PNG")
    command.add_argument(
        "what",
        choices=_PICTURES,
        metavar="WHAT",
        help="filters, of the first layer; maps, which it makes of an image, before and after ReLU "
        "and pooling; fixed filters at work on an image; excite: images that excite a layer's "
        "filters most; saliency and occlusion: the pixels that an answer rests on; scores: the "
        "classes' probabilities; mistakes: test images taken for others",
    )
    command.add_argument("output", type=Path, metavar="PNG")
    command.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="the network: not for fixed"
    )
    command.add_argument("--image", type=Path, metavar="FILE", help="an image file, or else one of")
    _take_data(command)
    command.add_argument("--index", type=int, default=0, metavar="I", help="which test image (0)")
    command.add_argument("--layer", metavar="NAME", help="to excite; by default the last one")
    command.add_argument(
        "--filters", type=int, nargs="+", metavar="K", help="to excite; by default the first ten"
    )
    command.add_argument(
        "--kernels",
        type=_kernels,
        default="edges",
        metavar="SET",
        help="fixed filters: edges (default), sobel, or a matrix or a list of them as JSON",
    )


def _visualize(options: argparse.Namespace) -> int:
    if options.what != "fixed" and options.checkpoint is None:
        raise ConfigError(f"visualize {options.what} needs a --checkpoint")
    try:
        _PICTURES[options.what](options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"picture: {options.output}")
    return 0


def _draw_filters(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint)
    title = f"Model {classifier.name}: the first layer's filters"
    visualize.save_filters(classifier.model, options.output, title)


def _draw_maps(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint, convert=False)
    image, label, data = _image(options, classifier)
    title = options.image.name if data is None else data.classes[label]
    visualize.save_feature_maps(
        classifier.model, image, options.output, title, lambda x: classifier.prepare(x[None])[0]
    )


def _draw_fixed(options: argparse.Namespace) -> None:
    image = _image(options, None)[0]
    visualize.save_fixed_filters(options.kernels, image, options.output)


def _draw_excite(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint, fuse=False)
    model = nn.Sequential(OrderedDict(prepare=_Prepare(classifier), model=classifier.model))
    names = [name for name, module in classifier.model.named_modules() if name]
    layer = options.layer or names[-1]
    filters = options.filters or range(min(10, len(classifier.classes)))
    images = inspection.excite(model, f"model.{layer}", filters, classifier.input_shape)
    is_last = layer == names[-1]
    titles = [classifier.classes[k] if is_last else f"filter {k}" for k in filters]
    title = f"Model {classifier.name}: what excites {'a class' if is_last else layer} most"
    visualize.save_images(images, titles, options.output, title)


class _Prepare(nn.Module):
    """What a classifier does to images first, as a module."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.forward = classifier.prepare


def _draw_heat(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint)
    image, _, _ = _image(options, classifier)
    with torch.no_grad():
        answer = classifier(image[None])[0].argmax().item()
    heat = getattr(inspection, options.what)(classifier, image, answer)
    told = {"saliency": "pixels that move it most", "occlusion": "what is lost where it is hidden"}
    title = f"{classifier.classes[answer]}: {told[options.what]}"
    visualize.save_heat(image, heat, options.output, title)


def _draw_scores(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint)
    image, label, _ = _image(options, classifier)
    with torch.inference_mode():
        scores = classifier(image[None])[0].softmax(0)
    visualize.save_scores(image, scores, classifier.classes, options.output, label)


def _draw_mistakes(options: argparse.Namespace) -> None:
    classifier = load_classifier(options.checkpoint)
    data = _load_for(classifier, options)
    found = mistakes(classifier, data.test_images, data.test_labels)
    if not found:
        raise ConfigError(f"{data.name}: no test image is taken for another")
    shown = found[:24]
    images = data.test_images[torch.tensor([mistake.index for mistake in shown])]
    titles = [
        f"{data.classes[m.answer]} {100 * m.probability:.0f} %\nis {data.classes[m.label]}"
        for m in shown
    ]
    count = len(data.test_labels)
    title = f"Model {classifier.name}: the surest of {len(found):,} mistakes in {count:,}"
    visualize.save_images(images, titles, options.output, title)


_PICTURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "filters": _draw_filters,
    "maps": _draw_maps,
    "fixed": _draw_fixed,
    "excite": _draw_excite,
    "saliency": _draw_heat,
    "occlusion": _draw_heat,
    "scores": _draw_scores,
    "mistakes": _draw_mistakes,
}


def _image(
    options: argparse.Namespace, classifier: Classifier | None
) -> tuple[Tensor, int | None, Dataset | None]:
    """The image that is asked for; one of a data set with its label and the set."""
    shape = (1, 256, 256) if classifier is None else classifier.input_shape
    if options.image is not None:
        return read_image(options.image, shape), None, None
    data = load(options.data, shape) if classifier is None else _load_for(classifier, options)
    if not 0 <= options.index < len(data.test_labels):
        raise DataError(f"{data.name}: no test image {options.index}")
    return data.test_images[options.index], int(data.test_labels[options.index]), data


def _load_for(classifier: Classifier, options: argparse.Namespace) -> Dataset:
    options.model = classifier.name
    data = _load(options)
    if data.classes != classifier.classes:
        raise DataError(f"{data.name}: other classes than those of {options.checkpoint}")
    return data


def _kernels(text: str) -> dict[str, Tensor]:
    if text in inspection.FILTERS:
        return inspection.FILTERS[text]
    try:
        found = torch.tensor(json.loads(text), dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    if found.dim() not in (2, 3) or found.numel() == 0:
        raise argparse.ArgumentTypeError(f"{text} is no matrix and no list of matrices")
    found = found if found.dim() == 3 else found[None]
    return {f"filter {i}": kernel for i, kernel in enumerate(found)}


# ---------------------------------------------------------------- summary, explain, demo, info


def _add_summary(commands: _Commands) -> None:
    command = _command(
        commands, "summary", _summary, "list a network's layers: output, parameters, FLOP"
    )
    command.add_argument("--model", choices=MODELS, default="a")
    command.add_argument(
        "--input", type=_shape, metavar="CxHxW", help=f"shape of an image; {_OF_THE_MODEL}"
    )


def _summary(options: argparse.Namespace) -> int:
    print(summary(options.model, options.input or MODELS[options.model].input_shape))
    return 0


def _add_explain(commands: _Commands) -> None:
    command = _command(
        commands, "explain", _explain, "list which algorithms run a network's layers, and what with"
    )
    command.add_argument("--model", choices=MODELS, default="a")
    command.add_argument("--batch-size", type=int, default=1, metavar="N", help="images (1)")


def _explain(options: argparse.Namespace) -> int:
    model = cnnkernels.convert(build_model(options.model)).eval()
    images = torch.zeros(options.batch_size, *MODELS[options.model].input_shape)
    print(cnnkernels.explain(model, images))
    return 0


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not CxHxW, as 3x224x224 is")
    return shape


def _add_demo(commands: _Commands) -> None:
    command = _command(
        commands,
        "demo",
        _demo,
        "train, then compare results and speed with torch's, and draw feature maps",
    )
    _take_data(command)
    command.add_argument("--no-progress", action="store_true", help="show no progress bar")
    command.add_argument("--quick", action="store_true", help="fewer images and rounds")


def _demo(options: argparse.Namespace) -> int:
    options.model = demo.MODEL
    return demo.run(_load(options), options.quick, not options.no_progress)


def _add_bench(commands: _Commands) -> None:
    command = _command(
        commands, "bench", _bench, "time these kernels beside torch's own, case by case"
    )
    command.add_argument(
        "--suite",
        choices=(*bench.SUITES, *bench.OTHER_SUITES, "all"),
        default="all",
        help="all (default) are all but zoo, torchvision's networks",
    )
    command.add_argument("--quick", action="store_true", help="few small cases, few rounds")
    command.add_argument("--threads", type=int, metavar="N", help="torch's number by default")
    command.add_argument("--device", choices=DEVICES, default="cpu")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the times as JSON")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw them")


def _bench(options: argparse.Namespace) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here")
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads {options.threads}: at least one")
        torch.set_num_threads(options.threads)
    return bench.run(options.suite, options.quick, options.device, options.json, options.plot)


def _add_info(commands: _Commands) -> None:
    command = _command(commands, "info", _info, "what was built, for which devices")
    command.add_argument("--json", action="store_true", help="print JSON")


def _info(options: argparse.Namespace) -> int:
    info = cnnkernels.info()
    print(json.dumps(info, indent=2) if options.json else "\n".join(_lines(info)))
    return 0


def _lines(info: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A nested dict as indented lines, `key: value`."""
    for key, value in info.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{key}: {', '.join(map(str, value)) or 'none'}"
        else:
            yield f"{indent}{key}: {'none' if value is None else value}"


# ---------------------------------------------------------------- what several commands do


def _say(line: str) -> None:
    """Prints a line, of several processes in the first one."""
    if parallel.is_first():
        print(line, flush=True)


def _load(options: argparse.Namespace) -> Dataset:
    data = load(options.data, MODELS[options.model].input_shape)
    _say(
        f"data: {data.name}, {len(data.train_labels):,} training and "
        f"{len(data.test_labels):,} test images"
    )
    return data


def _emulation(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    if options.backend == "emulator":
        return cnnkernels.emulate_cuda()
    return contextlib.nullcontext()


def _draw_confusion(
    path: Path | None, found: Evaluation, classes: Sequence[str], title: str
) -> None:
    if path is not None and parallel.is_first():
        title = f"{title}: {100 * found.accuracy:.2f} %"
        visualize.save_confusion(found.confusion, classes, path, title)
        print(f"confusion matrix: {path}")
