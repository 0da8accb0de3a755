# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection before decoding: the same run as selection in the step, and only the selected images are decoded."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import jest_hf.data.collator as collator_module
from jest_hf.distributed import Ranks
from jest_hf.images.pixels import BrokenImage
from jest_hf.report import read_rejected, read_selections
from jest_hf.training import early_selection
from jest_hf.training.early_selection import EarlySelection
from tests.helpers import random_rows
from tests.objectives.labelled import image_rows, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged, make_trainer


COMMON = {"criterion": "easy_reference", "cache_reference": True, "record_selection": True}


def trained(folder, rows=None, resume=None, **changes):
    trainer = make_trainer(folder, rows=rows if rows is not None else random_rows(100), **{**COMMON, **changes})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ledger(folder):
    return read_selections(folder / "selections.parquet").select(["step", "rank", "order", "example_id"]).to_pydict()


def weights(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def several_captions(n=100):
    return [
        {**row, "text": [row["text"], f"a {row['text']}", "red"][: 1 + i % 3]} for i, row in enumerate(random_rows(n))
    ]


VARIANTS = {
    "joint": {},
    "softmax": {"loss": "softmax"},
    "independent": {"selection": "independent"},
    "top_k": {"selection": "top_k"},
    "uniform_part": {"uniform_fraction": 0.25},
    "workers": {"dataloader_num_workers": 2},
    "epochs": {"max_steps": 8},  # 100 rows are three super-batches of 32
    "local": {"selection_scope": "local"},
    "taught": {"distillation_weight": 1.0},
    "view": {"scoring_view": "image:8"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_run_is_the_one_that_selects_in_the_step(tmp_path, name):
    rows = several_captions()
    runs = {}
    for early in (False, True):
        folder = tmp_path / str(early)
        runs[early] = trained(folder, rows=rows, select_before_decoding=early, **VARIANTS[name])
        assert (runs[early].parts.loaders.early is not None) == early
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")
    tables = {early: read_selections(tmp_path / str(early) / "selections.parquet") for early in runs}
    assert {early: set(table["stage"].to_pylist()) for early, table in tables.items()} == {
        False: {"step"},
        True: {"loader"},
    }
    scores = [table["score"].to_pylist() for table in tables.values()]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    left = [read_rejected(tmp_path / str(early) / "selections.parquet").to_pylist() for early in runs]
    kept = [{(row["step"], row["example_id"]): row["score"] for row in rows} for rows in left]
    assert kept[1] == pytest.approx(kept[0], abs=1e-5) and len(kept[0]) == 24 * runs[True].state.global_step
    assert torch.equal(weights(runs[True]), weights(runs[False]))
    for metric in ("loss", "examples_seen", "examples_trained", "examples_skipped", "unique_share", "total_flos"):
        assert logged(runs[True], metric) == logged(runs[False], metric), metric
    for part in ("selected", "rejected"):
        early, late = (logged(runs[one], f"{part}/reference_loss") for one in (True, False))
        assert early == pytest.approx(late, rel=1e-5) and len(early) > 0
    assert runs[True].run_flops == runs[False].run_flops


def test_only_the_selected_images_are_decoded(tmp_path, monkeypatch):
    counted = []
    decode = collator_module.decode_pixels
    monkeypatch.setattr(
        collator_module, "decode_pixels", lambda *args, **more: counted.append(1) or decode(*args, **more)
    )
    steps = {}
    for early in (False, True):
        trainer = make_trainer(tmp_path / str(early), rows=random_rows(100), select_before_decoding=early, **COMMON)
        trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
        counted.clear()
        trainer.train()
        steps[early] = len(counted)
    assert steps == {False: 3 * 32, True: 3 * 8}


def test_a_resumed_run_selects_the_same(tmp_path):
    changes = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trained(tmp_path / "whole", **changes)
    expected = ledger(tmp_path / "whole")
    stopped = trained(tmp_path / "resumed", **{**changes, "max_steps": 4})
    assert stopped.state.global_step == 4
    resumed = trained(tmp_path / "resumed", resume=str(tmp_path / "resumed" / "checkpoint-4"), **changes)
    assert resumed.parts.loaders.early is not None
    assert ledger(tmp_path / "resumed") == expected
    assert torch.equal(weights(resumed), weights(whole))
    assert all(step > 5 for step in resumed.parts.loaders.early.draws)  # nothing of the skipped steps is kept


def test_rows_that_could_not_be_cached_are_never_drawn(tmp_path):
    rows = random_rows(96)
    for index in range(0, 96, 3):
        rows[index]["image"] = b"no image"
    trainer = trained(tmp_path, rows=rows, select_before_decoding=True)
    drawn = ledger(tmp_path)["example_id"]
    assert len(drawn) == 24 and not any(index % 3 == 0 for index in drawn)
    assert logged(trainer, "examples_skipped")[-1] == 32


def test_a_chosen_row_that_breaks_later_is_left_out_and_counted(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, rows=random_rows(96), select_before_decoding=True, **COMMON)
    trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
    decode, number = collator_module.decode_pixels, iter(range(1000))

    def fail_at_the_third(*args, **more):
        if next(number) == 2:
            raise BrokenImage("the disk has gone")
        return decode(*args, **more)

    monkeypatch.setattr(collator_module, "decode_pixels", fail_at_the_third)
    trainer.train()
    written = ledger(tmp_path)
    assert [written["step"].count(step) for step in (1, 2, 3)] == [7, 8, 8]
    # The place of the missing one in the order of drawing is missing too.
    assert [order for step, order in zip(written["step"], written["order"], strict=True) if step == 1] == [
        0, 1, 3, 4, 5, 6, 7,
    ]  # fmt: skip
    assert logged(trainer, "examples_skipped")[-1] == 1
    assert logged(trainer, "examples_seen")[-1] == 96


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"criterion": "learnability"}, "criterion='learnability' scores with the learner"),
        ({"cache_reference": False}, "the reference is not cached"),
        ({"selection": "uniform"}, "selection='uniform' selects nothing"),
        ({"compare_selectors": ["uniform"]}, r"compare_selectors=\['uniform'\]"),
        ({"selection_warmup_steps": 1}, "a schedule"),
        ({"filter_ratio_ramp_steps": 1}, "a schedule"),
    ],
)
def test_a_run_that_cannot_is_refused_if_it_must_and_selects_in_the_step_if_it_may(tmp_path, changes, obstacle):
    with pytest.raises(ValueError, match=f"select_before_decoding=True needs .*{obstacle}"):
        trained(tmp_path / "must", select_before_decoding=True, **changes)
    trainer = trained(tmp_path / "may", **changes)
    assert trainer.parts.loaders.early is None and trainer.state.global_step == 3


