# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a cache is of: everything that changes an embedding is noticed, and nothing else is."""

from __future__ import annotations

import copy
import io
import json

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModel, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.models import base_model
from jest_hf.reference import describe_data, describe_reading, identify_reference
from jest_hf.reference.fingerprint import difference
from tests.data.test_torch_data import Fragile
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
    tiny_tokenizer,
)
from tests.reference.caching import make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"), datasets.Dataset.from_list(random_rows(23)))


def images(**changes):
    return SiglipImageProcessorPil(**{"size": {"height": 16, "width": 16}, **changes})


def reading(image_processor=None, tokenizer=None, **options):
    processor = SiglipProcessor(image_processor or images(), tokenizer or tiny_tokenizer(with_mask=False))
    return {"reading": describe_reading(JESTDataCollator(processor, **options))}


def other_tokenizer():
    tokenizer = tiny_tokenizer(with_mask=False)
    tokenizer.add_tokens(["crescent"])
    return tokenizer


def data(change=lambda rows: rows, **options):
    rows = Rows(datasets.Dataset.from_list(change(random_rows(23))))
    return {"data": describe_data(rows, JESTDataCollator(tiny_siglip_processor(), **options))}


def replaced(index, **columns):
    return lambda rows: [{**row, **columns} if i == index else row for i, row in enumerate(rows)]


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def renamed(old, new):
    return lambda rows: [{new if name == old else name: value for name, value in row.items()} for row in rows]


def changed_config(field, value):
    model = tiny_siglip(1)
    setattr(model.config.vision_config, field, value)
    return model


STALE = {
    "weights": (lambda: {"reference": identify_reference(tiny_siglip(2))}, "reference.weights"),
    "one weight": (lambda: {"reference": identify_reference(nudged(tiny_siglip(1)))}, "reference.weights"),
    "configuration": (
        lambda: {"reference": identify_reference(changed_config("num_attention_heads", 4))},
        "reference.config",
    ),
    "a Hub model": (
        lambda: {"reference": {"repo": "owner/name", "commit": "c0ffee"}},
        "its reference was a model with the sha256 .*, and in this run it is owner/name@c0ffee",
    ),
    "image size": (lambda: reading(images(size={"height": 24, "width": 24})), r"reading.image.size was \[16, 16\]"),
    "image geometry": (
        lambda: {"reading": describe_reading(JESTDataCollator(tiny_clip_processor()))},
        "reading.image.size was .* and in this run it is None",
    ),
    "patches": (
        lambda: {"reading": describe_reading(JESTDataCollator(tiny_siglip2_processor()))},
        "reading.image.kind was 'ImageGeometry', and in this run it is 'PatchGeometry'",
    ),
    "resampling": (lambda: reading(images(resample=2)), "reading.image.resample was 3, and in this run it is 2"),
    "scaled decoding": (
        lambda: reading(scaled_jpeg_decoding=True),
        "reading.scaled_jpeg_decoding was False, and in this run it is True",
    ),
    "mean": (lambda: reading(images(image_mean=[0.4, 0.5, 0.5])), r"reading.mean was \[0.5, 0.5, 0.5\]"),
    "deviation": (lambda: reading(images(image_std=[0.3, 0.5, 0.5])), "reading.std"),
    "no normalisation": (
        lambda: reading(images(do_normalize=False)),
        "reading.mean was .* and in this run it is None",
    ),
    "rescaling": (lambda: reading(images(do_rescale=False)), "reading.rescale_factor"),
    "tokenizer": (lambda: reading(tokenizer=other_tokenizer()), "reading.tokenizer"),
    "text length": (lambda: reading(max_length=6), "reading.max_length was 8, and in this run it is 6"),
    "lower case": (
        lambda: {"reading": {**reading()["reading"], "lower_case": True}},
        "reading.lower_case was False, and in this run it is True",
    ),
    "view": (
        lambda: {"reading": {**reading()["reading"], "view": "patch:32"}},
        "reading.view was 'full', and in this run it is 'patch:32'",
    ),
    "fewer rows": (lambda: data(lambda rows: rows[:-1]), "data.n_rows was 23, and in this run it is 22"),
    "other order": (lambda: data(lambda rows: rows[::-1]), "data.captions"),
    "one caption": (lambda: data(replaced(17, text="a red circle and a star")), "data.captions"),
    "one image": (lambda: data(replaced(17, image=picture())), "data.row.17"),
    "image column": (
        lambda: data(renamed("image", "picture"), image_column="picture"),
        "data.image_column was 'image', and in this run it is 'picture'",
    ),
    "caption column": (
        lambda: data(renamed("text", "caption")),
        "data.caption_column was 'text', and in this run it is 'caption'",
    ),
}


