# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every objective in `OBJECTIVES` trains a step end to end; one that has no row here fails."""

from __future__ import annotations

import pytest
import torch

from jest_hf import JESTTrainer
from jest_hf.objectives import OBJECTIVES
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor, tiny_tokenizer
from tests.objectives.labelled import image_rows, text_rows, tiny_llama, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged


# By objective: models by seed, their processor, rows, the selection, and a metric that an evaluation has.
TABLE = {
    "contrastive": (tiny_siglip, tiny_siglip_processor, random_rows, "joint", "eval_image_to_text_R@1"),
    "classification": (tiny_vit, tiny_vit_processor, image_rows, "independent", "eval_accuracy"),
    "language_model": (tiny_llama, tiny_tokenizer, text_rows, "independent", "eval_perplexity"),
}


@pytest.mark.parametrize("named", [True, False], ids=["by its name", "by what fits"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_evaluates(tmp_path, name, named):
    assert name in TABLE, f"objective {name!r} has no row in TABLE: add one"
    make_model, make_processor, make_rows, selection, metric = TABLE[name]
    model = make_model(0)
    before = torch.cat([value.detach().flatten() for value in model.parameters()])
    trainer = JESTTrainer(
        model=model,
        ref_model=make_model(1),
        args=arguments(tmp_path, selection=selection, max_steps=1, objective=name if named else None),
        train_dataset=make_rows(32),
        eval_dataset=make_rows(9, seed=1),
        processing_class=make_processor(),
    )
    assert type(trainer.learning_objective) is OBJECTIVES[name] and OBJECTIVES[name].name == name
    trainer.train()
    after = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    assert not torch.equal(after, before) and after.isfinite().all()
    assert trainer.statistics.trained == 8 and trainer.statistics.seen == 32
    assert len(logged(trainer, "selected/learnability")) == len(logged(trainer, "rejected/learnability")) == 1
    assert trainer.step_flops.training > 0 and trainer.step_flops.reference > 0
    assert trainer.step_flops.scoring == pytest.approx(32 / 24 * trainer.step_flops.training)
    assert metric in trainer.evaluate()
    trainer.create_model_card()
    assert trainer.learning_objective.loss_name in (tmp_path / "README.md").read_text()


def test_there_is_no_row_of_an_objective_that_is_gone():
    assert TABLE.keys() == OBJECTIVES.keys()
