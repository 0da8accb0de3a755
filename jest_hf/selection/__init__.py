# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing a sub-batch from a super-batch: pure functions on tensors, on CPU or GPU, usable without any trainer.

Models speak of pairs ([`ContrastiveEmbeddings`]) or of single examples ([`PointwiseLosses`]); scores say how learnable
examples are, together ([`PairwiseScores`]) or alone (any `[B]` tensor); a selector draws from them; the noise of the
draw is a function of (seed, step), so a selection can be repeated anywhere.
"""

from jest_hf.selection.compare import Selector, batch_loss, compare_selectors, source_shares
from jest_hf.selection.embeddings import ContrastiveEmbeddings
from jest_hf.selection.independent import select_independently, select_uniformly
from jest_hf.selection.joint import Chunk, chunk_sizes, draw_chunks, select_jointly
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.pairwise import CRITERIA, LOSSES, PairwiseScores, RunningScores
from jest_hf.selection.pointwise import PointwiseLosses, Scored
from jest_hf.selection.schedule import SelectionSchedule
from jest_hf.selection.sub_batch import SELECTIONS, draw_sub_batch, take_readable, take_sub_batch


__all__ = [
    "CRITERIA",
    "LOSSES",
    "Chunk",
    "ContrastiveEmbeddings",
    "PairwiseScores",
    "PointwiseLosses",
    "RunningScores",
    "SELECTIONS",
    "Scored",
    "SelectionSchedule",
    "Selector",
    "batch_loss",
    "chunk_sizes",
    "compare_selectors",
    "draw_chunks",
    "draw_sub_batch",
    "gumbel_noise",
    "select_independently",
    "select_jointly",
    "select_uniformly",
    "source_shares",
    "take_readable",
    "take_sub_batch",
]
