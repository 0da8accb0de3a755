# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of one training step, over all ranks: draw the sub-batch from what the models say, and take it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jest_hf.distributed import Exchanged, Ranks, Shares, exchange, owners_of, quotas
from jest_hf.selection.joint import Chunk, draw_chunks
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.pairwise import PairwiseScores
from jest_hf.selection.pointwise import Scored


SELECTIONS = ("joint", "independent", "top_k", "uniform")

# The chunks whose noise draws uniformly, beyond those of any joint draw: a uniform part, and a uniform selection. A
# control that drew with the noise of the part would pick the same examples, and not by chance.
_UNIFORM_CHUNK = 2**32
_UNIFORM_SELECTION_CHUNK = _UNIFORM_CHUNK + 1
_IDS_SHOWN = 10


def draw_sub_batch(
    embeddings: Mapping[str, Scored],
    eligible: Tensor,
    example_ids: Tensor,
    *,
    size: int,
    n_chunks: int,
    criterion: str | None,
    loss: str | None,
    gain: float,
    seed: int,
    step: int,
    start: int,
    total: int,
    ranks: Ranks,
    selection: str = "joint",
    uniform_size: int = 0,
) -> list[Chunk]:
    """
    Draw the sub-batch of a step, a function of (scores, seed, step) alone, and of nothing that any process remembers.

    Args:
        embeddings (`dict`): This rank's n examples, under `"learner"`, `"reference"` or both; a uniform selection
            needs none.
        eligible (`torch.Tensor`): bool `[n]`, False for broken rows.
        example_ids (`torch.Tensor`): int64 `[n]`, to name the examples whose scores are broken.
        size (`int`): Sub-batch size over `ranks`.
        n_chunks (`int`): Chunks of the joint draw, the only one to have several.
        criterion, loss, gain: As in [`PairwiseScores.from_embeddings`] and [`select_jointly`].
        seed, step (`int`): Of the noise.
        start, total (`int`): The share's first position in the global super-batch, and the size of that.
        ranks ([`~jest_hf.distributed.Ranks`]): Who draws together.
        selection (`str`, *optional*, defaults to `"joint"`): `"joint"` is Algorithm 1 of JEST, `"independent"` draws
            by each example's own score, `"top_k"` takes the highest of these, `"uniform"` draws by noise alone.
        uniform_size (`int`, *optional*, defaults to 0): How many of the sub-batch are drawn uniformly, in a chunk
            before all others; the rest is selected from the other examples, by a joint draw given the uniform ones.

    Returns:
        The chunks; their indices are positions in the super-batch of `ranks`, the same on each of them.

    Raises:
        FloatingPointError: On all ranks, if a score is NaN or infinite on one of them.
        ValueError: For an unknown selection, and as [`select_jointly`].
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
    if selection == "uniform":
        scores = PairwiseScores.from_pointwise(torch.zeros(len(eligible), device=eligible.device))
        uniform_size, uniform_chunk = size, _UNIFORM_SELECTION_CHUNK
    else:
        uniform_chunk = _UNIFORM_CHUNK
        scores = PairwiseScores.from_embeddings(**embeddings, criterion=criterion, loss=loss)
    own_scores = scores.diagonal()
    _check_scores(eligible & ~own_scores.isfinite(), example_ids, step, ranks)
    if selection != "joint":
        scores, n_chunks = PairwiseScores.from_pointwise(own_scores), 1

    positions = {"start": start, "stop": start + len(scores), "device": eligible.device}
    noise = gumbel_noise(seed, step, n_chunks, total, **positions)
    if selection == "top_k":
        noise.zero_()
    if uniform_size:
        uniform = gumbel_noise(seed, step, 1, total, first_chunk=uniform_chunk, **positions)
        noise = torch.cat([noise, uniform])
    return list(draw_chunks(scores, size, n_chunks, gain, noise, eligible, ranks, uniform_size))


def _check_scores(broken: Tensor, example_ids: Tensor, step: int, ranks: Ranks) -> None:
    counts = ranks.gather_counts(int(broken.sum()), broken.device)
    if not any(counts):
        return
    total = sum(ranks.gather_counts(len(broken), broken.device))
    ids = ranks.gather_rows(example_ids[broken], counts).tolist()
    where = ", ".join(str(rank) for rank, count in enumerate(counts) if count)
    raise FloatingPointError(
        f"step {step}: the scores of {sum(counts)} of {total} examples are NaN or infinite (rank {where}; example "
        f"ids {ids[:_IDS_SHOWN]}); the learner has diverged or the reference is broken: try a lower learning_rate, or "
        "fp32."
    )


def take_readable(super_batch: dict[str, Tensor], shares: Shares) -> Exchanged:
    """This rank's part of all rows that can be read; without a copy, which for the images alone can cost a per cent of
    a small model's step, where that is every row."""
    valid = super_batch["valid"]
    if shares.readable == shares.rows:
        order = torch.arange(shares.start, shares.start + len(valid), device=valid.device)
        return Exchanged(super_batch, order, moved=0, bytes_moved=0)
    return exchange(shares.ranks, super_batch, shares.positions(valid), shares.rows)


