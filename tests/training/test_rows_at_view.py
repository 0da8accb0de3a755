# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows at a view and in full, on ranks with unequal numbers of rows: everywhere as many passes through the tower."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jest_hf.training.update import chunks_by_view, rows_at_view


ranks = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, n + 40)))
fractions = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]), st.floats(0, 1))


@given(fraction=fractions, rows=ranks)
def test_no_rank_has_a_kind_that_another_lacks(fraction, rows):
    smallest, n_rows = rows
    few, many = rows_at_view(fraction, smallest, smallest), rows_at_view(fraction, n_rows, smallest)
    assert few == round(fraction * smallest)
    assert (few > 0) == (many > 0) and (few < smallest) == (many < n_rows)
    if 0 < few < smallest:
        assert many == round(fraction * n_rows)


@given(fraction=fractions, rows=ranks, data=st.data())
def test_chunks_are_of_one_kind_and_the_same_on_every_rank(fraction, rows, data):
    smallest, n_rows = rows
    n_chunks = data.draw(st.integers(1, smallest))
    kinds = []
    for n in rows:
        at_view = rows_at_view(fraction, n, smallest)
        chunks = chunks_by_view(fraction, n, smallest, n_chunks)
        assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n))
        assert all(chunk.start < chunk.stop for chunk in chunks)
        assert all(chunk.stop <= at_view or chunk.start >= at_view for chunk in chunks)
        kinds.append([chunk.start < at_view for chunk in chunks])
    assert kinds[0] == kinds[1]
    assert n_chunks <= len(kinds[0]) <= n_chunks + 1
    longest = max(chunk.stop - chunk.start for chunk in chunks_by_view(fraction, smallest, smallest, n_chunks))
    assert longest <= -(-smallest // n_chunks)


def test_without_a_view_chunks_are_even():
    assert chunks_by_view(0.0, 7, 7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
