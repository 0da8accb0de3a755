# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer end to end, on tiny models: what it trains on, and that everything else is the Trainer's."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, SiglipModel, Trainer, TrainingArguments

from jest_hf import JESTDataCollator, JESTTrainer
from jest_hf.data.rows import EpochSampler, Rows
from jest_hf.losses import sigmoid_contrastive_loss
from jest_hf.models import DualEncoder, expose_temperature
from jest_hf.report import read_selections
from jest_hf.selection import DrawKey, PairwiseScores, gumbel_noise
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)
from tests.reference.caching import make_cache
from tests.selection import literal
from tests.trainers import arguments, logged, make_trainer


pytestmark = pytest.mark.long


def test_a_step_trains_on_the_selected_sub_batch_alone(tmp_path):
    trainer = make_trainer(tmp_path, record_selection=True)
    batches = []
    compute_loss = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        assert model.training
        batches.append(inputs["example_id"].tolist())
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    table = read_selections(tmp_path / "selections.parquet").to_pylist()
    assert [len(batch) for batch in batches] == [8, 8, 8]
    for step, batch in enumerate(batches, start=1):
        assert [row["example_id"] for row in table if row["step"] == step] == batch
        assert len(set(batch)) == 8


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("criterion", ["learnability", "easy_reference", "hard_learner"])
def test_the_first_selection_is_algorithm_1_on_the_models_own_embeddings(tmp_path, criterion, loss):
    rows, processor = random_rows(80), tiny_siglip_processor()
    trainer = make_trainer(
        tmp_path, rows=rows, processor=processor, criterion=criterion, loss=loss, max_steps=1, record_selection=True
    )
    trainer.train()
    chosen = read_selections(tmp_path / "selections.parquet")["example_id"].to_pylist()

    keys = list(EpochSampler(80, seed=trainer.args.data_seed))[:32]
    batch = JESTDataCollator(processor)([Rows(rows)[key] for key in keys])
    embeddings = {}
    for name, seed in (("learner", 0), ("reference", 1)):
        model = tiny_siglip(seed)
        expose_temperature(model)
        embeddings[name] = DualEncoder(model.config, processor).score(model, batch, batch_size=5)
    noise = gumbel_noise(trainer.args.seed, 1, 4, 32)
    losses = literal.signed_losses(**embeddings, criterion=criterion, loss=loss)
    expected = literal.select_jointly(losses, 8, 4, noise)
    assert chosen == [int(batch["example_id"][i]) for i in expected]


def test_uniform_selection_is_plain_training(tmp_path):
    """The same weights as the ordinary Trainer with the same loss, sampler and data: selection adds nothing."""
    rows, processor = random_rows(80), tiny_siglip_processor()
    ours = make_trainer(tmp_path / "ours", rows=rows, processor=processor, selection="uniform")
    ours.train()

    class Plain(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            output = model(**view.inputs(inputs))
            return sigmoid_contrastive_loss(
                output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias
            )

        def _get_train_sampler(self, dataset=None):
            return EpochSampler(len(dataset), seed=self.args.seed)

    model = tiny_siglip(0)
    view = DualEncoder(model.config, processor)
    plain = Plain(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "plain"),
            per_device_train_batch_size=8,
            max_steps=3,
            learning_rate=1e-3,
            adam_beta2=0.95,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Rows(rows),
        data_collator=JESTDataCollator(processor),
    )
    plain.train()
    for (name, ours_weight), plain_weight in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours_weight, plain_weight), name
    assert logged(ours, "scoring_seconds") == []


def test_scoring_runs_in_eval_mode_and_without_gradients(tmp_path):
    trainer = make_trainer(tmp_path)
    modes = []
    trainer.model.vision_model.register_forward_pre_hook(
        lambda module, args: modes.append((module.training, torch.is_grad_enabled()))
    )
    trainer.train()
    # Four forwards of eight rows score 32, one trains; three steps.
    assert modes == [*[(False, False)] * 4, (True, True)] * 3