def nudged(model):
    with torch.no_grad():
        model.logit_bias += 1e-5
    return model


@pytest.mark.parametrize("name", STALE)
def test_every_kind_of_staleness_is_refused_and_named(cache, name):
    present, message = STALE[name]
    with pytest.raises(
        ValueError, match=f"does not match this run: {message}.*; make a new one with .jest-hf cache-ref"
    ):
        cache.check(**present())


@pytest.mark.parametrize(
    ("resample", "scaled", "message"),
    [
        (3, True, "reading.resize was 'PIL', and in this run it is 'torch'"),
        (1, False, "reading.scaled_jpeg_decoding was True, and in this run it is False"),
        (1, True, None),  # Lanczos is PIL's now as then
    ],
)
def test_a_manifest_of_before_has_the_pixels_of_before(resample, scaled, message):
    """PIL resized, and JPEGs were decoded at reduced size, when manifests did not record either."""
    present = reading(images(resample=resample), scaled_jpeg_decoding=scaled)
    fields = json.loads(json.dumps(present["reading"]))
    del fields["resize"], fields["scaled_jpeg_decoding"]
    assert difference({"reading": fields}, present) == message


def test_a_cache_records_how_the_collator_decodes(tmp_path):
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=True)
    made = make_cache(tmp_path, collator=collator)
    made.check(reading=describe_reading(collator))
    with pytest.raises(ValueError, match="reading.scaled_jpeg_decoding was True, and in this run it is False"):
        made.check(**reading())


def test_commits_are_compared():
    cached = {"reference": {"repo": "owner/name", "commit": "a" * 40, "weights": "w"}}
    assert difference(cached, {"reference": {"repo": "owner/name", "commit": "a" * 40}}) is None
    found = difference(cached, {"reference": {"repo": "owner/name", "commit": "b" * 40}})
    assert found == f"reference.commit was '{'a' * 40}', and in this run it is '{'b' * 40}'"
    assert difference(cached, {"reference": {"weights": "w"}}) is None  # a copy of it on a disk


def test_the_same_weights_are_the_same_reference_at_any_commit():
    """After a push that changed a README."""
    cached = {"reference": {"repo": "owner/name", "commit": "a" * 40, "weights": "w", "config": "c"}}
    present = {"repo": "other/name", "commit": "b" * 40, "weights": "w", "config": "c"}
    assert difference(cached, {"reference": present}) is None
    for name in ("weights", "config"):
        assert difference(cached, {"reference": {**present, name: "x"}}) is not None


def test_what_is_the_same_is_accepted(cache):
    learner = tiny_clip_processor(24)
    cache.check(
        reference=identify_reference(tiny_siglip(1)),
        reading=describe_reading(JESTDataCollator(learner, tiny_siglip_processor())),
        **data(),
    )
    cache.check()


@pytest.mark.parametrize(
    "rows",
    [
        random_rows(23),
        datasets.Dataset.from_list(random_rows(23)).add_column("quality", list(range(23))),
        datasets.Dataset.from_list(random_rows(23)).cast_column("image", datasets.Image()),
        datasets.Dataset.from_list(random_rows(7, seed=1) + random_rows(23)).select(range(7, 30)),
        datasets.Dataset.from_list(random_rows(23)).with_transform(lambda batch: batch),
    ],
    ids=["list", "more columns", "image feature", "selected", "transform"],
)
def test_it_does_not_matter_how_the_rows_are_held(cache, rows):
    cache.check(data=describe_data(Rows(rows), JESTDataCollator(tiny_siglip_processor())))


