# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A training run whose reference is a cache: the same selections, and no reference."""

from __future__ import annotations

from collections import defaultdict

import datasets
import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.models import DualEncoder, base_model, expose_temperature
from jest_hf.reference import CachedReference, Reference, identify_reference, open_cache
from jest_hf.report import read_selections
from tests.helpers import random_rows, tiny_clip_processor, tiny_siglip, tiny_siglip_processor
from tests.reference.caching import make_cache, reference_model, super_batch
from tests.trainers import make_trainer


STEPS = 12


class CalledReference(torch.nn.Module):
    """What must not be there any more."""

    def forward(self, *args, **kwargs):
        raise AssertionError("the reference was called")


def trained(folder, rows, cache=None, *, dataset=None, collator=None, **changes):
    """Ids by step of a run, in order of drawing; with the reference alive, or with a cache in its place."""
    changes = {"max_steps": STEPS, "record_selection": True, **changes}
    trainer = make_trainer(folder, rows=rows if dataset is None else dataset, **changes)
    if collator is not None:
        trainer.data_collator = collator
    if cache is not None:
        trainer.reference.model = CalledReference()
        trainer.plan.reference.source = CachedReference.of(cache, trainer.train_dataset, trainer.data_collator)
    trainer.train()
    steps = defaultdict(list)
    for row in read_selections(folder / "selections.parquet").to_pylist():
        steps[row["step"]].append(row["example_id"])
    assert len(steps) == STEPS
    return steps


def overlap(a, b):
    return sum(len(set(a[step]) & set(b[step])) / len(a[step]) for step in a) / len(a)


@pytest.fixture(scope="module")
def rows():
    return random_rows(200)


@pytest.fixture(scope="module")
def live(tmp_path_factory, rows):
    """The selections of a run with the reference alive."""
    return trained(tmp_path_factory.mktemp("live"), rows)


@pytest.mark.parametrize("changes", [{}, {"selection": "independent"}, {"criterion": "easy_reference"}])
def test_with_an_fp32_cache_the_selections_are_those_of_the_live_reference(tmp_path, rows, live, changes):
    cache = make_cache(tmp_path / "cache", rows, shard_rows=64, batch_size=7)
    if changes:
        live = trained(tmp_path / "live", rows, **changes)
    assert trained(tmp_path / "cached", rows, open_cache(cache.folder), **changes) == live


def test_with_an_fp16_cache_the_selections_are_nearly_those(tmp_path, rows, live):
    cache = make_cache(tmp_path / "half", rows, dtype="float16", shard_rows=64)
    assert overlap(live, trained(tmp_path / "cached", rows, cache)) > 0.95
    other = make_cache(tmp_path / "other", rows, model=reference_model(2), shard_rows=64)
    assert overlap(live, trained(tmp_path / "foreign", rows, other)) < 0.9  # the measure can fail


@pytest.mark.parametrize("named", [False, True])
def test_a_streamed_copy_of_the_data_is_looked_up_by_key(tmp_path, named):
    names = [11 * ((7 * index) % 200) for index in range(200)] if named else list(range(200))
    rows = datasets.Dataset.from_list(random_rows(200))
    keyed = rows.add_column("example_id", names)
    cache = make_cache(tmp_path / "cache", keyed if named else rows, shard_rows=64)
    stream = keyed.to_iterable_dataset(4).shuffle(seed=3, buffer_size=50)
    live = trained(tmp_path / "live", rows, dataset=stream)
    cached = trained(tmp_path / "cached", rows, cache, dataset=stream)
    assert cached == live
    assert {name for ids in live.values() for name in ids} <= set(names)


def test_a_stream_without_keys_and_a_stream_of_other_rows_are_refused(tmp_path):
    rows = datasets.Dataset.from_list(random_rows(23))
    cache, collator = make_cache(tmp_path, rows), JESTDataCollator(tiny_siglip_processor())
    with pytest.raises(ValueError, match="train_dataset is a stream without an integer column example_id"):
        CachedReference.of(cache, rows.to_iterable_dataset(), collator)
    other = datasets.Dataset.from_list(random_rows(23, seed=1)).add_column("example_id", range(23))
    with pytest.raises(ValueError, match="does not match this run: data.row.0 was"):
        CachedReference.of(cache, other.to_iterable_dataset(), collator)
    reference = CachedReference.of(cache, rows.add_column("example_id", range(23)).to_iterable_dataset(), collator)
    assert reference.by_key