def test_a_large_joint_draw_is_left_to_the_step_where_there_is_no_gpu(tmp_path, monkeypatch):
    assert trained(tmp_path / "small").parts.loaders.early is not None
    monkeypatch.setattr(early_selection, "MOST_FLOPS", 4 * 32 * 8 * 32 - 1)
    assert trained(tmp_path / "large").parts.loaders.early is None
    assert trained(tmp_path / "forced", select_before_decoding=True).parts.loaders.early.together
    assert not trained(tmp_path / "alone", selection="independent").parts.loaders.early.together


@pytest.mark.parametrize(
    ("device", "flops", "changes", "expected"),
    [
        ("cuda", 1.0, {}, "together"),
        ("cuda", 1.0, {"select_before_decoding": True}, "together"),
        ("cuda", 1.0, {"select_before_decoding": False}, "in the step"),
        ("cuda", 1.0, {"selection": "independent"}, "alone"),
        ("cuda", 1e12, {}, "alone"),
        ("cpu", 1.0, {}, "in the step"),
        ("cpu", 1.0, {"select_before_decoding": True}, "together"),
        ("cpu", 1e12, {}, "alone"),
    ],
)
def test_who_draws(tmp_path, monkeypatch, device, flops, changes, expected):
    args = arguments(tmp_path, criterion="easy_reference", cache_reference=True, **changes)
    monkeypatch.setattr(type(args), "device", torch.device(device))
    monkeypatch.setattr(early_selection, "MOST_FLOPS", flops)
    source = SimpleNamespace(reads_images=False, width=32)
    early = EarlySelection.where_it_serves(args, source, "sigmoid", None, Ranks())
    assert ("in the step" if early is None else "together" if early.together else "alone") == expected


@pytest.mark.parametrize("name", ["joint", "workers", "epochs", "local", "taught"])
def test_a_draw_on_the_device_is_that_of_the_step(tmp_path, monkeypatch, name):
    monkeypatch.setattr(early_selection, "MOST_FLOPS", 0.0)
    runs = {}
    for early in (False, True):
        folder = tmp_path / str(early)
        runs[early] = trained(folder, several_captions(), select_before_decoding=early, **VARIANTS[name])
    assert runs[True].parts.loaders.early.together
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")
    assert torch.equal(weights(runs[True]), weights(runs[False]))
    for part in ("selected", "rejected"):
        early, late = (logged(runs[one], f"{part}/reference_loss") for one in (True, False))
        assert early == pytest.approx(late, rel=1e-5) and len(early) > 0


