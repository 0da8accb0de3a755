# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The collator: fixed shapes, pixels and tokens equal to the processors', and a counted skip for every broken row."""

from __future__ import annotations

import logging
import pickle

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import GemmaTokenizer, SiglipProcessor
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from jest_hf.data.captions import choose_caption
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import EpochSampler, Rows
from jest_hf.images.resizing import MOST_LEVELS
from jest_hf.models import View
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_clip_processor,
    tiny_siglip2_processor,
    tiny_siglip_processor,
    tiny_tokenizer,
)


PROCESSORS = {"siglip": tiny_siglip_processor, "clip": tiny_clip_processor, "siglip2": tiny_siglip2_processor}
RED_STAR = [3, 5, 13, 2, 0, 0, 0, 0]  # "a red star", end, padding


def mixed_rows(n: int = 5) -> list[dict]:
    """Images of different shapes, as PIL images."""
    generator = np.random.default_rng(7)
    sizes = generator.integers(10, 60, (n, 2)).tolist()
    return [{"image": random_image(*size, generator), "text": "A red star"} for size in sizes]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_is_within_2_levels_of_what_the_processor_gives_once_normalised(name):
    processor, rows = PROCESSORS[name](), mixed_rows()
    batch = JESTDataCollator(processor)(rows)
    images, captions = [row["image"] for row in rows], [row["text"].lower() for row in rows]
    options = {"padding": "max_length", "max_length": 8, "return_tensors": "pt"}
    if name == "siglip2":  # its processor's call goes by defaults of its own, not by its image processor's
        options |= {"patch_size": 4, "max_num_patches": 16}
    expected = processor(images=images, text=captions, **options)
    assert set(batch) == {*expected, "example_id", "caption_number", "valid"}
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    pixels = batch["pixel_values"]
    assert pixels.dtype == torch.uint8
    if name == "siglip2":
        normalised = (pixels / 255 - 0.5) / 0.5 * batch["pixel_attention_mask"][..., None]
    else:
        normalised = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    levels = 255 * (normalised - expected.pop("pixel_values")).abs() * std.min()
    assert levels.max() <= MOST_LEVELS + 1e-3
    for key, value in expected.items():
        assert torch.equal(batch[key], value), key


def test_dtypes_and_shapes():
    batch = JESTDataCollator(tiny_siglip_processor(16), tiny_siglip2_processor())(random_rows(3))
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "pixel_values": (torch.uint8, (3, 3, 16, 16)),
        "ref_pixel_values": (torch.uint8, (3, 16, 48)),
        "ref_pixel_attention_mask": (torch.int32, (3, 16)),
        "ref_spatial_shapes": (torch.int64, (3, 2)),
        "input_ids": (torch.int64, (3, 8)),
        "ref_input_ids": (torch.int64, (3, 8)),
        "example_id": (torch.int64, (3,)),
        "caption_number": (torch.int64, (3,)),
        "valid": (torch.bool, (3,)),
    }


def test_example_ids_come_from_the_rows_or_their_places():
    collator = JESTDataCollator(tiny_siglip_processor())
    assert collator(random_rows(3))["example_id"].tolist() == [0, 1, 2]
    assert collator(Rows(random_rows(9)).__getitems__([(1, 7), (1, 2)]))["example_id"].tolist() == [7, 2]


# The reference


@pytest.mark.parametrize(
    ("reference", "keys"),
    [
        (None, set()),
        (tiny_siglip_processor(16), set()),
        (tiny_siglip_processor(24), {"ref_pixel_values"}),
        (tiny_siglip_processor(16, max_length=6), {"ref_input_ids"}),
        (tiny_clip_processor(16), {"ref_pixel_values", "ref_input_ids", "ref_attention_mask"}),
    ],
)
def test_what_the_reference_sees_alike_is_not_made_twice(reference, keys):
    batch = JESTDataCollator(tiny_siglip_processor(16), reference)(random_rows(3))
    assert {key for key in batch if key.startswith("ref_")} == keys


def test_same_tokenizers_are_recognised_after_use():
    """A fast tokenizer keeps the padding and truncation of its last call, which must not count as a difference."""
    learner, reference = tiny_siglip_processor(), tiny_siglip_processor()
    learner.tokenizer(["a red star"], padding="max_length", max_length=5, truncation=True)
    assert "ref_input_ids" not in JESTDataCollator(learner, reference)(random_rows(2))