class Fragile(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return map(self._read, iter(self.rows))

    def _read(self, row):
        if isinstance(row, Exception):
            raise row
        return row


def _raise_at_0(row):
    if row["example_id"] == 0:
        raise OSError("gone")
    return row


def test_the_first_row_of_a_stream_that_can_be_read_is_compared(tmp_path):
    cache, collator = make_cache(tmp_path), JESTDataCollator(tiny_siglip_processor())
    good, other = ([{**row, "example_id": k} for k, row in enumerate(random_rows(23, seed=s))] for s in (0, 1))

    def streams(rows):
        table = datasets.Dataset.from_list(rows)
        return [Fragile([OSError("gone"), None, *rows[1:]]), table.to_iterable_dataset().map(_raise_at_0)]

    for stream in streams(good):
        assert CachedReference.of(cache, stream, collator).by_key
    for stream in streams(other):
        with pytest.raises(ValueError, match="does not match this run: data.row.1 was"):
            CachedReference.of(cache, stream, collator)
    with pytest.raises(ValueError, match=r"none of the first 256 rows of the stream .* \(.*OSError: gone\)"):
        CachedReference.of(cache, Fragile([OSError("gone")] * 300), collator)


def test_a_map_style_copy_with_other_rows_is_refused(tmp_path):
    cache = make_cache(tmp_path)
    with pytest.raises(ValueError, match="does not match this run: data.row.4 was"):
        rows = random_rows(23)
        rows[4]["text"] = "a black star"
        CachedReference.of(cache, rows, JESTDataCollator(tiny_clip_processor(24)))


def test_a_row_that_was_broken_when_it_was_cached_is_not_selected(tmp_path):
    rows = random_rows(23)
    broken = [{**row, "image": None} if index in (2, 9) else row for index, row in enumerate(rows)]
    reference = CachedReference(make_cache(tmp_path, broken))
    batch = super_batch([1, 2, 9, 4])
    batch["valid"][3] = False  # broken now
    assert reference.readable(batch).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="row 2 could not be read when the reference was cached, and can be read now"):
        reference.score(None, batch, 4)
    batch["valid"] = reference.readable(batch)
    assert len(reference.score(None, batch, 4)) == 4


def test_of_several_captions_the_one_that_was_drawn_is_looked_up(tmp_path):
    """Over several epochs, in each of which another caption may be drawn."""
    rows = random_rows(80)
    for index in range(0, 80, 2):
        rows[index]["text"] = ["a red star", rows[index]["text"], "a black circle and a square"]
    collator = JESTDataCollator(tiny_siglip_processor())
    cache = make_cache(tmp_path / "cache", rows, shard_rows=32)
    live = trained(tmp_path / "live", rows, collator=collator)
    assert trained(tmp_path / "cached", rows, cache, collator=collator) == live


def test_an_adapters_backbone_is_cached_as_it_answers(tmp_path):
    """The learner's adapter is no part of the reference that is cached."""
    from peft import LoraConfig, get_peft_model

    learner = get_peft_model(tiny_siglip(1), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    expose_temperature(base_model(learner))
    rows, collator = random_rows(9), JESTDataCollator(tiny_siglip_processor())
    live = Reference(DualEncoder(base_model(learner).config, collator.processor), learner, shared=True)
    cached = live.write_cache(
        tmp_path,
        base_model(learner).config,
        Rows(rows),
        collator,
        reference=identify_reference(learner),
        batch_size=4,
        dtype="float32",
    )
    batch = collator(Rows(rows).__getitems__(range(9)))
    found, expected = cached.score(learner, batch, 4), live.score(learner, batch, 4)
    torch.testing.assert_close(found.image, expected.image)
    torch.testing.assert_close(found.text, expected.text)
    adapted = live.view.score(learner, batch, 4)
    assert not torch.allclose(adapted.image, expected.image, atol=1e-3)


def test_a_card_can_name_the_reference_either_way(tmp_path):
    model, processor = reference_model(), tiny_siglip_processor()
    model.config._name_or_path, model.config._commit_hash = "owner/name", "c0ffee"
    live = Reference(DualEncoder(model.config, processor), model)
    cached = live.write_cache(
        tmp_path,
        model.config,
        Rows(random_rows(3)),
        JESTDataCollator(processor),
        reference={"repo": "owner/name", "commit": "c0ffee"},
        batch_size=4,
    )
    assert (cached.name, cached.commit) == (live.name, live.commit) == ("owner/name", "c0ffee")
    unnamed = CachedReference(make_cache(tmp_path / "unnamed"))
    assert unnamed.name is None and unnamed.commit is None


def test_nothing_of_the_reference_is_needed(tmp_path):
    """A cache alone says all that a step asks of a reference."""
    cache = make_cache(tmp_path)
    model = tiny_siglip(1)
    assert cache.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-7)
    assert cache.logit_bias == pytest.approx(model.logit_bias.item(), rel=1e-7)
    found = CachedReference(cache).score(None, super_batch([5, 22]), 1)
    assert (found.logit_scale, found.logit_bias) == (cache.logit_scale, cache.logit_bias)
    assert found.image.shape == (2, cache.width) and found.image.dtype == torch.float32
