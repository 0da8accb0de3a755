# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Late images: the same pixels as without them, of the right rows, and no crash if an image is lost."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.late import LateImages, enlarge
from jest_hf.data.rows import Rows
from jest_hf.images.pixels import ImageGeometry
from jest_hf.models import DualEncoder, View
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)
from tests.trainers import make_trainer


FAMILIES = {
    "siglip": (tiny_siglip, tiny_siglip_processor, "image:8"),
    "clip": (tiny_clip, tiny_clip_processor, "image:8"),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor, "num_patches:6"),
}


def photographs(n: int, image_format: str = "JPEG", size: int = 64) -> list[dict]:
    generator = np.random.default_rng(3)
    files = [encode(random_image(size, size + 4 * index, generator), image_format) for index in range(n)]
    return [{**row, "image": {"bytes": file, "path": None}} for row, file in zip(random_rows(n), files, strict=True)]


def late_and_sub_batch(name: str, rows: list[dict], ids: list[int], n_threads: int = 2):
    """Make a sub-batch of these rows with the loader's collator, as after a selection."""
    _, make_processor, view = FAMILIES[name]
    rows = Rows(rows)
    collator = JESTDataCollator(make_processor(), scaled_jpeg_decoding=True).at_view(View.parse(view))
    late = LateImages(rows, collator, n_threads)
    super_batch = late.collator(rows.__getitems__([(2, index) for index in range(len(rows))]))
    return late, {key: value[ids] for key, value in super_batch.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


def test_the_full_images_are_those_of_the_rows_in_the_sub_batch(family):
    rows, ids = photographs(9), [7, 2, 5, 0, 3]
    late, batch = late_and_sub_batch(family, rows, ids)
    full = JESTDataCollator(FAMILIES[family][1](), scaled_jpeg_decoding=True)([rows[index] for index in ids])
    assert not full.keys() & batch.keys() - {"input_ids", "attention_mask", "example_id", "caption_number", "valid"}
    found = late(batch, n_at_view=2)
    for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"):
        if name in full:
            assert found[name].dtype == full[name].dtype
            assert torch.equal(found[name][2:], full[name][2:]), name
    assert not found["pixel_values"][:2].any()
    assert all(torch.equal(found[name], batch[name]) for name in batch)


def test_a_forward_over_both_is_that_over_images_made_early(family):
    make_model, make_processor, view = FAMILIES[family]
    rows, ids, view = photographs(6, "PNG"), [4, 1, 5, 0], View.parse(view)
    late, batch = late_and_sub_batch(family, rows, ids)
    early = JESTDataCollator(make_processor()).at_view(view)([rows[index] for index in ids])
    learner = DualEncoder(make_model(0).config, make_processor())
    inputs = [learner.inputs(one, view=view, n_at_view=2)["pixel_values"] for one in (late(batch, 2), early)]
    for one, other in zip(*inputs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if isinstance(one[name], torch.Tensor))


def test_only_what_is_trained_on_in_full_is_read_again():
    class Counting(list):
        reads = []

        def __getitem__(self, index):
            self.reads.append(index)
            return super().__getitem__(index)

    rows = Counting(photographs(6))
    late, batch = late_and_sub_batch("siglip", rows, [4, 1, 3])
    rows.reads.clear()
    late(batch, n_at_view=1)
    assert rows.reads == [1, 3]
    rows.reads.clear()
    assert late(batch, n_at_view=3).keys() == batch.keys()
    assert not rows.reads


@pytest.mark.parametrize("n_at_view", [0, 1])
def test_an_image_that_is_lost_is_replaced_by_its_view(family, n_at_view, tmp_path, caplog):
    rows = photographs(4)
    for index, row in enumerate(rows):
        path = tmp_path / f"{index}.jpg"
        path.write_bytes(row["image"]["bytes"])
        row["image"] = str(path)
    late, batch = late_and_sub_batch(family, rows, [3, 1, 2])
    before = late(batch, n_at_view)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "2.jpg").write_bytes(b"no image")
    after = late(batch, n_at_view)
    assert late.n_enlarged == 2 and len(caplog.records) == 2
    assert "Example 1 is trained on with its enlarged view" in caplog.messages[0]
    for name, value in before.items():
        assert after[name].shape == value.shape and after[name].dtype == value.dtype
    assert torch.equal(after["pixel_values"][0], before["pixel_values"][0])
    full = JESTDataCollator(FAMILIES[family][1]()).geometries[""]
    for place in (1, 2):
        view = {name: batch["view_" + name][place].numpy() for name in full.empty(0)}
        for name, array in enlarge(view, full).items():
            assert np.array_equal(after[name][place].numpy(), array) and array.any()


