"""Hand-written CUDA and C++ kernels for 2-D convolution and pooling, for PyTorch.

``convert(model)`` puts them into any model; :mod:`cnnkernels.functional` and
:mod:`cnnkernels.nn` mirror torch's modules of the same name.
"""

from cnnkernels import functional, nn
from cnnkernels.convert import convert, unconverted
from cnnkernels.emulation import emulate_cuda
from cnnkernels.explanation import explain
from cnnkernels.info import info
from cnnkernels.override import override_torch
from cnnkernels.profiling import profile
from cnnkernels.selection import algorithm, algorithms, fast_math

__version__ = "0.1.0"

__all__ = [
    "algorithm",
    "algorithms",
    "convert",
    "emulate_cuda",
    "explain",
    "fast_math",
    "functional",
    "info",
    "nn",
    "override_torch",
    "profile",
    "unconverted",
]
