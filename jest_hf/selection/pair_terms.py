# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of a score. A score is a weighted sum of parts: the losses of one model, or a given score matrix.

Every part gives two terms for each candidate of a super-batch: the term of the candidate's own pair (`diagonal`), and
the conditional term given the examples drawn so far (`start`, then `add` and `total`). The conditional term is a
running reduction: each call of `add` computes only the rows and columns of the examples just drawn, tile by tile from
embeddings. So drawing b of B candidates costs O(B b D) time and O(B) memory, and no [B, B] matrix ever exists. The
argument of `add` is what `take` returns for the drawn examples, on the rank that holds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.batch import ContrastiveEmbeddings, PointwiseLosses, Scored
from jest_hf.selection import arithmetic


# A tile of logits should stay in a CPU's cache between the product and the softplus (measured: 1.8x faster than one
# product for all rows). On a GPU larger tiles are faster, as each kernel launch has a cost.
_TILE_ROWS_CPU = 1024
_TILE_ROWS_GPU = 8192
_TILE_COLUMNS = 1024


class Running(Protocol):
    """The conditional term of every candidate, given the examples drawn so far."""

    def add(self, drawn: Tensor) -> None:
        """Add drawn examples, given as the rows of [`Part.take`], `[m, width]`."""

    def total(self) -> Tensor:
        """Return the conditional term, float64 `[B]` (float32 on MPS): 0 before anything is drawn, undefined for drawn
        examples."""


class Part(Protocol):
    """One part of a pairwise score.

    Attributes:
        divisible (`bool`): Whether a rank can compute the part from its own share of the super-batch alone.
        width (`int`): Number of values that `take` returns for each example.
    """

    divisible: ClassVar[bool]

    @property
    def width(self) -> int: ...

    def __len__(self) -> int: ...

    def diagonal(self) -> Tensor:
        """Return the term of each candidate's own pair, float32 `[B]`."""

    def take(self, indices: Tensor) -> Tensor:
        """Return the rows that `Running.add` needs for the examples at `indices` (int64 `[m]`), `[m, width]`."""

    def start(self) -> Running:
        """Return the conditional term with nothing drawn."""


@dataclass(frozen=True)
class PairLoss:
    """A contrastive loss, in the form that joint selection needs.

    Args:
        positive (`Callable`): Maps logits of the candidates' own pairs, `[t]`, to their losses, `[t]`.
        reduce (`Callable`): Maps logits of m drawn examples against t candidates, `[m, t]`, and a number that no logit
            exceeds (infinite if none is known), to `[t]`; may overwrite the logits.
        combine (`Callable`): Maps the reductions over two disjoint sets of drawn examples to the reduction over both;
            takes `out=`.
        empty (`float`): The reduction over no example, which `combine` with any value leaves unchanged.
        direction_weight (`float`): The weight of each direction (as image, as text) in the conditional term.
        is_softmax (`bool`): Whether the reduction is `logsumexp`, and not the sum of softplus.
    """

    positive: Callable[[Tensor], Tensor]
    reduce: Callable[[Tensor, float], Tensor]
    combine: Callable[..., Tensor]
    empty: float
    direction_weight: float
    is_softmax: bool


def _sum_of_softplus(logits: Tensor, bound: float) -> Tensor:
    """Sum softplus over the first dimension, on a CPU with one logarithm for eight entries (measured: 1.8x faster).

    softplus(l) is log(1 + x) with x = exp(l), and two of them add up to log(1 + z) with z = x + y + x y. No term is
    negative, so z is as accurate as x and y, while 1 + x would round a small x away. Eight fit into float32 if l < 10.
    """
    largest = bound
    if logits.is_cpu and logits.numel() and not bound * 8 < 80:  # as it is for NaN
        largest = float(logits.amax())
    folds = next((folds for folds in (3, 2, 1, 0) if largest * 2**folds < 80), None)
    if folds is None:  # on a GPU, where one fused pass over memory is faster; or if a logit is too large, or NaN
        return F.softplus(logits).sum(dim=0)
    terms = logits.mul_(math.log2(math.e)).exp2_()  # exp2 is twice as fast as exp
    for _ in range(folds):
        half = len(terms) // 2
        one, other = terms[:half], terms[len(terms) - half :]
        one.add_(other.addcmul_(one, other))
        terms = terms[: len(terms) - half]
    return terms.log1p_().sum(dim=0)


def _logsumexp(logits: Tensor, bound: float) -> Tensor:
    return logits.logsumexp(dim=0)


