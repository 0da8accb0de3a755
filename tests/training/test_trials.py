# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trials of a hyperparameter search: an option has its effect in a trial, or is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import hyperparameter_search
from transformers.trainer_utils import BestRun, HPSearchBackend

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.training.trials import PER_TRIAL
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.objectives.labelled import text_rows, tiny_bert, tiny_tokenizer
from tests.trainers import arguments


# Options of the trainer that tries, by the name of the group; those of all groups first.
BASE = {"filter_ratio": 0.75, "max_steps": 3, "lr_scheduler_type": "linear"}
GROUPS = {
    "joint": {},
    "independent": {"selection": "independent"},
    "proxy": {"preset": "active_siglip", "filter_ratio": 0.75, "learning_rate": 1e-3},
    "online": {"reference": "online"},
    "view": {"scoring_view": "patch:16"},
    "cached": {
        "cache_reference": True,
        "selection": "independent",
        "criterion": "easy_reference",
        "filter_ratio": 0.5,
    },
    "distilling": {"distillation_weight": 0.5},
}
# Trials whose effect is that of a new trainer with these options: at least one for each option in `PER_TRIAL`.
TRIALS = [
    ("joint", {"selection": "uniform"}),
    ("independent", {"criterion": "easy_reference"}),
    ("joint", {"filter_ratio": 0.5}),
    ("joint", {"filter_ratio": np.float64(0.5)}),
    ("cached", {"prefilter_ratio": 0.5}),
    ("joint", {"n_chunks": 2}),
    ("joint", {"selection_gain": 9.0}),
    ("joint", {"selection_precision": "bfloat16"}),
    ("joint", {"uniform_fraction": 0.5}),
    ("joint", {"selection_warmup_steps": 2}),
    ("joint", {"filter_ratio_ramp_steps": 2}),
    ("independent", {"pair_score": "similarity"}),
    ("view", {"low_resolution_fraction": 0.25}),
    ("distilling", {"distillation_weight": 4.0}),
    ("distilling", {"distillation_weight": 0.0}),
    ("proxy", {"proxy_learning_rate": 0.1}),
    ("proxy", {"learning_rate": 0.1}),
    ("proxy", {"seed": 7}),
    ("online", {"online_reference_learning_rate": 0.1}),
    ("online", {"learning_rate": 0.1, "seed": 7}),
    ("joint", {"per_device_train_batch_size": 4}),
    ("joint", {"max_steps": -1, "num_train_epochs": 2}),
    ("joint", {"max_steps": 2}),
    ("joint", {"learning_rate": 3e-3}),
    ("joint", {"lr_scheduler_type": "constant"}),
    ("joint", {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}}),
    ("joint", {"warmup_steps": 2}),
    ("joint", {"warmup_steps": 0.5}),
    ("joint", {"optim": "sgd"}),
    ("joint", {"weight_decay": 0.5}),
    ("joint", {"adam_beta1": 0.5}),
    ("joint", {"adam_beta2": 0.5}),
    ("joint", {"adam_epsilon": 0.1}),
    ("joint", {"max_grad_norm": 1e-9}),
    ("joint", {"seed": 7}),
    ("joint", {"data_seed": 7}),
]
HARDLY_SHOWS = {"selection_precision"}  # no draw of a few small scores changes


def rows(n=96):
    """Each image has several captions, so that the draw among them shows."""
    found = random_rows(n)
    return [{"image": row["image"], "captions": [row["text"], f"{row['text']} and a car"]} for row in found]


def make(folder, **options):
    return JESTTrainer(
        model_init=lambda: tiny_siglip(torch.initial_seed() % 1000),  # of args.seed
        ref_model=tiny_siglip(1) if options.get("reference") != "online" else None,
        args=arguments(folder, **{**BASE, **options}),
        train_dataset=rows(),
        eval_dataset=random_rows(8),
        processing_class=tiny_siglip_processor(),
    )


def read(trial):
    return trial.params


def trained(trainer, **arguments):
    """All weights that a training makes."""
    trainer.train(**arguments)
    models = [trainer.model, *(beside.model for beside in trainer.online_models)]
    return torch.cat([value.detach().flatten() for model in models for value in model.parameters()])


def search(trainer):
    """Put a trainer into a search, as `hyperparameter_search` does."""
    trainer.hp_search_backend, trainer.hp_space, trainer.hp_name = HPSearchBackend.OPTUNA, read, None
    return trainer


class Trial(SimpleNamespace):
    """In place of a trial of Optuna: `params` are the options that it sets."""

    def __init__(self, number=0, **params):
        super().__init__(number=number, params=params)


