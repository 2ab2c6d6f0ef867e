"""A device that is not there: tensors on `meta` with the rules of a GPU, so that a CPU can check them.

An operation that mixes it with the CPU raises, as on CUDA. What makes the CPU wait for the device is noted.
"""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("meta")
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
COPIES = (aten._to_copy.default, aten.copy_.default)


class FakeDevice(TorchDispatchMode):
    """waits: for each time that the CPU waited for the device, the operation and the lines that led there.

    A scalar read from the device is 1 and a copy to the CPU holds ones, so that what follows goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in tensors if each.device == DEVICE]
        if not here:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.wait(func)
            return {torch.bool: True}.get(here[0].dtype, 1.0 if here[0].is_floating_point() else 1)
        if func is aten._to_copy.default and kwargs.get("device", DEVICE) != DEVICE:
            self.wait(func)
            return torch.ones(here[0].shape, dtype=kwargs.get("dtype") or here[0].dtype)
        if func is aten.copy_.default and args[0].device != DEVICE:
            self.wait(func)
            return args[0].fill_(1)
        if func in INDEXED:  # indices may be on the CPU
            args = (args[0], [index for each in args[1] for index in on_device(each)], *args[2:])
            tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        other = [each for each in tensors if each.device != DEVICE and each.ndim]
        if other and func not in COPIES:
            raise RuntimeError(f"{func} has tensors on {DEVICE} and on {other[0].device}")
        return func(*args, **kwargs)

    def wait(self, func: Any) -> None:
        lines = [f"{frame.filename}:{frame.lineno} {frame.line}" for frame in traceback.extract_stack()]
        own = [line for line in lines if "/site-packages/" not in line and "fake_device.py" not in line]
        self.waits.append("\n  ".join([str(func), *own[-3:]]))


def on_device(index: Tensor | None) -> list[Tensor | None]:
    """An index as those on the device that it stands for: of a mask on the CPU one for each of its axes."""
    if index is None or index.device == DEVICE:
        return [index]
    return [each.to(DEVICE) for each in (index.nonzero().unbind(1) if index.dtype == torch.bool else [index])]
