# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection before decoding, and in two stages, on a stream: the draws of the step, and few decoded images."""

from __future__ import annotations

import io
import logging
import multiprocessing

import datasets
import pytest
import torch
from PIL import Image

import jest_hf.data.collator as collator_module
from jest_hf.data.captions import draw_caption
from jest_hf.data.rows import Rows
from jest_hf.data.undecoded import GUARDS
from jest_hf.images.pixels import BrokenImage
from jest_hf.report import read_selections
from jest_hf.selection import PairwiseScores, gumbel_noise
from tests.helpers import random_rows
from tests.reference.caching import make_cache
from tests.trainers import logged, make_trainer


N = 112  # three super-batches of 32 rows, and some that are dropped
KEYS = [11 * ((5 * index) % N) for index in range(N)]  # ids that are no numbers of rows


def encoded(rows):
    """Rows with the bytes of PNG files."""
    for row in rows:
        if isinstance(row["image"], Image.Image):
            data = io.BytesIO()
            row["image"].save(data, "PNG")
            row["image"] = {"bytes": data.getvalue(), "path": None}
    return rows


def table(broken=()):
    rows = random_rows(N)
    for index, row in enumerate(rows):
        row["text"] = [row["text"], f"a {row['text']}", "red"][: 1 + index % 3]
        row["example_id"] = KEYS[index]
        if index in broken:
            row["image"] = {"bytes": b"no image", "path": None}
    return datasets.Dataset.from_list(encoded(rows)).cast_column("image", datasets.Image())


