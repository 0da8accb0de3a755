# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step costs: the dry run on one row, and the FLOPs that follow from its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.images.views import View
from jest_hf.models import FAMILIES, Reader, base_model
from jest_hf.models.families import is_dual_encoder
from jest_hf.objectives import Objective
from jest_hf.report.counting import Trained, update_flops
from jest_hf.report.flops import StepFlops, flops_of_cache, flops_of_step


logger = logging.get_logger(__name__)


class RunCosts:
    """
    FLOPs of the steps of a run, and of caching its reference.

    Args:
        args ([`JESTConfig`]): Options of the run.
        forward (mapping of `str` to `float`): FLOPs of one example, by model, as in [`~report.flops.flops_of_step`];
            empty without training data.
        widths (mapping of `str` to `int`): Width of the embeddings, by model that scores.
        n_rows (`int`, *optional*): Rows of the training data; `None` for a stream.
        can_cache (`bool`, *optional*, defaults to `False`): Whether the reference could be cached.

    Attributes:
        of_cache (`float`): FLOPs of caching the reference before the first step.
    """

    def __init__(
        self,
        args: JESTConfig,
        forward: Mapping[str, float],
        widths: Mapping[str, int],
        n_rows: int | None,
        can_cache: bool = False,
    ) -> None:
        self.args = args
        self.forward = forward
        self.widths = widths
        self.n_rows = n_rows
        self.can_cache = can_cache
        self.of_cache = flops_of_cache(args, forward, n_rows) if forward else 0.0

    def of_step(self, **counts: int) -> StepFlops:
        """FLOPs of a step, by default one whose rows can all be read; counts as in [`~report.flops.flops_of_step`]."""
        if not self.forward:
            return StepFlops()
        return flops_of_step(self.args, self.forward, self.widths, **counts)


def dry_run(
    batch: Mapping[str, Tensor],
    objective: Objective,
    readers: Mapping[str, tuple[Reader, PretrainedConfig]],
    view: View | None,
    learner: nn.Module | None = None,
    checkpointing: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], dict[str, int]]:
    """
    Check one collated row against every model, without running one.

    Args:
        batch (mapping of `str` to `torch.Tensor`): The row, as the collator makes it.
        objective ([`Objective`]): What the run trains for.
        readers (mapping): By role (`"learner"`, `"proxy"`, `"reference"`), how the model reads a batch, and its
            configuration.
        view ([`~jest_hf.models.View`], *optional*): The view at which the learner scores.
        learner, checkpointing: As in [`learner_flops`]. Default: all weights are trained.

    Returns:
        `tuple`: FLOPs of one example, as in [`~report.flops.flops_of_step`]; and width of the embeddings, by role.

    Raises:
        ValueError: if a processor does not fit its model, or the model does not fit the objective.
    """
    forward: dict[str, float] = {}
    widths: dict[str, int] = {}
    for role, (reader, config) in readers.items():
        inputs = reader.inputs(batch)
        objective.check(inputs, config, role, batch.get("labels"))
        forward[role] = objective.forward_flops(config, inputs)
        widths[role] = objective.width(config)
        if role == "learner" and view is not None:
            forward["learner_at_view"] = objective.forward_flops(config, inputs, view)
        if role == "learner" and learner is not None:
            forward |= learner_flops(learner, inputs, view, checkpointing)
    return forward, widths


def checkpointing_of(args: JESTConfig) -> dict[str, Any] | None:
    """Return the arguments of gradient checkpointing, or `None` without it."""
    # transformers has renamed the option, and keeps the old name for a while.
    if not getattr(args, "activation_checkpointing", args.gradient_checkpointing):
        return None
    given: Any = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
    ours = ("every_n_layers", "offload")  # of transformers, and not of torch.utils.checkpoint
    return {name: value for name, value in dict(given).items() if name not in ours}


def learner_flops(
    learner: nn.Module, inputs: Mapping[str, Any], view: View | None, checkpointing: Mapping[str, Any] | None
) -> dict[str, float]:
    """
    Count what [`~report.flops.flops_of_step`] needs to know of a learner that is not trained whole; else nothing.

    Args:
        learner ([`~transformers.PreTrainedModel`]): The learner, with its adapter, frozen where it is frozen.
        inputs (mapping): Arguments of its `forward`.
        view ([`~jest_hf.models.View`], *optional*): The view at which the learner scores.
        checkpointing (`dict`, *optional*): As in [`checkpointing_of`].
    """
    trained, model = Trained.of(learner, checkpointing), base_model(learner)
    if trained.is_whole:
        return {}
    in_towers = is_dual_encoder(model) and FAMILIES[model.config.model_type].towers
    flops: dict[str, float] = {}
    try:
        for name, at_view in (("", None), ("_at_view", view)):
            if not name or view is not None:
                forward, update = update_flops(
                    model.config, inputs, trained, at_view, None if in_towers else type(model)
                )
                flops |= {f"learner{name}": forward, f"learner_update{name}": update}
    except RuntimeError as error:
        logger.warning(f"The FLOPs of an update are taken to be three forwards, since they cannot be counted: {error}")
        return {}
    return flops


def check_evaluation(eval_dataset: Any, loader_of: Callable[[Any], Any], args: JESTConfig) -> None:
    """
    Collate one row of each evaluation data set. A run that selects without any is warned of.

    Args:
        eval_dataset: A data set, a dict of several, or `None`.
        loader_of (`Callable`): Makes the loader of a data set.
        args ([`JESTConfig`]): Options of the run.

    Raises:
        TypeError, ValueError: naming the data set whose rows cannot be used.
    """
    if eval_dataset is None:
        if args.selects and args.process_index == 0:
            logger.warning(
                "eval_dataset=None: no log of this run will show whether selection pays, since the training loss is "
                "that of selected examples; pass eval_dataset, or evaluate the checkpoints."
            )
        return
    several = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    for name, dataset in several.items():
        try:
            loader = loader_of(dataset)
            loader.collate_fn([loader.dataset[0]])
        except (TypeError, ValueError) as error:
            which = f"eval_dataset[{name!r}]" if name else "eval_dataset"
            error.args = (f"{which}: {error}",)
            raise


__all__ = ["RunCosts", "check_evaluation", "checkpointing_of", "dry_run", "learner_flops"]
