# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger against a plain list of rows, against kills, and against its memory bound."""

from __future__ import annotations

import logging
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

from jest_hf.report import SelectionLedger, read_rejected, read_selections
from jest_hf.report import ledger as ledger_module


COLUMNS = ["step", "rank", "order", "example_id"]


def rows_of(path):
    return [tuple(row.values()) for row in read_selections(path).select(COLUMNS).to_pylist()]


def test_columns_and_order_of_drawing(tmp_path):
    ledger = SelectionLedger(tmp_path / "out" / "selections.parquet")
    ledger.record(1, torch.tensor([7, 3, 2**40]))
    ledger.record(2, [5, 9], rank=3)
    ledger.flush()

    table = read_selections(ledger.path)
    assert table.schema.equals(
        pa.schema(
            [
                ("step", pa.int32()),
                ("rank", pa.int16()),
                ("order", pa.int32()),
                ("example_id", pa.int64()),
                ("stage", pa.dictionary(pa.int32(), pa.string())),
                ("score", pa.float32()),
                ("source", pa.dictionary(pa.int32(), pa.string())),
                ("key", pa.string()),
            ]
        )
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
        with pytest.raises(OSError, match=r"part-000002.parquet could not be written \(full\); make room"):
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


def test_a_flush_reads_and_changes_no_earlier_part(tmp_path):
    """So the time and the memory of a checkpoint do not depend on the steps so far."""
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 4):
        ledger.record(step, range(100))
        ledger.flush()
    parts = sorted(ledger.path.iterdir())
    before = [part.stat().st_ino for part in parts]
    for part in parts:
        part.write_bytes(b"not even Parquet")
    ledger.record(4, [7])
    ledger.flush()
    assert [path.name for path in sorted(ledger.path.iterdir())] == [f"part-{n:06d}.parquet" for n in range(1, 5)]
    assert [part.stat().st_ino for part in parts] == before
    assert all(part.read_bytes() == b"not even Parquet" for part in parts)
    assert pq.read_table(ledger.path / "part-000004.parquet")["example_id"].to_pylist() == [7]