def take_sub_batch(
    shares: Shares, super_batch: dict[str, Tensor], embeddings: Mapping[str, Scored], indices: Tensor
) -> tuple[Exchanged, dict[str, dict[str, Scored]]]:
    """
    This rank's part of the sub-batch, and how it was scored beside as many rejected examples.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        super_batch (`dict`): This rank's rows.
        embeddings (`dict`): What the models say of them.
        indices (`torch.Tensor`): The sub-batch, int64 `[b]`, positions in the super-batch, the same on every rank.

    Returns:
        The rows, and by `"selected"` and `"rejected"` what the models say of them. The rejected ones are the first of
        each share, whose order is random. Where some rank does not have so many they are left out: losses of batches
        of other sizes do not compare.
    """
    # What is known of the examples travels with them.
    taken = exchange(shares.ranks, {**super_batch, **_packed(embeddings)}, indices, shares.rows)
    parts = {"selected": _unpacked(taken.batch, embeddings)}
    drawn = torch.bincount(owners_of(indices, shares.rows), minlength=shares.ranks.size).tolist()
    spare = [readable - m for readable, m in zip(shares.readable, drawn, strict=True)]
    if all(n >= q for n, q in zip(spare, quotas(len(indices), shares.ranks.size), strict=True)):
        rest = super_batch["valid"].clone()
        rest[shares.own(indices)] = False
        rejected = rest.nonzero().flatten()[: len(taken.order)]
        parts["rejected"] = {name: scored.take(rejected) for name, scored in embeddings.items()}
    return taken, parts


def take_scored(shares: Shares, embeddings: Mapping[str, Scored], indices: Tensor) -> dict[str, Scored]:
    """This rank's part of what the models say of some examples, in parts as equal as those of a sub-batch; arguments
    as those of [`take_sub_batch`]. A collective."""
    return _unpacked(exchange(shares.ranks, _packed(embeddings), indices, shares.rows).batch, embeddings)


def _packed(embeddings: Mapping[str, Scored]) -> dict[str, Tensor]:
    return {f"{name}/{key}": rows for name, scored in embeddings.items() for key, rows in scored.columns().items()}


def _unpacked(rows: dict[str, Tensor], embeddings: Mapping[str, Scored]) -> dict[str, Scored]:
    """What the models say of other rows of [`_packed`], which are taken out of `rows`."""
    return {
        name: scored.with_columns({key: rows.pop(f"{name}/{key}") for key in scored.columns()})
        for name, scored in embeddings.items()
    }


__all__ = ["SELECTIONS", "draw_sub_batch", "take_readable", "take_scored", "take_sub_batch"]
