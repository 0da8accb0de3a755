# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Models that are trained beside the learner: as the Trainer trains, resumed to the bit, and refused in time."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModel, Trainer, TrainingArguments

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks, Shares
from jest_hf.models import add_adapter, without_temperature
from jest_hf.training.online_model import OnlineReference, fresh_like
from tests.helpers import random_rows, tiny_clip, tiny_siglip, tiny_siglip_processor
from tests.online import assert_equal, set_dropout, state_of, tiny_batch, tiny_online, tiny_vit


# ---- The Trainer's own training ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim": "adamw_torch"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.5},
        {"max_grad_norm": 0.1, "adam_beta1": 0.8, "adam_epsilon": 1e-4},
        {"max_grad_norm": 0.0},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
        {"bf16": True},
    ],
    ids=["fused", "not_fused", "decay", "clipping", "no_clipping", "schedule_options", "bf16"],
)
def test_a_model_trained_alone_is_that_of_the_trainer(tmp_path, settings):
    settings = {"learning_rate": 1e-3, "max_steps": 5, "adam_beta2": 0.95, "weight_decay": 0.01, **settings}
    online = tiny_online("siglip", tmp_path, dropout=0.2, steps=5, **settings)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16) if "bf16" in settings else nullcontext
    seen = []

    class Plain(Trainer):
        def training_step(self, model, inputs, *args):
            seen.append((inputs, torch.get_rng_state()))
            return super().training_step(model, inputs, *args)

        def get_decay_parameter_names(self, model):
            return without_temperature(super().get_decay_parameter_names(model))

        def compute_loss(self, model, inputs, **kwargs):
            return online.objective.loss(online.reader(model, inputs), inputs, Ranks())

    model = tiny_siglip(0)
    set_dropout(model, 0.2)
    online.objective.open_up(model)
    plain = Plain(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Rows(random_rows(80)),
        data_collator=JESTDataCollator(tiny_siglip_processor()),
    )
    plain.train()
    assert len(seen) == 5
    for batch, random_state in seen:
        torch.set_rng_state(random_state)
        online.step(batch, autocast)
    for name, weight in online.model.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, plain.model.get_parameter(name)), name


