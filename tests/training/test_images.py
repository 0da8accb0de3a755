# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that read pixels from an image cache: the same selections and weights, and no image is decoded."""

from __future__ import annotations

import shutil

import datasets
import numpy as np
import pytest
import torch

import jest_hf.data.collator as collator_module
from jest_hf import JESTConfig, JESTDataCollator
from jest_hf.data import image_writer
from jest_hf.images.decoding import decode_pixels
from jest_hf.report import read_selections
from tests.distributed.processes import run
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)
from tests.objectives.labelled import (
    image_rows,
    text_rows,
    tiny_bert,
    tiny_tokenizer,
    tiny_vit,
    tiny_vit_processor,
)
from tests.trainers import arguments, logged, make_trainer


def some_rows(n=80):
    rows = [{**row, "text": [row["text"], "a red star"][: 1 + i % 2]} for i, row in enumerate(random_rows(n, size=20))]
    rows[7]["image"] = b"no image"
    return rows


def larger_reference():
    return {"reference": tiny_siglip(1, image_size=24), "options": {"ref_processing_class": tiny_siglip_processor(24)}}


def naflex():
    return {"model": tiny_siglip2(0), "reference": tiny_siglip2(1), "processor": tiny_siglip2_processor()}


def scaled():
    collator = JESTDataCollator(tiny_siglip_processor(8), scaled_jpeg_decoding=True)
    return {
        "model": tiny_siglip(0, image_size=8),
        "reference": tiny_siglip(1, image_size=8),
        "options": {"data_collator": collator},
    }


def labelled():
    models = {"model": tiny_vit(0), "reference": tiny_vit(1), "rows": image_rows(80), "selection": "independent"}
    return {**models, "processor": tiny_vit_processor()}


CACHED = {"criterion": "easy_reference", "cache_reference": True}
RUNS = {
    "live": dict,
    "larger_reference": larger_reference,
    "view": lambda: {"scoring_view": "image:8"},
    "naflex_view": lambda: {**naflex(), "scoring_view": "num_patches:4"},
    "scaled": scaled,
    "early": lambda: {**CACHED, **larger_reference()},
    "two_stages": lambda: {"prefilter_ratio": 0.5, "filter_ratio": 0.5, "cache_reference": True},
    "workers": lambda: {"dataloader_num_workers": 2, "max_steps": 4},  # 80 rows are two super-batches: two epochs
    "labels": labelled,
    "cached_losses": lambda: {**labelled(), "cache_reference": True},
}


def trained(folder, image_cache, resume=None, **changes):
    changes = {"rows": some_rows(), "max_steps": 3, **changes}
    trainer = make_trainer(folder, record_selection=True, image_cache=image_cache, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def ledger(folder):
    return read_selections(folder / "selections.parquet").to_pydict()


def assert_equal(tmp_path, one, other):
    assert ledger(tmp_path / "with") == ledger(tmp_path / "without")
    assert torch.equal(weights(one), weights(other))
    for metric in ("loss", "examples_seen", "examples_trained", "examples_skipped"):
        assert logged(one, metric) == logged(other, metric), metric


@pytest.mark.parametrize("name", RUNS)
def test_the_run_is_the_one_that_decodes(tmp_path, name):
    without = trained(tmp_path / "without", None, **RUNS[name]())
    cached = trained(tmp_path / "with", str(tmp_path / "images"), **RUNS[name]())
    assert cached.plan.images.cache is not None and cached.plan.images.cache.n_rows == 80
    assert_equal(tmp_path, cached, without)


def test_no_image_is_decoded_and_no_image_file_is_read(tmp_path, monkeypatch):
    """Beside those that the trainer checks when it is made: a sample of the data, and the first row."""
    (tmp_path / "files").mkdir()
    rows = random_rows(80, size=20)
    for number, row in enumerate(rows):
        path = tmp_path / "files" / f"{number}.png"
        path.write_bytes(row["image"]["bytes"])
        row["image"] = str(path)
    rows = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    without = trained(tmp_path / "without", None, rows=rows, **CACHED)
    make_trainer(tmp_path / "first", rows=rows, image_cache=str(tmp_path / "images")).plan.make_caches(
        rows, JESTDataCollator(tiny_siglip_processor())
    )
    decoded = []
    monkeypatch.setattr(
        collator_module, "decode_pixels", lambda *given, **more: decoded.append(1) or decode_pixels(*given, **more)
    )
    trainer = make_trainer(
        tmp_path / "with", rows=rows, image_cache=str(tmp_path / "images"), record_selection=True, **CACHED
    )
    trainer.plan.make_caches(trainer.train_dataset, trainer.data_collator)
    shutil.rmtree(tmp_path / "files")
    decoded.clear()
    monkeypatch.setattr(trainer.plan.images, "make", lambda *given: None)  # a sample of the files is read there
    monkeypatch.setattr(type(trainer.plan), "cache_reference", lambda *given: None)
    trainer.train()
    assert not decoded
    assert_equal(tmp_path, trainer, without)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_reference_is_cached_from_the_same_pixels(tmp_path, monkeypatch, scaled):
    """With scaled decoding of two sizes it is not: the reference's cache decodes for the reference alone."""
    decoded = []
    monkeypatch.setattr(
        collator_module, "decode_pixels", lambda *given, **more: decoded.append(1) or decode_pixels(*given, **more)
    )
    processors = tiny_siglip_processor(), tiny_siglip_processor(24)
    trainer = make_trainer(
        tmp_path,
        reference=tiny_siglip(1, image_size=24),
        options={"data_collator": JESTDataCollator(*processors, scaled_jpeg_decoding=scaled)},
        rows=random_rows(40),
        image_cache=str(tmp_path / "images"),
        **CACHED,
    )
    decoded.clear()
    trainer.plan.make_caches(trainer.train_dataset, trainer.data_collator)
    assert len(decoded) == (41 if scaled else 1)  # one row more, by which the columns are checked


def test_full_images_need_not_come_late(tmp_path):
    """A run that would bring them after the selection, in a second reading, has them in the cache."""
    generator = np.random.default_rng(0)
    rows = [{"image": encode(random_image(64, 64, generator), "JPEG"), "text": "a star"} for _ in range(80)]
    found = {}
    for image_cache in (None, str(tmp_path / "images")):
        trainer = make_trainer(
            tmp_path / str(len(found)),
            rows=rows,
            options={"data_collator": JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=True)},
            image_cache=image_cache,
            scoring_view="image:8",
            cache_reference=True,
            max_steps=1,
        )
        trainer.train()
        found[image_cache is None] = trainer.parts.loaders.late_images is None
    assert found == {True: False, False: True}


