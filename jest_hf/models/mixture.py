# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How many of a rank's rows are seen at a view, and in which chunks: on every rank the same passes through the tower.

Under FSDP and ZeRO-3 each pass through a layer is a collective, and a forward over rows at the view and rows in full
takes the vision tower through two passes ([`~models.towers.accept_views`]). Where many rows are broken, ranks train on
unequal numbers of them. Then no rank may have rows of a kind, in a forward, that another has none of: it would wait
for ever. What decides is therefore the rank with the fewest rows.
"""

from __future__ import annotations


def rows_at_view(fraction: float, n_rows: int, smallest: int) -> int:
    """
    Number of rows that this rank trains on at the view.

    Args:
        fraction (`float`): Of the rows of each rank, in [0, 1].
        n_rows (`int`): This rank's rows.
        smallest (`int`): Rows of the rank with the fewest.

    Returns:
        `int`: `fraction * n_rows`, rounded; but no row, or all of them, where that is so on the rank with the fewest.
    """
    of_smallest = round(fraction * smallest)
    if of_smallest == 0:
        return 0
    return n_rows if of_smallest == smallest else round(fraction * n_rows)


def chunks_by_view(fraction: float, n_rows: int, smallest: int, n_chunks: int) -> list[slice]:
    """
    Chunks of this rank's rows for gradient caching, each at the view or in full.

    Args:
        fraction, n_rows, smallest: As in [`rows_at_view`], whose rows come first.
        n_chunks (`int`): Number of chunks that is wanted, the same on every rank. It becomes one more where rows at
            the view and in full would share one, and fewer where the rank with the fewest rows has not so many.

    Returns:
        `list[slice]`: in order; as many on every rank, the k-th of the same kind on each, and none empty.
    """
    at_view, of_smallest = rows_at_view(fraction, n_rows, smallest), rows_at_view(fraction, smallest, smallest)
    parts = [(0, at_view, of_smallest), (at_view, n_rows, smallest - of_smallest)]
    return [
        chunk
        for start, stop, fewest in parts
        for chunk in _cut(start, stop, min(fewest, -(-n_chunks * fewest // smallest)))
    ]


def _cut(start: int, stop: int, n: int) -> list[slice]:
    """`n` runs of nearly equal length."""
    ends = [start + (stop - start) * k // n for k in range(n + 1)] if n else []
    return [slice(one, other) for one, other in zip(ends, ends[1:], strict=False)]


__all__ = ["chunks_by_view", "rows_at_view"]