def test_scoring_batch_size_changes_the_number_of_forwards_and_not_the_selection(tmp_path):
    selections = []
    for size in (None, 5, 32):
        folder = tmp_path / str(size)
        make_trainer(folder, scoring_batch_size=size, record_selection=True).train()
        selections.append(read_selections(folder / "selections.parquet"))
    assert selections[0] == selections[1] == selections[2]


@pytest.mark.parametrize("selection", ["joint", "independent", "uniform"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, selection):
    """Stopped in the second epoch (two super-batches each): same selections, same weights, same counts."""
    rows = random_rows(80)
    for row in rows:  # several captions: the one drawn depends on the epoch
        row["text"] = [row["text"], "a white star"]
    options = {"selection": selection, "save_strategy": "steps", "save_steps": 3, "record_selection": True}

    whole = make_trainer(tmp_path / "whole", rows=rows, max_steps=7, **options)
    whole.train()
    folder = tmp_path / "resumed"
    make_trainer(folder, rows=rows, max_steps=7, **options).train()
    resumed = make_trainer(folder, rows=rows, max_steps=7, **options)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))

    assert read_selections(tmp_path / "whole" / "selections.parquet") == read_selections(folder / "selections.parquet")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert whole.statistics.totals() == resumed.statistics.totals()


def test_resuming_with_other_settings_is_said(tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    make_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    changed = make_trainer(tmp_path, save_strategy="steps", save_steps=2, n_chunks=2)
    changed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "other settings than its checkpoint (n_chunks was 4 and is 2)" in caplog.text


def test_a_cached_reference_selects_the_same_and_is_called_no_more(tmp_path):
    live = make_trainer(tmp_path / "live", record_selection=True)
    live.train()
    reference = tiny_siglip(1)
    cached = make_trainer(tmp_path / "cached", reference=reference, record_selection=True, cache_reference=True)
    forwards = []
    reference.register_forward_hook(lambda *_: forwards.append(1))
    cached.train()
    assert len(forwards) == math.ceil(80 / 8) + 1  # one more, for its width, scale and bias
    assert read_selections(tmp_path / "live" / "selections.parquet") == read_selections(
        tmp_path / "cached" / "selections.parquet"
    )
    assert live.cache_flops == 0 and cached.step_flops.reference == 0
    assert cached.cache_flops == pytest.approx(live.step_flops.reference / 32 * 80)


@pytest.mark.parametrize("made", ["by the run", "before"])
def test_a_cache_selects_what_the_live_reference_does(tmp_path, made):
    """Also where another of several captions is drawn in each epoch; a cache that is given needs no reference."""
    rows = random_rows(80)
    for index in range(0, 80, 3):
        rows[index]["text"] = ["a red star", rows[index]["text"]]
    live = make_trainer(tmp_path / "live", rows=rows, record_selection=True, max_steps=8)
    live.train()
    if made == "before":
        make_cache(tmp_path / "cache", rows, shard_rows=32)
        settings = {"reference_cache": str(tmp_path / "cache"), "record_selection": True, "max_steps": 8}
        args = arguments(tmp_path / "cached", **settings)
        cached = JESTTrainer(
            model=tiny_siglip(0), args=args, train_dataset=rows, processing_class=tiny_siglip_processor()
        )
        assert cached.cache_flops == 0
    else:
        cached = make_trainer(tmp_path / "cached", rows=rows, record_selection=True, max_steps=8, cache_reference=True)
    cached.train()
    assert cached.ref_model is None
    wanted, found = (
        read_selections(tmp_path / name / "selections.parquet").to_pydict() for name in ("live", "cached")
    )
    for name in ("step", "rank", "order", "example_id"):
        assert found[name] == wanted[name], name
    assert found["score"] == pytest.approx(
        wanted["score"], abs=1e-4
    )  # other kernels compute in batches of other sizes
    assert cached.step_flops.selection == live.step_flops.selection and cached.step_flops.reference == 0
    cached.create_model_card()


def test_a_cache_of_another_reference_is_refused(tmp_path):
    make_cache(tmp_path / "cache", random_rows(80), shard_rows=32)
    with pytest.raises(ValueError, match="does not match this run"):
        make_trainer(tmp_path, reference=tiny_siglip(3), reference_cache=str(tmp_path / "cache"))


MODELS = {
    "siglip": (tiny_siglip, tiny_siglip_processor),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor),
    "clip": (tiny_clip, tiny_clip_processor),
}


