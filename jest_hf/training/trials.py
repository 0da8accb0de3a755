# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trials of a hyperparameter search: each has the effect of its options, or is refused.

The Trainer sets the options of a trial on the arguments of the run, unchecked, and after it has called `model_init`
with the seed of the trial before. Here they are checked and set before that. A trial may set the options in
`PER_TRIAL`, which a run reads at its start or in each step. All others decide what is made with the trainer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from transformers.trainer_utils import HPSearchBackend

from jest_hf.config import JESTConfig
from jest_hf.objectives import Objective
from jest_hf.objectives.contrastive import ContrastiveObjective
from jest_hf.training.checks import check_objective, check_options, check_train_size
from jest_hf.training.companions import Companions
from jest_hf.training.recorder import RunRecorder
from jest_hf.training.reference import ReferencePlan


PER_TRIAL: frozenset[str] = frozenset(
    """
    selection criterion filter_ratio prefilter_ratio n_chunks selection_gain selection_precision uniform_fraction
    selection_warmup_steps filter_ratio_ramp_steps pair_score low_resolution_fraction distillation_weight
    proxy_learning_rate online_reference_learning_rate per_device_train_batch_size num_train_epochs max_steps
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim weight_decay adam_beta1 adam_beta2
    adam_epsilon max_grad_norm seed data_seed
    """.split()
)


class Tried(Protocol):
    """What a trial reads and changes of a [`~training.setup.RunPlan`]."""

    @property
    def args(self) -> JESTConfig: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def collator(self) -> Any: ...
    @property
    def seeds_collator(self) -> bool: ...
    @property
    def train_dataset(self) -> Any: ...
    @property
    def reference(self) -> ReferencePlan: ...
    @property
    def companions(self) -> Companions: ...
    @property
    def recorder(self) -> RunRecorder: ...
    @property
    def before_trials(self) -> dict[str, Any]: ...


@contextmanager
def trying(plan: Tried, trainer: Any, trial: Any) -> Iterator[None]:
    """
    Within, the arguments of the run are those of a trial; without a trial nothing changes.

    Args:
        plan ([`Tried`]): The run.
        trainer ([`~transformers.Trainer`]): Has the search's backend, and its `hp_space`, which is called once.
        trial (*optional*): As in [`~transformers.Trainer.train`].

    Raises:
        ValueError: for an option that is not in `PER_TRIAL`, for a value that [`JESTConfig`] refuses, and for options
            that need a model which this trainer was made without.
    """
    if trial is None or trainer.hp_search_backend is None:
        yield
        return
    space = getattr(trainer, "hp_space", None)  # `hyperparameter_search` sets it
    values = dict(space(trial) if trainer.hp_search_backend == HPSearchBackend.OPTUNA and space else trial)
    reads_trial = len(inspect.signature(trainer.model_init).parameters) > 0
    _take(plan, {name: value for name, value in values.items() if name != "wandb" and name[0] != "_"}, reads_trial)
    trainer.hp_space = lambda _: values
    try:
        yield
    finally:
        trainer.hp_space = space


def _take(plan: Tried, values: Mapping[str, Any], reads_trial: bool) -> None:
    """Check the options of a trial, as those of a new trainer are, and set them; what only an earlier trial has set
    gets its first value again."""
    args, chosen = plan.args, dict(plan.before_trials)
    for name, value in values.items():
        if name in PER_TRIAL:
            chosen[name] = value.item() if hasattr(value, "item") else value  # a scalar of numpy
        elif hasattr(args, name):
            raise ValueError(
                f"hyperparameter_search: {name}={value!r} cannot change from trial to trial, since the trainer is "
                "made with it; leave it out of hp_space, and make a trainer for each value."
            )
        elif not reads_trial:
            raise ValueError(
                f"hyperparameter_search: {name}={value!r} is no option of JESTConfig, and would have no effect; "
                "correct the name, or let model_init take the trial as its argument and read it."
            )
    new = args.altered(**chosen)
    check_options(new, type(plan.objective))
    check_objective(new, plan.objective, plan.collator)
    if plan.train_dataset is not None:
        check_train_size(plan.recorder.statistics.n_examples, new)
    _check_models(plan, new)
    if (
        "seed" in values
        and "data_seed" not in values
        and plan.before_trials.get("data_seed", args.data_seed) == (plan.before_trials.get("seed", args.seed))
    ):
        chosen["data_seed"] = new.data_seed = new.seed
    if plan.seeds_collator:
        plan.collator.seed = new.seed
    for name in chosen:
        plan.before_trials.setdefault(name, getattr(args, name))
        setattr(args, name, getattr(new, name))
    if isinstance(plan.objective, ContrastiveObjective):
        plan.objective.distillation_weight = args.settings.distillation_weight
    plan.recorder.statistics.settings |= args.selection_settings


def _check_models(plan: Tried, new: JESTConfig) -> None:
    """Refuse options that need a model which is not there; and a schedule that the models beside the learner lack."""
    missing = None
    if new.uses_reference and plan.reference.source is None:
        missing = "a reference"
    elif new.selects and new.scoring == "proxy" and plan.companions.proxy is None:
        missing = "a proxy"
    if missing is not None:
        raise ValueError(
            f"hyperparameter_search: selection={new.selection!r} with criterion={new.criterion!r} and "
            f"distillation_weight={new.distillation_weight} needs {missing}, and the trainer was made without one; "
            "make it with options that need one, or leave these out of hp_space."
        )
    for model in plan.companions.models:
        model.check_schedule(new)


__all__ = ["PER_TRIAL", "trying"]
