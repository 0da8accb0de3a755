# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From the sub-batch to its gradients: teacher, order, full images, rows at the scoring view, the loss.

How many of a rank's rows are seen at a view, and in which chunks, decides how often the vision tower runs. Under FSDP
and ZeRO-3 each pass through a layer is a collective, and a forward over rows at the view and rows in full takes the
vision tower through two passes ([`~models.towers.accept_views`]). Where many rows are broken, ranks train on unequal
numbers of rows. Then no rank may have rows of a kind, in a forward, that another has none of: it would wait for ever.
So the rank with the fewest rows decides ([`rows_at_view`], [`chunks_by_view`]).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jest_hf.batch import Scored, without_cached
from jest_hf.config import JESTConfig
from jest_hf.data.late import LateImages
from jest_hf.distributed import Ranks
from jest_hf.images.views import View
from jest_hf.losses import backward_in_chunks
from jest_hf.models import DualEncoderOutput, Reader
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceSource
from jest_hf.selection import gumbel_noise
from jest_hf.training.engine import Engine
from jest_hf.training.step import SubBatch


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


@dataclass(frozen=True)
class LearnerBatch:
    """
    What this rank learns from in one step.

    Args:
        rows (`dict`): The m rows of its sub-batch, those at the scoring view first.
        teacher ([`ContrastiveEmbeddings`], *optional*): The reference's embeddings of these rows, for distillation.
        n_at_view (`int`, *optional*, defaults to 0): So many rows at the beginning are seen at the scoring view.
        fewest_rows (`int`, *optional*, defaults to 0): Rows of the rank that has the fewest, where a view or chunks
            need it.
    """

    rows: dict[str, Tensor]
    teacher: Scored | None = None
    n_at_view: int = 0
    fewest_rows: int = 0