@pytest.mark.parametrize(
    ("learner", "reference", "loss"),
    [
        ("siglip", "siglip2", "sigmoid"),
        ("siglip2", "siglip", "sigmoid"),
        ("clip", "clip", "softmax"),
        ("clip", "siglip", "softmax"),
        ("siglip", "clip", "softmax"),
        ("siglip2", "siglip2", "softmax"),
    ],
)
def test_learner_and_reference_of_any_two_families(tmp_path, learner, reference, loss):
    (make_learner, learner_processor), (make_reference, reference_processor) = MODELS[learner], MODELS[reference]
    trainer = make_trainer(
        tmp_path,
        model=make_learner(0),
        reference=make_reference(1),
        processor=learner_processor(),
        options={"ref_processing_class": reference_processor(), "eval_dataset": random_rows(12, seed=1)},
        loss=None if learner == "clip" or loss == "sigmoid" else loss,
    )
    assert trainer.learning_objective.loss_kind == loss
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert logged(trainer, "selected/learnability") and np.isfinite(logged(trainer, "loss")).all()
    assert trainer.evaluate()["eval_loss"] != before
    trainer.save_model(tmp_path / "saved")
    saved = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(saved) is type(make_learner(0))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, saved.state_dict()[name]), name


def test_models_are_taken_by_path_with_their_own_processors(tmp_path):
    for name, image_size, seed in (("learner", 16, 0), ("reference", 24, 1)):
        tiny_siglip(seed, image_size=image_size).save_pretrained(tmp_path / name)
        tiny_siglip_processor(image_size).save_pretrained(tmp_path / name)
    trainer = JESTTrainer(
        model=str(tmp_path / "learner"),
        ref_model=str(tmp_path / "reference"),
        args=arguments(tmp_path / "out"),
        train_dataset=random_rows(80),
    )
    sizes = []
    trainer.ref_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["pixel_values"].shape[-1]), with_kwargs=True
    )
    trainer.train()
    assert isinstance(trainer.model, SiglipModel) and set(sizes) == {24}
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())


@pytest.mark.parametrize("changes", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}])
def test_autocast_and_compiled_models(tmp_path, changes):
    trainer = make_trainer(tmp_path, record_selection=True, **changes)
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()
    assert read_selections(tmp_path / "selections.parquet").num_rows == 24