@pytest.fixture(autouse=True)
def trials_need_no_optuna(monkeypatch):
    """The Trainer reads them for `trainer_state.json`, and asks Optuna for their type."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights of a group without a trial, once for each group."""
    known = {}

    def weights(group):
        if group not in known:
            known[group] = trained(make(tmp_path_factory.mktemp("plain"), **GROUPS[group]))
        return known[group]

    return weights


@pytest.mark.parametrize(("group", "trial"), TRIALS, ids=str)
def test_a_trial_is_as_a_new_trainer(tmp_path, plain, group, trial):
    trainer = search(make(tmp_path / "tried", **GROUPS[group]))
    tried = trained(trainer, trial=Trial(**trial))
    fresh = make(tmp_path / "fresh", **{**GROUPS[group], **trial})
    assert torch.equal(tried, trained(fresh))
    for name in trial:
        assert getattr(trainer.args, name) == getattr(fresh.args, name)
    assert set(trial) <= HARDLY_SHOWS or tried.shape != plain(group).shape or not torch.equal(tried, plain(group))
    if trial.get("selection") != "uniform":  # its reference is there, and not used
        assert trainer.statistics.settings == fresh.statistics.settings
    assert trainer.state.total_flos == fresh.state.total_flos or group == "cached"


@pytest.mark.parametrize(
    "before",
    [
        [{"filter_ratio": 0.5, "uniform_fraction": 0.25, "seed": 7}],
        [{"learning_rate": 1e-1, "seed": 3}, {"n_chunks": 1, "data_seed": 5}],
    ],
    ids=str,
)
def test_a_trial_keeps_nothing_of_those_before(tmp_path, before):
    trainer = search(make(tmp_path / "tried"))
    for trial in before:
        trainer.train(trial=Trial(**trial))
    tried = trained(trainer, trial=Trial(weight_decay=0.5))
    fresh = make(tmp_path / "fresh", weight_decay=0.5)
    assert torch.equal(tried, trained(fresh))
    assert trainer.statistics.settings == fresh.statistics.settings


def test_every_option_is_tried_or_refused():
    assert {name for _, trial in TRIALS for name in trial} == PER_TRIAL
    assert PER_TRIAL <= {one.name for one in fields(JESTConfig)}


def test_the_page_has_the_options():
    page = (Path(__file__).parents[2] / "docs" / "arguments.md").read_text(encoding="utf-8")
    listed = page.split("## Trials of a hyperparameter search")[1].split("\n\n")[2]
    assert re.findall(r"`(\w+)`", listed) == sorted(PER_TRIAL)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return search(make(tmp_path_factory.mktemp("refusing")))


@pytest.mark.parametrize("name", sorted({one.name for one in fields(JESTConfig)} - PER_TRIAL))
def test_an_option_that_the_trainer_is_made_with_is_refused(trainer, name):
    before = dict(vars(trainer.args))
    with pytest.raises(ValueError, match=rf"^hyperparameter_search: {name}=.* cannot change from trial to trial.*\.$"):
        trainer.train(trial=Trial(**{"learning_rate": 1.0, name: getattr(trainer.args, name)}))
    assert vars(trainer.args) == before


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"filter_ratio": 1.2}, r"filter_ratio=1.2 must be in \[0, 1\)"),
        ({"n_chunks": 2.5}, "n_chunks=2.5 must be a whole number"),
        ({"selection_warmup_steps": 1.5}, "selection_warmup_steps=1.5 must be a whole number"),
        ({"selection": "best"}, "selection='best' is not known"),
        ({"criterion": "easy_reference", "pair_score": "similarity"}, "pair_score='similarity' gives no score"),
        ({"learning_rate": "fast"}, "learning_rate='fast' must be a number"),
        ({"lr_scheduler_type": "steep"}, "steep"),
        ({"per_device_train_batch_size": 64}, "train_dataset has 96 rows, fewer than one super-batch of 256"),
        ({"prefilter_ratio": 0.5}, "needs the scores of a cached reference"),
        ({"hidden_size": 8}, "hyperparameter_search: hidden_size=8 is no option of JESTConfig"),
    ],
    ids=str,
)
def test_values_are_checked_as_those_of_a_new_trainer(trainer, trial, words):
    before = dict(vars(trainer.args))
    with pytest.raises(ValueError, match=words):
        trainer.train(trial=Trial(**trial))
    assert vars(trainer.args) == before


def test_a_schedule_that_a_proxy_cannot_follow_is_refused(tmp_path):
    trainer = search(make(tmp_path, **GROUPS["proxy"]))
    with pytest.raises(ValueError, match="depends on evaluations, and the proxy is not evaluated"):
        trainer.train(trial=Trial(lr_scheduler_type="reduce_lr_on_plateau"))


