# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a reference cache: what lies on the disk is checked before it is used, and read where it lies."""

from __future__ import annotations

import json
import pickle
import shutil

import datasets
import pytest
import torch

from jest_hf.reference import open_cache, push_reference_cache
from jest_hf.reference import store as module
from tests.helpers import random_rows
from tests.reference.caching import make_cache


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "made"
    make_cache(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "cache")


ROWS = torch.arange(23)


def test_a_flipped_bit_is_found_in_every_shard_and_place(folder):
    for path in sorted(folder.glob("shard-*")):
        whole = path.read_bytes()
        for place in (3, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=f"{path.name} is damaged: its sha256"):
                open_cache(folder).take(ROWS)
            with pytest.raises(ValueError, match=f"{path.name} is damaged: its sha256"):
                push_reference_cache(folder, "owner/name")
        path.write_bytes(whole)
    open_cache(folder).take(ROWS)


@pytest.mark.parametrize("kept", [0, 7, -1])
def test_a_truncated_shard_is_found_at_once(folder, kept):
    path = folder / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="shard-00002.safetensors has .* bytes, and the manifest lists it with"):
        open_cache(folder)


def test_a_missing_shard_is_found_at_once(folder):
    (folder / "shard-00004.safetensors").unlink()
    with pytest.raises(ValueError, match="shard-00004.safetensors is missing"):
        open_cache(folder)


def test_a_damaged_manifest_and_a_foreign_format_are_named(folder):
    path = folder / "manifest.json"
    manifest = path.read_text()
    path.write_text(json.dumps({**json.loads(manifest), "format": 2}))
    with pytest.raises(ValueError, match="has format 2, and this version of jest_hf reads format 1"):
        open_cache(folder)
    path.write_text(manifest[:-20])
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        open_cache(folder)


def test_what_is_no_cache_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no reference cache; run `jest-hf cache-reference"):
        open_cache(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no reference cache"):
        open_cache("./nowhere")
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has an unfinished reference cache"):
        open_cache(tmp_path)
    with pytest.raises(ValueError, match="revision='main' names a revision of a Hub repository"):
        open_cache(tmp_path, revision="main")


def test_opening_reads_no_shard_and_a_lookup_those_it_needs(folder, monkeypatch):
    read = []
    load = module.load_file
    monkeypatch.setattr(module, "load_file", lambda path: read.append(path.name) or load(path))
    cache = open_cache(folder)
    assert read == []
    cache.take(torch.tensor([11, 12, 3]))
    cache.take(torch.tensor([11, 10]))
    assert sorted(read) == ["shard-00000.safetensors", "shard-00002.safetensors"]


def test_shards_are_memory_mapped(folder):
    cache = open_cache(folder)
    cache.take(ROWS)
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    assert all(str(path) in mapped for path in folder.glob("shard-*"))
    assert len(pickle.dumps(cache)) < 10_000  # a process that gets a copy maps them by itself
    assert torch.equal(pickle.loads(pickle.dumps(cache)).take(ROWS).image, cache.take(ROWS).image)


@pytest.mark.parametrize("row", [-1, 23])
def test_a_row_that_is_not_there_is_named(folder, row):
    with pytest.raises(
        ValueError, match=f"has rows 0 to 22, and no row {row}; train on the data that the cache was made of"
    ):
        open_cache(folder).take(torch.tensor([0, row]))


def test_rows_are_found_by_their_own_names(tmp_path):
    """The integer column `example_id`, in any order and with gaps; without one, the row's number."""
    names = [7 * ((5 * index) % 23) - 3 for index in range(23)]
    rows = datasets.Dataset.from_list(random_rows(23)).add_column("example_id", names)
    cache = make_cache(tmp_path / "named", rows)
    assert cache.rows_of(torch.tensor(names)).tolist() == list(range(23))
    assert cache.rows_of(torch.tensor([names[9], names[2]])).tolist() == [9, 2]
    for strange in (-4, 1, 10_000):
        with pytest.raises(ValueError, match=f"has no row with example_id={strange};"):
            cache.rows_of(torch.tensor([names[0], strange]))
    unnamed = make_cache(tmp_path / "unnamed", datasets.Dataset.from_list(random_rows(23)))
    assert unnamed.rows_of(torch.tensor([3, 1])).tolist() == [3, 1]
    assert torch.equal(cache.take(ROWS).image, unnamed.take(ROWS).image)


def test_a_name_of_several_rows_is_refused(tmp_path):
    rows = datasets.Dataset.from_list(random_rows(9)).add_column("example_id", [*range(8), 4])
    cache = make_cache(tmp_path, rows)
    with pytest.raises(ValueError, match="example_id=4 is the id of several rows"):
        cache.rows_of(torch.tensor([1]))
    cache.take(torch.arange(9))  # by number there is no doubt
