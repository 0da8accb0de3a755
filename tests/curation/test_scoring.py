# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of a data set: complete, resumable, of the right data, and the same however they were made."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from jest_hf.cli import main
from jest_hf.curation import open_scores, score_dataset
from jest_hf.curation.score_set import MANIFEST, UNFINISHED
from jest_hf.data.files import write_atomically
from jest_hf.data.rows import Rows
from jest_hf.objectives import ObjectiveOptions, find_objective
from jest_hf.reference import ReferenceCache
from tests.curation.scored import BROKEN, pairs, score
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip_processor,
    tiny_tokenizer,
)
from tests.objectives.labelled import image_rows, text_rows, tiny_bert, tiny_llama, tiny_vit, tiny_vit_processor
from tests.reference.caching import make_cache


SHARDS = ["scores-00000.parquet", "scores-00001.parquet", "scores-00002.parquet"]


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("scores-*.parquet")}


def test_every_row_has_its_scores(tmp_path):
    scores = score(tmp_path)
    table = scores.read().to_pandas()
    assert list(table) == ["row", "example_id", "learner_loss", "reference_loss", "learnability"]
    assert table["row"].tolist() == table["example_id"].tolist() == list(range(50))
    assert table.dtypes[["learner_loss", "learnability"]].tolist() == [np.float32] * 2
    broken = table[["learner_loss", "reference_loss", "learnability"]].isna().all(axis=1)
    assert broken[broken].index.tolist() == [BROKEN] and scores.n_broken == 1 and not table.dropna().empty
    difference = (table["learner_loss"] - table["reference_loss"]).dropna()
    assert np.allclose(difference, table["learnability"].dropna(), atol=1e-4)
    assert set(scores.stability) == {"learner_loss", "reference_loss", "learnability"}
    assert all(0 < value <= 1 for value in scores.stability.values())
    assert sorted(shards_of(tmp_path)) == SHARDS and not (tmp_path / UNFINISHED).exists()


def test_rows_keep_their_own_names(tmp_path):
    rows = pairs(30).add_column("example_id", [3 * number for number in range(30)])
    rows = rows.add_column("__key__", [f"shard/{number}" for number in range(30)])
    table = score(tmp_path, rows, shard_rows=12).read().to_pydict()
    assert table["row"] == list(range(30)) and table["example_id"] == rows["example_id"][:]
    assert table["__key__"] == rows["__key__"][:]


def test_shards_change_nothing(tmp_path):
    one, other = score(tmp_path / "one"), score(tmp_path / "other", shard_rows=7)
    assert len(other.manifest["shards"]) == 8
    for name, values in one.scores().items():
        np.testing.assert_allclose(values, other.scores()[name], rtol=1e-6)


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch):
    expected = score(tmp_path / "whole")

    def failing(path, data):
        if path.name == SHARDS[1]:
            raise OSError(28, "no space left")
        write_atomically(path, data)

    with monkeypatch.context() as patched:
        patched.setattr("jest_hf.curation.score_writer.write_atomically", failing)
        with pytest.raises(OSError, match="no space"):
            score(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="unfinished scores"):
        open_scores(tmp_path / "cut")
    kept = (tmp_path / "cut" / SHARDS[0]).stat().st_mtime_ns
    with monkeypatch.context() as patched:  # the embeddings are kept: no forward
        patched.setattr("jest_hf.reference.cache._assemble", None)
        again = score(tmp_path / "cut")
    assert (tmp_path / "cut" / SHARDS[0]).stat().st_mtime_ns == kept
    assert shards_of(again.folder) == shards_of(expected.folder)
    assert again.manifest == expected.manifest


def test_finished_scores_are_opened_without_work(tmp_path, monkeypatch):
    score(tmp_path)
    monkeypatch.setattr("jest_hf.curation.score_writer.RowLosses", None)
    assert score(tmp_path).n_rows == 50


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learner": tiny_siglip(2)}, "weights was"),
        ({"batch_size": 6}, "scoring.batch_size was 8"),
        ({"draws": 2}, "scoring.draws was 4"),
        ({"ref_model": None}, "columns"),
        ({"dataset": "other"}, "data.captions was"),
    ],
)
def test_scores_of_something_else_are_kept_and_refused(tmp_path, changed, named):
    score(tmp_path)
    before = shards_of(tmp_path)
    if changed.get("dataset") == "other":
        rows = pairs(50).remove_columns(["text"]).add_column("text", ["a star"] * 50)
        changed = {"dataset": rows}
    with pytest.raises(ValueError, match=named):
        score(tmp_path, **changed)
    assert shards_of(tmp_path) == before and open_scores(tmp_path).n_rows == 50


