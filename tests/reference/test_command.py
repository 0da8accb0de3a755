# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The flags of `jest-hf cache-reference`; tests/distributed/test_cache.py runs it as a user does."""

from __future__ import annotations

import argparse

import pytest
from datasets import Dataset

from jest_hf.cli import main
from jest_hf.flags import source_of
from jest_hf.reference import command
from jest_hf.reference.store import open_folder
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.reference.caching import make_cache


def parse(*flags):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--ref_model", "owner/name", "--dataset", "scenes:web", "--output_dir", "out", *flags])


def test_flags_reach_the_data_and_the_cache():
    options = parse("--dataset_where", '{"split": "train"}', "--dtype", "float32", "--shard_rows", "100")
    assert options.dataset_where == {"split": "train"}
    assert (options.dtype, options.shard_rows) == ("float32", 100)
    named = parse("--dataset_split", "train", "--subset", "kept.parquet")
    assert source_of(named) == {"spec": "scenes:web", "split": "train", "subset": "kept.parquet"}
    defaults = parse()
    assert not defaults.scaled_jpeg_decoding and parse("--scaled_jpeg_decoding").scaled_jpeg_decoding
    assert (defaults.dtype, defaults.shard_rows, defaults.batch_size) == ("float16", 65536, 64)


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_decoding_reaches_the_cache(tmp_path, scaled):
    for part in (tiny_siglip(0), tiny_siglip_processor()):
        part.save_pretrained(tmp_path / "reference")
    flags = ["--ref_model", str(tmp_path / "reference"), "--dataset", "scenes:web", "--max_train_rows", "3"]
    main(["cache-reference", *flags, "--output_dir", str(tmp_path / "out"), *["--scaled_jpeg_decoding"] * scaled])
    assert open_folder(tmp_path / "out").manifest["reading"]["scaled_jpeg_decoding"] == scaled


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["cache-reference", "--dataset", "scenes:web"])
    assert "--ref_model, --output_dir" in capsys.readouterr().err


@pytest.mark.parametrize(("n_broken", "code"), [(4, None), (6, None), (9, 1)])
def test_a_cache_of_broken_rows(tmp_path, n_broken, code, caplog):
    rows = random_rows(9)
    for row in rows[:n_broken]:
        row["image"] = {"bytes": b"no image", "path": None}
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    tiny_siglip(1).save_pretrained(tmp_path / "reference")
    tiny_siglip_processor().save_pretrained(tmp_path / "reference")
    flags = ("--ref_model", str(tmp_path / "reference"), "--dataset", str(tmp_path / "rows.parquet"))
    options = parse(*flags, "--output_dir", str(tmp_path / "cache"), "--disable_tqdm")
    if code is None:
        command.run(options)
        assert (f"{n_broken} of 9 cannot be used (example 0: " in caplog.text) is (n_broken > 4)
        return
    with pytest.raises(SystemExit, match="9 of 9 cannot be used .*no format.*; the cache is of no use"):
        command.run(options)


def test_the_summary_is_a_line_with_the_broken_rows(tmp_path):
    rows = random_rows(9)
    rows[2]["image"] = None
    rows[3]["text"] = ["a red star", "a blue star"]
    summary = command.summary(make_cache(tmp_path, rows).manifest, "out", 3.2)
    assert summary.startswith("out: 9 rows (1 broken), 9 captions, width 32, float32, 2 shards, 0.0 MB, ")
    assert summary.endswith(" FLOPs, 3 s") and "\n" not in summary
