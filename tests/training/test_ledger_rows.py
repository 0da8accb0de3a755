# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the ledger of a run knows of its rows: stages, scores, sources, keys, and rows that were not selected."""

from __future__ import annotations

from collections import defaultdict

import datasets
import numpy as np
import pytest
import torch

from jest_hf.data.keys import KEY_BYTES, KeyedCollator, read_keys
from jest_hf.distributed import Ranks, Shares
from jest_hf.report import read_rejected, read_selections
from jest_hf.selection import Graded, Pool
from jest_hf.training.ledger_rows import pack, unpack
from jest_hf.training.step import SubBatch
from tests.helpers import random_rows
from tests.trainers import logged, make_trainer


def by_step(table):
    steps = defaultdict(list)
    for row in table.to_pylist():
        steps[row["step"]].append(row)
    return steps


def test_rows_come_back_as_they_were_packed():
    keys = KeyedCollator(lambda rows: {})([{"__key__": name} for name in ("a", "b", "ü" * KEY_BYTES, "d")])["row_key"]
    rows = {"example_id": torch.tensor([2**40, 5]), "row_key": keys[:2]}
    pool_rows = {"example_id": torch.tensor([7, 8]), "row_key": keys[2:], "valid": torch.ones(2, dtype=torch.bool)}
    pool = Pool(pool_rows, torch.arange(2), Shares.of(Ranks(), pool_rows["valid"]), size=2)
    rejected = (
        Graded(torch.tensor([8, -1]), torch.tensor([0.5, 9.0]), "step", torch.tensor([1, 0])),
        Graded(torch.tensor([3]), torch.tensor([-0.25]), "prefilter"),
    )
    sub_batch = SubBatch(
        rows, torch.tensor([1, 0]), 0, 0, True, stage="step", scores=torch.tensor([1.5, -2.0]), rejected=rejected
    )
    columns = pack(sub_batch, pool)
    found = unpack(torch.cat([columns, columns]), [5, 5])
    assert found.ids.tolist() == [2**40, 5, 8, 3] * 2 and found.order.tolist() == [1, 0, -1, -1] * 2
    assert found.ranks.tolist() == [0] * 4 + [1] * 4 and found.scores.tolist() == [1.5, -2.0, 0.5, -0.25] * 2
    details = found.details()
    assert details["stages"].to_pylist() == ["step", "step", "step", "prefilter"] * 2
    assert details["keys"] == ["a", "b", "d", None] * 2
    assert read_keys(keys)[2] == "ü" * (KEY_BYTES // 2)  # a long key keeps its end
    plain = unpack(pack(SubBatch({"example_id": torch.tensor([4])}, torch.tensor([0]), 0, 0, False), pool), [1])
    assert plain.scores.isnan().all() and plain.details()["stages"].to_pylist() == ["uniform"] and plain.keys is None


def test_scores_sources_and_rejected_rows_of_a_run(tmp_path, monkeypatch):
    from jest_hf.training import step as step_module

    rows = datasets.Dataset.from_list([{**row, "noise": "ab"[n % 2]} for n, row in enumerate(random_rows(80))])
    known = {}
    original = step_module.SelectionStep._rejected

    def spy(self, pool, by_model, selection, number):
        """Scores by hand, of all rows: both models' own losses."""
        losses = []
        for name in ("learner", "reference"):
            one = by_model[name]
            logits = one.logit_scale * (one.image * one.text).sum(1) + one.logit_bias
            losses.append(torch.nn.functional.softplus(-logits))
        scores = (losses[0] - losses[1]).tolist()
        known[number] = dict(zip(pool.rows["example_id"].tolist(), scores, strict=True))
        return original(self, pool, by_model, selection, number)

    monkeypatch.setattr(step_module.SelectionStep, "_rejected", spy)
    trainer = make_trainer(tmp_path, rows=rows, record_selection=True, source_column="noise", selection_warmup_steps=1)
    trainer.train()
    selected, rejected = (by_step(read(trainer.ledger.path)) for read in (read_selections, read_rejected))
    assert {(row["stage"], row["score"]) for row in selected[1]} == {("uniform", None)} and not rejected[1]
    for step in (2, 3):
        assert {row["stage"] for row in selected[step] + rejected[step]} == {"step"}
        ids, others = ({row["example_id"] for row in part[step]} for part in (selected, rejected))
        assert len(ids) == 8 and len(others) == 24 and not ids & others and ids | others == known[step].keys()
        for row in selected[step] + rejected[step]:
            assert row["score"] == pytest.approx(known[step][row["example_id"]], abs=1e-5)
            assert row["source"] == "ab"[row["example_id"] % 2] and row["key"] is None
    assert {row["order"] for row in rejected[2]} == {None}


def test_the_scores_of_labelled_data_average_to_the_log(tmp_path):
    from tests.training.test_labelled import labelled_trainer

    trainer = labelled_trainer(tmp_path)
    trainer.train()
    selected = by_step(read_selections(trainer.ledger.path))
    means = [np.mean([row["score"] for row in selected[step]]) for step in (1, 2, 3)]
    assert means == pytest.approx(logged(trainer, "selected/learnability"), abs=1e-5)


def test_keys_of_a_stream_reach_the_ledger(tmp_path):
    rows = [{**row, "__key__": f"shard/{number:05d}"} for number, row in enumerate(random_rows(80))]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    for name, data in (("known", stream), ("unknown", stream.map(lambda row: row))):
        trainer = make_trainer(tmp_path / name, rows=data, record_selection=True)
        trainer.train()
        for read in (read_selections, read_rejected):
            table = read(trainer.ledger.path).to_pylist()
            assert len(table) >= 24 and all(row["key"] == f"shard/{row['example_id']:05d}" for row in table)


def test_nothing_more_is_computed_without_a_ledger(tmp_path, monkeypatch):
    from jest_hf.training import step as step_module

    monkeypatch.setattr(step_module, "own_scores", lambda *args: pytest.fail("no ledger needs scores"))
    make_trainer(tmp_path, max_steps=1).train()
    with pytest.raises(pytest.fail.Exception):
        make_trainer(tmp_path, max_steps=1, record_selection=True).train()
