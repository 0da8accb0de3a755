# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a learner on a whole data set: the objective's metrics, and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.images.views import View
from jest_hf.losses.pointwise import IGNORED
from jest_hf.models import Reader
from jest_hf.objectives import Evaluated, Objective
from jest_hf.training.engine import Engine


class Evaluator:
    """
    Evaluates a learner.

    Args:
        args ([`JESTConfig`]): Options of the run.
        objective ([`Objective`]): What is measured.
        reader ([`~jest_hf.models.Reader`]): How the learner reads a batch.
        view ([`~jest_hf.models.View`], *optional*): The scoring view, for `args.eval_at_view`.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        engine ([`Engine`]): For mixed precision.
    """

    def __init__(
        self, args: JESTConfig, objective: Objective, reader: Reader, view: View | None, ranks: Ranks, engine: Engine
    ) -> None:
        self.args = args
        self.objective = objective
        self.reader = reader
        self.view = view
        self.ranks = ranks
        self.engine = engine

    def evaluate(
        self, model: nn.Module, loader: DataLoader[Any], prefix: str, compute_metrics: Callable[..., Any] | None
    ) -> EvalLoopOutput:
        """
        Evaluate on a whole data set, with `args.eval_at_view` once more at the scoring view. A collective.

        Args:
            model (`torch.nn.Module`): The wrapped learner.
            loader (`torch.utils.data.DataLoader`): This rank's share of the rows.
            prefix (`str`): Beginning of the metrics' names, such as `"eval"`.
            compute_metrics (`Callable`, *optional*): The user's, called with the rows that have a label.
        """
        readers: dict[str, Callable[..., Any]] = {"": self.reader}
        if self.args.eval_at_view:
            readers["at_view_"] = partial(self.reader, view=self.view)
        evaluated = {}
        with self.engine.autocast():
            for name, reader in readers.items():
                evaluated[name] = self.objective.evaluate(reader, model, loader, self.args.device, self.ranks)
        metrics = {
            f"{prefix}_{name}{metric}": value
            for name, one in evaluated.items()
            for metric, value in one.metrics().items()
        }
        result = evaluated[""]
        return EvalLoopOutput(
            predictions=result.predictions,
            label_ids=result.label_ids,
            metrics=metrics | _own_metrics(result, f"{prefix}_", compute_metrics),
            num_samples=result.n_examples,
        )


def _own_metrics(result: Evaluated, prefix: str, compute_metrics: Callable[..., Any] | None) -> dict[str, Any]:
    """The user's metrics of the rows with a label, under names like the Trainer's."""
    labels = result.label_ids
    if compute_metrics is None or labels is None:
        return {}
    known = labels != IGNORED
    found = compute_metrics(EvalPrediction(predictions=result.predictions[known], label_ids=labels[known]))
    return {
        name if name.startswith(prefix) else prefix + name: value
        for name, value in denumpify_detensorize(found).items()
    }


__all__ = ["Evaluator"]