@pytest.mark.parametrize(
    ("options", "trial", "words"),
    [
        ({"selection": "uniform"}, {"selection": "joint"}, "needs a reference, and the trainer was made without one"),
        ({"criterion": "hard_learner"}, {"criterion": "learnability"}, "needs a reference"),
        ({"selection": "uniform"}, {"distillation_weight": 1.0}, "needs a reference"),
        (
            {"selection": "uniform", "scoring": "proxy", "distillation_weight": 1.0},
            {"selection": "joint"},
            "needs a proxy",
        ),
    ],
    ids=str,
)
def test_a_model_that_is_not_there_is_missed_in_one_sentence(tmp_path, options, trial, words):
    with pytest.raises(ValueError, match=rf"^hyperparameter_search: selection=.*{words}"):
        search(make(tmp_path, **options)).train(trial=Trial(**trial))


def test_options_of_other_objectives_are_refused(tmp_path):
    trainer = JESTTrainer(
        model_init=lambda: tiny_bert(0),
        ref_model=tiny_bert(1),
        args=arguments(tmp_path, selection="independent"),
        train_dataset=text_rows(80),
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ValueError, match="selection='joint' needs examples that make pairs"):
        search(trainer).train(trial=Trial(selection="joint"))


def test_a_name_of_its_own_is_for_a_model_init_that_takes_the_trial(tmp_path):
    trainer, taken = make(tmp_path), []
    trainer.model_init = lambda trial: taken.append(trial) or tiny_siglip(0)
    search(trainer).train(trial=Trial(hidden_size=8, _wandb={}))
    assert taken[-1].params["hidden_size"] == 8


def test_without_a_search_a_trial_changes_nothing(tmp_path):
    trainer = make(tmp_path)
    trainer.train(trial=Trial(filter_ratio=1.2))
    assert trainer.args.filter_ratio == 0.75


class InOrder(hyperparameter_search.HyperParamSearchBackendBase):
    """Tries given options, one after the other."""

    name = "optuna"
    trials = (
        {"learning_rate": 1e-2, "filter_ratio": 0.5},
        {"learning_rate": 0.0, "filter_ratio": 0.75},
        {"learning_rate": 1e-3, "filter_ratio": 0.75},
    )

    @staticmethod
    def is_available():
        return True

    def run(self, trainer, n_trials, direction, **kwargs):
        found = []
        for number, trial in enumerate(self.trials):
            trainer.objective = None
            trainer.train(trial=Trial(number, **trial))
            metrics = trainer.evaluate()
            trainer.objective = trainer.compute_objective(metrics)
            found.append(BestRun(str(number), trainer.objective, trial))
        return min(found, key=lambda run: run.objective)


def test_a_search_by_a_backend(tmp_path, monkeypatch):
    monkeypatch.setitem(hyperparameter_search.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, InOrder)
    asked = []

    def space(trial):
        asked.append(trial.number)
        return trial.params

    trainer = make(tmp_path, save_strategy="steps", save_steps=3)
    best = trainer.hyperparameter_search(space, lambda metrics: metrics["eval_loss"], n_trials=3, backend="optuna")
    assert best.hyperparameters in InOrder.trials and trainer.hp_search_backend is None
    assert asked == [0, 1, 2], "hp_space is called once for each trial"
    assert sorted(path.name for path in tmp_path.glob("run-*/*")) == ["checkpoint-3"] * 3
    assert trainer.hp_space is space


def test_a_search_by_optuna(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.undo()
    asked = []

    def space(trial):
        asked.append(trial.number)
        return {
            "filter_ratio": trial.suggest_categorical("filter_ratio", [0.5, 0.75]),
            "selection_warmup_steps": trial.suggest_int("selection_warmup_steps", 0, 2),
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        }

    trainer = make(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=3)
    best = trainer.hyperparameter_search(space, n_trials=3, backend="optuna", sampler=optuna.samplers.RandomSampler(0))
    assert asked == [0, 1, 2], "hp_space is called once for each trial"
    assert set(best.hyperparameters) == {"filter_ratio", "selection_warmup_steps", "learning_rate"}
    assert (tmp_path / "run-2" / "checkpoint-3" / "jest_manifest.json").exists()
    with pytest.raises(ValueError, match="hyperparameter_search: loss='softmax' cannot change from trial to trial"):
        trainer.hyperparameter_search(lambda trial: {"loss": "softmax"}, n_trials=1, backend="optuna")
