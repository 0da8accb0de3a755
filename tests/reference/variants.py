# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Variants of a tiny cache and of what it is used for, by generator, each with its outcome."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from jest_hf import JESTDataCollator
from tests.helpers import (
    random_rows,
    tiny_clip_processor,
    tiny_siglip2_processor,
    tiny_siglip_processor,
    tiny_tokenizer,
)
from tests.reference.caching import make_cache, reference_model
from tests.reference.damages import (
    SHARDS,
    as_of_an_earlier_version,
    cut,
    earlier_and_edited,
    edited,
    flipped,
    put,
    remade,
    reordered,
    replaced_in,
    set_in,
    swapped,
    swapped_with_their_hashes,
    tensors_changed,
    write,
)


N_ROWS, SHARD_ROWS = 23, 5
KEYS = [7 * ((5 * index) % N_ROWS) for index in range(N_ROWS)]


def keyed(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows).add_column("example_id", KEYS[: len(rows)])


def several_captions() -> list[dict[str, Any]]:
    rows = random_rows(N_ROWS)
    rows[12]["text"] = "a star and a star"
    rows[7]["image"] = None  # broken
    return rows


def sound_data() -> datasets.Dataset:
    return keyed(several_captions())


def decoding_stream() -> datasets.IterableDataset:
    return sound_data().cast_column("image", datasets.Image()).to_iterable_dataset()


@dataclass
class Variant:
    """A damage of a folder, or what its cache is used with in place of what it was made for; and the outcome."""

    outcome: str | tuple[int, ...]  # "same", words of the refusal, or the rows that are skipped
    damage: Callable[[Path], Any] = lambda folder: None
    data: Callable[[], Any] = sound_data
    model: int = 1
    collator: Callable[[], JESTDataCollator] = field(default=lambda: JESTDataCollator(tiny_siglip_processor()))


def other_cache(folder: Path) -> Path:
    """A cache of another model, of the same shapes."""
    other = folder.with_name("other")
    make_cache(other, sound_data(), model=reference_model(2))
    return other


def changed_row(row: int, **columns: Any) -> list[dict[str, Any]]:
    rows = several_captions()
    rows[row] = {**rows[row], **columns}
    return rows


def stream(rows: list[dict[str, Any]], seed: int = 3) -> datasets.IterableDataset:
    return keyed(rows).to_iterable_dataset(4).shuffle(seed=seed, buffer_size=30)


OTHER_IMAGE = random_rows(1, seed=9)[0]["image"]
OTHER_ROWS = random_rows(N_ROWS, seed=5)


def same_at_first(seed: int) -> list[dict[str, Any]]:
    """Another data set, whose first row in the order of a shuffled stream is that of the cache."""
    rows = [dict(row) for row in OTHER_ROWS]
    first = KEYS.index(int(next(iter(stream(rows, seed)))["example_id"]))
    rows[first] = several_captions()[first]
    return rows


def same_captions() -> list[dict[str, Any]]:
    return [{**row, "text": own["text"]} for row, own in zip(OTHER_ROWS, several_captions(), strict=True)]


def images_swapped() -> list[dict[str, Any]]:
    rows = several_captions()
    return [{**row, "image": other["image"]} for row, other in zip(rows, rows[::-1], strict=True)]


