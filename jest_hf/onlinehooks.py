# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's small models that learn beside the learner: a proxy that scores in its place, an online reference."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from jest_hf.distributed import Shares
from jest_hf.online import OnlineModel, OnlineReference, fresh_like
from jest_hf.reference import load_reference


class OnlineHooks:
    """A part of [`~jest_hf.JESTTrainer`], which it is mixed into."""

    proxy: OnlineModel | None = None
    online_reference: OnlineReference | None = None
    _resumed_from: str | None = None

    def make_proxy(self, model: PreTrainedModel | str | None) -> None:
        """The proxy, where scoring asks for one; without a `model` a fresh one of the reference's architecture."""
        args = self.args
        if args.scoring != "proxy" or args.selection == "uniform":
            return
        if model is None and self.ref_model is None:
            raise ValueError(
                "scoring='proxy' trains a model of the reference's architecture, and no reference model is loaded "
                "here; pass proxy_model."
            )
        self.proxy = self._online(
            fresh_like(self.ref_model, args.seed) if model is None else model,
            "proxy",
            args.learning_rate if args.proxy_learning_rate is None else args.proxy_learning_rate,
            chunk_size=args.gradient_cache_chunk_size,
        )

    def make_online_reference(self) -> None:
        """The online reference; without a `ref_model` a fresh one of the learner's architecture."""
        args = self.args
        rate = args.online_reference_learning_rate
        self.online_reference = OnlineReference(
            self._online(
                fresh_like(self.model, args.seed + 1) if self.ref_model is None else self.ref_model,
                "online_reference",
                2 * args.learning_rate if rate is None else rate,
                chunk_size=args.per_device_train_batch_size,
            )
        )

    def _online(
        self, model: PreTrainedModel | str, name: str, learning_rate: float, chunk_size: int | None
    ) -> OnlineModel:
        args = self.args
        if isinstance(model, str):
            model, _ = load_reference(model, ranks=self.ranks, device=args.device)
        processor = self.data_collator.ref_processor or self.processing_class
        reader = self.objective.reader(model, processor, name.replace("_", " "), prefix="ref_")
        if not any(isinstance(one, _Start) for one in self.callback_handler.callbacks):
            self.add_callback(_Start(self))
        return OnlineModel(
            model,
            reader,
            self.objective,
            name=name,
            learning_rate=learning_rate,
            args=args,
            ranks=self.ranks,
            device=args.device,
            chunk_size=chunk_size,
        )

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """Where the learner starts anew (`model_init`, as in each trial of a search), so do they."""
        for model in self.online_models:
            model.start_over()
        return super().call_model_init(trial)

    @property
    def online_models(self) -> list[OnlineModel]:
        """Those that learn beside the learner in this run."""
        reference = self.online_reference
        return [one for one in (self.proxy, reference and reference.online) if one is not None]

    def train_beside(self, super_batch: dict[str, Tensor], shares: Shares, sub_batch: dict[str, Tensor]) -> None:
        """One step of the proxy on the sub-batch, and of the online reference on the whole super-batch."""
        if self.proxy is not None:
            loss = self.proxy.step(sub_batch, self.accelerator.autocast)
            self.statistics.add({"proxy_loss": loss})
        if self.online_reference is not None:
            loss = self.online_reference.learn(super_batch, shares, self.accelerator.autocast)
            self.statistics.add({"online_reference_loss": loss})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        for model in self.online_models:
            model.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = checkpoint


class _Start(TrainerCallback):
    """Gives the online models their optimizers once the number of steps is known, and their state to resume from."""

    def __init__(self, trainer: OnlineHooks) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint, self.trainer._resumed_from = self.trainer._resumed_from, None
        for model in self.trainer.online_models:
            model.start(state.max_steps)
            if checkpoint is not None:
                model.load(checkpoint)


__all__ = ["OnlineHooks"]
