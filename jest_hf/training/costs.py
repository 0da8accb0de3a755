# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step costs: the dry run on one row, and the FLOPs that follow from its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from jest_hf.config import JESTConfig
from jest_hf.images.views import View
from jest_hf.models import Reader
from jest_hf.objectives import Objective
from jest_hf.report.flops import StepFlops, flops_of_cache, flops_of_step


class RunCosts:
    """
    FLOPs of the steps of a run, and of caching its reference.

    Args:
        args ([`JESTConfig`]): Options of the run.
        forward (mapping of `str` to `float`): Forward FLOPs of one example, by model; empty without training data.
        widths (mapping of `str` to `int`): Width of the embeddings, by model that scores.
        n_rows (`int`, *optional*): Rows of the training data; `None` for a stream.

    Attributes:
        of_cache (`float`): FLOPs of caching the reference before the first step.
    """

    def __init__(
        self, args: JESTConfig, forward: Mapping[str, float], widths: Mapping[str, int], n_rows: int | None
    ) -> None:
        self.args = args
        self.forward = forward
        self.widths = widths
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
) -> tuple[dict[str, float], dict[str, int]]:
    """
    Check one collated row against every model, without running one.

    Args:
        batch (mapping of `str` to `torch.Tensor`): The row, as the collator makes it.
        objective ([`Objective`]): What the run trains for.
        readers (mapping): By role (`"learner"`, `"proxy"`, `"reference"`), how the model reads a batch, and its
            configuration.
        view ([`~jest_hf.models.View`], *optional*): The view at which the learner scores.

    Returns:
        `tuple`: forward FLOPs of one example and width of the embeddings, by role; and the FLOPs of the learner at the
        view, as `"learner_at_view"`.

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
    return forward, widths


def check_evaluation(eval_dataset: Any, loader_of: Callable[[Any], Any]) -> None:
    """
    Collate one row of each evaluation data set.

    Args:
        eval_dataset: A data set, a dict of several, or `None`.
        loader_of (`Callable`): Makes the loader of a data set.

    Raises:
        TypeError, ValueError: naming the data set whose rows cannot be used.
    """
    if eval_dataset is None:
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


__all__ = ["RunCosts", "check_evaluation", "dry_run"]
