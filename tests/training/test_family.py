# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The relatives of JEST through the same trainer: presets, proxies, online references, schedules, teachers."""

from __future__ import annotations

import datasets
import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.config.presets import DEFAULTS, PRESETS
from jest_hf.data.rows import EpochSampler
from jest_hf.models import expose_temperature
from jest_hf.report import read_selections
from tests.helpers import random_rows, tiny_siglip
from tests.trainers import arguments, logged, make_trainer


def trained_ids(trainer) -> list[int]:
    return read_selections(trainer.ledger.path)["example_id"].to_pylist()


def weights(model) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


# ---- Presets ----


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_is_not_said_otherwise(tmp_path, preset):
    args = arguments(tmp_path, preset=preset, filter_ratio=0.25)
    assert args.filter_ratio == 0.25  # said, although every preset sets it
    for name, value in PRESETS[preset].items():
        assert name == "filter_ratio" or getattr(args, name) == value
    for name, value in DEFAULTS.items():
        assert name == "filter_ratio" or name in PRESETS[preset] or getattr(args, name) == value


def test_an_option_that_equals_its_default_is_said_too(tmp_path):
    assert JESTConfig(output_dir=str(tmp_path), use_cpu=True, preset="active_clip").filter_ratio == 0.5
    assert (
        JESTConfig(output_dir=str(tmp_path), use_cpu=True, preset="active_clip", filter_ratio=0.8).filter_ratio == 0.8
    )
    with pytest.raises(ValueError, match="preset='jist' is not known; choose one of jest, "):
        JESTConfig(output_dir=str(tmp_path), use_cpu=True, preset="jist")


# ---- Who scores ----


def test_a_proxy_scores_in_the_learners_place_and_learns_from_the_same_sub_batches(tmp_path):
    proxy = tiny_siglip(5)
    before = weights(proxy).clone()
    options = {"proxy_model": proxy}
    trainer = make_trainer(tmp_path, options=options, scoring="proxy", record_selection=True, max_steps=1)
    trainer.train()
    assert not torch.equal(weights(proxy), before) and len(logged(trainer, "proxy_loss")) == 1
    # At the first step the proxy is what it was given as: a learner like it would have chosen the same.
    alike = make_trainer(tmp_path / "alike", model=tiny_siglip(5), record_selection=True, max_steps=1)
    alike.train()
    other = make_trainer(tmp_path / "other", record_selection=True, max_steps=1)
    other.train()
    assert trained_ids(trainer) == trained_ids(alike) != trained_ids(other)
    # And it has taken the step that a learner takes from there.
    torch.testing.assert_close(weights(proxy), weights(alike.model), rtol=1e-4, atol=1e-6)


def test_a_proxy_is_by_default_a_fresh_model_like_the_reference(tmp_path):
    reference = tiny_siglip(1)
    trainer = make_trainer(tmp_path, reference=reference, preset="active_siglip", filter_ratio=0.75, max_steps=2)
    assert trainer.proxy.model.config.to_dict() == reference.config.to_dict()
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.run_flops.beside == trainer.run_flops.training


def test_an_online_reference_learns_from_whole_super_batches(tmp_path):
    online = tiny_siglip(7)
    before = weights(online).clone()
    trainer = make_trainer(tmp_path, reference=online, settings={"reference": "online"}, max_steps=1)
    trainer.train()
    assert not torch.equal(weights(online), before)
    # The whole super-batch, at twice the rate, is what uniform training of a batch of that size is.
    same = make_trainer(
        tmp_path / "same", model=tiny_siglip(7), selection="uniform", per_device_train_batch_size=32,
        learning_rate=2e-3, max_steps=1,
    )  # fmt: skip
    same.train()
    torch.testing.assert_close(weights(online), weights(same.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"scoring": "proxy"}, {"reference": "online"}])
def test_models_beside_the_learner_resume_bit_equal(tmp_path, changes):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "record_selection": True}

    def trainer(folder):
        return make_trainer(folder, settings={**settings, **changes})

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    (one,), (other,) = resumed.online_models, whole.online_models
    assert torch.equal(weights(one.model), weights(other.model))
    assert trained_ids(resumed) == trained_ids(whole)[-16:]


def test_a_proxy_needs_a_model_to_be_like(tmp_path):
    with pytest.raises(ValueError, match="scoring='proxy' trains a model of the reference's architecture"):
        make_trainer(tmp_path, scoring="proxy", criterion="hard_learner")


# ---- What is selected ----


