# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Variants of a cache and of what it is used for: each is refused in a sentence, or read bit by bit as the sound one.

The third outcome is that of a single row that has changed: it is skipped. No variant gives other scores. All of them
read one tiny cache as the loader of a run does, without training; the last tests train.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import StreamedRows, is_stream
from jest_hf.images import reading
from jest_hf.images.decoding import DecodedImage, decode_pixels
from jest_hf.reference import CachedReference, FetchingCollator, describe_reference, open_cache
from jest_hf.reference.shards import plan_of, sealed
from jest_hf.reference.store import about_shard
from tests.helpers import tiny_siglip_processor
from tests.reference.caching import contents, make_cache, reference_model
from tests.reference.damages import SHARDS, as_of_an_earlier_version, cut, flipped, swapped, write
from tests.reference.variants import (
    KEYS,
    N_ROWS,
    OTHER_IMAGE,
    SHARD_ROWS,
    Variant,
    changed_row,
    keyed,
    other_cache,
    same_at_first,
    several_captions,
    sound_data,
    stream,
    variants,
)
from tests.trainers import make_trainer


reference_of = cache(reference_model)


def scores(folder: Path, variant: Variant) -> dict[int, Any]:
    """What a run's loader reads of the cache, by row; the checks are those of a run."""
    collator, dataset = variant.collator(), variant.data()
    cache = open_cache(folder)
    cache.check(**describe_reference(reference_of(variant.model), None, None, collator))
    source = CachedReference.of(cache, dataset, collator)
    if is_stream(dataset):
        rows = list(StreamedRows(dataset, "image"))
    else:
        rows = Rows(dataset, "image").__getitems__([(0, index) for index in range(len(dataset))])
    read = FetchingCollator(source.comparing(collator), source)
    found: dict[int, Any] = {-1: (cache.logit_scale, cache.logit_bias)}
    for start in range(0, len(rows), 8):
        batch = read(rows[start : start + 8])
        places = source._rows(batch).tolist()
        for place, *row in zip(
            places, batch["valid"].tolist(), batch["cached_image"], batch["cached_text"], strict=True
        ):
            found[place] = (row[1].tolist(), row[2].tolist()) if row[0] else None
    return found


VARIANTS = variants()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sound cache, and its scores. Of the 23 rows four are in the sample that is compared at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jest_hf.data.fingerprint.SAMPLED_ROWS", 4)
        folder = tmp_path_factory.mktemp("sound") / "cache"
        make_cache(folder, sound_data(), shard_rows=SHARD_ROWS)
        yield folder, scores(folder, Variant("same"))


def test_there_are_enough_of_them(made: Any) -> None:
    assert len(VARIANTS) >= 60
    _, sound = made
    assert set(sound) == set(range(-1, N_ROWS)) and [row for row in sound if sound[row] is None] == [7]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_refused_or_reads_as_the_sound_cache(made: Any, tmp_path: Path, name: str) -> None:
    folder, sound = made
    variant = VARIANTS[name]
    copy = shutil.copytree(folder, tmp_path / "cache")
    variant.damage(copy)
    if isinstance(variant.outcome, str) and variant.outcome != "same":
        with pytest.raises((ValueError, FileNotFoundError), match=variant.outcome) as refused:
            scores(copy, variant)
        assert "\n" not in str(refused.value) and str(copy) in str(refused.value)
        return
    found = scores(copy, variant)
    skipped = () if variant.outcome == "same" else variant.outcome
    assert found == sound | dict.fromkeys(skipped)


# ---- Work that is resumed ----


