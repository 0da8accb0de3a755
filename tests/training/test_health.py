# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that cannot be meant end with an error, or are said so in one line."""

from __future__ import annotations

import pytest
import torch

from jest_hf import JESTTrainer
from jest_hf.training.checks import NOT_CALLED
from jest_hf.training.health import MOST_BROKEN_LOSSES, LossWatch
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments, make_trainer


def test_losses_that_are_no_numbers_are_counted_in_a_row():
    watch = LossWatch()
    for values, ends in ([1.0, torch.nan, torch.inf], False), ([2.0, torch.nan, torch.nan, -torch.inf], True):
        for value in values:
            loss = torch.tensor(value)
            assert watch(loss) is loss
        if not ends:
            watch.check(3)
            continue
        with pytest.raises(FloatingPointError, match=rf"step 7: .* NaN or infinite for {MOST_BROKEN_LOSSES} steps"):
            watch.check(7)


@pytest.mark.parametrize(
    "changes", [{"selection": "uniform"}, {"selection": "uniform", "logging_nan_inf_filter": False}]
)
def test_a_uniform_run_of_a_learner_of_nan_ends(tmp_path, changes):
    learner = tiny_siglip(0)
    with torch.no_grad():
        learner.vision_model.post_layernorm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss has been NaN or infinite for 3 steps"):
        make_trainer(tmp_path, model=learner, max_steps=9, **changes).train()


@pytest.mark.parametrize(("n_broken", "is_said"), [(30, False), (60, True)])
def test_a_run_of_which_most_rows_are_broken_says_so(tmp_path, n_broken, is_said, caplog):
    rows = random_rows(80)
    for row in rows[80 - n_broken :]:
        row["image"] = b"no image"
    make_trainer(tmp_path, rows=rows, max_steps=5, filter_ratio=0.5).train()
    assert ("cannot be used (example " in caplog.text) is is_said


@pytest.mark.parametrize("name", NOT_CALLED)
def test_methods_that_are_never_called_cannot_be_overridden(tmp_path, name):
    kind = type("Mine", (JESTTrainer,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(ValueError, match=f"Mine overrides {name}, which JESTTrainer never calls: "):
        kind(
            model=tiny_siglip(0),
            ref_model=tiny_siglip(1),
            args=arguments(tmp_path),
            train_dataset=random_rows(40),
            processing_class=tiny_siglip_processor(),
        )