def test_logs_say_what_was_selected(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    log = trainer.state.log_history[0]
    for part in ("selected", "rejected"):
        difference = log[f"{part}/learner_loss"] - log[f"{part}/reference_loss"]
        assert log[f"{part}/learnability"] == pytest.approx(difference)
    sizes = [log[f"effective_sample_size/chunk_{chunk:02d}"] for chunk in range(1, 5)]
    assert all(1 <= size <= 32 for size in sizes)
    assert {"loading_seconds", "scoring_seconds", "selection_seconds"} <= log.keys()
    # Scoring 32 by two models, at a third of what training on 8 costs each.
    assert logged(trainer, "flops_relative_to_iid") == [pytest.approx(1 + 2 * 32 / (3 * 8), rel=0.01)] * 4
    assert logged(trainer, "examples_seen")[:3] == [32, 64, 96]
    assert logged(trainer, "examples_trained")[:3] == [8, 16, 24]
    assert 0 < log["unique_share"] <= 1


def test_independent_selection_draws_by_each_examples_own_score(tmp_path):
    trainer = make_trainer(tmp_path, selection="independent", selection_gain=1e6)
    batch = trainer._prepare_input(next(iter(trainer.get_train_dataloader())))
    step = trainer.parts.step
    scores = step.scorer.on(trainer.model, batch)
    diagonal = PairwiseScores.from_embeddings(**scores(("learner", "reference")).by_model()).diagonal()
    # At so high a gain the noise no longer matters: the highest scores, highest first.
    chosen = step.select(step.pool(batch, 1), scores, DrawKey(0, 1)).indices
    assert chosen.tolist() == diagonal.argsort(descending=True)[:8].tolist()


# ---- Broken rows and broken numbers ----


def test_broken_rows_are_skipped_counted_and_never_trained_on(tmp_path):
    rows = random_rows(80)
    broken = [3, 4, 17, 55]
    rows[3]["text"], rows[4]["text"] = None, "   "
    rows[17]["image"] = None
    rows[55]["image"]["bytes"] = rows[55]["image"]["bytes"][:40]
    data = datasets.Dataset.from_list(rows)
    trainer = make_trainer(tmp_path, rows=data, max_steps=4, record_selection=True)  # two epochs of 64 of the 80
    trainer.train()
    ids = read_selections(tmp_path / "selections.parquet")["example_id"].to_pylist()
    assert not set(ids) & set(broken)
    order = [key[1] for epoch in (0, 1) for key in epoch_order(80, trainer.args.data_seed, epoch)[:64]]
    assert logged(trainer, "examples_skipped")[-1] == sum(index in broken for index in order)


def epoch_order(n_rows, seed, epoch):
    sampler = EpochSampler(n_rows, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_uniform_training_leaves_broken_rows_out(tmp_path):
    rows = random_rows(16)
    rows[5]["image"] = None
    trainer = make_trainer(tmp_path, rows=rows, selection="uniform", max_steps=2, record_selection=True)
    trainer.train()
    ids = read_selections(tmp_path / "selections.parquet")["example_id"].to_pylist()
    assert sorted(ids) == [index for index in range(16) if index != 5]


def test_more_broken_rows_than_selection_can_spare(tmp_path):
    rows = random_rows(32)
    for row in rows[:27]:
        row["image"] = None
    trainer = make_trainer(tmp_path, rows=rows, max_steps=1, record_selection=True)
    trainer.train()
    ids = read_selections(tmp_path / "selections.parquet")["example_id"].to_pylist()
    assert sorted(ids) == [27, 28, 29, 30, 31]


def test_super_batches_without_one_readable_row_end_the_run(tmp_path):
    rows = [{**row, "image": None} for row in random_rows(40)]
    with pytest.raises(ValueError, match="step 5: only 0 of the 32 rows of the super-batch can be read"):
        make_trainer(tmp_path, rows=rows, max_steps=9).train()


def test_nan_scores_name_the_step_and_the_examples(tmp_path):
    reference = tiny_siglip(1)
    with torch.no_grad():
        reference.logit_bias.fill_(float("nan"))
    with pytest.raises((FloatingPointError, ValueError), match="logit_bias must be finite"):
        make_trainer(tmp_path, reference=reference).train()
    reference = tiny_siglip(1)
    with torch.no_grad():
        reference.text_model.embeddings.token_embedding.weight[6] = float("nan")  # one word of the captions
    rows = random_rows(80)
    words = tiny_siglip_processor().tokenizer(["a green star"])["input_ids"][0]
    assert 6 in words
    with pytest.raises(
        FloatingPointError, match=r"step 1: the scores of \d+ of 32 examples are NaN or infinite"
    ) as error:
        make_trainer(tmp_path, reference=reference, rows=rows).train()
    named = [int(i) for i in str(error.value).split("[")[1].split("]")[0].split(",")]
    assert named and all("green" in rows[i]["text"] for i in named)