def test_large_parts_are_read_in_groups(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.record(1, torch.randint(2**62, (600_000,)))
    ledger.flush()
    file = pq.ParquetFile(ledger.path / "part-000001.parquet")
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= ledger_module.ROWS_PER_GROUP


def test_other_readers_read_the_folder_as_a_file(tmp_path):
    import datasets

    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 12):
        ledger.record(step, [step, 2 * step])
        ledger.flush()
    (ledger.path / "_damaged-part-000003.parquet").write_bytes(b"passed over")
    expected = read_selections(ledger.path)
    assert pq.read_table(ledger.path).equals(expected) and len(expected) == 22
    loaded = datasets.load_dataset(
        "parquet", data_files=str(ledger.path / "part-*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["example_id"][:] == expected["example_id"].to_pylist()


def old_ledger(path, steps):
    """As versions before the folder wrote it."""
    table = pa.table({"step": steps, "rank": [0] * len(steps), "order": [0] * len(steps), "example_id": steps})
    pq.write_table(table.cast(pa.schema(list(ledger_module.SCHEMA)[:4])), path, compression="zstd")


@pytest.mark.parametrize("killed", [False, True])
def test_the_single_file_of_earlier_versions_goes_on(tmp_path, killed):
    path = tmp_path / "selections.parquet"
    old_ledger(path, [1, 2, 3, 4])
    assert [row[0] for row in rows_of(path)] == [1, 2, 3, 4]
    if killed:  # between the two moves that make it a part
        os.replace(path, tmp_path / ".selections.parquet.moved")
    ledger = SelectionLedger(path)
    ledger.begin(3)
    ledger.record(4, [40])
    ledger.close()
    assert [(row[0], row[3]) for row in rows_of(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert os.listdir(tmp_path) == ["selections.parquet"]


def begun(path, step, caplog):
    """The warnings of a ledger that begins after `step`."""
    caplog.clear()
    ledger = SelectionLedger(path)
    ledger.acquire()
    ledger.begin(step)
    ledger.close()
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def three_steps(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 4):
        ledger.record(step, [step])
        ledger.flush()
    return ledger.path


def test_a_second_run_sets_the_selections_of_the_first_aside(three_steps, tmp_path, caplog):
    first = rows_of(three_steps)
    for number in (1, 2):
        (warning,) = begun(three_steps, 0, caplog)
        aside = tmp_path / f"selections-{number}.parquet"
        assert warning == f"{three_steps} has the selections of an earlier run; they are kept in {aside}."
        assert rows_of(aside) == first and rows_of(three_steps) == []
        assert begun(three_steps, 0, caplog) == []  # nothing to set aside
        ledger = SelectionLedger(three_steps)
        ledger.record(1, [1])
        ledger.flush()
        first = rows_of(three_steps)


def test_a_damaged_part_is_set_aside(three_steps, caplog):
    part = three_steps / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match="part-000002.parquet is damaged"):
        read_selections(three_steps)
    damaged, missing = begun(three_steps, 3, caplog)
    assert "part-000002.parquet is damaged" in damaged and "kept as _damaged-part-000002.parquet" in damaged
    assert missing.startswith(f"{three_steps} lacks the selections of 1 of the 3 steps before this resume")
    assert [row[0] for row in rows_of(three_steps)] == [1, 3]
    assert (three_steps / "_damaged-part-000002.parquet").exists()


def test_damaged_rows_of_a_part_that_is_cut_are_set_aside(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in (1, 2):
        ledger.record(step, torch.randint(2**62, (100,)))
    ledger.flush()
    part = ledger.path / "part-000001.parquet"
    data = bytearray(part.read_bytes())
    data[4:200] = bytes(196)  # the footer is whole
    part.write_bytes(data)
    damaged, missing = begun(ledger.path, 1, caplog)
    assert "is damaged" in damaged and "1 of the 1 steps" in missing
    assert rows_of(ledger.path) == []


def test_a_missing_ledger_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    (warning,) = begun(tmp_path / "selections.parquet", 5, caplog)
    assert "lacks the selections of 5 of the 5 steps" in warning
    with pytest.raises(FileNotFoundError, match="record_selection=True"):
        read_selections(tmp_path / "nothing.parquet")


LOCKED = """
import sys
from jest_hf.files import lock

assert lock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks, and SIGKILL is a POSIX signal")
def test_two_runs_at_once_are_refused_until_the_first_has_died(tmp_path):
    path = tmp_path / "selections.parquet"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOCKED, tmp_path / ".selections.parquet.lock"], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        ledger = SelectionLedger(path)
        with pytest.raises(ValueError, match=f"another run is writing its selections to {path}; wait for its end"):
            ledger.acquire()
        other.kill()
    ledger.acquire()
    ledger.acquire()  # a second run of this process, after one that has failed
    ledger.close()
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_a_new_file_is_not_followed(tmp_path, monkeypatch):
    import secrets

    monkeypatch.setattr(secrets, "token_hex", lambda size: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.path.mkdir()
    (ledger.path / ".part-000001.parquet.guessed.tmp").symlink_to(victim)
    ledger.record(1, [1])
    with pytest.raises(OSError, match="part-000001.parquet could not be written .*exists"):
        ledger.flush()
    assert victim.read_text() == "untouched"
    ledger.truncate(1)  # removes what lies in the way, as at the start of a run
    assert victim.read_text() == "untouched" and rows_of(ledger.path) == [(1, 0, 0, 1)]


def test_what_is_known_of_rows_and_of_rejected_ones(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step, sources in enumerate((["a", "b"], ["c", "a"], None), start=1):
        details = {"stages": ["step", "step"], "scores": [0.5 * step, float("nan")], "sources": sources}
        ledger.record(step, [step, 10 * step], **details, keys=["k", None])
        ledger.record_rejected(step, torch.tensor([100 + step]), 1, stages=["prefilter"], scores=torch.ones(1))
        if step == 2:
            ledger.flush()
    ledger.close()
    rows = read_selections(ledger.path).to_pylist()
    assert [row["source"] for row in rows] == ["a", "b", "c", "a", None, None]
    assert [row["score"] for row in rows] == [0.5, None, 1.0, None, 1.5, None]
    assert [row["key"] for row in rows] == ["k", None] * 3 and {row["stage"] for row in rows} == {"step"}
    assert len(pq.read_table(ledger.path)) == 6  # other readers see what was trained on alone
    rejected = read_rejected(ledger.path).to_pylist()
    known = {"rank": 1, "order": None, "stage": "prefilter", "score": 1.0, "source": None, "key": None}
    assert rejected == [{"step": step, "example_id": 100 + step, **known} for step in (1, 2, 3)]


def test_a_resume_drops_later_rejected_rows_too(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 7):
        ledger.record(step, [step])
        ledger.record_rejected(step, [100 + step])
        if step % 2 == 0:
            ledger.flush()
    SelectionLedger(ledger.path).begin(3)
    for read in (read_selections, read_rejected):
        assert read(ledger.path)["step"].to_pylist() == [1, 2, 3]
    again = SelectionLedger(ledger.path)
    again.begin(0)  # a fresh start moves both aside
    again.record(1, [7])
    again.close()
    assert len(read_rejected(tmp_path / "selections-1.parquet")) == 3 and len(read_rejected(ledger.path)) == 0


def test_parts_of_earlier_versions_and_of_this_one_are_one_table(tmp_path):
    path = tmp_path / "selections.parquet"
    old_ledger(path, [1, 2])
    ledger = SelectionLedger(path)
    ledger.begin(2)
    ledger.record(3, [30], scores=[0.5], stages=["loader"])
    ledger.close()
    rows = read_selections(path).to_pylist()
    assert [(row["step"], row["score"], row["stage"]) for row in rows] == [
        (1, None, None),
        (2, None, None),
        (3, 0.5, "loader"),
    ]
    assert len(read_rejected(path)) == 0 and ledger_module.ledger_steps(path) == (1, 3)
    tables = list(ledger_module.read_parts(path, columns=["step", "score"]))
    assert [table.column_names for table in tables] == [["step"], ["step", "score"]]


def test_the_rows_since_a_step_are_read_from_the_newest_parts_and_from_memory(tmp_path, monkeypatch):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 8):
        ledger.record(step, [step])
        ledger.record_rejected(step, [100 + step])
        if step in (2, 4, 6):
            ledger.flush()
    opened, groups = [], ledger_module._groups
    monkeypatch.setattr(ledger_module, "_groups", lambda part, columns: opened.append(part) or groups(part, columns))

    def since(step, **options):
        return [row for table in ledger.since(step, ["example_id"], **options) for row in table.to_pylist()]

    assert since(3) == [{"example_id": step} for step in (4, 5, 6, 7)]
    assert [part.name for part in opened] == ["part-000002.parquet", "part-000003.parquet"]
    assert since(0, rejected=True) == [{"example_id": 100 + step} for step in range(1, 8)]
    assert since(7) == []