def test_files_are_known_by_what_is_in_them(cache, tmp_path):
    rows = random_rows(23)
    for index, row in enumerate(rows):
        path = tmp_path / f"{index}.png"
        path.write_bytes(row["image"]["bytes"])
        row["image"] = str(path)
    collator = JESTDataCollator(tiny_siglip_processor())
    cache.check(data=describe_data(Rows(rows), collator))
    (tmp_path / "5.png").write_bytes(picture()["bytes"])
    with pytest.raises(ValueError, match="data.row.5 was"):
        cache.check(data=describe_data(Rows(rows), collator))
    (tmp_path / "5.png").unlink()
    with pytest.raises(ValueError, match="data.row.5 was"):
        cache.check(data=describe_data(Rows(rows), collator))


def test_images_in_memory_are_known_by_their_pixels():
    collator = JESTDataCollator(tiny_siglip_processor())
    rows = [{"image": Image.new("RGB", (8, 8), colour), "text": "a star"} for colour in ("red", "blue")]
    one = describe_data(Rows(rows), collator)
    assert one == describe_data(Rows(copy.deepcopy(rows)), collator)
    assert one["row"]["0"] != one["row"]["1"]


def test_of_large_data_a_sample_of_rows_is_read_with_both_ends(monkeypatch):
    monkeypatch.setattr("jest_hf.data.fingerprint.SAMPLED_ROWS", 4)
    described = describe_data(Rows(random_rows(23)), JESTDataCollator(tiny_siglip_processor()))
    assert list(described["row"]) == ["0", "7", "15", "22"]


@pytest.mark.parametrize("build", [tiny_siglip, tiny_siglip2, tiny_clip])
def test_a_path_and_its_model_are_the_same_reference(tmp_path, build):
    model = build(1)
    model.save_pretrained(tmp_path)
    identity = identify_reference(str(tmp_path))
    assert identity == identify_reference(model)
    assert identity == identify_reference(AutoModel.from_pretrained(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9", "dtype": "float32"}))
    assert identify_reference(str(tmp_path)) == identity
    assert identify_reference(build(2))["weights"] != identity["weights"]


def test_several_files_of_weights_are_one_model(tmp_path):
    tiny_siglip(1).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert identify_reference(str(tmp_path)) == identify_reference(tiny_siglip(1))


def test_a_path_without_safetensors_and_partitioned_weights_are_refused(tmp_path):
    model = tiny_siglip(1)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no .safetensors"):
        identify_reference(str(tmp_path))
    model.logit_scale.data = torch.empty(0)
    with pytest.raises(ValueError, match="partitioned"):
        identify_reference(model)


def test_an_adapter_in_a_folder_is_known_by_its_weights_and_its_base(tmp_path):
    from peft import LoraConfig, get_peft_model

    def save(seed, adapter_seed):
        tiny_siglip(seed).save_pretrained(tmp_path / "base")
        model = AutoModel.from_pretrained(tmp_path / "base")
        torch.manual_seed(adapter_seed)
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)).save_pretrained(
            tmp_path / "adapter"
        )
        return identify_reference(str(tmp_path / "adapter"))

    identity = save(1, 1)
    assert save(1, 1) == identity
    other_adapter, other_base = save(1, 2), save(2, 1)
    assert other_adapter["weights"] != identity["weights"] and other_adapter["config"] == identity["config"]
    assert other_base["weights"] == identity["weights"] and other_base["config"] != identity["config"]


def test_an_adapter_reference_does_not_change_while_the_learner_learns():
    from peft import LoraConfig, get_peft_model

    def learner(seed):
        return get_peft_model(tiny_siglip(seed), LoraConfig(target_modules=["q_proj"], r=2))

    model = learner(1)
    identity = identify_reference(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 1.0
    assert identify_reference(model) == identity
    assert identify_reference(learner(2)) != identity
    with torch.no_grad():
        base_model(model).logit_bias += 1.0
    assert identify_reference(model) != identity


@pytest.mark.parametrize("column", ["text", "caption"])
def test_the_caption_column_is_that_of_the_rows_that_can_be_read(column):
    good = [{"image": row["image"], column: row["text"]} for row in random_rows(4)]
    described = describe_data(Rows(Fragile([OSError("gone"), None, *good])), JESTDataCollator(tiny_siglip_processor()))
    assert described["caption_column"] == column and len(set(described["row"].values())) == 5