def test_a_damaged_shard_is_seen_and_made_again(tmp_path):
    expected = score(tmp_path).scores()
    path = tmp_path / SHARDS[1]
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its sha256"):
        open_scores(tmp_path).read()
    for name in (*SHARDS, MANIFEST):  # as the message says
        (tmp_path / name).unlink()
    found = score(tmp_path).scores()
    np.testing.assert_array_equal(found["learnability"], expected["learnability"])


def test_shards_of_which_nothing_is_known_are_made_again(tmp_path):
    score(tmp_path, seed=1)
    (tmp_path / MANIFEST).unlink()
    found, expected = score(tmp_path).scores(), score(tmp_path / "new").scores()
    np.testing.assert_array_equal(found["learnability"], expected["learnability"])


def test_a_missing_shard_is_named(tmp_path):
    score(tmp_path)
    (tmp_path / SHARDS[2]).unlink()
    with pytest.raises(ValueError, match="scores-00002.parquet is missing"):
        open_scores(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no scores"):
        open_scores(tmp_path / "nowhere")


def test_a_reference_cache_alone_needs_no_data(tmp_path):
    rows = pairs(30).add_column("example_id", [90 - 3 * number for number in range(30)])
    cache = make_cache(tmp_path / "cache", rows)
    scores = score_dataset(
        None, tmp_path / "alone", reference_cache=cache.folder, batch_size=8, draws=4, disable_tqdm=True
    )
    assert scores.columns == ["reference_loss"]
    assert scores.read(["example_id"])["example_id"].to_pylist() == rows["example_id"][:]
    live = score(tmp_path / "live", rows, learner=None, ref_processor=tiny_siglip_processor())
    np.testing.assert_allclose(scores.scores()["reference_loss"], live.scores()["reference_loss"], rtol=1e-6)


def test_a_reference_cache_stands_in_for_the_reference(tmp_path):
    cache = make_cache(tmp_path / "cache", pairs())
    found = score(tmp_path / "scores", ref_model=None, reference_cache=cache.folder).scores()
    np.testing.assert_allclose(found["learnability"], score(tmp_path / "live").scores()["learnability"], atol=1e-3)
    with pytest.raises(ValueError, match="the reference did not read this data set: data.n_rows was 50"):
        score(tmp_path / "other", pairs(40), ref_model=None, reference_cache=cache.folder)


def test_models_that_read_differently(tmp_path):
    """Each model reads with its own processor; the loss is the learner's."""
    options = {"ref_model": tiny_clip(1), "ref_processor": tiny_clip_processor()}
    scores = score(tmp_path, **options)
    assert scores.manifest["scoring"]["loss"] == "sigmoid" and scores.n_broken == 1
    assert np.isfinite(scores.scores()["learnability"]).sum() == 49


@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
def test_labelled_rows_have_the_losses_of_a_step(tmp_path, kind):
    make, rows, processor, read = {
        "vit": (tiny_vit, image_rows(23), tiny_vit_processor(), {"label_column": "class"}),
        "bert": (tiny_bert, text_rows(23), tiny_tokenizer(), {"max_length": 6}),
        "llama": (tiny_llama, text_rows(23), tiny_tokenizer(), {}),
    }[kind]
    rows = [{("class" if kind == "vit" and name == "label" else name): v for name, v in row.items()} for row in rows]
    rows[3] = {**rows[3], ("image" if kind == "vit" else "text"): b"" if kind == "vit" else ""}
    dataset = datasets.Dataset.from_list(rows)
    scores = score_dataset(
        dataset,
        tmp_path,
        learner=make(0),
        ref_model=make(1),
        processing_class=processor,
        shard_rows=10,
        disable_tqdm=True,
        **read,
    )
    found = scores.scores()
    assert np.flatnonzero(np.isnan(found["learnability"])).tolist() == [3] and scores.n_broken == 1
    assert scores.stability == {} and scores.manifest["scoring"] == {"kind": "losses"}
    model = make(0)
    objective = find_objective(None, model).make(model, ObjectiveOptions())
    collator = objective.collator(processor, None, 0)
    if kind == "vit":
        collator = type(collator)(processor, objective.label2id, label_column="class")
    if kind == "bert":
        collator = type(collator)(processor, objective.label2id, max_length=6)
    batch = collator(list(Rows(dataset)))
    expected = objective.reader(model, processor, "model").score(model, batch, 8).losses
    keep = batch["valid"].numpy()
    np.testing.assert_allclose(found["learner_loss"][keep], expected.numpy()[keep], rtol=1e-5, atol=1e-6)
    scores.check(Rows(dataset))
    with pytest.raises(ValueError, match="not of this data set: data.column"):
        scores.check(Rows(dataset.select(range(22, -1, -1))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learner": None, "ref_model": None}, "nothing to score with; pass a learner, ref_model or reference_cache"),
        ({"reference_cache": "cache"}, "both a reference"),
        ({"batch_size": 1}, "batch_size=1 must be at least 2"),
        ({"draws": 0}, "draws=0 must be at least 1"),
        ({"shard_rows": 0}, "shard_rows=0 must be at least 1"),
        ({"processing_class": None}, "learner is a model object, whose processor is not known; pass it as processing"),
        ({"label_column": "text"}, "label_column: not all of these options belong to JESTDataCollator"),
        ({"batch_size": 30}, "lower batch_size to at most 25"),
        ({"image_column": "picture"}, "image_column='picture' is not a column"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        score(tmp_path, **options)


def test_data_that_cannot_be_read_by_index_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"dataset is a stream \(IterableDataset\).*; name its files with load_source"):
        score(tmp_path, pairs().to_iterable_dataset())
    with pytest.raises(ValueError, match="a model needs data to score"):
        score_dataset(None, tmp_path, learner=tiny_siglip(0))


def test_no_readable_row_is_said(tmp_path):
    rows = [{"image": None, "text": "a star"}] * 3
    with pytest.raises(ValueError, match="not one of the 3 rows can be read .example 0: "):
        score(tmp_path, rows)


def test_the_command_scores_and_says_how_stable_the_order_is(tmp_path, capsys):
    for seed, name in enumerate(("learner", "reference")):
        for part in (tiny_siglip(seed), tiny_siglip_processor()):
            part.save_pretrained(tmp_path / name)
    datasets.Dataset.from_list(random_rows(40)).to_parquet(tmp_path / "pairs.parquet")
    flags = ["score", "--learner", str(tmp_path / "learner"), "--ref_model", str(tmp_path / "reference")]
    flags += ["--dataset", str(tmp_path / "pairs.parquet"), "--output_dir", str(tmp_path / "scores")]
    main([*flags, "--batch_size", "8", "--draws", "2", "--max_train_rows", "30", "--disable_tqdm"])
    said = capsys.readouterr().out
    assert "scores: 30 rows (0 broken), learner_loss, reference_loss, learnability; rank correlation of two" in said
    manifest = open_scores(tmp_path / "scores").manifest
    assert manifest["names"] == {"learner": "learner", "reference": "reference"}
    assert manifest["source"] == {"spec": str(tmp_path / "pairs.parquet"), "max_rows": 30}
    assert manifest["scoring"] == {"kind": "pairs", "loss": "sigmoid", "batch_size": 8, "draws": 2, "seed": 0}


def test_memory_holds_one_chunk_of_embeddings(tmp_path, monkeypatch):
    """Whatever the number of rows, no more than a chunk and the others of a batch are taken from a cache at a time."""
    taken, take = [], ReferenceCache.take

    def counting(self, rows, captions=None):
        taken.append(len(rows))
        return take(self, rows, captions)

    monkeypatch.setattr(ReferenceCache, "take", counting)
    monkeypatch.setattr("jest_hf.curation.pairwise.CHUNK", 10)
    score(tmp_path, shard_rows=100)
    assert max(taken) == 10 and torch.tensor(taken).sum() > 100