def test_the_schedule_scores_nothing_at_first_and_then_more_and_more(tmp_path):
    trainer = make_trainer(
        tmp_path, selection_warmup_steps=1, filter_ratio_ramp_steps=3, max_steps=5, record_selection=True
    )
    trainer.train()
    assert trainer.statistics.trained == 5 * 8
    # Ratios 0, 1/4, 2/4, 3/4, 3/4 of super-batches of at most 32.
    assert trainer.statistics.seen == 8 + 11 + 16 + 32 + 32
    assert len(logged(trainer, "scoring_seconds")) == 4
    scored = (11 + 16 + 32 + 32) / 32
    assert trainer.run_flops.scoring == pytest.approx(scored * trainer.step_flops.scoring)
    assert trainer.run_flops.training == 5 * trainer.step_flops.training
    # What each chunk of the draw is logged of; the warm-up draws nothing.
    assert len(logged(trainer, "effective_sample_size/chunk_04")) == 4


def test_flops_are_those_of_what_each_step_does(tmp_path):
    """Two steps that score nothing: an online reference and a teacher compute the sub-batch alone."""
    settings = {"selection_warmup_steps": 2, "max_steps": 3}
    trainer = make_trainer(tmp_path / "a", settings={"reference": "online", **settings})
    trainer.train()
    step, run = trainer.step_flops, trainer.run_flops
    # 32 rows go through the online reference in chunks, which cost a forward more.
    assert run.beside == pytest.approx((3 * 8 + 3 * 8 + 4 * 32) / (4 * 32) * step.beside)
    assert (run.scoring, run.reference, run.selection) == (step.scoring, step.reference, step.selection)
    assert trainer.state.total_flos == pytest.approx(run.total)
    trainer = make_trainer(tmp_path / "b", preset="aced", filter_ratio=0.75, **settings)
    trainer.train()
    assert trainer.run_flops.reference == pytest.approx((8 + 8 + 32) / 32 * trainer.step_flops.reference)
    assert trainer.state.total_flos == pytest.approx(trainer.run_flops.total)
    # A teacher that the criterion does not ask speaks of the sub-batch in every step.
    trainer = make_trainer(tmp_path / "c", criterion="hard_learner", distillation_weight=1.0, **settings)
    trainer.train()
    assert trainer.run_flops.reference == 3 * trainer.step_flops.reference > 0