PAIR_LOSSES = {
    # Every negative pair adds softplus(logit), independently of the rest of the batch.
    "sigmoid": PairLoss(
        positive=lambda logits: F.softplus(-logits),
        reduce=_sum_of_softplus,
        combine=torch.add,
        empty=0.0,
        direction_weight=1.0,
        is_softmax=False,
    ),
    # The normaliser couples the negatives: half the logarithm of the normaliser over the drawn examples, per
    # direction.
    "softmax": PairLoss(
        positive=torch.neg,
        reduce=_logsumexp,
        combine=torch.logaddexp,
        empty=-torch.inf,
        direction_weight=0.5,
        is_softmax=True,
    ),
}


@dataclass(frozen=True)
class ModelPart:
    """The pairwise loss of one model (learner or reference), computed from its embeddings."""

    divisible: ClassVar[bool] = True
    embeddings: ContrastiveEmbeddings
    loss: PairLoss
    precision: str = "float32"

    @property
    def width(self) -> int:
        return 2 * self.embeddings.image.shape[1]

    def __len__(self) -> int:
        return len(self.embeddings)

    def diagonal(self) -> Tensor:
        products = _own_products(self.embeddings)
        return self.loss.positive(self.embeddings.logit_scale * products + self.embeddings.logit_bias)

    def take(self, indices: Tensor) -> Tensor:
        """Return image and text embeddings side by side, float32 `[m, 2 D]`."""
        taken = self.embeddings.take(indices)
        return torch.cat([taken.image.detach(), taken.text.detach()], dim=1).float()

    def start(self) -> Running:
        return _RunningLoss(self.embeddings, self.loss, self.precision)


class _RunningLoss:
    """Running reductions over the drawn examples, one per direction: candidates as images, and candidates as texts."""

    def __init__(self, embeddings: ContrastiveEmbeddings, loss: PairLoss, precision: str) -> None:
        self._image, self._text = embeddings.image.detach(), embeddings.text.detach()
        if precision == "bfloat16":  # once, and not in each chunk
            self._image, self._text = self._image.bfloat16(), self._text.bfloat16()
        self._scale, self._bias = embeddings.logit_scale, embeddings.logit_bias
        self._norms = (_largest_norm(self._image), _largest_norm(self._text))
        self._offset = self._image.new_full((1,), embeddings.logit_bias, dtype=torch.float32)
        self._loss, self._precision = loss, precision
        self._fused = _fused_kernel(self._image, precision)
        # Two float64 vectors are cheap, and the difference of two large sums (learner minus reference) stays accurate.
        device = self._image.device
        dtype = arithmetic.wide_dtype(device)
        self._as_image = torch.full((len(embeddings),), loss.empty, dtype=dtype, device=device)
        self._as_text = self._as_image.clone()
        self._nothing_drawn = True

    def add(self, drawn: Tensor) -> None:
        with arithmetic.products(self._precision, drawn.device):
            for part in torch.split(drawn, _TILE_COLUMNS):
                image, text = part.chunk(2, dim=1)
                self._reduce_into(self._as_image, self._image, text, self._norms[0])
                self._reduce_into(self._as_text, self._text, image, self._norms[1])
                self._nothing_drawn = False

    def total(self) -> Tensor:
        if self._nothing_drawn:
            return torch.zeros_like(self._as_image)
        return (self._as_image + self._as_text).mul_(self._loss.direction_weight)

    def _reduce_into(self, running: Tensor, candidates: Tensor, drawn: Tensor, largest_norm: float) -> None:
        drawn = drawn.mul(self._scale)
        if self._precision == "bfloat16":
            drawn = drawn.bfloat16()
        if self._fused is not None:
            reduced = self._fused(
                candidates, drawn, self._bias, softmax=self._loss.is_softmax, tf32=self._precision == "tf32"
            )
            self._loss.combine(running, reduced.to(running.dtype), out=running)
            return
        # No product exceeds that of the norms; the rest is for the rounding.
        bound = 1.001 * largest_norm * _largest_norm(drawn) + self._bias + 0.01
        tiles = [self._loss.reduce(logits, bound) for logits in _logit_tiles(candidates, drawn, self._offset)]
        reduced = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        self._loss.combine(running, reduced.to(running.dtype), out=running)


def _fused_kernel(embeddings: Tensor, precision: str) -> Callable[..., Tensor] | None:
    """Return `fused.reduce_logits` where it serves: on CUDA with Triton, in the precisions of tensor cores."""
    if precision == "float32" or not embeddings.is_cuda:  # in float32 the products of cuBLAS are faster than Triton's
        return None
    from jest_hf.selection import fused

    rounds_itself = embeddings.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return fused.reduce_logits if fused.is_available() and rounds_itself else None


