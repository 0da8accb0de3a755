# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the parts of a run use of a Trainer: its accelerator, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from accelerate import Accelerator
from torch import Tensor, nn


class Engine:
    """
    The accelerator of a Trainer, looked up whenever it is used: a hyperparameter search makes a new one.

    Args:
        accelerator (`Callable`): Returns the Trainer's accelerator.
    """

    def __init__(self, accelerator: Callable[[], Accelerator]) -> None:
        self._accelerator = accelerator

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator in use."""
        return self._accelerator()

    @property
    def is_fsdp(self) -> bool:
        """Whether FSDP2 wraps the learner."""
        return getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed wraps the learner."""
        return getattr(self.accelerator.state, "deepspeed_plugin", None) is not None

    def autocast(self) -> AbstractContextManager[None]:
        """Make the context in which forwards run in mixed precision."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Backpropagate a loss, as the engine does it."""
        self.accelerator.backward(loss)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Make a context in which backward does not average gradients over the ranks."""
        return self.accelerator.no_sync(model)


__all__ = ["Engine"]