def test_another_vocabulary_is_another_tokenizer():
    reference = tiny_siglip_processor()
    reference.tokenizer.add_tokens(["octagon"])
    rows = [{"image": random_rows(1)[0]["image"], "text": "a red octagon"}]
    batch = JESTDataCollator(tiny_siglip_processor(), reference)(rows)
    assert batch["ref_input_ids"][0, 2] != batch["input_ids"][0, 2]


def test_the_references_pixels_are_those_of_its_own_collator():
    rows = mixed_rows()
    rows[0]["image"] = encode(random_image(200, 300, np.random.default_rng(0)), "JPEG")
    both = JESTDataCollator(tiny_siglip_processor(16), tiny_clip_processor(64))(rows)
    alone = JESTDataCollator(tiny_clip_processor(64))(rows)
    for key in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(both["ref_" + key], alone[key])


def test_another_reference_in_a_copy():
    """The copy equals a collator made with the other reference, and keeps attributes of a subclass."""

    class Marked(JESTDataCollator):
        mark = None

    first = Marked(tiny_siglip_processor(16), tiny_clip_processor(24), max_length=6, seed=3)
    first.mark = "kept"
    for processor in (None, tiny_siglip_processor(32, max_length=7), tiny_siglip_processor(16)):
        other = first.with_reference(processor)
        made = JESTDataCollator(tiny_siglip_processor(16), processor, max_length=6, seed=3)
        assert (type(other), other.mark, repr(other)) == (Marked, "kept", repr(made))
    assert {"ref_pixel_values", "ref_input_ids"} <= first(random_rows(2)).keys()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_blank_batch_is_a_row_of_nothing(name):
    collator = JESTDataCollator(PROCESSORS[name](), tiny_siglip_processor(24))
    broken = collator([{**GOOD, "text": ""}])
    blank = collator.blank()
    learners = {key for key in broken if not key.startswith("ref_")} - {"example_id", "caption_number", "valid"}
    assert blank.keys() == learners
    assert all(torch.equal(blank[key], broken[key]) for key in blank)
    view = View.parse("num_patches:6" if name == "siglip2" else "image:8")
    assert collator.at_view(view).blank()["view_pixel_values"].shape[1] in (6, 3)


# Captions


def test_captions_are_padded_and_truncated_to_one_length():
    rows = random_rows(2)
    rows[0]["text"], rows[1]["text"] = "a red star", "a red star and " * 9
    ids = JESTDataCollator(tiny_siglip_processor())(rows)["input_ids"]
    assert ids[0].tolist() == RED_STAR
    assert 0 not in ids[1].tolist()
    assert JESTDataCollator(tiny_siglip_processor(), max_length=5)(rows)["input_ids"].shape == (2, 5)


