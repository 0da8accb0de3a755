# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Irreducible losses: the live reference's, from a file that is known to be of it and of these data."""

from __future__ import annotations

import datasets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jest_hf.data.rows import Rows
from jest_hf.reference import identify_reference
from jest_hf.reference.losses import IrreducibleLosses
from tests.objectives.labelled import KINDS, prepared, text_rows, tiny_vit_processor


N_ROWS = 23


class Counting(torch.nn.Module):
    """Counts the forwards of a model."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards = model, 0

    def forward(self, **inputs):
        self.forwards += 1
        return self.model(**inputs)


def computed(path, name="bert", rows=None, *, seed=0, label_smoothing=0.0, collator=None, model=None, **options):
    """Irreducible losses of 23 rows, and the number of forwards that they took."""
    reference, _, reader, own, default = prepared(name, N_ROWS, label_smoothing, seed)
    counting = Counting(reference if model is None else model)
    losses = IrreducibleLosses.compute(
        path,
        reader,
        counting,
        Rows(default if rows is None else rows),
        own if collator is None else collator,
        reference=identify_reference(reference),
        **{"batch_size": 4, "disable_tqdm": True, **options},
    )
    return losses, counting.forwards


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deeper" / "losses.safetensors"


@pytest.mark.parametrize("name", KINDS)
def test_they_are_the_live_references(path, name):
    losses, forwards = computed(path, name)
    assert forwards == 6
    model, _, reader, collator, rows = prepared(name, N_ROWS)
    batch = collator(Rows(rows).__getitems__([7, 22, 0, 7]))
    torch.testing.assert_close(losses.score(None, batch, 4).losses, reader.score(model, batch, 4).losses)
    assert losses.n_readable == N_ROWS and losses.readable(batch).all()


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_reads_its_file_and_asks_no_model(path, name):
    first, _ = computed(path, name)
    again, forwards = computed(path, name, batch_size=5, num_workers=0)
    assert forwards == 0 and torch.equal(again.losses, first.losses)
    assert load_file(path)["losses"].equal(first.losses)
    assert path.stat().st_size < 5 * N_ROWS + 50_000


def changed(index, **columns):
    rows = text_rows(N_ROWS)
    rows[index] = {**rows[index], **columns}
    return rows


FOREIGN = {
    "weights": ({"seed": 1}, "reference.weights was"),
    "a label": ({"rows": changed(4, label=(text_rows(N_ROWS)[4]["label"] + 1) % 5)}, "data.row.4 was"),
    "a text": ({"rows": changed(4, text="a black star")}, "data.row.4 was"),
    "fewer rows": ({"rows": text_rows(N_ROWS)[:-1]}, "data.n_rows was 23, and in this run it is 22"),
    "smoothing": ({"label_smoothing": 0.1}, "loss.label_smoothing was 0.0, and in this run it is 0.1"),
    "precision": ({"precision": "bf16"}, "loss.precision was 'no'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_something_else_is_refused_or_replaced(path, name):
    changes, words = FOREIGN[name]
    computed(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"losses.safetensors do not match this run: {words}.*; delete the file"):
        computed(path, **changes)
    assert path.read_bytes() == before
    other, forwards = computed(path, **changes, replace=True)
    assert forwards > 0 and computed(path, **changes)[1] == 0


def test_all_labels_count_where_they_can_be_read(path):
    """Also those of rows that are not in the sample."""
    rows = text_rows(600)
    other = [dict(row) for row in rows]
    other[1]["label"] = (other[1]["label"] + 1) % 5
    computed(path, rows=datasets.Dataset.from_list(rows), batch_size=200)
    with pytest.raises(ValueError, match="data.column.label was"):
        computed(path, rows=datasets.Dataset.from_list(other), batch_size=200)


def test_the_same_pixels_in_other_colours_are_something_else(path):
    computed(path, "vit")
    model, objective, _, collator, rows = prepared("vit", N_ROWS)
    reader = objective.reader(model, tiny_vit_processor(image_mean=[0.1, 0.2, 0.3]), "reference")
    with pytest.raises(ValueError, match="data.row.0 was"):
        IrreducibleLosses.compute(
            path, reader, model, Rows(rows), collator, reference=identify_reference(model), batch_size=4
        )


def flipped(place):
    """Flip a bit at a share of the file's length."""

    def damage(data):
        data = bytearray(data)
        data[min(int(place * len(data)), len(data) - 1)] ^= 2
        return bytes(data)

    return damage


