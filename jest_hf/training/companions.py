# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The small models that are trained beside the learner: a proxy that scores in its place, and an online reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.objectives import Objective
from jest_hf.reference import load_reference
from jest_hf.selection import Pool
from jest_hf.training.engine import Engine
from jest_hf.training.online_model import OnlineModel, OnlineReference, fresh_like


class Companions:
    """
    Makes, trains, saves and loads the models beside the learner, of which there may be none.

    Args:
        args ([`JESTConfig`]): Options of the run.
        objective ([`Objective`]): What the run trains for.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        engine ([`Engine`]): For mixed precision.
        processor: The processor that the models read with.

    Attributes:
        proxy ([`OnlineModel`], *optional*): Scores in the learner's place.
        reference ([`OnlineReference`], *optional*): Scores in the place of a frozen reference.
        resumed_from (`str`, *optional*): Checkpoint to load at the start of training.
    """

    def __init__(self, args: JESTConfig, objective: Objective, ranks: Ranks, engine: Engine, processor: Any) -> None:
        self.args = args
        self.objective = objective
        self.ranks = ranks
        self.engine = engine
        self.processor = processor
        self.proxy: OnlineModel | None = None
        self.reference: OnlineReference | None = None
        self.resumed_from: str | None = None
        self._proxy_is_fresh = self._reference_is_fresh = False

    @property
    def models(self) -> list[OnlineModel]:
        """The models that there are."""
        online = None if self.reference is None else self.reference.online
        return [one for one in (self.proxy, online) if one is not None]

    def make_proxy(self, proxy_model: PreTrainedModel | str | None, ref_model: PreTrainedModel | None) -> None:
        """
        Make the proxy, with `args.scoring="proxy"`; without `proxy_model` a fresh one of the reference's architecture.

        Raises:
            ValueError: if there is neither a proxy nor a reference model.
        """
        args = self.args
        if args.scoring != "proxy" or not args.selects:
            return
        self._proxy_is_fresh = proxy_model is None
        if proxy_model is None:
            if ref_model is None:
                raise ValueError(
                    "scoring='proxy' trains a model of the reference's architecture, and no reference model is loaded "
                    "here; pass proxy_model."
                )
            proxy_model = fresh_like(ref_model, args.seed)
        self.proxy = self._online(proxy_model, "proxy", chunk_size=args.gradient_cache_chunk_size)

    def make_reference(self, ref_model: PreTrainedModel | None, learner: nn.Module) -> None:
        """
        Make the online reference, with `args.reference="online"`; without `ref_model` a fresh one of the learner's
        architecture.
        """
        args = self.args
        if args.reference != "online" or not args.uses_reference:
            return
        self._reference_is_fresh = ref_model is None
        model = fresh_like(learner, args.seed + 1) if ref_model is None else ref_model
        self.reference = OnlineReference(
            self._online(model, "online_reference", chunk_size=args.per_device_train_batch_size)
        )

    def _rate(self, name: str) -> float:
        """The peak learning rate of one of the models."""
        args = self.args
        if name == "proxy":
            return args.learning_rate if args.proxy_learning_rate is None else args.proxy_learning_rate
        rate = args.online_reference_learning_rate
        return 2 * args.learning_rate if rate is None else rate

    def _online(self, model: PreTrainedModel | str, name: str, chunk_size: int | None) -> OnlineModel:
        args = self.args
        if isinstance(model, str):
            model, _ = load_reference(model, ranks=self.ranks, device=args.device)
        return OnlineModel(
            model,
            self.objective.reader(model, self.processor, name.replace("_", " "), prefix="ref_"),
            self.objective,
            name=name,
            learning_rate=self._rate(name),
            args=args,
            ranks=self.ranks,
            device=args.device,
            chunk_size=chunk_size,
        )

    def step(self, pool: Pool, sub_batch: Mapping[str, Tensor]) -> dict[str, float]:
        """
        Train the proxy on the sub-batch, and the online reference on the whole super-batch; return their losses.

        Their dropout draws from the global random state before the learner's does: the step calls this first.
        """
        losses = {}
        if self.proxy is not None:
            losses["proxy_loss"] = self.proxy.step(sub_batch, self.engine.autocast)
        if self.reference is not None:
            losses["online_reference_loss"] = self.reference.learn(dict(pool.rows), pool.shares, self.engine.autocast)
        return losses

    def start_over(self) -> None:
        """Give the models the weights that they came with, or fresh ones of `args.seed`, where the learner starts anew
        (`model_init`)."""
        if self.proxy is not None:
            self.proxy.start_over(self.args.seed if self._proxy_is_fresh else None)
        if self.reference is not None:
            self.reference.online.start_over(self.args.seed + 1 if self._reference_is_fresh else None)

    def start(self, num_training_steps: int) -> None:
        """Make optimizers and schedules for so many steps, and load the state of the checkpoint to resume from."""
        checkpoint, self.resumed_from = self.resumed_from, None
        for model in self.models:
            model.learning_rate = self._rate(model.name)
            model.start(num_training_steps)
            if checkpoint is not None:
                model.load(checkpoint)

    def save(self, folder: str) -> None:
        """Write the models with optimizers and schedules into a checkpoint."""
        for model in self.models:
            model.save(folder)


__all__ = ["Companions"]
