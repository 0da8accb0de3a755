# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of one training step, over all ranks: draw the sub-batch from the models' embeddings, and take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from jest_hf.distributed import Exchanged, Ranks, Shares, exchange, quotas
from jest_hf.selection.embeddings import ContrastiveEmbeddings
from jest_hf.selection.joint import Chunk, draw_chunks
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.pairwise import PairwiseScores


_IDS_SHOWN = 10


def draw_sub_batch(
    embeddings: Mapping[str, ContrastiveEmbeddings],
    eligible: Tensor,
    example_ids: Tensor,
    *,
    size: int,
    n_chunks: int,
    criterion: str,
    loss: str,
    gain: float,
    seed: int,
    step: int,
    start: int,
    total: int,
    ranks: Ranks,
) -> list[Chunk]:
    """
    Draw the sub-batch of a step, a function of (scores, seed, step) alone, and of nothing that any process remembers.

    Args:
        embeddings (`dict`): This rank's n examples, under `"learner"`, `"reference"` or both.
        eligible (`torch.Tensor`): bool `[n]`, False for broken rows.
        example_ids (`torch.Tensor`): int64 `[n]`, to name the examples whose scores are broken.
        size (`int`): Sub-batch size over `ranks`.
        n_chunks (`int`): Chunks of the joint draw; 1 draws independently, by each example's own score.
        criterion, loss, gain: As in [`PairwiseScores.from_embeddings`] and [`select_jointly`].
        seed, step (`int`): Of the noise.
        start, total (`int`): The share's first position in the global super-batch, and the size of that.
        ranks ([`~jest_hf.distributed.Ranks`]): Who draws together.

    Returns:
        The chunks; their indices are positions in the super-batch of `ranks`, the same on each of them.

    Raises:
        FloatingPointError: On all ranks, if a score is NaN or infinite on one of them.
    """
    scores = PairwiseScores.from_embeddings(**embeddings, criterion=criterion, loss=loss)
    _check_scores(eligible & ~scores.diagonal().isfinite(), example_ids, step, ranks)
    noise = gumbel_noise(seed, step, n_chunks, total, start=start, stop=start + len(scores), device=eligible.device)
    return list(draw_chunks(scores, size, n_chunks, gain, noise, eligible, ranks))


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
    shares: Shares, super_batch: dict[str, Tensor], embeddings: Mapping[str, ContrastiveEmbeddings], indices: Tensor
) -> tuple[Exchanged, dict[str, dict[str, ContrastiveEmbeddings]]]:
    """
    This rank's part of the sub-batch, and how it was scored beside as many rejected examples.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        super_batch (`dict`): This rank's rows.
        embeddings (`dict`): Their embeddings, by model.
        indices (`torch.Tensor`): The sub-batch, int64 `[b]`, positions in the super-batch, the same on every rank.

    Returns:
        The rows, and by `"selected"` and `"rejected"` their embeddings by model. The rejected ones are the first of
        each share, whose order is random. Where some rank does not have so many they are left out: losses of batches
        of other sizes do not compare.
    """
    # The embeddings travel with their examples.
    rows = dict(super_batch)
    for name, scored in embeddings.items():
        rows |= {f"{name}_image": scored.image, f"{name}_text": scored.text}
    taken = exchange(shares.ranks, rows, indices, shares.rows)
    selected = {
        name: replace(scored, image=taken.batch.pop(f"{name}_image"), text=taken.batch.pop(f"{name}_text"))
        for name, scored in embeddings.items()
    }
    parts = {"selected": selected}
    drawn = torch.bincount(shares.owners(indices), minlength=shares.ranks.size).tolist()
    spare = [readable - m for readable, m in zip(shares.readable, drawn, strict=True)]
    if all(n >= q for n, q in zip(spare, quotas(len(indices), shares.ranks.size), strict=True)):
        rest = super_batch["valid"].clone()
        rest[shares.own(indices)] = False
        rejected = rest.nonzero().flatten()[: len(taken.order)]
        parts["rejected"] = {name: scored.take(rejected) for name, scored in embeddings.items()}
    return taken, parts


__all__ = ["draw_sub_batch", "take_readable", "take_sub_batch"]