def test_enlarged_patches_are_the_views():
    collator = JESTDataCollator(tiny_siglip2_processor()).at_view(View.parse("num_patches:6"))
    batch = collator(photographs(1))
    view = {
        name: batch["view_" + name][0].numpy() for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    }
    found = enlarge(view, collator.geometries[""])
    assert found["pixel_values"].shape == (16, 48)
    assert np.array_equal(found["pixel_values"][:6], view["pixel_values"]) and not found["pixel_values"][6:].any()
    assert found["pixel_attention_mask"].sum() == view["pixel_attention_mask"].sum()
    assert np.array_equal(found["spatial_shapes"], view["spatial_shapes"])


def test_an_enlarged_image_is_the_view_resized():
    pixels = np.asarray(random_image(8, 8, np.random.default_rng(0)))
    found = enlarge({"pixel_values": pixels.transpose(2, 0, 1)}, ImageGeometry(size=(16, 16)))["pixel_values"]
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(found, expected.transpose(2, 0, 1))


def test_a_batch_of_another_collator_is_refused():
    """The views of the sub-batch would be made from blank images."""
    rows = photographs(3)
    late, _ = late_and_sub_batch("siglip", rows, [0])
    with pytest.raises(ValueError, match="has no view_pixel_values.*LateImages.collator"):
        late(JESTDataCollator(tiny_siglip_processor())(rows), n_at_view=1)


def test_the_loaders_collator_makes_the_view_and_nothing_else():
    reference = tiny_siglip_processor(24, max_length=6)
    collator = JESTDataCollator(tiny_siglip_processor(), reference).at_view(View.parse("image:8"))
    batch = LateImages(Rows(photographs(3)), collator).collator(photographs(3))
    assert batch["view_pixel_values"].shape == (3, 3, 8, 8)
    assert set(batch) == {"view_pixel_values", "input_ids", "example_id", "caption_number", "valid"}


@pytest.mark.parametrize(
    ("view", "image_format", "size", "kept", "scaled", "serves"),
    [
        ("image:8", "JPEG", 64, 0.1, True, True),
        ("image:8", "JPEG", 64, 0.2, True, True),
        ("image:8", "JPEG", 64, 0.25, True, False),  # most of the super-batch
        ("image:8", "JPEG", 14, 0.1, True, False),  # no half of it is large enough for the view
        ("image:8", "JPEG", 64, 0.1, False, False),  # the view takes the same decoding as the full image
        ("image:8", "PNG", 64, 0.1, True, False),
        ("patch:16", "JPEG", 64, 0.1, True, False),  # made of the full image
        ("drop:0.5", "JPEG", 64, 0.1, True, False),
    ],
)
def test_late_is_where_it_pays(view, image_format, size, kept, scaled, serves):
    rows = Rows(datasets.Dataset.from_list(photographs(2, image_format, size)))
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=scaled).at_view(View.parse(view))
    assert (LateImages.where_it_serves(rows, collator, kept) is not None) == serves


def test_a_first_row_that_is_broken_decides_for_early():
    rows = photographs(2)
    rows[0]["image"] = None
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=True).at_view(View.parse("image:8"))
    assert LateImages.where_it_serves(Rows(rows), collator, 0.1) is None


def test_what_is_not_the_images_fault_is_not_swallowed(monkeypatch):
    late, batch = late_and_sub_batch("siglip", photographs(3), [0, 2])

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("jest_hf.data.late.decode_pixels", fail)
    with pytest.raises(MemoryError):
        late(batch, n_at_view=0)


# In a run


@pytest.mark.parametrize(
    ("changes", "late"),
    [
        ({"criterion": "hard_learner"}, True),
        ({"criterion": "hard_learner", "scaled": False}, False),
        ({"cache_reference": True}, True),
        ({}, False),  # the reference looks at all of the images
        ({"selection": "uniform"}, False),
        ({"criterion": "hard_learner", "filter_ratio": 0.5}, False),
        ({"criterion": "hard_learner", "scoring_view": "patch:16"}, False),
    ],
)
def test_a_run_brings_full_images_late_where_it_pays(tmp_path, changes, late):
    changes = {"scoring_view": "image:8", "scaled": True} | changes
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=changes.pop("scaled"))
    options = {"data_collator": collator}
    trainer = make_trainer(tmp_path, rows=photographs(80), options=options, **changes)
    made, learned = [], []
    step, learn = trainer.training_step, trainer.learn
    trainer.training_step = lambda model, batch, *more: made.append(set(batch)) or step(model, batch, *more)
    trainer.learn = lambda model, batch, *more: learned.append(batch) or learn(model, batch, *more)
    trainer.train()
    at_view = changes.get("scoring_view") != "patch:16"
    assert all(("pixel_values" in keys, "view_pixel_values" in keys) == (not late, at_view) for keys in made)
    for batch in learned:  # whoever decoded it, the second half is there in full
        rows = [photographs(80)[index] for index in batch["example_id"].tolist()]
        expected = collator(rows)
        assert torch.equal(batch["pixel_values"][4:], expected["pixel_values"][4:])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
