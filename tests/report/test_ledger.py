# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger against a plain list of rows, against kills, and against its memory bound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jest_hf.report import SelectionLedger, read_selections
from jest_hf.report import ledger as ledger_module


def rows_of(path):
    return [tuple(row.values()) for row in read_selections(path).to_pylist()]


def test_columns_and_order_of_drawing(tmp_path):
    ledger = SelectionLedger(tmp_path / "out" / "selections.parquet")
    ledger.record(1, torch.tensor([7, 3, 2**40]))
    ledger.record(2, [5, 9], rank=3)
    ledger.flush()

    table = read_selections(ledger.path)
    assert table.schema.equals(
        pa.schema([("step", pa.int32()), ("rank", pa.int16()), ("order", pa.int32()), ("example_id", pa.int64())])
    )
    assert rows_of(ledger.path) == [(1, 0, 0, 7), (1, 0, 1, 3), (1, 0, 2, 2**40), (2, 3, 0, 5), (2, 3, 1, 9)]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.lists(st.integers(0, 2**62), max_size=5)),
        st.tuples(st.just("flush"), st.none()),
        st.tuples(st.just("resume"), st.integers(0, 12)),
    ),
    max_size=15,
)


@settings(max_examples=40, deadline=None)
@given(operations=operations)
def test_equals_a_plain_list(tmp_path_factory, operations):
    path = tmp_path_factory.mktemp("ledger") / "selections.parquet"
    ledger, kept, step = SelectionLedger(path), [], 0
    for operation, argument in operations:
        if operation == "record":
            step += 1
            ledger.record(step, argument, rank=1)
            kept += [(step, 1, order, example_id) for order, example_id in enumerate(argument)]
        elif operation == "flush":
            ledger.flush()
            ledger = SelectionLedger(path)  # another process goes on
        else:
            ledger.truncate(argument)
            kept = [row for row in kept if row[0] <= argument]
            step = min(step, argument)
            assert rows_of(path) == kept
    ledger.flush()
    assert rows_of(path) == kept


def test_a_fresh_start_empties_the_file(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.record(1, [1, 2])
    ledger.flush()
    ledger.record(2, [3])
    ledger.truncate(0)
    assert rows_of(ledger.path) == []


def test_step_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step=0 must be at least 1"):
        SelectionLedger(tmp_path / "selections.parquet").record(0, [1])


def test_a_failing_flush_leaves_the_file_and_the_rows(tmp_path, monkeypatch):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.record(1, [1, 2])
    ledger.flush()
    ledger.record(2, [3])
    with monkeypatch.context() as patched:
        patched.setattr(
            pq.ParquetWriter, "write_table", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("full"))
        )
        with pytest.raises(OSError, match="full"):
            ledger.flush()
    assert rows_of(ledger.path) == [(1, 0, 0, 1), (1, 0, 1, 2)]
    ledger.flush()
    assert rows_of(ledger.path)[-1] == (2, 0, 0, 3)


KILLED = """
import sys
from jest_hf.report.ledger import SelectionLedger

ledger = SelectionLedger(sys.argv[1])
for step in range(1, 10**6):
    ledger.record(step, range(step, step + 1000))
    if step % 3 == 0:
        ledger.flush()
        print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
def test_a_kill_leaves_whole_flushes(tmp_path):
    path = tmp_path / "selections.parquet"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
    for _ in range(4):
        flushed = int(writer.stdout.readline())
    time.sleep(0.003)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()

    table = read_selections(path)
    steps = sorted(set(table["step"].to_pylist()))
    assert len(steps) >= flushed and len(steps) % 3 == 0
    assert steps == list(range(1, len(steps) + 1)) and len(table) == 1000 * len(steps)
    SelectionLedger(path).truncate(2)  # and a leftover of the write that was cut short is no obstacle
    assert len(read_selections(path)) == 2000
    assert os.listdir(tmp_path) == ["selections.parquet"]


def test_old_rows_are_streamed(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    rows, per_step = 3_000_000, 500_000
    for step in range(1, rows // per_step + 1):
        ledger.record(step, torch.randint(2**62, (per_step,)))
    ledger.flush()
    file = pq.ParquetFile(ledger.path)
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= ledger_module.ROWS_PER_GROUP

    ordinary = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(ordinary)
    pa.set_memory_pool(counted)
    try:
        ledger.record(100, [1])
        ledger.flush()
    finally:
        pa.set_memory_pool(ordinary)
    assert len(read_selections(ledger.path)) == rows + 1
    assert counted.max_memory() < 18 * rows / 2


def test_small_flushes_share_row_groups(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 31):
        ledger.record(step, range(100))
        ledger.flush()
    assert pq.ParquetFile(ledger.path).num_row_groups <= 2
