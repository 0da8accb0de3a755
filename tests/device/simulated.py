# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
A second device without hardware: tensors on `far:0` compute on the CPU, and behave towards others as on a GPU.

An operation on tensors of both devices raises, as it does with CUDA, and every operation after which the CPU must wait
for the device's values is counted (`waits`). So code that only a GPU would find wrong is found wrong on any machine.
What this device does not have: kernels, streams and speed of its own.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import accelerate.state
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map
from transformers import TrainingArguments


class _Backend:
    """What `torch.far` has, as `torch.cuda` does."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass  # random numbers are drawn by the CPU's generator

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def empty_cache() -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("far", backend_module=_Backend)
FAR = torch.device("far", 0)

_MOVES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
# The shape of the result, or a number for Python, depends on values: the CPU waits for the device.
_WAITS = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}
waits: list[str] = []


class Far(torch.Tensor):
    """A tensor on the simulated device; `near` has its values."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, near.size(), device=FAR, requires_grad=False, **layout)
        tensor.near = near
        return tensor

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **others: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=others.get("device", FAR))

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor of device far:0 to numpy: use Tensor.cpu() first.")

    # Where the values lie, for what looks for tensors that share memory, and for what writes files.

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.near.untyped_storage()

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name, schema = func._schema.name, func._schema
    flat, _ = tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    far = [one for one in tensors if isinstance(one, Far)]
    on_cpu = [one for one in tensors if not isinstance(one, Far) and one.dim() > 0]
    if far and on_cpu and name not in _MOVES and not name.startswith("aten::index"):  # indices may lie on the CPU
        raise RuntimeError(f"{name}: tensors on two devices: {[(str(one.device), one.shape) for one in tensors]}")
    targets = [one.type for one in flat if isinstance(one, torch.device)]
    to_cpu = name == "aten::_to_copy" and targets == ["cpu"] or name == "aten::copy_" and not isinstance(args[0], Far)
    masks = name.startswith("aten::index") and any(one.dtype in (torch.bool, torch.uint8) for one in far[1:])
    if far and (name in _WAITS or to_cpu or masks):
        frames = [frame for frame in traceback.extract_stack() if "jest_hf" + os.sep in frame.filename]
        waits.append(
            f"{name} at {frames[-1].filename.split('jest_hf' + os.sep)[-1]}:{frames[-1].lineno}" if frames else name
        )
    result = func(*_near(args), **_near(kwargs))
    if name == "aten::_local_scalar_dense":
        return result
    if schema.is_mutable:
        named = [*zip(schema.arguments, args, strict=False)]
        named += [(one, kwargs[one.name]) for one in schema.arguments if one.name in kwargs]
        if any(one.shape != one.near.shape for one in far):
            raise NotImplementedError(
                f"{name} changes the shape of its argument, which the simulated device cannot do."
            )
        changed = [value for one, value in named if one.alias_info is not None and one.alias_info.is_write]
        if not schema.returns:
            return None
        return changed[0] if len(schema.returns) == 1 else tuple(changed)
    if (targets[-1] if targets else "far" if far else "cpu") == "cpu":
        return result
    return tree_map(lambda one: Far(one) if isinstance(one, torch.Tensor) else one, result)


def _near(values: Any) -> Any:
    def near(one: Any) -> Any:
        if isinstance(one, torch.device):
            return torch.device("cpu")
        return one.near if isinstance(one, Far) else one

    return tree_map(near, values)


_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
# torch makes these of an empty tensor that grows, which `Far` cannot do.
_made_whole = torch.library.Library("aten", "IMPL")
for _name in ("arange", "arange.start", "arange.start_step", "randperm", "randperm.generator", "eye", "linspace"):
    _overload = getattr(getattr(torch.ops.aten, _name.partition(".")[0]), _name.partition(".")[2] or "default")
    _made_whole.impl(_name, partial(lambda func, *args, **kwargs: _run(func, args, kwargs), _overload), "PrivateUse1")


def _made_on_cpu(make: Any) -> Any:
    """torch makes tensors of Python numbers without dispatch: make them on the CPU, and move them."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        is_far = device is not None and torch.device(device).type == FAR.type
        tensor: torch.Tensor = make(*args, device=None if is_far else device, **kwargs)
        return tensor.to(FAR) if is_far else tensor

    return made


torch.tensor, torch.as_tensor = _made_on_cpu(torch.tensor), _made_on_cpu(torch.as_tensor)


@contextmanager
def far_by_default() -> Iterator[None]:
    """Trainers made in this context train on the simulated device, as they do on the GPU of a machine with one."""
    state = accelerate.state.PartialState
    before, used, of_arguments = state.default_device, state._shared_state.copy(), TrainingArguments.device
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    state.default_device = property(lambda self: FAR)
    TrainingArguments.device = property(lambda self: FAR)
    try:
        yield
    finally:
        state.default_device, TrainingArguments.device = before, of_arguments
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        state._shared_state.update(used)