DAMAGES = {
    "one byte less": lambda data: data[:-1],
    **{f"a bit at {place}": flipped(place) for place in (0.0, 0.01, 0.96, 0.97, 0.98, 0.99, 1.0)},
    "cut off": lambda data: data[:40],
    "empty": lambda data: b"",
    "no fingerprint": lambda data: data.replace(b"about", b"whose"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused(path, damage):
    first, _ = computed(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="it is damaged .*; delete the file"):
        computed(path)
    again, forwards = computed(path, replace=True)
    assert forwards == 6 and torch.equal(again.losses, first.losses)


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": torch.full((N_ROWS,), torch.nan)},
        {"losses": torch.zeros(N_ROWS, dtype=torch.float64)},
        {"losses": torch.zeros(N_ROWS - 1)},
        {"losses": torch.zeros(N_ROWS, 1)},
        {"valid": torch.ones(N_ROWS, dtype=torch.uint8)},
        {"valid": torch.ones(N_ROWS + 1, dtype=torch.bool)},
    ],
    ids=["NaN", "float64", "fewer", "two dimensions", "uint8", "more valid"],
)
def test_a_file_that_was_computed_wrong_is_refused(path, changes):
    """With the right hash, as a program would write it."""
    losses, _ = computed(path)
    for name, value in changes.items():
        setattr(losses, name, value)
    losses._write(path)
    with pytest.raises(ValueError, match="it is damaged .its losses are|it has losses that are NaN or infinite"):
        computed(path)


def test_edited_losses_are_refused(path):
    """Their size stays the same, and so does all that describes them."""
    computed(path)
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**tensors, "losses": tensors["losses"] * 2}, path, metadata=about)
    with pytest.raises(ValueError, match="it is damaged .its losses do not have the hash in it"):
        computed(path)


def test_another_format_is_refused(path, monkeypatch):
    computed(path)
    monkeypatch.setattr("jest_hf.reference.losses.FORMAT", 3)
    with pytest.raises(ValueError, match="its format is unknown"):
        computed(path)


def test_rows_that_were_broken_are_not_selected(path):
    rows = text_rows(N_ROWS)
    broken = [{**row, "text": None} if index in (2, 9) else row for index, row in enumerate(rows)]
    losses, _ = computed(path, rows=broken)
    assert losses.n_readable == N_ROWS - 2
    _, _, _, collator, _ = prepared("bert", 1)
    batch = collator(Rows(rows).__getitems__([1, 2, 9, 4]))
    batch["valid"][3] = False  # broken now
    assert losses.readable(batch).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="row 2 could not be read when the irreducible losses were computed"):
        losses.score(None, batch, 4)
    batch["valid"] = losses.readable(batch)
    assert losses.score(None, batch, 4).losses.isfinite().all()


def test_rows_beyond_the_data_are_refused(path):
    losses, _ = computed(path)
    for row in (-1, N_ROWS):
        batch = {"example_id": torch.tensor([0, row]), "valid": torch.ones(2, dtype=torch.bool)}
        with pytest.raises(ValueError, match=f"of rows 0 to 22, and none of row {row}"):
            losses.score(None, batch, 2)


def test_a_reference_that_is_broken_is_refused_and_nothing_is_written(path):
    reference, *_ = prepared("bert", 1)
    with torch.no_grad():
        reference.classifier.bias[0] = float("nan")
    with pytest.raises(ValueError, match="losses of 23 rows are NaN or infinite, the first of them row 0"):
        computed(path, model=reference)
    assert not path.exists()


def test_wrong_arguments(path):
    with pytest.raises(ValueError, match="batch_size=0"):
        computed(path, batch_size=0)
    with pytest.raises(ValueError, match="has no rows"):
        computed(path, rows=[])


def test_a_reference_from_the_hub_has_a_name(path):
    losses, _ = computed(path)
    assert losses.name is None and losses.commit is None
    losses.origin = {"reference": {"repo": "a/b", "commit": "c0ffee"}}
    assert (losses.name, losses.commit) == ("a/b", "c0ffee")
