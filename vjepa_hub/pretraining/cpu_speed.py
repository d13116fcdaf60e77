"""Training on the CPU at the speed of its matrix products: the same arithmetic, with less around it.

Two things cost time there beside the products. torch copies the bias into the result before each float32 product, and
computes the product with a library that is slower than oneDNN on some processors. And tensors of more than 32 MB are
handed back to the system when they are freed, which has to clear their memory again for the next tensor of that size.
"""

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Parameters of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1
X86 = ("x86_64", "AMD64")


@contextmanager
def fast_cpu_training() -> Iterator[None]:
    """Within, float32 training steps on the CPU are faster. Results change by rounding alone.

    Linear layers go through oneDNN on x86; under autocast, on other devices and in other formats they stay as they
    are. The process keeps the memory that it frees, from here to its end.
    """
    keep_freed_memory()
    with OneDNNLinears():
        yield


def keep_freed_memory() -> bool:
    """Have glibc keep all memory that is freed for what comes next. Cannot be taken back.

    Returns:
        Whether it does: other C libraries than glibc, as on macOS and Windows, are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(parameter, value) for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)))


class OneDNNLinears(TorchFunctionMode):
    """Within, float32 linear layers on the CPU are computed by oneDNN, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.is_available = platform.machine() in X86 and torch.backends.mkldnn.is_available()

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Compute a linear layer, or let through what is none."""
        if function is F.linear and not kwargs and self.is_available and _is_float32_on_cpu(args):
            tokens, weight, *bias = args
            output = _OneDNNLinear.apply(tokens.reshape(-1, tokens.shape[-1]), weight, *(bias or [None]))
            return output.view(*tokens.shape[:-1], -1)
        return function(*args, **(kwargs or {}))


def _is_float32_on_cpu(tensors: tuple) -> bool:
    plain = (torch.Tensor, torch.nn.Parameter)
    return not torch.is_autocast_enabled("cpu") and all(
        tensor is None or (type(tensor) in plain and tensor.dtype == torch.float32 and tensor.device.type == "cpu")
        for tensor in tensors
    )


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`rows @ weight.T + bias`, the operator of torch's own compiler for linear layers on the CPU."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer on a matrix of tokens."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(tokens, weight)
        return _product(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        needs_tokens, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_tokens else None,
            grad.t() @ tokens if needs_weight else None,
            grad.t() @ grad.new_ones(len(grad)) if needs_bias else None,  # twice as fast as a sum over the rows
        )
