# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ways to select a sub-batch, and their registry.

`SELECTIONS` maps the values of `JESTConfig.selection` to classes. To add a way to select, write a subclass of
[`Selector`] with a `name` and a `select`, and enter it:

    from jest_hf.selection import SELECTIONS

    SELECTIONS[Newest.name] = Newest
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jest_hf.batch import Scored, Scores
from jest_hf.distributed import Ranks, Shares
from jest_hf.selection.criteria import CRITERIA
from jest_hf.selection.joint import Chunk, draw_chunks
from jest_hf.selection.noise import noise_at
from jest_hf.selection.pool import Ask, DrawKey, Pool, Selection
from jest_hf.selection.scores import PairwiseScores


# The chunks whose noise draws uniformly, beyond those of any joint draw: a uniform part, and a uniform selection. A
# control that drew with the noise of the part would pick the same examples, and not by chance.
_UNIFORM_CHUNK = 2**32
_UNIFORM_SELECTION_CHUNK = _UNIFORM_CHUNK + 1
_IDS_SHOWN = 10


@dataclass(frozen=True)
class Selector(ABC):
    """
    A way to select, with its settings.

    Args:
        criterion (`str`, *optional*): What is selected for, one of `CRITERIA`; `None` for `"uniform"`.
        loss (`str`, *optional*): What pairs are scored by: `"sigmoid"`, `"softmax"` or `"similarity"`; `None` for
            examples without pairs.
        n_chunks (`int`, *optional*, defaults to 16): Chunks of a joint draw.
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores before sampling.
        uniform_fraction (`float`, *optional*, defaults to 0.0): Part of the sub-batch that is drawn uniformly, before
            the rest.

    Attributes:
        name (`str`): The value of `JESTConfig.selection` that chooses this class.
        needs_pairs (`bool`): Whether examples have to make pairs with each other, as in a contrastive loss.
        scores (`bool`): Whether examples are scored at all. `False` means that the whole batch is trained on.
        title (`str`): The way to select, in the words of a model card.
        shown (tuple of `str`): The settings, of `n_chunks` and `gain`, that a model card shows.
    """

    criterion: str | None = None
    loss: str | None = None
    n_chunks: int = 16
    gain: float = 1.0
    uniform_fraction: float = 0.0

    name: ClassVar[str]
    needs_pairs: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    title: ClassVar[str] = "selection of examples by score"
    shown: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def parse(text: str, **settings: Any) -> Selector:
        """
        Read `"uniform"`, or `"<selection>/<criterion>"` such as `"joint/easy_reference"`.

        Args:
            text (`str`): The selection, with its criterion after a slash.
            settings (*optional*): The other arguments of the selector.

        Raises:
            ValueError: for anything else.
        """
        selection, _, criterion = text.partition("/")
        known = SELECTIONS.get(selection)
        if known is not None and (criterion in CRITERIA if known.scores else text == selection):
            return known(criterion or None, **settings)
        scored = " or ".join(name for name, one in SELECTIONS.items() if one.scores)
        raise ValueError(
            f"a selector must be 'uniform', or {scored} with a criterion ({', '.join(CRITERIA)}) after a slash, such "
            f"as 'joint/easy_reference', got {text!r}."
        )

    def __str__(self) -> str:
        return self.name if self.criterion is None else f"{self.name}/{self.criterion}"

    def models(self) -> tuple[str, ...]:
        """Return the models whose scores the selector uses: `"learner"`, `"reference"`, both or neither."""
        return () if self.criterion is None else tuple(CRITERIA[self.criterion].weights)

    @abstractmethod
    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        """
        Select the sub-batch of a step. A collective.

        Args:
            pool ([`Pool`]): The candidates.
            ask (`Callable`): Returns the scores of this rank's rows under the models named in its argument.
            key ([`DrawKey`]): Seed and step, which decide the noise.

        Returns:
            [`Selection`]: of `pool.size` examples, the same on every rank of `pool.ranks`.

        Raises:
            FloatingPointError: on all ranks, if a score is NaN or infinite on one of them.
        """


class _Drawn(Selector):
    """A selection by Gumbel-top-k: what Algorithm 1, sampling by own scores, top-k and uniform sampling share."""

    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        uniform_size = round(self.uniform_fraction * pool.size)
        chunks = self.draw(pool, ask(self.models()), key, uniform_size)
        scored = chunks[uniform_size > 0 :]  # the first is the uniform one
        return Selection.of(
            chunks,
            {f"effective_sample_size/chunk_{k:02d}": c.effective_sample_size for k, c in enumerate(scored, start=1)},
        )

    def draw(self, pool: Pool, scores: Scores, key: DrawKey, uniform_size: int = 0) -> list[Chunk]:
        """Draw the chunks of the sub-batch; the first is the uniform part, where `uniform_size` is above 0."""
        eligible = pool.rows["valid"]
        return self._draw_by(self._scores(pool, scores, key), pool, key, uniform_size, _UNIFORM_CHUNK, eligible)

    def _scores(self, pool: Pool, scores: Scores, key: DrawKey) -> PairwiseScores:
        """The scores from which the draw is made, once they are known to be finite."""
        pairwise = PairwiseScores.from_embeddings(**scores.by_model(), criterion=self.criterion, loss=self.loss)
        own = pairwise.diagonal()
        _check_scores(pool.rows["valid"] & ~own.isfinite(), pool.rows["example_id"], key.step, pool.ranks)
        return pairwise if self.needs_pairs else PairwiseScores.from_pointwise(own)

    def _draw_by(
        self,
        scores: PairwiseScores,
        pool: Pool,
        key: DrawKey,
        uniform_size: int,
        uniform_chunk: int,
        eligible: Tensor,
    ) -> list[Chunk]:
        n_chunks = self.n_chunks if self.needs_pairs else 1
        noise = self._noise(key, n_chunks, pool.positions)
        if uniform_size:
            uniform = noise_at(*key, 1, pool.positions, first_chunk=uniform_chunk)
            noise = torch.cat([noise, uniform])
        return list(
            draw_chunks(scores, pool.size, n_chunks, self.gain, noise, eligible, pool.ranks, uniform_size=uniform_size)
        )

    def _noise(self, key: DrawKey, n_chunks: int, positions: Tensor) -> Tensor:
        return noise_at(*key, n_chunks, positions)