def stream(rows=None, shards=4):
    return (rows or table()).to_iterable_dataset(shards).shuffle(seed=3, buffer_size=20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(make_cache(tmp_path_factory.mktemp("cache"), table(), shard_rows=40).folder)


def trainer_of(folder, cache, rows=None, **changes):
    changes = {"criterion": "easy_reference", "record_selection": True, "reference_cache": cache, **changes}
    return make_trainer(folder, rows=stream() if rows is None else rows, **changes)


def trained(folder, cache, rows=None, resume=None, **changes):
    trainer = trainer_of(folder, cache, rows, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


TWO_STAGES = {"prefilter_ratio": 0.5, "filter_ratio": 0.5, "criterion": "learnability"}  # 32 : 16 : 8


def ledger(folder):
    return read_selections(folder / "selections.parquet").select(["step", "rank", "order", "example_id"]).to_pydict()


def weights(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


class Counted:
    """Decoded images, and batches made, in this process and in the loader workers that are forked from it."""

    def __init__(self, monkeypatch):
        self.images, self.batches = (multiprocessing.Value("i", 0) for _ in range(2))
        decode, collate = collator_module.decode_pixels, collator_module.JESTDataCollator.__call__

        def count(counter, function):
            def counted(*args, **more):
                with counter.get_lock():
                    counter.value += 1
                return function(*args, **more)

            return counted

        monkeypatch.setattr(collator_module, "decode_pixels", count(self.images, decode))
        monkeypatch.setattr(collator_module.JESTDataCollator, "__call__", count(self.batches, collate))

    def start(self):
        self.images.value = self.batches.value = 0


VARIANTS = {
    "joint": {},
    "independent": {"selection": "independent"},
    "top_k": {"selection": "top_k"},
    "uniform_part": {"uniform_fraction": 0.25},
    "passes": {"max_steps": 8},
    "workers": {"dataloader_num_workers": 2, "max_steps": 6},
    "local": {"selection_scope": "local"},
    "view": {"scoring_view": "image:8"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_run_is_the_one_that_selects_in_the_step(tmp_path, cache, name):
    runs = {}
    for early in (False, True):
        runs[early] = trained(tmp_path / str(early), cache, select_before_decoding=early, **VARIANTS[name])
        assert (runs[early].parts.loaders.early is not None) == early
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")
    assert torch.equal(weights(runs[True]), weights(runs[False]))
    for metric in ("loss", "examples_seen", "examples_trained", "examples_skipped", "total_flos"):
        assert logged(runs[True], metric) == logged(runs[False], metric), metric
    for part in ("selected", "rejected"):
        early, late = (logged(runs[one], f"{part}/reference_loss") for one in (True, False))
        assert early == pytest.approx(late, rel=1e-5) and len(early) > 0
    assert runs[True].run_flops == runs[False].run_flops


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(("changes", "size"), [({}, 8), (TWO_STAGES, 16)], ids=["one_stage", "two_stages"])
def test_only_the_selected_images_are_decoded(tmp_path, cache, monkeypatch, n_workers, changes, size):
    counted = Counted(monkeypatch)
    trainer = trainer_of(tmp_path, cache, dataloader_num_workers=n_workers, **changes)
    counted.start()
    trainer.train()
    assert trainer.state.global_step == 3
    assert counted.images.value == size * counted.batches.value
    # The loader is ahead: by one batch of accelerate, and by two of each worker.
    assert 3 <= counted.batches.value <= 3 + 1 + 2 * n_workers


@pytest.mark.parametrize("changes", [{}, {"select_before_decoding": False}], ids=["early", "late"])
def test_workers_start_as_the_options_say(tmp_path, cache, changes):
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    loader = trainer_of(tmp_path, cache, **options, **changes).get_train_dataloader().dataset.loader
    assert loader.multiprocessing_context.get_start_method() == "spawn"


def test_the_images_are_those_of_the_rows_that_were_drawn(tmp_path):
    rows = random_rows(64)
    for index, row in enumerate(rows):
        row["image"], row["example_id"] = Image.new("RGB", (16, 16), (index, index, index)), index
    rows = datasets.Dataset.from_list(encoded(rows)).cast_column("image", datasets.Image())
    cache = str(make_cache(tmp_path / "cache", rows, shard_rows=64).folder)
    trainer = trainer_of(tmp_path, cache, stream(rows, 2), dataloader_num_workers=2)
    batches = iter(trainer.get_train_dataloader())
    for _ in range(4):
        batch = next(batches)
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["example_id"].tolist()
        assert len(batch["example_id"]) == 8


class Seen:
    """The candidates of each step, and the ids of the super-batch that reaches the step."""

    def __init__(self, trainer):
        self.candidates, self.epochs, self.ids = {}, {}, {}
        trainer.get_train_dataloader()
        early, pool = trainer.parts.loaders.early, trainer.parts.step.pool
        choose = type(early).choose

        def spy_choose(early, ids, epoch, step):
            self.candidates[step], self.epochs[step] = ids.flatten().tolist(), epoch
            return choose(early, ids, epoch, step)

        def spy_pool(super_batch, step):
            self.ids[step] = super_batch["example_id"].tolist()
            return pool(super_batch, step)

        self.choose = spy_choose
        trainer.parts.step.pool = spy_pool


def literal_first_stage(trainer, seen, step, size):
    """The candidates with the largest sum of minus the reference's own loss and Gumbel noise, by position."""
    candidates, epoch, seed = seen.candidates[step], seen.epochs[step], trainer.data_collator.seed
    ids = torch.tensor(candidates)
    reference = trainer.reference
    rows = {"example_id": ids, "valid": torch.ones(len(ids), dtype=torch.bool)}
    counts = reference.caption_counts(ids).tolist()
    drawn = [draw_caption(n, seed, epoch, one) for n, one in zip(counts, candidates, strict=True)]
    rows["caption_number"] = torch.tensor(drawn)
    cached = reference.score(None, rows, len(ids))
    scores = PairwiseScores.from_embeddings(reference=cached, criterion="easy_reference", loss="sigmoid").diagonal()
    noise = gumbel_noise(trainer.args.seed + 2**61, step, 1, len(candidates))[0]
    best = (scores.double() + noise).sort(descending=True, stable=True).indices[:size]
    return [candidates[position] for position in best.sort().values.tolist()]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_the_first_stage_draws_by_the_reference_and_the_second_from_what_is_left(
    tmp_path, cache, monkeypatch, n_workers
):
    trainer = trainer_of(tmp_path, cache, dataloader_num_workers=n_workers, **TWO_STAGES)
    seen = Seen(trainer)
    monkeypatch.setattr(type(trainer.parts.loaders.early), "choose", seen.choose)
    trainer.train()
    written = ledger(tmp_path)
    for step in (1, 2, 3):
        assert len(seen.candidates[step]) == 32
        assert seen.ids[step] == literal_first_stage(trainer, seen, step, 16)
        chosen = [one for one, at in zip(written["example_id"], written["step"], strict=True) if at == step]
        assert len(chosen) == 8 and set(chosen) < set(seen.ids[step])
    assert logged(trainer, "examples_seen")[-1] == 3 * 32
    assert trainer.state.log_history[0]["prefilter/effective_sample_size/chunk_01"] > 1


def test_the_warm_up_takes_rows_as_they_come(tmp_path, cache, monkeypatch):
    trainer = trainer_of(tmp_path, cache, selection_warmup_steps=1, **TWO_STAGES)
    seen = Seen(trainer)
    monkeypatch.setattr(type(trainer.parts.loaders.early), "choose", seen.choose)
    trainer.train()
    assert seen.ids[1] == seen.candidates[1][:16]
    assert ledger(tmp_path)["example_id"][:8] == seen.candidates[1][:8]
    assert seen.ids[2] == literal_first_stage(trainer, seen, 2, 16)


@pytest.mark.parametrize("changes", [{}, TWO_STAGES, {"dataloader_num_workers": 2}], ids=["one", "two", "workers"])
def test_a_resumed_run_selects_the_same(tmp_path, cache, changes):
    changes = {"max_steps": 5, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant", **changes}
    whole = trained(tmp_path / "whole", cache, **changes)
    trained(tmp_path / "resumed", cache, **{**changes, "max_steps": 4})
    checkpoint = str(tmp_path / "resumed" / "checkpoint-4")
    resumed = trained(tmp_path / "resumed", cache, resume=checkpoint, **changes)
    assert resumed.parts.loaders.early is not None
    assert ledger(tmp_path / "resumed") == ledger(tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))
    assert all(step > 5 for step in resumed.parts.loaders.early.draws)  # nothing of the skipped steps is kept


@pytest.mark.parametrize("changes", [{}, TWO_STAGES], ids=["one_stage", "two_stages"])
def test_rows_that_could_not_be_cached_are_never_drawn(tmp_path, changes):
    broken = range(0, N, 3)
    rows = table(broken)
    cache = str(make_cache(tmp_path / "cache", rows, shard_rows=40).folder)
    trainer = trained(tmp_path, cache, stream(rows), **changes)
    drawn = ledger(tmp_path)["example_id"]
    assert len(drawn) == 24 and not {KEYS[index] for index in broken} & set(drawn)
    skipped = logged(trainer, "examples_skipped")[-1]
    late = trained(tmp_path / "late", cache, stream(rows), select_before_decoding=False)
    assert skipped == logged(late, "examples_skipped")[-1] > 0


def test_a_chosen_row_that_breaks_later_is_left_out_and_counted(tmp_path, cache, monkeypatch):
    trainer = trainer_of(tmp_path, cache)
    decode, number = collator_module.decode_pixels, iter(range(1000))

    def fail_at_the_third(*args, **more):
        if next(number) == 2:
            raise BrokenImage("the disk has gone")
        return decode(*args, **more)

    monkeypatch.setattr(collator_module, "decode_pixels", fail_at_the_third)
    trainer.train()
    written = ledger(tmp_path)
    assert [written["step"].count(step) for step in (1, 2, 3)] == [7, 8, 8]
    assert [order for step, order in zip(written["step"], written["order"], strict=True) if step == 1] == [
        0, 1, 3, 4, 5, 6, 7,
    ]  # fmt: skip
    assert logged(trainer, "examples_skipped")[-1] == 1
    assert logged(trainer, "examples_seen")[-1] == 96


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"criterion": "learnability"}, "criterion='learnability' scores with the learner"),
        ({"reference_cache": None}, "the reference is not cached"),
        ({"compare_selectors": ["uniform"]}, r"compare_selectors=\['uniform'\]"),
        ({"selection_warmup_steps": 1}, "a schedule"),
    ],
)
def test_a_run_that_cannot_is_refused_if_it_must_and_selects_in_the_step_if_it_may(tmp_path, cache, changes, obstacle):
    with pytest.raises(ValueError, match=f"select_before_decoding=True needs .*{obstacle}"):
        trained(tmp_path / "must", cache, select_before_decoding=True, **changes)
    trainer = trained(tmp_path / "may", cache, **changes)
    assert trainer.parts.loaders.early is None and trainer.state.global_step == 3


def test_a_large_joint_draw_is_left_to_the_device(tmp_path, cache, monkeypatch):
    assert trained(tmp_path / "small", cache).parts.loaders.early is not None
    monkeypatch.setattr("jest_hf.training.early_selection.MOST_FLOPS", 4 * 32 * 8 * 32 - 1)
    assert trained(tmp_path / "large", cache).parts.loaders.early is None
    assert trained(tmp_path / "forced", cache, select_before_decoding=True).parts.loaders.early is not None


@pytest.mark.parametrize("n_workers", [0, 2])
def test_rows_that_the_cache_does_not_have_are_named(tmp_path, cache, n_workers):
    keys = [key + (index > 30) for index, key in enumerate(KEYS)]
    rows = table().remove_columns("example_id").add_column("example_id", keys)
    trainer = trainer_of(tmp_path, cache, rows.to_iterable_dataset(4), dataloader_num_workers=n_workers)
    with pytest.raises(ValueError, match=r"the reference cache in .* has no row with example_id=\d+; train on"):
        trainer.train()


needs_guards = pytest.mark.skipif(not GUARDS, reason="this version of datasets makes tables of all rows")

WAYS = {
    "map": lambda rows: rows.map(lambda row: {"length": len(row["text"])}),
    "add_column": lambda rows: rows.remove_columns("example_id").add_column("example_id", KEYS),
    "filter": lambda rows: rows.filter(lambda row: True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("decodes", [pytest.param(True, marks=needs_guards), False])
def test_a_stream_stays_encoded_below_functions_that_look_at_no_image(tmp_path, cache, way, decodes):
    rows = table().to_iterable_dataset(1).cast_column("image", datasets.Image(decode=decodes))
    trainer = trainer_of(tmp_path, cache, WAYS[way](rows), select_before_decoding=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["example_id"]) == 8 and batch["valid"].all()


def test_a_stream_whose_images_are_changed_is_refused_with_the_way_out(tmp_path, cache):
    rows = table().to_iterable_dataset(1).map(lambda row: {"image": row["image"].copy()})
    with pytest.raises(ValueError, match=r"data.row.0 was .* call stream.cast_column\('image', datasets.Image\(d"):
        trainer_of(tmp_path / "inside", cache, rows)


class Pixels(torch.utils.data.IterableDataset):
    """Rows with decoded images."""

    def __iter__(self):
        yield from Rows(pixels())


def pixels():
    return [{**row, "image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in Rows(table())]


@pytest.mark.parametrize("make, are_decoded", [(Pixels, True), (stream, False)])
def test_decoded_images_are_told_of(tmp_path, cache, caplog, make, are_decoded):
    caplog.set_level(logging.WARNING, "jest_hf.data.chosen")
    if are_decoded:
        cache = str(make_cache(tmp_path / "cache", pixels(), shard_rows=40).folder)
    trainer = trained(tmp_path, cache, make())
    assert trainer.parts.loaders.early is not None
    told = [one.getMessage() for one in caplog.records if "come with decoded images" in one.getMessage()]
    assert len(told) == are_decoded and all("each loader worker keeps 32 images" in one for one in told)