@pytest.mark.parametrize("kind", ["siglip", "clip", "vit"])
def test_a_step_in_chunks_is_the_step_on_the_whole(tmp_path, kind):
    steps = [tiny_batch(kind, 7, seed, torch.float64) for seed in range(3)]
    whole, chunked = (
        tiny_online(kind, tmp_path, dtype=torch.float64, chunk_size=chunk_size) for chunk_size in (None, 3)
    )
    rows = []
    chunked.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    for batch in steps:
        assert chunked.step(batch) == pytest.approx(whole.step(batch), rel=1e-6)
    assert max(rows) <= 3
    for one, other in zip(chunked.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("kind", ["siglip", "vit"])
def test_forwards_run_under_the_callers_autocast_and_the_optimizer_does_not(tmp_path, kind, chunk_size):
    online = tiny_online(kind, tmp_path, chunk_size=chunk_size)
    forwards, optimizer = [], []
    online.model.register_forward_pre_hook(lambda *_: forwards.append(torch.is_autocast_enabled("cpu")))
    online.optimizer.register_step_pre_hook(lambda *_: optimizer.append(torch.is_autocast_enabled("cpu")))
    online.step(tiny_batch(kind, 4), partial(torch.autocast, "cpu", torch.bfloat16))
    assert set(forwards) == {True}
    assert optimizer == [False]


def test_a_model_in_less_than_fp32_is_trained_in_fp32(tmp_path):
    online = tiny_online("vit", tmp_path, dtype=torch.bfloat16)
    online.step(tiny_batch("vit", 4))
    assert {weight.dtype for weight in online.model.parameters()} == {torch.float32}


def test_a_frozen_model_is_trained(tmp_path):
    online = tiny_online("vit", tmp_path, model=tiny_vit().requires_grad_(False))
    before = state_of(online)
    online.step(tiny_batch("vit", 4))
    assert not any(torch.equal(before[name], weight) for name, weight in online.model.named_parameters())


# ---- Saved and resumed ----


@pytest.mark.parametrize(("kind", "chunk_size"), [("siglip", None), ("siglip", 3), ("resnet", None)])
def test_a_resumed_model_is_the_uninterrupted_one(tmp_path, kind, chunk_size):
    make = partial(
        tiny_online,
        kind,
        tmp_path,
        dropout=0.3,
        chunk_size=chunk_size,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
    )
    batches = [tiny_batch(kind, 8, seed) for seed in range(6)]
    torch.manual_seed(7)
    whole = make()
    for batch in batches[:3]:
        whole.step(batch)
    whole.save(tmp_path / "checkpoint-3")
    random_state = torch.get_rng_state()  # which the Trainer saves and restores on each rank
    rest = [whole.step(batch) for batch in batches[3:]]

    torch.manual_seed(8)
    resumed = make(seed=1)
    resumed.load(tmp_path / "checkpoint-3")
    torch.set_rng_state(random_state)
    assert [resumed.step(batch) for batch in batches[3:]] == rest
    assert_equal(state_of(resumed), state_of(whole))
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_saved_weights_are_a_plain_checkpoint(tmp_path):
    online = tiny_online("siglip", tmp_path, name="online_reference")
    online.step(tiny_batch("siglip", 4))
    online.save(tmp_path / "checkpoint-1")
    assert_equal(AutoModel.from_pretrained(tmp_path / "checkpoint-1/online_reference").state_dict(), state_of(online))


@pytest.mark.parametrize("missing", ["model.safetensors", "training_state.pt"])
def test_a_checkpoint_without_the_model_is_refused(tmp_path, missing):
    online = tiny_online("vit", tmp_path)
    online.save(tmp_path)
    (tmp_path / "proxy" / missing).unlink()
    with pytest.raises(OSError, match=f"{missing} does not exist: .* a run without a proxy"):
        online.load(tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    tiny_online("vit", tmp_path).save(tmp_path)
    with pytest.raises(ValueError, match="holds a proxy of another architecture"):
        tiny_online("resnet", tmp_path).load(tmp_path)


# ---- Refused ----


def test_float16_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fp16=True would lose small gradients of the online reference"):
        tiny_online("vit", tmp_path, name="online_reference", fp16=True)


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_waits_for_evaluations_is_refused(tmp_path, schedule):
    evaluation = {"eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match=f"lr_scheduler_type='{schedule}' depends on evaluations, and the proxy"):
        tiny_online("vit", tmp_path, lr_scheduler_type=schedule, **evaluation)


def test_a_partitioned_model_is_refused(tmp_path):
    model = tiny_vit()
    model.classifier.weight.data = torch.empty(0)  # what ZeRO-3 leaves of a weight
    with pytest.raises(ValueError, match="the proxy was loaded after the training arguments"):
        tiny_online("vit", tmp_path, model=model)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_broken_gradients_end_the_run_with_the_weights_as_they_were(tmp_path, max_grad_norm):
    online = tiny_online("vit", tmp_path, max_grad_norm=max_grad_norm)
    online.step(tiny_batch("vit", 4))
    before, batch = state_of(online), tiny_batch("vit", 4)
    batch["pixel_values"][2, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="step 2 of the proxy: .* lower proxy_learning_rate"):
        online.step(batch)
    assert_equal(state_of(online), before)


# ---- In the reference's place ----


def test_an_online_reference_learns_from_the_rows_that_can_be_read(tmp_path):
    online, other = (tiny_online("siglip", tmp_path) for _ in range(2))
    batch = tiny_batch("siglip", 8)
    batch["valid"][[0, 5]] = False
    batch["pixel_values"][[0, 5]] = torch.nan
    reference = OnlineReference(online)
    loss = reference.learn(batch, Shares.of(Ranks(), batch["valid"]))
    readable = {name: value[batch["valid"]] for name, value in batch.items()}
    assert loss == other.step(readable)
    assert_equal(state_of(online), state_of(other))


def test_an_online_reference_scores_as_it_is_now_and_learns_on(tmp_path):
    online = tiny_online("siglip", tmp_path, dropout=0.5)
    reference, batch = OnlineReference(online), tiny_batch("siglip", 6)
    shares = Shares.of(Ranks(), batch["valid"])
    modes = []
    online.model.vision_model.register_forward_pre_hook(
        lambda module, args: modes.append((module.training, torch.is_grad_enabled()))
    )
    first = reference.score(tiny_siglip(5), batch, batch_size=4)
    reference.learn(batch, shares)
    second = reference.score(tiny_siglip(5), batch, batch_size=4)
    assert modes == [(False, False), (False, False), (True, True), (False, False), (False, False)]
    assert not torch.allclose(first.image, second.image, atol=1e-3)
    assert (reference.name, reference.commit) == (None, None)


# ---- Fresh models ----


def test_a_fresh_model_is_of_the_same_architecture_with_weights_of_its_own():
    model = tiny_siglip(0)
    state = torch.get_rng_state()
    one, same, other = fresh_like(model, seed=1), fresh_like(model, seed=1), fresh_like(model, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(dict(one.named_parameters()), dict(same.named_parameters()))
    weight = "vision_model.embeddings.patch_embedding.weight"
    for made in (other, model):
        assert made.get_parameter(weight).shape == one.get_parameter(weight).shape
        assert not torch.equal(made.get_parameter(weight), one.get_parameter(weight))
    assert one.logit_scale.exp().item() == pytest.approx(10.0)
    assert one.logit_bias.item() == -10.0
    one.config.text_config.vocab_size = 3
    assert model.config.text_config.vocab_size > 3


def test_a_fresh_clip_starts_at_its_own_temperature():
    model = tiny_clip()
    with torch.no_grad():
        model.logit_scale.fill_(0.5)
    assert fresh_like(model, seed=0).logit_scale.item() == pytest.approx(model.config.logit_scale_init_value)


def test_a_fresh_model_has_no_adapter_and_the_default_precision():
    learner = add_adapter(tiny_siglip(0).bfloat16(), LoraConfig(r=2, target_modules=["q_proj"]))
    fresh = fresh_like(learner, seed=0)
    assert fresh.state_dict().keys() == tiny_siglip(0).state_dict().keys()
    assert {weight.dtype for weight in fresh.parameters()} == {torch.float32}
