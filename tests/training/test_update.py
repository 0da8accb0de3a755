# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From the sub-batch to its loss, without a Trainer: teacher, order, numbers of rows, and what waits in between."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.batch import ContrastiveEmbeddings
from jest_hf.distributed import Ranks
from jest_hf.models import View
from jest_hf.selection import noise_at
from jest_hf.training.step import SubBatch
from jest_hf.training.update import Update


ENGINE = SimpleNamespace(autocast=nullcontext)


class Reader:
    def __init__(self):
        self.calls = []

    def __call__(self, model, batch, rows=slice(None), view=None, n_at_view=None):
        self.calls.append((str(view), n_at_view))
        return batch["example_id"]


class Objective:
    """The loss is the sum of the ids, plus 1,000 where there is a teacher."""

    def loss(self, output, batch, ranks, teacher=None):
        return output.sum() + (0 if teacher is None else 1000)


class Reference:
    def __init__(self):
        self.asked = []

    def score(self, learner, batch, batch_size):
        self.asked.append(batch["example_id"].tolist())
        return embeddings(batch["example_id"])


def embeddings(ids):
    image = torch.nn.functional.one_hot(ids % 16, 16).float()
    return ContrastiveEmbeddings(image, image, 1.0, 0.0)


def make_update(folder, view=None, reference=None, late_images=None, **options):
    args = JESTConfig(output_dir=folder, per_device_train_batch_size=8, use_cpu=True, report_to=[], **options)
    return Update(
        args,
        Objective(),
        Reader(),
        None if view is None else View.parse(view),
        ranks=Ranks(),
        engine=ENGINE,
        reference=lambda: reference,
        late_images=lambda: late_images,
    )


def sub_batch(selected=None):
    return SubBatch({"example_id": torch.arange(8)}, torch.arange(8), 0, 0, True, selected or {})


def test_without_a_view_rows_stay_in_order_and_nobody_counts_them(tmp_path):
    update = make_update(tmp_path)
    batch = update.prepare(None, sub_batch(), 1)
    assert batch.rows["example_id"].tolist() == list(range(8))
    assert (batch.teacher, batch.n_at_view, batch.fewest_rows) == (None, 0, 0)


def test_with_a_view_rows_and_teacher_are_shuffled_alike(tmp_path):
    reference = Reference()
    update = make_update(tmp_path, "image:8", reference, distillation_weight=1.0, scoring_view="image:8")
    batch = update.prepare(None, sub_batch(), 1)
    ids = batch.rows["example_id"]
    assert sorted(ids.tolist()) == list(range(8)) != ids.tolist()
    assert torch.equal(batch.teacher.image, embeddings(ids).image)
    assert (batch.n_at_view, batch.fewest_rows) == (4, 8)
    assert update.prepare(None, sub_batch(), 2).rows["example_id"].tolist() != ids.tolist()


@pytest.mark.parametrize("step, rank", [(1, 0), (2, 0), (7, 1)])
def test_the_shuffle_has_noise_of_its_own_by_step_and_rank(tmp_path, monkeypatch, step, rank):
    update = make_update(tmp_path, "image:8", scoring_view="image:8", n_chunks=4, seed=5)
    monkeypatch.setattr(JESTConfig, "sub_batch_size", 16)  # 8 rows on each of two ranks
    update.ranks = SimpleNamespace(rank=rank, gather_counts=lambda n, device: [n, n])
    order = update.prepare(None, sub_batch(), step).rows["example_id"]
    noise = noise_at(5, step, 1, torch.arange(8 * rank, 8 * rank + 8), first_chunk=4)[0]
    assert order.tolist() == noise.argsort().tolist()


def test_a_teacher_that_has_scored_the_super_batch_is_not_run_again(tmp_path):
    reference = Reference()
    update = make_update(tmp_path, reference=reference, distillation_weight=1.0)
    known = embeddings(torch.arange(8))
    assert update.prepare(None, sub_batch({"reference": known}), 1).teacher is known
    assert reference.asked == []
    update.prepare(None, sub_batch(), 1)
    assert reference.asked == [list(range(8))]


def test_a_teacher_is_needed_for_distillation(tmp_path):
    with pytest.raises(ValueError, match="distillation_weight=1.0 needs a reference"):
        make_update(tmp_path, distillation_weight=1.0).prepare(None, sub_batch(), 1)


def test_full_images_are_brought_for_the_rows_that_are_not_at_the_view(tmp_path):
    seen = []

    def late_images(rows, n_at_view):
        seen.append((rows["example_id"].tolist(), n_at_view))
        return {**rows, "pixel_values": "full"}

    update = make_update(tmp_path, "image:8", late_images=late_images, scoring_view="image:8")
    batch = update.prepare(None, sub_batch(), 1)
    assert seen == [(batch.rows["example_id"].tolist(), 4)] and batch.rows["pixel_values"] == "full"


def test_the_loss_uses_what_waits_only_while_the_batch_is_learned(tmp_path):
    update = make_update(tmp_path, "image:8", Reference(), distillation_weight=1.0, scoring_view="image:8")
    batch = update.prepare(None, sub_batch(), 1)
    with update.learning(batch):
        assert update.loss(None, batch.rows)[0] == 28 + 1000
    assert update.loss(None, batch.rows)[0] == 28  # outside of a step there is no teacher
    assert update.reader.calls == [("image:8", 4), ("image:8", 4)]
    with pytest.raises(RuntimeError), update.learning(batch):
        raise RuntimeError
    assert update.loss(None, batch.rows)[0] == 28  # an error does not leave the batch behind