def test_a_draw_on_the_device_has_its_scores_and_noise_there(tmp_path, monkeypatch):
    """Everything that is drawn from lies on `args.device`; what the loader gets is on the CPU."""
    monkeypatch.setattr(early_selection, "MOST_FLOPS", 0.0)
    trainer = make_trainer(tmp_path, select_before_decoding=True, **COMMON)
    trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
    trainer.get_train_dataloader()
    early = trainer.parts.loaders.early
    moved, device = [], torch.device("cpu", 0)  # differs from that of a tensor made on the CPU
    monkeypatch.setattr(type(trainer.args), "device", device)
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *given, **more: moved.append(given) or to(self, *given, **more)
    )
    early.draw([(0, index) for index in range(32)], step=1)
    assert moved.count((device,)) == 3  # ids, caption numbers and `valid`; the scores follow these
    assert early.draws[1].ids.device.type == early.draws[1].order.device.type == "cpu"


def test_draws_beside_the_steps_are_the_same(tmp_path, monkeypatch):
    runs = {}
    for beside in (False, True):
        monkeypatch.setattr(EarlySelection, "draws_beside", property(lambda self, beside=beside: beside))
        folder = tmp_path / str(beside)
        runs[beside] = weights(trained(folder, select_before_decoding=True)), ledger(folder)
    assert torch.equal(runs[True][0], runs[False][0])
    assert {name: runs[True][1][name] for name in ("step", "example_id")} == {
        name: runs[False][1][name] for name in ("step", "example_id")
    }


def test_where_there_is_a_gpu_small_draws_are_made_ahead_in_a_thread(tmp_path, monkeypatch):
    drawn = []
    draw = EarlySelection.draw

    def watched(self, keys, step):
        drawn.append((step, threading.current_thread().name.partition("_")[0]))
        return draw(self, keys, step)

    monkeypatch.setattr(EarlySelection, "draw", watched)
    monkeypatch.setattr(EarlySelection, "draws_beside", property(lambda self: not self.together))  # as with a GPU
    for flops, thread in ((1e12, "early-selection"), (0.0, threading.main_thread().name)):
        monkeypatch.setattr(early_selection, "MOST_FLOPS", flops)
        trainer = make_trainer(tmp_path, rows=random_rows(100), select_before_decoding=True, **COMMON)
        trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
        batches = iter(trainer.parts.loaders.early_loader(
            *trainer.parts.loaders.rows(trainer.train_dataset, trainer.data_collator, trainer.reference),
            trainer.data_collator,
            trainer.reference,
        ).base_dataloader.batch_sampler)  # fmt: skip
        drawn.clear()
        next(batches)
        next(batches)
        batches.close()
        n_drawn = 3 if thread == "early-selection" else 2
        assert drawn == [(step, thread) for step in range(1, n_drawn + 1)]


def test_super_batches_of_which_the_cache_has_no_row_end_the_run(tmp_path):
    rows = random_rows(224)
    for row in rows:
        row["image"] = b"no image"
    rows[0] = random_rows(1)[0]
    with pytest.raises(ValueError, match="only 0 of the 32 rows of the super-batch can be read.*5th step in a row"):
        trained(tmp_path, rows=rows, select_before_decoding=True, max_steps=9)


def test_labelled_rows_by_cached_losses(tmp_path):
    runs = {}
    for early in (False, True):
        runs[early] = make_trainer(
            tmp_path / str(early),
            model=tiny_vit(0),
            reference=tiny_vit(1),
            rows=image_rows(80),
            processor=tiny_vit_processor(),
            selection="top_k",
            select_before_decoding=early,
            **COMMON,
        )
        runs[early].train()
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")
    assert torch.equal(weights(runs[True]), weights(runs[False]))


def test_the_images_are_those_of_the_rows_that_were_drawn(tmp_path):
    """The loader reads the rows that the draw names, in its order."""
    rows = random_rows(64)
    for index, row in enumerate(rows):
        data = io.BytesIO()
        Image.new("RGB", (16, 16), (index, index, index)).save(data, "PNG")
        row["image"] = data.getvalue()
    trainer = make_trainer(tmp_path, rows=rows, select_before_decoding=True, **COMMON)
    trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
    for batch in trainer.get_train_dataloader():
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["example_id"].tolist()