class Update:
    """
    Everything between the sub-batch and the gradients of its loss.

    Args:
        args ([`JESTConfig`]): Options of the run.
        objective ([`Objective`]): Its loss.
        reader ([`~jest_hf.models.Reader`]): How the learner reads a batch.
        view ([`~jest_hf.models.View`], *optional*): The scoring view, at which a part of the sub-batch is trained on.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        engine ([`Engine`]): For backward.
        reference (`Callable`): Returns the reference in use, the teacher of a distillation.
        late_images (`Callable`): Returns what brings the full images of a sub-batch, or `None`.
        record (`Callable`, *optional*): Takes metrics of the step.
    """

    def __init__(
        self,
        args: JESTConfig,
        objective: Objective,
        reader: Reader,
        view: View | None,
        *,
        ranks: Ranks,
        engine: Engine,
        reference: Callable[[], ReferenceSource | None],
        late_images: Callable[[], LateImages | None],
        record: Callable[[Mapping[str, float]], object] = lambda metrics: None,
    ) -> None:
        self.args = args
        self.objective = objective
        self.reader = reader
        self.view = view
        self.ranks = ranks
        self.engine = engine
        self.reference = reference
        self.late_images = late_images
        self.record = record
        self._learned: LearnerBatch | None = None

    @property
    def fraction(self) -> float:
        """The part of a batch that is trained on at the scoring view."""
        return 0.0 if self.view is None else self.args.settings.low_resolution_fraction

    def prepare(self, model: nn.Module, sub_batch: SubBatch, step: int) -> LearnerBatch:
        """Add the teacher's embeddings, shuffle, and bring the full images that are needed. A collective."""
        teacher = self._teach(model, sub_batch)
        rows, teacher = self._shuffle(without_cached(sub_batch.rows), teacher, step)
        batch = self._sized(rows, teacher)
        late_images = self.late_images()
        if late_images is None:
            return batch
        start = time.perf_counter()
        batch = replace(batch, rows=late_images(rows, batch.n_at_view))
        self.record({"late_images_seconds": time.perf_counter() - start})
        return batch

    def _teach(self, model: nn.Module, sub_batch: SubBatch) -> Scored | None:
        """The reference's embeddings of the sub-batch, with `args.distillation_weight`: often they are known."""
        if self.args.distillation_weight == 0:
            return None
        if "reference" in sub_batch.selected:
            return sub_batch.selected["reference"]
        source = self.reference()
        if source is None:
            raise ValueError(f"distillation_weight={self.args.distillation_weight} needs a reference; pass ref_model.")
        with self.engine.autocast():
            return source.score(model, sub_batch.rows, len(sub_batch.rows["example_id"]))

    def _shuffle(
        self, rows: dict[str, Tensor], teacher: Scored | None, step: int
    ) -> tuple[dict[str, Tensor], Scored | None]:
        """
        With a scoring view, put rows into random order, a function of (seed, step): the first
        `low_resolution_fraction` are trained on at that view, and the order of drawing is not random.
        """
        if self.view is None:
            return rows, teacher
        args, ids = self.args, rows["example_id"]
        start = self.ranks.rank * args.per_device_train_batch_size
        # A row of noise that no draw has used.
        noise = gumbel_noise(
            *(args.seed, step, args.n_chunks + 1, args.sub_batch_size),
            start=start,
            stop=start + len(ids),
            device=ids.device,
        )
        order = noise[-1].argsort()
        shuffled = {name: value.index_select(0, order) for name, value in rows.items()}
        return shuffled, None if teacher is None else teacher.take(order)

    def _sized(self, rows: dict[str, Tensor], teacher: Scored | None = None) -> LearnerBatch:
        """The batch with its numbers of rows. A collective, where a view or chunks need the other ranks' numbers."""
        if self.view is None and self.args.gradient_cache_chunk_size is None:
            return LearnerBatch(rows, teacher)
        n_rows = len(rows["example_id"])
        fewest = min(self.ranks.gather_counts(n_rows, self.args.device))
        return LearnerBatch(rows, teacher, rows_at_view(self.fraction, n_rows, fewest), fewest)

    @contextmanager
    def learning(self, batch: LearnerBatch) -> Iterator[None]:
        """
        Within, [`~Update.loss`] is of this batch. The Trainer hands `compute_loss` a dict and nothing else, and
        DeepSpeed casts any float tensor in it: so teacher and numbers of rows wait here.
        """
        self._learned = batch
        try:
            yield
        finally:
            self._learned = None

    def loss(self, model: nn.Module, rows: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The loss of the sub-batch of all ranks, an fp32 scalar, from this rank's rows; and the model's output."""
        batch = self._sized(rows) if self._learned is None else self._learned
        output = self.reader(model, rows, view=self.view, n_at_view=batch.n_at_view)
        return self.objective.loss(output, rows, self.ranks, batch.teacher), output

    def nothing(self) -> Tensor:
        """The loss of a step that trains on nothing: NaN, which `logging_nan_inf_filter` leaves out of the mean.

        Without a backward no parameter has a gradient, and optimizers and engines leave such parameters alone.
        """
        return torch.full((), torch.nan, device=self.args.device)

    def backward_in_chunks(
        self,
        model: nn.Module,
        rows: dict[str, Tensor],
        chunk_size: int,
        context: Callable[[], AbstractContextManager[object]],
    ) -> Tensor:
        """
        Gradients of one loss over the sub-batch, some rows at a time (arXiv 2101.06983).

        Args:
            model (`torch.nn.Module`): The wrapped learner.
            rows (`dict`): This rank's rows.
            chunk_size (`int`): Rows whose activations exist at a time.
            context (`Callable`): Makes the context in which forwards run.

        Returns:
            `torch.Tensor`: the loss, detached.
        """
        batch = self._sized(rows) if self._learned is None else self._learned
        model.train()

        def forward(part: slice) -> DualEncoderOutput:
            with context():
                return self.reader(model, rows, part, self.view, batch.n_at_view)

        n_rows, fewest = len(rows["example_id"]), batch.fewest_rows
        n_chunks = min(-(-self.args.per_device_train_batch_size // chunk_size), fewest)
        return backward_in_chunks(
            forward,
            n_rows,
            chunks_by_view(self.fraction, n_rows, fewest, n_chunks),
            loss=lambda *embedded: self.objective.loss(
                DualEncoderOutput.of(*embedded), rows, self.ranks, batch.teacher
            ),
            backward=self.engine.backward,
            no_sync=lambda: self.engine.no_sync(model),
        )


__all__ = ["LearnerBatch", "Update", "chunks_by_view", "rows_at_view"]