def test_length_without_a_limit_of_the_tokenizer_is_64():
    collator = JESTDataCollator(tiny_siglip_processor(max_length=int(1e30)))
    assert collator(random_rows(1))["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("tokenizer", [GemmaTokenizer, Siglip2Tokenizer])
def test_captions_for_siglip_2_are_lower_cased(tokenizer):
    """At fixed resolution SigLIP 2 differs from SigLIP only by its Gemma tokenizer."""
    letters = {letter: i for i, letter in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁ARSTaedrst"])}
    processor = SiglipProcessor(tiny_siglip_processor().image_processor, tokenizer(vocab=letters, merges=[]))
    rows = random_rows(2)
    rows[0]["text"], rows[1]["text"] = "A RED STAR", "a red star"
    ids = JESTDataCollator(processor)(rows)["input_ids"]
    assert ids.shape == (2, 64)
    assert torch.equal(ids[0], ids[1])


def test_gemmas_tokenizer_lower_cases_whatever_its_class():
    plain = tiny_tokenizer(lower_case=False)
    plain.add_tokens(["<start_of_turn>"])
    processor = SiglipProcessor(tiny_siglip_processor().image_processor, plain)
    rows = random_rows(2)
    rows[0]["text"], rows[1]["text"] = "A RED STAR", "a red star"
    ids = JESTDataCollator(processor)(rows)["input_ids"]
    assert torch.equal(ids[0], ids[1])


def test_captions_for_others_keep_their_case():
    processor = SiglipProcessor(tiny_siglip_processor().image_processor, tiny_tokenizer(lower_case=False))
    rows = random_rows(1)
    rows[0]["text"] = "a RED star"
    assert JESTDataCollator(processor)(rows)["input_ids"][0, 1] == 1  # unknown


def test_the_caption_column_is_found_or_named():
    rows = [{**row, "caption": "a red star", "title": ["a green star"]} for row in random_rows(1)]
    red, green = 5, 6
    del rows[0]["text"]
    assert JESTDataCollator(tiny_siglip_processor())(rows)["input_ids"][0, 1] == red
    assert JESTDataCollator(tiny_siglip_processor(), caption_column="title")(rows)["input_ids"][0, 1] == green


captions_lists = st.lists(st.one_of(st.none(), st.sampled_from(["", " \n"]), st.text(min_size=1)), max_size=6)


@given(captions=captions_lists, seed=st.integers(), epoch=st.integers(0), example_id=st.integers(0))
@settings(max_examples=100, deadline=None)
def test_a_caption_is_drawn_among_those_that_say_something(captions, seed, epoch, example_id):
    usable = [caption for caption in captions if caption is not None and caption.strip()]
    if not usable:
        with pytest.raises(ValueError, match="empty"):
            choose_caption(captions, seed, epoch, example_id)
    else:
        chosen = choose_caption(captions, seed, epoch, example_id)
        assert chosen in usable
        assert chosen == choose_caption(np.array(captions, dtype=object), seed, epoch, example_id)
        assert chosen == choose_caption(usable, seed, epoch, example_id)


def test_draws_are_even_and_independent_over_epochs_examples_and_seeds():
    captions = ["zero", "one", "two"]
    draws = np.array(
        [[[captions.index(choose_caption(captions, s, e, i)) for i in range(200)] for e in range(5)] for s in range(3)]
    )
    assert np.abs(np.bincount(draws.ravel()) / draws.size - 1 / 3).max() < 0.03  # 3.5 standard deviations
    for one, other in ((draws[0, 0], draws[0, 1]), (draws[0, 0], draws[1, 0]), (draws[0, 0, 1:], draws[0, 0, :-1])):
        assert 0.2 < (one == other).mean() < 0.47


# Broken rows

GOOD = random_rows(1)[0]
BROKEN = {
    "no image": ({"image": None}, "no image"),
    "no bytes": ({"image": {"bytes": b"", "path": None}}, "0 bytes"),
    "half a character": ({"text": "a star \ud83d"}, "half a character"),
    "half a character among captions": ({"text": ["a star", "\udfff"]}, "half a character"),
    "half a character in a path": ({"image": "\ud83d.png"}, "cannot be read"),
    "not an image": ({"image": {"bytes": b"<html>", "path": None}}, "no format"),
    "truncated": ({"image": encode(random_image(64, 64, np.random.default_rng(0)), "JPEG")[:900]}, "truncated"),
    "zero size": ({"image": Image.new("RGB", (0, 4))}, "no pixels"),
    "missing file": ({"image": {"bytes": None, "path": "no/such.png"}}, "cannot be read"),
    "floats": ({"image": np.zeros((8, 8, 3))}, "float64"),
    "no caption": ({"text": None}, "empty"),
    "empty caption": ({"text": ""}, "empty"),
    "white space": ({"text": " \t\n"}, "empty"),
    "no captions": ({"text": []}, "empty"),
    "empty captions": ({"text": ["", None, " "]}, "empty"),
    "a number": ({"text": 7}, "int"),
    "numbers": ({"text": ["a red star", 3.5]}, "float"),
    "not a number": ({"text": float("nan")}, "float"),
    "bytes": ({"text": b"a red star"}, "bytes"),
    "a dict": ({"text": {"en": "a red star"}}, "dict"),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_row_keeps_its_place_and_is_counted(name, broken, caplog):
    change, word = BROKEN[broken]
    rows = [GOOD, {**GOOD, **change, "example_id": 41}, GOOD]
    collator = JESTDataCollator(PROCESSORS[name]())
    batch = collator(rows)
    assert batch["valid"].tolist() == [True, False, True]
    assert not batch["pixel_values"][1].any()
    empty = collator.texts[""]([""])
    assert torch.equal(batch["input_ids"][1], empty["input_ids"][0])
    good = collator([GOOD])
    for key in good.keys() - {"example_id"}:
        assert torch.equal(batch[key][0], good[key][0]) and torch.equal(batch[key][2], good[key][0])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "41" in record.message and word in record.message


def test_a_skipped_naflex_row_still_attends_to_a_patch():
    batch = JESTDataCollator(tiny_siglip2_processor())([{**GOOD, "image": None}])
    assert batch["pixel_attention_mask"].sum() == 1
    assert batch["spatial_shapes"].tolist() == [[1, 1]]


def test_a_row_of_which_one_view_fails_is_skipped_for_both(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    rows = [{"image": Image.new("RGB", (2000, 1), "white"), "text": "a red star"}]
    batch = JESTDataCollator(tiny_siglip_processor(16), tiny_clip_processor(16))(rows)
    assert not batch["valid"].any() and not batch["pixel_values"].any() and not batch["ref_pixel_values"].any()


def test_the_first_ten_skips_are_logged(caplog):
    collator = JESTDataCollator(tiny_siglip_processor())
    for _ in range(3):
        collator([{**GOOD, "text": ""}] * 6)
    assert len(caplog.records) == 10
    assert "not logged" in caplog.records[-1].message


def test_a_batch_of_broken_rows_only_has_its_shape():
    batch = JESTDataCollator(tiny_siglip_processor())([{**GOOD, "text": ""}] * 4)
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and not batch["valid"].any()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError])
def test_what_is_not_the_rows_fault_is_not_swallowed(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jest_hf.data.collator.decode_pixels", fail)
    with pytest.raises(error):
        JESTDataCollator(tiny_siglip_processor())([GOOD])


# Wrong use


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "empty list"),
        ([{"picture": None, "text": "a"}], "'image'.*picture, text.*image_column"),
        ([{"image": None, "title": "a"}], "text, caption, captions.*image, title.*caption_column"),
        ([{"caption": "a"}] * 2, "'image'.*there are: caption"),
    ],
)
def test_missing_columns_are_named_with_those_there_are(rows, words):
    with pytest.raises(ValueError, match=words):
        JESTDataCollator(tiny_siglip_processor())(rows)


