# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The cards of a reference cache and of a curated set: what they say, what they must not, and that their code runs."""

from __future__ import annotations

import re
from dataclasses import replace

import datasets
import pytest
from huggingface_hub import DatasetCard

from jest_hf.data import load_source
from jest_hf.hub import CuratedSummary, curated_card, reference_cache_card, write_card
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip2, tiny_siglip2_processor
from tests.hub_server.cards import problems
from tests.reference.caching import make_cache, reference_model


CURATED = CuratedSummary(
    name="alice/curated",
    source="someone/web-pairs",
    filters=[("alignment", {"threshold": 0.2}, 4000), ("text quality", {"min_words": 3, "words": "a/b"}, 3000)],
    rows=20000,
    alignment_model="google/siglip-base-patch16-224",
    alignment_revision="0123abc",
    license="cc-by-4.0",
    language=["en"],
    columns=["image", "caption"],
)


def python_of(card):
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def check(card, tmp_path):
    """What every card has to be: complete, valid, and the same after a round trip."""
    assert not re.search(r"\n{3}|N/A|None|{{|%}|nan", card.content)
    assert problems(card.data.to_dict(), "dataset") == []
    card.save(tmp_path / "card.md")
    assert DatasetCard.load(tmp_path / "card.md").data.to_dict() == card.data.to_dict()


def row(name, value):
    return rf"(?m)^\| {re.escape(name)} +\| {re.escape(value)} +\|$"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    rows = random_rows(23)
    rows[3]["image"] = {"bytes": b"broken", "path": None}
    rows[4]["text"] = ["a red star", "a star"]
    manifest = make_cache(tmp_path_factory.mktemp("cache"), rows, dtype="float16").manifest
    return manifest | {"reference": {"repo": "google/siglip", "commit": "0123abc", **manifest["reference"]}}


def test_what_a_cache_says(manifest, tmp_path):
    card = reference_cache_card(manifest, "alice/cache", dataset="someone/pairs", split="train", license="mit")
    check(card, tmp_path)
    size = sum(shard["bytes"] for shard in manifest["shards"])
    for name, value in {
        "reference": "google/siglip@0123abc",
        "sha256 of its weights": manifest["reference"]["weights"],
        "loss it was trained with": "sigmoid",
        "images read at": "16 x 16 pixels",
        "view": "full",
        "tokens of a caption": "8",
        "data": "someone/pairs",
        "split": "train",
        "columns": "image, text",
        "rows": "23",
        "rows that could not be read": "1",
        "captions": "23",
        "width of an embedding": "32",
        "dtype": "float16",
        "bytes": f"{size:,}",
        "FLOPs that it took": f"{manifest['flops']:.3g}",
    }.items():
        assert re.search(row(name, value), card.text), name
    assert "half precision" in card.text and "could not be read are never" in card.text
    assert 'load_source("someone/pairs", split="train")' in card.text
    data = card.data
    assert (data.license, data.source_datasets, data.size_categories) == ("mit", ["someone/pairs"], "n<1K")
    assert {"jest", "reference-cache"} <= set(data.tags) and data.viewer is False


def test_a_cache_of_which_less_is_known(manifest, tmp_path):
    private = tmp_path / "private" / "pairs.parquet"
    unknown = manifest | {"reference": {"weights": "abc", "config": "def"}}
    card = reference_cache_card(unknown, str(tmp_path / "cache"), dataset=str(private))
    check(card, tmp_path)
    assert str(tmp_path) not in card.content and "pairs.parquet" in card.text
    assert len(python_of(card)) == 1 and 'JESTConfig(reference_cache="."' in card.text
    whole = manifest | {"storage": manifest["storage"] | {"dtype": "float32"}}
    assert "half precision" not in reference_cache_card(whole).text


@pytest.mark.parametrize(
    ("model", "processor", "said"),
    [
        (tiny_clip, tiny_clip_processor, ["shorter side 16 pixels, centre crop of 16 x 16", "softmax"]),
        (tiny_siglip2, tiny_siglip2_processor, ["up to 16 patches of 4 pixels a side", "sigmoid"]),
    ],
)
def test_other_families(tmp_path, model, processor, said):
    manifest = make_cache(tmp_path / "cache", model=reference_model(build=model), processor=processor()).manifest
    card = reference_cache_card(manifest, dataset="scenes:test")
    check(card, tmp_path)
    assert all(f"| {value} " in card.text for value in said)
    assert ('loss="softmax"' in card.text) == ("softmax" in said) and ("logit bias" in card.text) != (
        "softmax" in said
    )


def test_an_adapter_names_what_is_underneath(manifest):
    adapter = {"repo": "a/adapter", "commit": "01", "base": {"repo": "google/siglip", "commit": "23"}}
    text = reference_cache_card(manifest | {"reference": adapter}).text
    assert re.search(row("reference", "a/adapter@01"), text)
    assert re.search(row("model underneath the reference, an adapter", "google/siglip@23"), text)


def test_the_code_of_a_cache_runs_as_pasted(tmp_path, monkeypatch, capsys):
    where = {"noise": ["aligned"]}
    rows = load_source("scenes:test", where=where, max_rows=60)
    monkeypatch.chdir(tmp_path)
    manifest = make_cache(tmp_path / "cache", rows, batch_size=20, shard_rows=32).manifest
    card = reference_cache_card(manifest, dataset="scenes:test", where=where, max_rows=60)
    write_card(card, tmp_path / "cache" / "README.md")
    monkeypatch.chdir(tmp_path / "cache")
    for code in python_of(DatasetCard.load("README.md")):
        run(code)
    said = capsys.readouterr().out
    assert "train_runtime" in said and "60 rows of width 32" in said


def test_what_a_curated_set_says(tmp_path):
    card = curated_card(CURATED)
    check(card, tmp_path)
    table = card.text[card.text.index("| filter ") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert cells == [
        ["alignment", "threshold = 0.2", "4,000", "20.0%"],
        ["text quality", "min_words = 3, words = a/b", "3,000", "75.0%"],
    ]
    assert "3,000 pairs of image and text, of the 20,000 of someone/web-pairs (15.0%)" in card.text
    assert "judged by google/siglip-base-patch16-224@0123abc." in card.text
    assert "Columns: `image`, `caption`." in card.text and "misjudges" in card.text
    data = card.data
    assert (data.license, data.language, data.size_categories) == ("cc-by-4.0", ["en"], "1K<n<10K")
    assert data.source_datasets == ["someone/web-pairs"] and {"jest", "data-curation"} <= set(data.tags)


def test_a_curated_set_of_which_less_is_known(tmp_path):
    bare = CuratedSummary(str(tmp_path / "mine"), str(tmp_path / "pool.parquet"), [], 20)
    card = curated_card(bare)
    check(card, tmp_path)
    assert "No filter was applied." in card.text and "judged" not in card.text and str(tmp_path) not in card.content
    card = curated_card(replace(bare, filters=[("alignment", {"model": str(tmp_path / "siglip")}, 0)], rows=0))
    assert str(tmp_path) not in card.content and "model = siglip" in card.text


def test_filters_only_take_away():
    with pytest.raises(ValueError, match="'alignment' cannot leave 4000 rows of 20"):
        curated_card(replace(CURATED, rows=20))


def test_the_code_of_a_curated_set_runs_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    load_source("scenes:curated", max_rows=5).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    write_card(curated_card(replace(CURATED, name="curated")), folder / "README.md")
    monkeypatch.chdir(folder)
    (code,) = python_of(DatasetCard.load("README.md"))
    run(code)
    assert "num_rows: 5" in capsys.readouterr().out