def variants() -> dict[str, Variant]:
    found: dict[str, Variant] = {"nothing": Variant("same")}
    # Files cut, longer, emptied, deleted, renamed, swapped.
    for kept in (0, 1, 7, 8, 200, 1500, -1):
        found[f"shard cut to {kept}"] = Variant(f"{SHARDS[2]} has .* bytes", cut(SHARDS[2], kept))
    for kept in (0, 1, 300, -20, -3):
        found[f"manifest cut to {kept}"] = Variant("manifest.json is damaged", cut("manifest.json", kept))
    for number, name in enumerate(SHARDS):
        found[f"no shard {number}"] = Variant(f"{name} is missing", lambda folder, name=name: (folder / name).unlink())
    found |= {
        "longer shard": Variant(
            f"{SHARDS[4]} has", lambda folder: write(folder / SHARDS[4], (folder / SHARDS[4]).read_bytes() + b"0")
        ),
        "shard of zeros": Variant(
            f"{SHARDS[0]} is damaged",
            lambda folder: write(folder / SHARDS[0], bytes((folder / SHARDS[0]).stat().st_size)),
        ),
        "no manifest": Variant("has no reference cache", lambda folder: (folder / "manifest.json").unlink()),
        "only unfinished": Variant(
            "an unfinished reference cache",
            lambda folder: (folder / "manifest.json").rename(folder / "unfinished.json"),
        ),
        "manifest is a list": Variant(
            "manifest.json is damaged", lambda folder: write(folder / "manifest.json", b"[1, 2]")
        ),
        "manifest without fields": Variant(
            "has format None", lambda folder: write(folder / "manifest.json", b"{}")
        ),
        "manifest of another cache": Variant(
            "reference.weights was|has .* bytes|is damaged",
            lambda folder: shutil.copy(other_cache(folder) / "manifest.json", folder / "manifest.json"),
        ),
        "renamed shard": Variant(
            f"{SHARDS[3]} is missing", lambda folder: (folder / SHARDS[3]).rename(folder / "shard-00007.safetensors")
        ),
        "two shards swapped": Variant(f"{SHARDS[0]} is damaged|has .* bytes", swapped),
        "two shards swapped with their hashes": Variant(f"{SHARDS[0]} is damaged", swapped_with_their_hashes),
        "shard of another cache": Variant(
            f"{SHARDS[1]} is damaged",
            lambda folder: shutil.copy(other_cache(folder) / SHARDS[1], folder / SHARDS[1]),
        ),
        "extra shard": Variant(
            "same", lambda folder: shutil.copy(folder / SHARDS[0], folder / "shard-00005.safetensors")
        ),
        "extra file": Variant("same", lambda folder: write(folder / "notes.txt", b"mine")),
        "manifest written in one line": Variant("same", edited(lambda manifest: None)),
    }  # fmt: skip
    # Bits.
    for place in (0.0, 0.002, 0.02, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.93, 0.97, 0.99, 1.0):
        found[f"bit of a shard at {place}"] = Variant(f"{SHARDS[1]} is damaged", flipped(SHARDS[1], place, 3))
    for place in (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95):
        found[f"bit of the manifest at {place}"] = Variant(
            "manifest.json is damaged|has format", flipped("manifest.json", place, 1)
        )
    # Tensors of the same size.
    for name, change in {
        "permuted": reordered,
        "scaled": replaced_in("image", lambda value: value * 2),
        "text for image": lambda tensors: tensors.update(image=tensors["text"], text=tensors["image"]),
        "all readable": replaced_in("valid", torch.ones_like),
    }.items():
        found[f"tensors {name}"] = Variant(f"{SHARDS[2]} is damaged|{SHARDS[2]} has", tensors_changed(change))
    # What a program has computed wrong, with right hashes.
    for name, change in {
        "NaN": set_in("image", (3, 1), float("nan")),
        "NaN caption": set_in("text", (0, 0), float("nan")),
        "infinity": set_in("text", (2, 5), float("inf")),
        "zeros": set_in("image", 4, 0.0),
        "scaled": replaced_in("image", lambda value: value * 1.5),
        "scaled captions": replaced_in("text", lambda value: value * 0.9),
        "a broken row with an embedding": set_in("image", 2, 0.1),
        "float16": replaced_in("image", lambda value: value.half()),
        "float64 captions": replaced_in("text", lambda value: value.double()),
        "int32 offsets": replaced_in("offsets", lambda value: value.int()),
        "bytes for bools": replaced_in("valid", lambda value: value.to(torch.uint8)),
        "narrower": replaced_in("image", lambda value: value[:, :-1]),
        "wider captions": replaced_in("text", lambda value: torch.cat([value, value[:, :1]], 1)),
        "fewer rows": replaced_in("image", lambda value: value[:-1]),
        "more rows": replaced_in("valid", lambda value: torch.cat([value, value[:1]])),
        "fewer captions": replaced_in("text", lambda value: value[:-1]),
        "offsets backwards": replaced_in("offsets", lambda value: value.flip(0)),
        "offsets from one": replaced_in("offsets", lambda value: value + 1),
        "a caption before the first row": lambda tensors: tensors.update(
            text=torch.cat([tensors["text"][:1], tensors["text"]]), offsets=tensors["offsets"] + 1
        ),
        "a flat image": replaced_in("image", lambda value: value.flatten()),
        "no valid": lambda tensors: tensors.pop("valid"),
        "no keys": lambda tensors: tensors.pop("key"),
        "no digests": lambda tensors: tensors.pop("digest"),
        "another tensor": lambda tensors: tensors.update(more=torch.zeros(2)),
    }.items():
        found[f"remade with {name}"] = Variant(f"{SHARDS[1]} is damaged", remade(change))
    # The keys of the shard say that its rows are backwards, so the map-style data find the digests of other rows.
    found["remade with rows of other places"] = Variant((0, 1, 3, 4), remade(reordered, 0))
    # Fields of the manifest.
    for section, name, value in (
        ("reference", "weights", "0" * 64),
        ("reference", "config", "0" * 64),
        ("reading", "max_length", 6),
        ("reading", "mean", [0.4, 0.4, 0.4]),
        ("data", "n_rows", 22),
        ("data", "captions", "0" * 64),
        ("data", "keys", "0" * 64),
        ("data", "image_column", "picture"),
        ("storage", "dtype", "float16"),
        ("storage", "shard_rows", 4),
    ):
        found[f"edited {section}.{name}"] = Variant("manifest.json is damaged", put(section, name, value))
    for name, value in (
        ("keyed", False),
        ("loss", "softmax"),
        ("width", 16),
        ("logit_scale", 20.0),
        ("logit_bias", -5.0),
        ("flops", 1.0),
        ("digests", "none"),
        ("shards", []),
    ):
        found[f"edited {name}"] = Variant(
            "manifest.json is damaged", edited(lambda manifest, name=name, value=value: manifest.update({name: value}))
        )
    for name in ("reference", "reading", "data", "storage", "keyed", "width", "logit_scale", "shards", "sha256"):
        found[f"without {name}"] = Variant(
            "manifest.json is damaged", edited(lambda manifest, name=name: manifest.pop(name))
        )
    found |= {
        "without sha256 and digests, of another temperature": Variant(
            f"{SHARDS[0]} is damaged",
            edited(
                lambda manifest: [manifest.pop("sha256"), manifest.pop("digests"), manifest.update(logit_scale=20.0)]
            ),
        ),
        "another format": Variant("has format 7", edited(lambda manifest: manifest.update(format=7))),
        "fewer shards": Variant("manifest.json is damaged", edited(lambda manifest: manifest["shards"].pop())),
        "another sha256 of a shard": Variant(
            "manifest.json is damaged", edited(lambda manifest: manifest["shards"][0].update(sha256="0" * 64))
        ),
    }
    # Another reference, and other ways to read.
    processor = tiny_siglip_processor
    no_mask = tiny_tokenizer(with_mask=False)
    no_mask.add_tokens(["crescent"])
    crescent = processor()
    crescent.tokenizer = no_mask
    found |= {
        "another reference": Variant("reference.weights was", model=2),
        "another image size": Variant("reading.image.size", collator=lambda: JESTDataCollator(processor(24))),
        "another kind of images": Variant("reading.image", collator=lambda: JESTDataCollator(tiny_clip_processor())),
        "patches": Variant("reading.image.kind", collator=lambda: JESTDataCollator(tiny_siglip2_processor())),
        "another text length": Variant(
            "reading.max_length", collator=lambda: JESTDataCollator(processor(), max_length=6)
        ),
        "another tokenizer": Variant("reading.tokenizer", collator=lambda: JESTDataCollator(crescent)),
        "scaled decoding": Variant(
            "reading.scaled_jpeg_decoding",
            collator=lambda: JESTDataCollator(processor(), scaled_jpeg_decoding=True),
        ),
        "another seed of captions": Variant("same", collator=lambda: JESTDataCollator(processor(), seed=5)),
    }  # fmt: skip
    # Other rows.
    found |= {
        "other rows": Variant("data.captions was|data.row", data=lambda: keyed(OTHER_ROWS)),
        "a list of other rows": Variant("data.row.0 was", data=lambda: OTHER_ROWS),
        "rows backwards": Variant("data.captions was", data=lambda: keyed(several_captions()[::-1])),
        "fewer rows": Variant("data.n_rows was 23", data=lambda: keyed(several_captions()[:-1])),
        "other keys": Variant(
            "data.keys was",
            data=lambda: datasets.Dataset.from_list(several_captions()).add_column("example_id", KEYS[::-1]),
        ),
        "images of other rows": Variant("data.row.0 was", data=lambda: keyed(images_swapped())),
        "another image in the sample": Variant("data.row.15 was", data=lambda: changed_row(15, image=OTHER_IMAGE)),
        "another image beside the sample": Variant((9,), data=lambda: changed_row(9, image=OTHER_IMAGE)),
        "another caption beside the sample": Variant((9,), data=lambda: changed_row(9, text="a green star")),
        "one caption more": Variant((9,), data=lambda: changed_row(9, text=["a star", "a red star"])),
        "a row that can be read now": Variant("same", data=lambda: stream(changed_row(7, image=OTHER_IMAGE))),
        "a list of the rows": Variant("same", data=several_captions),
        "decoded by a feature": Variant("same", data=lambda: sound_data().cast_column("image", datasets.Image())),
        "a stream of the rows": Variant("same", data=lambda: stream(several_captions())),
        "a stream in its order": Variant("same", data=lambda: sound_data().to_iterable_dataset()),
        "a stream without keys": Variant(
            "stream without an integer column example_id",
            data=lambda: datasets.Dataset.from_list(several_captions()).to_iterable_dataset(),
        ),
        "a stream with a key that is not there": Variant(
            "has no row with example_id=8",
            data=lambda: datasets.Dataset.from_list(several_captions())
            .add_column("example_id", [*KEYS[:-1], 8])
            .to_iterable_dataset(),
        ),
        "a stream with another image": Variant((9,), data=lambda: stream(changed_row(9, image=OTHER_IMAGE))),
        "a stream with another caption": Variant((16,), data=lambda: stream(changed_row(16, text="a white star"))),
        "a stream of the captions with other images": Variant(
            "does not match this run", data=lambda: stream(same_captions())
        ),
        "a stream of images of other rows": Variant("has another image", data=lambda: stream(images_swapped(), 6)),
        "a stream with a map": Variant("same", data=lambda: decoding_stream().map(dict)),
        "a stream that decodes": Variant(
            "a function of map or filter may have decoded the images",
            data=lambda: decoding_stream().map(lambda row: {**row, "image": row["image"].convert("RGB")}),
        ),
        "with a cache without digests a stream": Variant(
            "is of an earlier version", as_of_an_earlier_version, lambda: stream(several_captions())
        ),
        "without digests": Variant("same", as_of_an_earlier_version),
        "of an earlier version, which does not say how long texts are": Variant(
            "does not have reading.max_length",
            earlier_and_edited(lambda manifest: manifest["reading"].pop("max_length")),
        ),
        "of an earlier version, which does not say what was read": Variant(
            "has none of the rows that this run compares",
            earlier_and_edited(lambda manifest: manifest["data"].pop("row")),
        ),
        "of an earlier version, with fewer shards": Variant(
            "manifest.json is damaged .it lacks", earlier_and_edited(lambda manifest: manifest["shards"].pop())
        ),
        "of an earlier version, without a reference": Variant(
            "manifest.json is damaged .it lacks", earlier_and_edited(lambda manifest: manifest.pop("reference"))
        ),
    }  # fmt: skip
    for seed in range(8):
        found[f"a shuffled stream of other rows, seed {seed}"] = Variant(
            "does not match this run", data=lambda seed=seed: stream(OTHER_ROWS, seed)
        )
        found[f"a stream of other rows after the first, seed {seed}"] = Variant(
            "of .* rows are not those that the reference cache in",
            data=lambda seed=seed: stream(same_at_first(seed), seed),
        )
    return found