def test_a_named_caption_column_has_to_be_there():
    with pytest.raises(ValueError, match="'title'"):
        JESTDataCollator(tiny_siglip_processor(), caption_column="title")([GOOD])


@pytest.mark.parametrize("name", ["processor", "ref_processor"])
@pytest.mark.parametrize("part", [tiny_tokenizer(), tiny_siglip_processor().image_processor, "google/siglip"])
def test_half_a_processor_is_refused(name, part):
    with pytest.raises(ValueError, match=f"^{name} must have .* this {type(part).__name__} has not; pass"):
        JESTDataCollator(**{"processor": tiny_siglip_processor(), name: part})


@pytest.mark.parametrize("max_length", [0, -1, 2.5, 9, 10_000])
def test_a_length_that_does_not_suit_the_tokenizer_is_refused(max_length):
    with pytest.raises(ValueError, match=f"max_length={max_length}"):
        JESTDataCollator(tiny_siglip_processor(max_length=8), max_length=max_length)


def test_a_tokenizer_that_cannot_pad_is_refused():
    processor = tiny_siglip_processor()
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token"):
        JESTDataCollator(processor)


# Workers


def test_a_pickled_collator_gives_the_same_batch():
    collator, rows = JESTDataCollator(tiny_siglip2_processor(), tiny_clip_processor(), seed=5), mixed_rows()
    expected, got = collator(rows), pickle.loads(pickle.dumps(collator))(rows)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_batches_do_not_depend_on_the_workers():
    data = datasets.Dataset.from_list(
        [{**row, "text": [row["text"], "a black circle", "a white square"]} for row in random_rows(12)]
    )
    collator, batches = JESTDataCollator(tiny_siglip_processor()), []
    for n_workers in (0, 2):
        sampler = EpochSampler(len(data), seed=1)
        loader = DataLoader(Rows(data), batch_size=5, sampler=sampler, collate_fn=collator, num_workers=n_workers)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += list(loader)
    assert len(batches) == 2 * 6
    for one, other in zip(batches[:6], batches[6:], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_repr_says_what_the_models_see():
    text = repr(JESTDataCollator(tiny_siglip_processor(16), tiny_clip_processor(24), caption_column="title"))
    for part in ("caption_column='title'", "size=(16, 16)", "ref_image", "shortest_edge=24", "max_length=8"):
        assert part in text