def test_a_resumed_run_goes_on_from_the_cache(tmp_path):
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    without = trained(tmp_path / "without", None, **changes)
    trained(tmp_path / "with", str(tmp_path / "images"), **{**changes, "max_steps": 2})
    resumed = trained(
        tmp_path / "with", str(tmp_path / "images"), resume=str(tmp_path / "with" / "checkpoint-2"), **changes
    )
    assert ledger(tmp_path / "with") == ledger(tmp_path / "without")
    assert torch.equal(weights(resumed), weights(without))


def _train(folder: str, image_cache: str | None) -> tuple[torch.Tensor, int]:
    """Train on this rank, and count the images that it has decoded for the cache."""
    image_writer.REGION_BYTES = 5 * 768
    decoded: list[int] = []
    image_writer.decode_pixels = lambda *given, **more: decoded.append(1) or decode_pixels(*given, **more)
    trainer = make_trainer(
        folder,
        rows=some_rows(),
        per_device_train_batch_size=4,
        image_cache=image_cache,
        record_selection=True,
        lr_scheduler_type="constant",
    )
    trainer.train()
    return weights(trainer), len(decoded)


def test_ranks_share_the_writing_and_train_alike(tmp_path):
    without = run(2, _train, str(tmp_path / "without"), None)
    cached = run(2, _train, str(tmp_path / "with"), str(tmp_path / "images"))
    assert ledger(tmp_path / "with") == ledger(tmp_path / "without")
    assert torch.equal(cached[0][0], without[0][0])
    assert sum(count for _, count in cached) == 80


def _fail_on_one_rank(folder: str) -> str:
    def full(*given):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(folder, rows=some_rows(), per_device_train_batch_size=4, image_cache=f"{folder}/images")
    if torch.distributed.get_rank() == 1:
        image_writer._begin = full  # before the other rank can have written everything
    try:
        trainer.train()
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_rank_that_cannot_write_ends_all(tmp_path):
    one, other = run(2, _fail_on_one_rank, str(tmp_path))
    assert one == "RuntimeError: rank 1 could not make the image cache: [Errno 28] No space left on device"
    assert other == "OSError: [Errno 28] No space left on device"


# ---- What is refused when the trainer is made ----


def test_a_cache_of_other_images_is_refused_at_construction(tmp_path):
    trained(tmp_path / "a", str(tmp_path / "images"), max_steps=1)
    with pytest.raises(ValueError, match=r"does not match this run: it has images of size=\(16, 16\), .* needs"):
        make_trainer(tmp_path / "b", image_cache=str(tmp_path / "images"), rows=some_rows(), **larger_reference())
    with pytest.raises(ValueError, match="data.n_rows was 80, and in this run it is 79"):
        make_trainer(tmp_path / "b", image_cache=str(tmp_path / "images"), rows=some_rows()[:79])


def test_streams_transforms_and_texts_are_refused_at_construction(tmp_path):
    rows = datasets.Dataset.from_list(random_rows(80))
    with pytest.raises(ValueError, match="image_cache='images' reads images by index, and a stream has no index"):
        make_trainer(tmp_path, rows=rows.to_iterable_dataset(), image_cache="images")
    rows.set_transform(lambda batch: batch)
    with pytest.raises(ValueError, match=r"has a transform \(set_transform\).* leave image_cache out"):
        make_trainer(tmp_path, rows=rows, image_cache="images")
    with pytest.raises(ValueError, match="image_cache='images' keeps images, and a TextLabelCollator reads none"):
        make_trainer(
            tmp_path,
            model=tiny_bert(0),
            reference=tiny_bert(1),
            rows=text_rows(80),
            processor=tiny_tokenizer(),
            selection="independent",
            image_cache="images",
        )
    with pytest.raises(ValueError, match="image_cache='' must be the path of a folder"):
        arguments(tmp_path, image_cache="")


def test_help_says_what_is_kept():
    about = next(one for one in JESTConfig.__dataclass_fields__.values() if one.name == "image_cache")
    assert about.default is None and "decoded training images" in about.metadata["help"]
