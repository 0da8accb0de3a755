# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing a sub-batch from a super-batch: pure functions on tensors, on CPU or GPU, usable without any trainer.

A model computes embeddings of pairs ([`ContrastiveEmbeddings`]) or one loss per example ([`PointwiseLosses`]). A
criterion turns them into scores: of all pairs ([`PairwiseScores`]), or of each example by itself (any `[B]` tensor). A
selector draws the sub-batch from the scores. The noise of the draw is a function of (seed, step), so the same scores
give the same sub-batch in any process.
"""

from __future__ import annotations

from jest_hf.batch import ContrastiveEmbeddings, PointwiseLosses, Scored, Scores
from jest_hf.moved import moved
from jest_hf.selection.criteria import CRITERIA, Criterion
from jest_hf.selection.draw import select_independently, select_uniformly
from jest_hf.selection.graded import (
    N_REJECTED,
    STAGES,
    Graded,
    left_over,
    own_scores,
    sample_of_pool,
    sample_rejected,
    scores_of,
)
from jest_hf.selection.joint import Chunk, chunk_sizes, draw_chunks, select_jointly
from jest_hf.selection.noise import gumbel_noise, noise_at
from jest_hf.selection.pool import Ask, DrawKey, Pool, Selection
from jest_hf.selection.schedule import SelectionSchedule
from jest_hf.selection.scores import LOSSES, PairwiseScores, RunningScores
from jest_hf.selection.selectors import SELECTIONS, Selector, draw_sub_batch
from jest_hf.selection.sub_batch import take_drawn, take_readable, take_sub_batch


__all__ = [
    "CRITERIA",
    "LOSSES",
    "N_REJECTED",
    "SELECTIONS",
    "STAGES",
    "Ask",
    "Chunk",
    "ContrastiveEmbeddings",
    "Criterion",
    "DrawKey",
    "Graded",
    "PairwiseScores",
    "PointwiseLosses",
    "Pool",
    "RunningScores",
    "Scored",
    "Scores",
    "Selection",
    "SelectionSchedule",
    "Selector",
    "chunk_sizes",
    "draw_chunks",
    "draw_sub_batch",
    "gumbel_noise",
    "left_over",
    "noise_at",
    "own_scores",
    "sample_of_pool",
    "sample_rejected",
    "scores_of",
    "select_independently",
    "select_jointly",
    "select_uniformly",
    "take_drawn",
    "take_readable",
    "take_sub_batch",
]

__getattr__ = moved(__name__, dict.fromkeys(("batch_loss", "compare_selectors", "source_shares"), "jest_hf.report"))