def unfinished(folder: Path) -> None:
    """As a process leaves it that was killed before the last shard."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / SHARDS[4]).unlink()
    (folder / "unfinished.json").write_text(json.dumps(sealed(plan_of(manifest)), indent=1) + "\n")


RESUMED: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "nothing": (0, lambda folder: None),
    **{f"a bit at {place}": (1, flipped(SHARDS[1], place, 3)) for place in (0.0, 0.05, 0.3, 0.5, 0.8, 0.97, 1.0)},
    **{f"cut to {kept}": (1, cut(SHARDS[2], kept)) for kept in (0, 200, -1)},
    "deleted": (1, lambda folder: (folder / SHARDS[3]).unlink()),
    "swapped": (2, swapped),
    "of another cache": (1, lambda folder: shutil.copy(other_cache(folder) / SHARDS[1], folder / SHARDS[1])),
    "of an earlier version": (4, as_of_an_earlier_version),
    "as if of another version": (1, lambda folder: save_file(load_file(folder / SHARDS[1]), folder / SHARDS[1])),
}


@pytest.mark.parametrize(
    ("name", "had_manifest"),
    [
        *((name, False) for name in RESUMED),
        *((name, True) for name in ("a bit at 0.5", "deleted", "of another cache")),
    ],
)
def test_a_damaged_shard_is_made_again_when_the_work_is_resumed(
    made: Any, tmp_path: Path, name: str, had_manifest: bool
) -> None:
    """Also where a finished cache has lost a shard, which makes it unfinished."""
    folder, _ = made
    n_damaged, damage = RESUMED[name]
    copy = shutil.copytree(folder, tmp_path / "cache")
    damage(copy)
    if had_manifest:
        (copy / SHARDS[4]).unlink(missing_ok=True)
    else:
        unfinished(copy)
    model, forwards = reference_model(), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    make_cache(copy, sound_data(), model=model, shard_rows=SHARD_ROWS)
    assert contents(copy) == contents(folder)
    assert len(forwards) == 1 + 3 * n_damaged + 2  # three batches in a shard, two in the last one


def test_a_cache_of_an_earlier_version_that_has_lost_a_shard_is_finished_as_it_was_begun(
    made: Any, tmp_path: Path
) -> None:
    """And a damaged shard of it is made again: it has no hash of its own, but one in the manifest."""
    copy = shutil.copytree(made[0], tmp_path / "cache")
    as_of_an_earlier_version(copy)
    (copy / SHARDS[2]).unlink()
    tensors = {name: value.clone() for name, value in load_file(copy / SHARDS[1]).items()}
    tensors["image"][0, 0] += 1e-3  # no norm shows it
    save_file(tensors, copy / SHARDS[1])
    assert not make_cache(copy, sound_data(), shard_rows=SHARD_ROWS).has_digests
    assert scores(copy, Variant("same")) == made[1]


def test_a_shard_that_is_damaged_after_it_was_written_gets_no_entry_in_the_manifest(made: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(made[0], tmp_path / "cache")
    manifest = json.loads((copy / "manifest.json").read_text())
    assert about_shard(copy / SHARDS[1], 1, plan_of(manifest)) == manifest["shards"][1]
    flipped(SHARDS[1], 0.5)(copy)
    with pytest.raises(
        ValueError, match=f"{SHARDS[1]} is damaged: its tensors.*; run `jest-hf cache-reference` again"
    ):
        about_shard(copy / SHARDS[1], 1, plan_of(manifest))


def test_an_unfinished_cache_with_an_edited_plan_is_refused(made: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(made[0], tmp_path / "cache")
    unfinished(copy)
    plan = json.loads((copy / "unfinished.json").read_text())
    (copy / "unfinished.json").write_text(json.dumps(plan | {"logit_scale": 20.0}))
    with pytest.raises(ValueError, match="unfinished.json is damaged .its fields are not those that were written"):
        make_cache(copy, sound_data(), shard_rows=SHARD_ROWS)


def test_a_reference_without_numbers_makes_no_cache(tmp_path: Path) -> None:
    model = reference_model()
    with torch.no_grad():
        model.text_model.final_layer_norm.bias[0] = float("nan")
    with pytest.raises(ValueError, match="cannot be cached: the text embedding of row 0 has the norm nan, and not 1"):
        make_cache(tmp_path, model=model)
    assert not (tmp_path / "manifest.json").exists() and not list(tmp_path.glob("shard-*"))


# ---- In a run ----


def trained(folder: Path, cache: Path, data: Any, **changes: Any) -> Any:
    trainer = make_trainer(folder, rows=data, reference_cache=str(cache), filter_ratio=0.5, max_steps=2, **changes)
    trainer.train()
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def test_a_run_with_a_variant_that_is_the_same_has_the_same_weights(made: Any, tmp_path: Path) -> None:
    folder, _ = made
    sound = weights(trained(tmp_path / "sound", folder, sound_data()))
    for name in ("extra shard", "manifest written in one line", "without digests"):
        copy = shutil.copytree(folder, tmp_path / name)
        VARIANTS[name].damage(copy)
        assert torch.equal(weights(trained(tmp_path / "run", copy, sound_data())), sound), name


@pytest.mark.parametrize("changes", [{}, {"dataloader_num_workers": 1}, {"criterion": "easy_reference"}])
@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_a_run_skips_a_row_that_has_changed_and_says_so(
    made: Any, tmp_path: Path, caplog: Any, monkeypatch: Any, kind: str, changes: dict[str, Any]
) -> None:
    for logger in ("jest_hf", "transformers"):
        monkeypatch.setattr(logging.getLogger(logger), "propagate", True)
    rows = changed_row(9, image=OTHER_IMAGE)
    data = keyed(rows) if kind == "rows" else keyed(rows).to_iterable_dataset()
    trainer = make_trainer(
        tmp_path, rows=data, reference_cache=str(made[0]), filter_ratio=0.5, max_steps=4, record_selection=True,
        **changes,
    )  # fmt: skip
    taken = []
    learn = trainer.learn
    trainer.learn = lambda model, batch, *more: (
        taken.extend(batch["example_id"].tolist()) or learn(model, batch, *more)
    )
    trainer.train()
    row = 9 if kind == "rows" else KEYS[9]
    assert taken and row not in taken
    n_skipped = int(trainer.reference.different)
    assert n_skipped >= 1
    assert f"{n_skipped} rows that this process has read were skipped: their images or captions" in caplog.text


def test_a_run_on_a_stream_of_other_rows_ends_before_it_trains(made: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, rows=stream(same_at_first(3), 3), reference_cache=str(made[0]), filter_ratio=0.5,
        per_device_train_batch_size=10,
    )  # fmt: skip
    with pytest.raises(ValueError, match="rows are not those that the reference cache in"):
        trainer.train()
    assert trainer.statistics.trained == 0


def test_replaced_files_of_the_same_names_are_noticed(made: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """After the run has been made, as by a job that cleans the images up; each file is read once a row."""
    rows = several_captions()
    for index, row in enumerate(rows):
        path = tmp_path / f"{index}.png"
        if row["image"] is not None:
            write(path, row["image"]["bytes"])
            row["image"] = str(path)
    source = CachedReference.of(open_cache(made[0]), rows, collator := JESTDataCollator(tiny_siglip_processor()))
    files, read_file = [], reading._read_file
    monkeypatch.setattr(reading, "_read_file", lambda path: files.append(path) or read_file(path))
    write(tmp_path / "4.png", OTHER_IMAGE["bytes"])
    read = source.comparing(collator)(Rows(rows).__getitems__(range(8)))
    assert read["valid"].tolist() == [True, True, True, True, False, True, True, False]
    assert len(files) == 7


class Drawing(torch.utils.data.Dataset[Any]):
    """Rows whose captions are drawn each time."""

    def __init__(self) -> None:
        self.rows, self.generator = several_captions(), torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return N_ROWS

    def __getitem__(self, index: int) -> Any:
        colours = ["red", "blue", "green", "white", "black"]
        colour = colours[int(torch.randint(5, (1,), generator=self.generator))]
        return {**self.rows[index], "text": f"a {colour} star"}


def test_rows_of_a_random_transform_are_not_compared_with_the_cache_of_their_own_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=Drawing(), cache_reference=True, filter_ratio=0.5)
    trainer.train()
    assert not trainer.reference.compares and trainer.reference.cache.has_digests
    fixed = make_trainer(tmp_path / "fixed", rows=several_captions(), cache_reference=True, filter_ratio=0.5)
    fixed.train()
    assert fixed.reference.compares and trainer.statistics.skipped == fixed.statistics.skipped
    named = CachedReference.of(
        fixed.reference.cache, torch.utils.data.Subset(several_captions(), range(N_ROWS)), fixed.data_collator
    )
    assert named.compares  # with `reference_cache`, the rows of a torch data set are compared


def test_of_rows_with_cached_images_the_captions_are_compared(made: Any) -> None:
    """An image cache has no bytes of the files."""
    collator = JESTDataCollator(tiny_siglip_processor())
    source, geometry = CachedReference(open_cache(made[0])), collator.geometries[""]
    rows = Rows(several_captions()).__getitems__([0, 1, 2])
    for row in rows:
        row["image"] = DecodedImage({geometry: geometry.encode(decode_pixels(row["image"]))})
    assert source.comparing(collator)(rows)["valid"].tolist() == [True, True, True]
    assert int(source.different) == 0
    rows[1]["text"] = "a green star"
    assert source.comparing(collator)(rows)["valid"].tolist() == [True, False, True]
    assert int(source.different) == 1
