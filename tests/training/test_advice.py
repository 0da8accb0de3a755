# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A run says once that its loader cannot keep up, or that its learner has overtaken its reference; else nothing."""

from __future__ import annotations

import copy
import logging
import time
from types import SimpleNamespace

import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.report import StepFlops, StepRecord
from jest_hf.training import advice
from jest_hf.training.advice import Overtaken, SlowLoading, loading_remedies
from tests.helpers import tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments, make_trainer


@pytest.fixture
def said(caplog, monkeypatch):
    """What the advice says: the library's logger does not propagate by default."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(advice.logger, "propagate", True, raising=False)
    caplog.set_level(logging.WARNING)
    return lambda word: [message for message in caplog.messages if word in message]


class SlowCollator(JESTDataCollator):
    """As slow as a disk."""

    def __call__(self, rows):
        time.sleep(0.06)
        return super().__call__(rows)


def test_a_run_whose_loader_cannot_keep_up_says_so_once(tmp_path, said, monkeypatch):
    monkeypatch.setattr(advice, "_own_cores", lambda: 6)
    collator = SlowCollator(tiny_siglip_processor())
    options = {"data_collator": collator}
    trainer = make_trainer(tmp_path, options=options, criterion="easy_reference", max_steps=31, logging_steps=50)
    trainer.train()
    (line,) = said("Loading takes")
    assert "the mean of steps 11 to 30" in line and line.count("\n") == 0
    assert line.endswith(
        "what would help most: dataloader_num_workers=5 (it is 0) or cache_reference=True, and "
        "select_before_decoding=True (only what is selected is decoded)."
    )


def test_a_loader_that_keeps_up_is_not_mentioned(tmp_path, said, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=31, logging_steps=50)
    learn = trainer.learn
    trainer.learn = lambda *given: time.sleep(0.15) or learn(*given)
    trainer.train()
    assert not said("Loading takes")


def record(step, **metrics):
    one = torch.zeros(1, dtype=torch.int64)
    names = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepRecord(step, one, one, one, seen=1, skipped=0, flops=StepFlops(), metrics=names)


def steps(report, loading, computing, monkeypatch, n=30, late=0.0):
    clock = [0.0]
    monkeypatch.setattr(advice.time, "perf_counter", lambda: clock[0])
    for step in range(1, n + 1):
        report.on_step_begin(None, None, None)
        report.on_step(record(step, loading_seconds=loading, late_images_seconds=late))
        clock[0] += computing + late
        report.on_step_end(None, SimpleNamespace(global_step=step), None)
        clock[0] += 100.0  # evaluations and checkpoints are no part of a step


@pytest.mark.parametrize(
    ("loading", "computing", "late", "speaks"),
    [(0.19, 0.81, 0.0, False), (0.21, 0.79, 0.0, True), (0.1, 0.79, 0.11, True), (0.1, 0.8, 0.1, False)],
)
def test_a_fifth_is_the_bound_late_images_included(monkeypatch, said, loading, computing, late, speaks):
    report = SlowLoading(lambda: [])
    steps(report, loading, computing, monkeypatch, n=29, late=late)
    assert not said("Loading")  # 10 steps are not counted
    steps(report, loading, computing, monkeypatch, n=99, late=late)
    lines = said("Loading takes 21% of a step (0.21 s of 1 s")
    assert len(lines) == speaks
    assert all("more cores, or a faster disk" in line for line in lines)


def remedies(folder, collator=None, early=None, cached=False, stream=False, n_cores=1, **changes):
    args = arguments(folder, **changes)
    loaders = SimpleNamespace(early=early, reference=lambda: SimpleNamespace(reads_images=not cached))
    return [one.split(" ")[0] for one in loading_remedies(args, collator, loaders, not stream, n_cores)]


def test_the_remedies_are_those_of_the_run(tmp_path, monkeypatch):
    def of(image_cache="images", **changes):
        return remedies(tmp_path, image_cache=image_cache, **changes)

    assert of(selection="uniform") == []
    assert of(selection="uniform", n_cores=4) == ["dataloader_num_workers=3"]
    assert of(selection="uniform", n_cores=4, dataloader_num_workers=3) == []
    assert of() == ["cache_reference=True,"]
    assert of(cached=True) == ["prefilter_ratio=0.8"]
    assert of(cached=True, criterion="easy_reference") == ["select_before_decoding=True"]
    assert of(cached=True, early=object()) == of(stream=True) == of(reference="online") == []
    assert of(cached=True, stream=True) == ["prefilter_ratio=0.8"]
    assert of(image_cache=None, selection="uniform") == ["image_cache=<folder>"]
    assert of(image_cache=None, selection="uniform", stream=True) == []
    assert of(criterion="hard_learner") == []
    collator = JESTDataCollator(tiny_siglip_processor())
    for module, expected in ((None, ["pip", "scaled_jpeg_decoding=True"]), (object(), ["scaled_jpeg_decoding=True"])):
        monkeypatch.setattr(advice, "find_spec", {"simplejpeg": module}.get)
        assert of(selection="uniform", collator=collator) == expected
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=True)
    assert of(selection="uniform", collator=collator) == []


# The learner and the reference


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that knows the rows."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, selection="uniform", max_steps=150, learning_rate=3e-3, logging_steps=100)
    trainer.train()
    return trainer.model


def run(folder, learner, reference, **changes):
    changes = {"max_steps": 55, "logging_steps": 55, "learning_rate": 1e-4, **changes}
    trainer = make_trainer(folder, model=copy.deepcopy(learner), reference=copy.deepcopy(reference), **changes)
    trainer.train()
    return trainer


def test_a_learner_that_knows_more_than_its_reference_is_reported_once(tmp_path, said, trained):
    trainer = run(tmp_path, trained, tiny_siglip(1))
    (line,) = said("has overtaken")
    assert (
        line.startswith("Step 50: the learner has overtaken the reference: over the last 50 steps")
        and "\n" not in line
    )
    assert "criterion='easy_reference', a reference that was trained longer, or an earlier stop" in line
    assert trainer.state.log_history[0]["selected/learnability"] < 0


def test_a_learner_that_has_something_to_learn_is_not(tmp_path, said, trained):
    trainer = run(tmp_path, tiny_siglip(2), trained)
    assert not said("has overtaken")
    assert trainer.state.log_history[0]["selected/learnability"] > 0


def test_a_run_that_does_not_use_both_models_is_not_judged(tmp_path, trained):
    for criterion in ("easy_reference", "hard_learner"):
        assert not Overtaken.concerns(arguments(tmp_path, criterion=criterion))
    assert not Overtaken.concerns(arguments(tmp_path, selection="uniform"))
    changes = {
        "criterion": "easy_reference",
        "compare_selectors": ["joint/learnability"],
        "max_steps": 2,
        "logging_steps": 1,
    }
    trainer = run(tmp_path, trained, tiny_siglip(1), **changes)
    assert trainer.state.log_history[0]["selected/learnability"] < 0
    assert [type(report) for report in trainer.plan.recorder.reports] == [SlowLoading]


def test_fifty_steps_that_select_decide(said):
    report = Overtaken()
    for step in range(1, 50):
        report.on_step(record(step, selected__learner_loss=1.0, selected__reference_loss=2.0))
        report.on_step(record(step, loading_seconds=1.0))  # of the warm-up
    assert not said("overtaken")
    report.on_step(record(50, selected__learner_loss=60.0, selected__reference_loss=2.0))
    assert not said("overtaken")
    for step in (51, 52):
        report.on_step(record(step, selected__learner_loss=0.0, selected__reference_loss=2.0))
    assert not said("overtaken")
    for step in range(53, 150):
        report.on_step(record(step, selected__learner_loss=1.0, selected__reference_loss=2.0))
    assert len(said("Step 100: the learner has overtaken the reference")) == len(said("overtaken")) == 1
