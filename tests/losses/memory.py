# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Instruments that measure what a computation holds in memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest tensor that an operation returns, in forward and backward."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_iter(result) if isinstance(x, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


class SavedActivations(saved_tensors_hooks):
    """Record the largest number of bytes that autograd keeps for the backward, without `parameters`."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = {parameter.data_ptr() for parameter in parameters}
        self.bytes = self.peak = 0
        super().__init__(self._pack, lambda held: held[0])

    def __enter__(self) -> SavedActivations:
        super().__enter__()
        return self

    def _pack(self, value: Tensor) -> Tensor | _Held:
        held = _Held([value.detach()])  # with its graph it would keep itself alive
        if value.data_ptr() not in self.parameters:
            self._add(value.nbytes)
            weakref.finalize(held, self._add, -value.nbytes)
        return held

    def _add(self, n_bytes: int) -> None:
        self.bytes += n_bytes
        self.peak = max(self.peak, self.bytes)


class _Held(list):
    """A list, to which a weak reference can be made."""
