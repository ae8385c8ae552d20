"""The reference networks, in plain :mod:`torch.nn`: ``cnnkernels.convert`` brings our kernels in.

One file per family, each with a table of its models.
"""

from torch import nn

from cnnkernels.models import alexnet, cifar, mnist, resnet, vgg
from cnnkernels.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    **mnist.MODELS,
    **cifar.MODELS,
    **alexnet.MODELS,
    **vgg.MODELS,
    **resnet.MODELS,
}


def model_names() -> list[str]:
    """The names that :func:`build_model` knows."""
    return list(MODELS)


def build_model(name: str, classes: int | None = None) -> nn.Module:
    """A new model, freshly initialised, float32 on the CPU, with so many outputs.

    Without `classes`, it has those that it was published for.

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r}: not one of {', '.join(MODELS)}")
    spec = MODELS[name]
    return spec.build(spec.classes if classes is None else classes)