def _logit_tiles(candidates: Tensor, drawn: Tensor, offset: Tensor) -> Iterator[Tensor]:
    """Yield float32 logits `[m, t]` of `drawn`, multiplied by the scale, against t `candidates` at a time.

    All tiles share scratch memory. The products are float32 for embeddings of any dtype, upcast one tile at a time,
    and for two bfloat16 ones the same on a GPU, whose products of bfloat16 add up in float32. `out=` also keeps an
    enclosing autocast from lowering their precision. The candidates are the contiguous dimension, as their number is
    a multiple of the vector width and that of the drawn examples may not be (measured: 4 % faster with 204 drawn).
    """
    step = _tile_rows(candidates.device)
    if drawn.is_cuda and drawn.dtype == candidates.dtype == torch.bfloat16:
        for tile in torch.split(candidates, step):
            yield torch.mm(drawn, tile.T, out_dtype=torch.float32).add_(offset)
        return
    drawn = drawn.float()
    scratch = drawn.new_empty(len(drawn) * min(step, len(candidates)))
    for tile in torch.split(candidates, step):
        logits = scratch[: len(drawn) * len(tile)].view(len(drawn), len(tile))
        yield torch.addmm(offset, drawn, tile.float().T, out=logits)


def _largest_norm(rows: Tensor) -> float:
    """Return the largest norm of a row, on a CPU; NaN if one is NaN. Elsewhere the host would wait: infinity."""
    if not rows.is_cpu or len(rows) == 0:
        return math.inf
    norms = [torch.linalg.vector_norm(tile.float(), dim=1) for tile in torch.split(rows, _TILE_ROWS_CPU)]
    return float(torch.cat(norms).amax())


def _own_products(embeddings: ContrastiveEmbeddings) -> Tensor:
    """Return the product of each image with its own text, float32 `[B]`, upcast one tile at a time."""
    image, text = embeddings.image.detach(), embeddings.text.detach()
    step = _tile_rows(image.device)
    tiles = zip(torch.split(image, step), torch.split(text, step), strict=True)
    return torch.cat([(i.float() * t.float()).sum(dim=1) for i, t in tiles])


def _tile_rows(device: torch.device) -> int:
    return _TILE_ROWS_CPU if device.type == "cpu" else _TILE_ROWS_GPU


@dataclass(frozen=True)
class PointwisePart:
    """Losses `[B]` of examples without pairs: the score of an example does not depend on the drawn ones."""

    divisible: ClassVar[bool] = True
    width: ClassVar[int] = 0
    losses: Tensor

    def __len__(self) -> int:
        return len(self.losses)

    def diagonal(self) -> Tensor:
        return self.losses.detach()

    def take(self, indices: Tensor) -> Tensor:
        return self.losses.new_empty(len(indices), 0)

    def start(self) -> Running:
        return _RunningNothing(torch.zeros_like(self.losses, dtype=arithmetic.wide_dtype(self.losses.device)))


class _RunningNothing:
    def __init__(self, zeros: Tensor) -> None:
        self._zeros = zeros

    def add(self, drawn: Tensor) -> None:
        pass

    def total(self) -> Tensor:
        return self._zeros


def model_part(scored: Scored, loss: str, precision: str = "float32") -> Part:
    """Return the part of one model.

    Args:
        scored ([`ContrastiveEmbeddings`] or [`PointwiseLosses`]): What the model computed of the super-batch.
        loss (`str`): One of `PAIR_LOSSES`, or `"similarity"`: minus the product of the two embeddings of a pair,
            without scale, bias and negatives (ActiveCLIP, arXiv 2312.05328). Ignored for [`PointwiseLosses`].
        precision (`str`, *optional*, defaults to `"float32"`): One of `arithmetic.PRECISIONS`, of the products of
            different examples.
    """
    if isinstance(scored, PointwiseLosses):
        return PointwisePart(scored.losses)
    if loss == "similarity":
        return PointwisePart(-_own_products(scored))
    return ModelPart(scored, PAIR_LOSSES[loss], precision)


@dataclass(frozen=True)
class MatrixPart:
    """A given score matrix `[B, B]`: entry (i, j) is the score of image i with text j."""

    divisible: ClassVar[bool] = False
    matrix: Tensor

    @property
    def width(self) -> int:
        return len(self.matrix)

    def __len__(self) -> int:
        return len(self.matrix)

    def diagonal(self) -> Tensor:
        return self.matrix.detach().diagonal().float()

    def take(self, indices: Tensor) -> Tensor:
        """Return what each example adds to every candidate, float64 `[m, B]` (float32 on MPS): its row plus its
        column."""
        matrix = self.matrix.detach()
        return matrix[indices].to(arithmetic.wide_dtype(matrix.device)).add_(matrix[:, indices].T)

    def start(self) -> Running:
        device = self.matrix.device
        return _RunningMatrix(torch.zeros(len(self.matrix), dtype=arithmetic.wide_dtype(device), device=device))


class _RunningMatrix:
    def __init__(self, sums: Tensor) -> None:
        self._sums = sums

    def add(self, drawn: Tensor) -> None:
        self._sums += drawn.sum(dim=0)

    def total(self) -> Tensor:
        return self._sums.clone()