class Joint(_Drawn):
    """Algorithm 1 of JEST (arXiv 2406.17711): examples are drawn in chunks, each given those drawn before."""

    name = "joint"
    needs_pairs = True
    title = "joint example selection (JEST)"
    shown = ("n_chunks", "gain")


class Independent(_Drawn):
    """Each example is drawn by its own score, whatever else is drawn (arXiv 2312.05328)."""

    name = "independent"
    title = "independent example selection"
    shown = ("gain",)


class TopK(_Drawn):
    """The examples with the highest scores are taken, without noise (RHO-LOSS, arXiv 2206.07137)."""

    name = "top_k"
    title = "selection of the examples with the highest scores"

    def _noise(self, key: DrawKey, n_chunks: int, positions: Tensor) -> Tensor:
        return super()._noise(key, n_chunks, positions).zero_()


class Uniform(_Drawn):
    """IID training: the whole batch is trained on. As a control, a uniform part of the super-batch."""

    name = "uniform"
    scores = False
    title = "IID training, without data selection"

    def models(self) -> tuple[str, ...]:
        return ()

    def draw(self, pool: Pool, scores: Scores, key: DrawKey, uniform_size: int = 0) -> list[Chunk]:
        eligible = pool.rows["valid"]
        equal = PairwiseScores.from_pointwise(torch.zeros(len(eligible), device=eligible.device))
        return self._draw_by(equal, pool, key, pool.size, _UNIFORM_SELECTION_CHUNK, eligible)


SELECTIONS: dict[str, type[Selector]] = {one.name: one for one in (Joint, Independent, TopK, Uniform)}


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
    Draw the sub-batch of a step, a function of (scores, seed, step) alone: no process has to remember anything.

    Args:
        embeddings (`dict`): The scores of this rank's n examples, under `"learner"`, `"reference"` or both; a uniform
            selection needs none.
        eligible (`torch.Tensor`): bool `[n]`, False for broken rows.
        example_ids (`torch.Tensor`): int64 `[n]`, to name the examples whose scores are broken.
        size (`int`): Sub-batch size over `ranks`.
        n_chunks (`int`): Chunks of the joint draw, the only one to have several.
        criterion, loss, gain: As in [`PairwiseScores.from_embeddings`] and [`select_jointly`].
        seed, step (`int`): Of the noise.
        start, total (`int`): The share's first position in the super-batch of all ranks, and the size of that.
        ranks ([`~jest_hf.distributed.Ranks`]): The ranks that draw together.
        selection (`str`, *optional*, defaults to `"joint"`): `"joint"` is Algorithm 1 of JEST, `"independent"` draws
            by each example's own score, `"top_k"` takes the highest of these, `"uniform"` draws by noise alone.
        uniform_size (`int`, *optional*, defaults to 0): How many of the sub-batch are drawn uniformly, in a chunk
            before all others; the rest is selected from the other examples, by a joint draw given the uniform ones.

    Returns:
        `list[Chunk]`: the chunks; their indices are positions in the super-batch of `ranks`, the same on each of them.

    Raises:
        FloatingPointError: on all ranks, if a score is NaN or infinite on one of them.
        ValueError: for an unknown selection, and as [`select_jointly`].
    """
    chosen = SELECTIONS.get(selection)
    if chosen is None or not issubclass(chosen, _Drawn):
        drawn = [name for name, one in SELECTIONS.items() if issubclass(one, _Drawn)]
        raise ValueError(f"selection must be one of {', '.join(drawn)}, got {selection!r}.")
    if not 0 <= start <= start + len(eligible) <= total:
        raise ValueError(f"start={start} and {len(eligible)} rows exceed the total={total} positions.")
    pool = Pool(
        rows={"valid": eligible, "example_id": example_ids},
        positions=torch.arange(start, start + len(eligible), device=eligible.device),
        shares=Shares(ranks, [], []),
        size=size,
    )
    selector = chosen(criterion, loss, n_chunks, gain)
    return selector.draw(pool, Scores.of(embeddings), DrawKey(seed, step), uniform_size)


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


__all__ = ["SELECTIONS", "Independent", "Joint", "Selector", "TopK", "Uniform", "draw_sub_batch"]