def test_flops_are_of_the_examples_that_could_be_trained_on_and_survive_a_resume(tmp_path):
    rows = [{**row, "text": row["text"] if i % 2 else None} for i, row in enumerate(random_rows(80))]
    settings = {"selection": "uniform", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path, rows=rows, settings=settings)
    whole.train()
    assert 0 < whole.statistics.trained < 4 * 8
    assert whole.run_flops.total == pytest.approx(whole.statistics.trained / 8 * whole.step_flops.training)
    resumed = make_trainer(tmp_path, rows=rows, settings=settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.run_flops == whole.run_flops and resumed.state.total_flos == whole.state.total_flos


@pytest.mark.parametrize("schedule", [{"selection_warmup_steps": 9}, {"filter_ratio_ramp_steps": 12}])
def test_early_steps_look_as_far_as_it_takes_to_fill_a_sub_batch(tmp_path, schedule):
    """With most rows broken; what is passed over is counted."""
    rows = [{**row, "text": row["text"] if i % 4 == 0 else None} for i, row in enumerate(random_rows(320))]
    settings = {"max_steps": 9, "filter_ratio": 0.8, "record_selection": True, "save_strategy": "steps", **schedule}
    trainer = make_trainer(tmp_path / "whole", rows=rows, settings={**settings, "save_steps": 5})
    trainer.train()
    readable = [[index % 4 == 0 for _, index in trainer_order(320, epoch)] for epoch in (0, 1)]
    batches = [batch[start : start + 40] for batch in readable for start in range(0, 320, 40)][:9]
    table = read_selections(trainer.ledger.path).to_pydict()["step"]
    assert [table.count(step) for step in range(1, 10)] == [min(8, sum(batch)) for batch in batches]
    if "selection_warmup_steps" in schedule:  # no further than that
        ends = [([0] + [i + 1 for i, good in enumerate(batch) if good])[8:9] for batch in batches]
        assert trainer.statistics.seen == sum(end[0] if end else 40 for end in ends)
        assert trainer.statistics.skipped == trainer.statistics.seen - trainer.statistics.trained
    resumed = make_trainer(tmp_path / "whole", rows=rows, settings={**settings, "save_steps": 5})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert torch.equal(weights(resumed.model), weights(trainer.model))


def trainer_order(n_rows: int, epoch: int) -> list[tuple[int, int]]:
    sampler = EpochSampler(n_rows, seed=42)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_a_uniform_part_is_drawn_whatever_the_scores(tmp_path):
    all_uniform = make_trainer(tmp_path / "a", uniform_fraction=1.0, record_selection=True)
    all_uniform.train()
    other_scores = make_trainer(tmp_path / "b", uniform_fraction=1.0, record_selection=True, reference=tiny_siglip(9))
    other_scores.train()
    assert trained_ids(all_uniform) == trained_ids(other_scores)
    half = make_trainer(tmp_path / "c", uniform_fraction=0.5, record_selection=True, max_steps=1)
    half.train()
    assert trained_ids(half)[:4] == trained_ids(all_uniform)[:4]
    # Chunks are numbered without the uniform part, of which there is nothing to log.
    assert len(logged(half, "effective_sample_size/chunk_04")) == 1
    assert not logged(half, "effective_sample_size/chunk_05")


def test_other_selectors_are_compared_on_the_same_super_batches(tmp_path):
    rows = datasets.Dataset.from_list([{**row, "kind": "ab"[i % 2]} for i, row in enumerate(random_rows(80))])
    selectors = ["uniform", "joint/learnability", "top_k/hard_learner"]
    trainer = make_trainer(tmp_path, rows=rows, compare_selectors=selectors, source_column="kind", max_steps=2)
    trainer.train()
    assert logged(trainer, "compare/joint/learnability/overlap") == [1.0, 1.0]  # it is the selection itself
    assert logged(trainer, "compare/joint/learnability/learnability") == pytest.approx(
        logged(trainer, "selected/learnability"), rel=1e-5
    )
    for name in selectors:
        shares = [logged(trainer, f"compare/{name}/share/{kind}") for kind in "ab"]
        assert [a + b for a, b in zip(*shares, strict=True)] == pytest.approx([1.0, 1.0])
    plain = make_trainer(tmp_path / "plain", rows=rows, max_steps=2)
    plain.train()
    assert torch.equal(weights(plain.model), weights(trainer.model))  # it is a glance, and changes nothing


def test_selection_rates_are_counted_by_source_and_survive_a_resume(tmp_path):
    rows = datasets.Dataset.from_list([{**row, "kind": "abc"[i % 3]} for i, row in enumerate(random_rows(80))])
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "source_column": "kind"}
    whole = make_trainer(tmp_path / "whole", rows=rows, record_selection=True, **settings)
    whole.train()
    ids = trained_ids(whole)
    for kind, name in enumerate("abc"):
        trained, seen = whole.statistics.sources[name]
        assert trained == sum(i % 3 == kind for i in ids) and seen > trained > 0
        assert logged(whole, f"selection_rate/{name}")[-1] == trained / seen
    resumed = make_trainer(tmp_path / "resumed", rows=rows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.statistics.sources == whole.statistics.sources
    with pytest.raises(ValueError, match="source_column='sort' must be a column of train_dataset"):
        make_trainer(tmp_path, rows=rows, source_column="sort")


# ---- What is learned ----


def test_a_teacher_pulls_the_learner_to_the_reference(tmp_path):
    def distance(weight: float) -> float:
        reference = tiny_siglip(1)
        expose_temperature(reference)
        settings = {"selection": "uniform", "distillation_weight": weight, "max_steps": 12, "learning_rate": 3e-3}
        trainer = make_trainer(tmp_path / str(weight), reference=reference, **settings)
        trainer.train()
        batch = trainer.data_collator([{**row, "example_id": i} for i, row in enumerate(random_rows(16))])
        reader = trainer.learner_view
        learner, teacher = (reader.score(model, batch, 16) for model in (trainer.model, reference))
        logits = [one.logit_scale * one.image @ one.text.T + one.logit_bias for one in (learner, teacher)]
        return float((logits[0].sigmoid() - logits[1].sigmoid()).abs().mean())

    assert distance(30.0) < distance(0.0)


def test_the_teacher_speaks_of_the_rows_that_are_trained_on(tmp_path):
    trainer = make_trainer(tmp_path, preset="aced", filter_ratio=0.75, scoring_view="patch:16", max_steps=1)
    seen = {}
    loss = trainer.learning_objective.loss

    def spy(output, batch, ranks, teacher=None):
        seen.update(batch=batch, teacher=teacher)
        return loss(output, batch, ranks, teacher)

    trainer.learning_objective.loss = spy
    trainer.train()
    expected = trainer.reference.score(None, seen["batch"], 8)
    torch.testing.assert_close(seen["teacher"].image, expected.image)
    torch.testing.assert_close(seen["teacher"].text, expected.text)
