# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Small models that are trained beside the learner, for the selection alone (arXiv 2312.05328).

- A *proxy* scores in the learner's place, and is trained on the same sub-batches as the learner.
- An *online reference* takes the place of a pretrained reference, and is trained on the whole super-batches.

Each model is whole on every device, whatever engine shards the learner: an engine wraps one model, and these models
are small. Gradients are averaged over the ranks here, so that all ranks take the same step and hold the same weights,
bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PretrainedConfig, PreTrainedModel, SchedulerType, Trainer, get_scheduler
from transformers.training_args import OptimizerNames

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks, Shares
from jest_hf.losses import backward_in_chunks
from jest_hf.models import DualEncoderOutput, base_model, has_logit_bias, without_temperature
from jest_hf.models.reader import Reader
from jest_hf.models.sharding import built_whole
from jest_hf.objectives.objective import Objective
from jest_hf.selection import ContrastiveEmbeddings, PointwiseLosses, take_readable


WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state.pt"


class OnlineModel:
    """
    A model that is trained beside the learner: with AdamW, the learner's schedule, weight decay and clipping, and a
    learning rate of its own.

    Weights, gradients and optimizer are float32 (a model of less precision is converted), also where forwards run in
    bfloat16. Dropout draws from the global random state, as the learner's dropout does: a checkpoint restores both.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Whole on every rank ([`fresh_like`], or loaded within `built_whole`); changed in place, all of it trained.
        reader ([`Reader`]):
            How the model reads a super-batch.
        objective ([`Objective`]):
            The objective of the run. Without pairs and with a `chunk_size`, its loss must be a mean over examples.
        name (`str`):
            `"proxy"` or `"online_reference"`: its folder in a checkpoint, and with `_learning_rate` its option.
        learning_rate (`float`):
            Learning rate at the peak of the schedule.
        args ([`JESTConfig`]):
            Settings of optimizer, schedule and clipping.
        ranks ([`~jest_hf.distributed.Ranks`]):
            The processes that train the model together.
        device (`torch.device`):
            Device of the model.
        chunk_size (`int`, *optional*):
            Rows of this device whose activations exist at a time (by gradient caching where examples make pairs); the
            gradients are the same. Default: all rows at once.

    Raises:
        ValueError: for float16, which needs a gradient scaler; a schedule that depends on evaluations; or a model that
            ZeRO-3 has partitioned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        objective: Objective,
        *,
        name: str,
        learning_rate: float,
        args: JESTConfig,
        ranks: Ranks,
        device: torch.device,
        chunk_size: int | None = None,
    ) -> None:
        title = name.replace("_", " ")
        if args.mixed_precision == "fp16":
            raise ValueError(
                f"fp16=True would lose small gradients of the {title}, which is trained without a gradient scaler; "
                "set bf16=True in place of it, or fp16=False."
            )
        if any(parameter.numel() == 0 for parameter in model.parameters()):
            raise ValueError(
                f"the {title} was loaded after the training arguments, when ZeRO-3 partitions every model; pass its "
                "id or path, or load it before the arguments are made."
            )
        self.model = model.requires_grad_(True)
        nn.Module.to(self.model, device, torch.promote_types(model.dtype, torch.float32))
        self._initial = {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}
        self.reader, self.objective = reader, objective
        self.name, self.learning_rate = name, learning_rate
        self.check_schedule(args)
        self.args, self.ranks, self.chunk_size = args, ranks, chunk_size

    def check_schedule(self, args: JESTConfig) -> None:
        """Refuse a learning rate schedule that this model cannot follow.

        Raises:
            ValueError: for a schedule that depends on evaluations.
        """
        if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            raise ValueError(
                f"lr_scheduler_type={SchedulerType(args.lr_scheduler_type).value!r} depends on evaluations, and the "
                f"{self.name.replace('_', ' ')} is not evaluated; choose a schedule that depends on steps, such as "
                "'cosine'."
            )

    def start_over(self, seed: int | None = None) -> None:
        """Restore the weights and statistics that the model came with; with a seed, draw fresh ones."""
        self.model.load_state_dict(self._initial if seed is None else fresh_like(self.model, seed).state_dict())

    def start(self, num_training_steps: int) -> None:
        """Make optimizer and schedule of so many steps; all ranks take the first rank's weights. A collective."""
        args = self.args
        # The learner's own rule. The method uses nothing of its Trainer.
        decayed = set(without_temperature(Trainer.get_decay_parameter_names(cast(Trainer, None), self.model)))
        groups = [
            {
                "params": [value for name, value in self.model.named_parameters() if (name in decayed) == decays],
                "weight_decay": args.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=args.optim == OptimizerNames.ADAMW_TORCH_FUSED or None,  # the Trainer's default, on all devices
        )
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=args.get_warmup_steps(num_training_steps),
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )
        self._take_from_first_rank(self.model.parameters())
        self._take_from_first_rank(self.model.buffers())

    def step(
        self, batch: Mapping[str, Tensor], autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> float:
        """
        Take one step on one batch of all ranks. A collective.

        Args:
            batch (mapping of `str` to `torch.Tensor`):
                This rank's rows, at least one, all of which can be read. Ranks may have different numbers of them.
            autocast (`Callable`, *optional*):
                Makes the context of forwards: `accelerator.autocast`. Do not call `step` itself within that context:
                backward and optimizer need none, and its cache would keep the old weights.

        Returns:
            `float`: the loss, the same on every rank.

        Raises:
            FloatingPointError: on all ranks, if the gradients are NaN or infinite; the weights are as before.
        """
        self.model.train()
        loss = self._backward(batch, autocast)
        self._average_gradients()
        norm = clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        if not norm.isfinite():
            raise FloatingPointError(
                f"step {self.scheduler.last_epoch + 1} of the {self.name.replace('_', ' ')}: its gradients are NaN or "
                f"infinite, and its loss is {loss.item():.4g}; try a lower {self.name}_learning_rate."
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        # Statistics of batch norm are those of a rank's own rows; as under DDP, the first rank's count.
        self._take_from_first_rank(self.model.buffers())
        return loss.item()

    def score(self, batch: Mapping[str, Tensor], batch_size: int) -> ContrastiveEmbeddings | PointwiseLosses:
        """Score a super-batch, `batch_size` rows at a time, in eval mode and without gradients."""
        return self.reader.score(self.model, batch, batch_size)

    def _backward(self, batch: Mapping[str, Tensor], autocast: Callable[[], AbstractContextManager[object]]) -> Tensor:
        """Add this rank's part of the gradients to the parameters (their mean over ranks is the whole); the loss."""
        n_rows = len(batch["example_id"])
        chunk_size = self.chunk_size or n_rows
        if self.chunk_size is not None and not self.objective.pairs:
            # First: ranks with one chunk and ranks with two must call the same collectives.
            return self._backward_of_means(batch, self.chunk_size, autocast)
        if n_rows <= chunk_size:
            with autocast():
                loss = self.objective.loss(self.reader(self.model, batch), batch, self.ranks)
            loss.backward()
            return loss.detach()

        def forward(rows: slice) -> DualEncoderOutput:
            with autocast():
                return self.reader(self.model, batch, rows)

        # No forward is a collective here: the ranks' numbers of chunks may differ.
        return backward_in_chunks(
            forward,
            n_rows,
            math.ceil(n_rows / chunk_size),
            loss=lambda *embedded: self.objective.loss(DualEncoderOutput.of(*embedded), batch, self.ranks),
        )

    def _backward_of_means(
        self, batch: Mapping[str, Tensor], chunk_size: int, autocast: Callable[[], AbstractContextManager[object]]
    ) -> Tensor:
        """As `_backward`, of a mean over examples, which is a weighted sum of the means of chunks."""
        n_rows = len(batch["example_id"])
        total = sum(self.ranks.gather_counts(n_rows, batch["example_id"].device))
        losses = []
        for start in range(0, n_rows, chunk_size):
            chunk = {name: value[start : start + chunk_size] for name, value in batch.items()}
            with autocast():
                mean = self.objective.loss(self.reader(self.model, chunk), chunk, Ranks())
            loss = mean * (len(chunk["example_id"]) / total)
            (loss * self.ranks.size).backward()
            losses.append(loss.detach())
        return self.ranks.sum(torch.stack(losses).sum())

    def _average_gradients(self) -> None:
        """Average the gradients over the ranks in one message, which every rank adds up in the same order."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        means = self.ranks.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.ranks.size
        for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def _take_from_first_rank(self, values: Iterable[Tensor]) -> None:
        for value in values:
            if value.is_floating_point():
                value.copy_(self.ranks.sum(value if self.ranks.rank == 0 else torch.zeros_like(value)))

    def save(self, folder: str | Path) -> None:
        """
        Write weights, optimizer and schedule into the folder `name` of a checkpoint, on the process that saves.

        The weights are a plain `transformers` checkpoint, for `from_pretrained` or as a later run's `ref_model`.
        """
        if not self.args.should_save:
            return
        folder = Path(folder) / self.name
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        # Under the names that the modules have, whatever `save_pretrained` may rename for older versions.
        save_model(self.model, str(folder / WEIGHTS), metadata={"format": "pt"})
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save(state, folder / TRAINING_STATE)

    def load(self, folder: str | Path) -> None:
        """
        Continue from what [`~OnlineModel.save`] wrote into this checkpoint, after [`~OnlineModel.start`].

        Raises:
            OSError: if the checkpoint lacks it.
            ValueError: if it holds another model.
        """
        folder, title = Path(folder) / self.name, self.name.replace("_", " ")
        for file in (WEIGHTS, TRAINING_STATE):
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"{folder / file} does not exist: the checkpoint was saved by a run without a {title}, or only in "
                    "part; resume with the settings of that run, or start anew."
                )
        try:
            load_model(self.model, str(folder / WEIGHTS))
        except RuntimeError as error:
            raise ValueError(
                f"{folder} holds a {title} of another architecture; resume with the model of the run that saved it."
            ) from error
        state = torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


class OnlineReference:
    """
    An [`OnlineModel`] in the reference's place.

    Args:
        online ([`OnlineModel`]): Trained on all rows of the super-batches that can be read.

    Attributes:
        name, commit: `None`: this run trains the model itself.
    """

    name: str | None = None
    commit: str | None = None
    reads_images = True
    width: int | None = None

    def __init__(self, online: OnlineModel) -> None:
        self.online = online

    @property
    def reader(self) -> Reader:
        """How the model reads a super-batch."""
        return self.online.reader

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the model."""
        return self.online.model.config

    def comparing(self, collator: Any) -> Any:
        """Return `collator`: nothing is cached."""
        return collator

    def fetch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an empty dict: the model scores on the device."""
        return {}

    def caption_counts(self, ids: Tensor) -> None:
        """Return `None`: the rows tell their captions when they are read."""

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference: nothing, for this run has made it."""
        return {}

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which examples of a super-batch the reference can score, bool `[B]`: all that can be read."""
        return batch["valid"]

    def score(
        self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int
    ) -> ContrastiveEmbeddings | PointwiseLosses:
        """Score a super-batch with the reference's present weights; `learner` is not used."""
        return self.online.score(batch, batch_size)

    def learn(
        self,
        super_batch: dict[str, Tensor],
        shares: Shares,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> float:
        """Take one [`~OnlineModel.step`] on all readable rows of a super-batch, spread evenly over its `shares`."""
        return self.online.step(take_readable(super_batch, shares).batch, autocast)


def fresh_like(model: nn.Module, seed: int) -> PreTrainedModel:
    """
    Make a model of the architecture of `model` (without adapters) with random weights, in fp32, and whole also where
    ZeRO-3 partitions every new model.

    Args:
        model ([`~transformers.PreTrainedModel`]): Only its class and configuration are used.
        seed (`int`): Seed of the weights; the global random state does not change.

    SigLIP starts at `logit_scale = log 10`, `logit_bias = -10` (arXiv 2303.15343, section 3.2), which transformers
    leaves random; CLIP starts at the value in its configuration.
    """
    model = base_model(model)
    with built_whole(), torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(deepcopy(model.config))
    if has_logit_bias(fresh):
        with torch.no_grad():
            fresh.get_parameter("logit_scale").fill_(math.log(10.0))
            fresh.get_parameter("logit_bias").fill_(-10.0)
    return fresh


__all__ = ["OnlineModel", "OnlineReference", "fresh_like"]
