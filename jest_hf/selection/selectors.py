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


# Numbers of the chunks that give the noise of a uniform part and of a uniform selection; no joint draw has so many
# chunks. The two differ, so that a uniform control does not pick the examples of a uniform part.
_UNIFORM_CHUNK = 2**32
_UNIFORM_SELECTION_CHUNK = _UNIFORM_CHUNK + 1
_IDS_SHOWN = 10
_BY_ITSELF = "Each example was chosen by its own score, whatever the others."


@dataclass(frozen=True)
class Selector(ABC):
    """A way to select, with its settings.

    Args:
        criterion (`str`, *optional*): One of `CRITERIA`; `None` for `"uniform"`.
        loss (`str`, *optional*): Loss by which pairs are scored: `"sigmoid"`, `"softmax"` or `"similarity"`; `None`
            for examples without pairs.
        n_chunks (`int`, *optional*, defaults to 16): Number of chunks of a joint draw.
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores before sampling.
        uniform_fraction (`float`, *optional*, defaults to 0.0): Fraction of the sub-batch that is drawn uniformly,
            before the rest.
        precision (`str`, *optional*, defaults to `"float32"`): In which precision the embeddings of different examples
            are multiplied, as in [`PairwiseScores.from_embeddings`].

    Attributes:
        name (`str`): The value of `JESTConfig.selection` that chooses this class.
        needs_pairs (`bool`): Whether pairs of different examples must have scores, as with a contrastive loss.
        scores (`bool`): Whether there is a super-batch to select from. With `False` a run trains on its whole batches.
        uses_criterion (`bool`): Whether the selector has a criterion. With `False` the name stands alone, as in
            `compare_selectors=["uniform"]`; override `models` if models have to score all the same.
        title (`str`): What the model card calls the selection.
        sentence (`str`): How the sub-batch is chosen, as a sentence of the model card.
        shown (tuple of `str`): Which of the settings `n_chunks` and `gain` the model card shows.

    Example:

    ```python
    >>> from jest_hf.selection import Selector
    >>> selector = Selector.parse("joint/easy_reference", loss="sigmoid", n_chunks=8)
    >>> str(selector), selector.models(), selector.needs_pairs
    ('joint/easy_reference', ('reference',), True)

    ```
    """

    criterion: str | None = None
    loss: str | None = None
    n_chunks: int = 16
    gain: float = 1.0
    uniform_fraction: float = 0.0
    precision: str = "float32"

    name: ClassVar[str]
    needs_pairs: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    uses_criterion: ClassVar[bool] = True
    title: ClassVar[str] = "selection of examples by score"
    sentence: ClassVar[str] = ""
    shown: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def parse(text: str, **settings: Any) -> Selector:
        """Read `"uniform"`, or `"<selection>/<criterion>"` such as `"joint/easy_reference"`.

        Args:
            text (`str`): The selection, and its criterion after a slash.
            settings (*optional*): The other arguments of the selector.

        Raises:
            ValueError: if `text` names no selection, or no criterion for it.
        """
        selection, _, criterion = text.partition("/")
        known = SELECTIONS.get(selection)
        if known is not None and (criterion in CRITERIA if known.uses_criterion else text == selection):
            if known.needs_pairs and criterion and not CRITERIA[criterion].joint:
                raise ValueError(
                    f"selector {text!r} needs scores of pairs, and criterion {criterion!r} scores each example by "
                    "itself; use 'independent' or 'top_k' with it."
                )
            return known(criterion or None, **settings)
        alone = ", ".join(repr(name) for name, one in SELECTIONS.items() if not one.uses_criterion)
        scored = " or ".join(name for name, one in SELECTIONS.items() if one.uses_criterion)
        raise ValueError(
            f"a selector must be {alone}, or {scored} with a criterion ({', '.join(CRITERIA)}) after a slash, such "
            f"as 'joint/easy_reference', got {text!r}."
        )

    def __str__(self) -> str:
        return self.name if self.criterion is None else f"{self.name}/{self.criterion}"

    def models(self) -> tuple[str, ...]:
        """Return the models whose scores the selector uses: `"learner"`, `"reference"`, both or neither."""
        return () if self.criterion is None else tuple(CRITERIA[self.criterion].weights)

    @abstractmethod
    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        """Select the sub-batch of a step. A collective.

        Args:
            pool ([`Pool`]): The candidates.
            ask (`Callable`): Returns the scores of this rank's rows under the models named in its argument.
            key ([`DrawKey`]): Seed and step, on which the noise depends.

        Returns:
            [`Selection`]: `pool.size` examples, the same on every rank of `pool.ranks`.

        Raises:
            FloatingPointError: on all ranks, if a score is NaN or infinite on one of them.
        """


class _Drawn(Selector):
    """A selection by Gumbel-top-k: the base of joint, independent, top-k and uniform selection."""

    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        uniform_size = round(self.uniform_fraction * pool.size)
        chunks = self.draw(pool, ask(self.models()), key, uniform_size)
        scored = chunks[uniform_size > 0 :]  # the first is the uniform one
        return Selection.of(
            chunks,
            {f"effective_sample_size/chunk_{k:02d}": c.effective_sample_size for k, c in enumerate(scored, start=1)},
        )

    def draw(self, pool: Pool, scores: Scores, key: DrawKey, uniform_size: int = 0) -> list[Chunk]:
        """Draw the chunks of a sub-batch; with `uniform_size` above 0 the first is the uniform part. A collective."""
        eligible = pool.rows["valid"]
        return self._draw_by(self._scores(pool, scores, key), pool, key, uniform_size, _UNIFORM_CHUNK, eligible)

    def _scores(self, pool: Pool, scores: Scores, key: DrawKey) -> PairwiseScores:
        """Return the scores to draw from, after a check on all ranks that they are finite. A collective."""
        pairwise = PairwiseScores.from_embeddings(
            **scores.by_model(), criterion=self.criterion, loss=self.loss, precision=self.precision
        )
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
    sentence = (
        "It was drawn jointly, in chunks, each chunk by the scores of its candidates together with the examples "
        "already drawn."
    )
    shown = ("n_chunks", "gain")


class Independent(_Drawn):
    """Each example is drawn by its own score, independently of the other examples (arXiv 2312.05328)."""

    name = "independent"
    title = "independent example selection"
    sentence = _BY_ITSELF
    shown = ("gain",)


class TopK(_Drawn):
    """The examples with the highest scores are taken, without noise (RHO-LOSS, arXiv 2206.07137)."""

    name = "top_k"
    title = "selection of the examples with the highest scores"
    sentence = _BY_ITSELF

    def _noise(self, key: DrawKey, n_chunks: int, positions: Tensor) -> Tensor:
        return super()._noise(key, n_chunks, positions).zero_()


class Uniform(_Drawn):
    """IID training on whole batches. As a control selector, it draws a uniform sub-batch of the super-batch."""

    name = "uniform"
    scores = False
    uses_criterion = False
    title = "IID training, without data selection"

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
    """Draw the sub-batch of a step: a function of (scores, seed, step) alone, without any state. A collective.

    Args:
        embeddings (`dict`): What the models computed of this rank's n examples, under the keys `"learner"`,
            `"reference"` or both; may be empty for a uniform selection.
        eligible (`torch.Tensor`): bool `[n]`, `False` for broken rows.
        example_ids (`torch.Tensor`): int64 `[n]`, for the error that lists examples whose scores are NaN or infinite.
        size (`int`): Size of the sub-batch over all `ranks`.
        n_chunks (`int`): Number of chunks of a joint draw; the other selections draw one chunk.
        criterion, loss, gain: As in [`PairwiseScores.from_embeddings`] and [`select_jointly`].
        seed, step (`int`): Seed and step of the noise.
        start, total (`int`): First position of this rank's share in the super-batch of all ranks, and the size of that
            super-batch.
        ranks ([`~jest_hf.distributed.Ranks`]): The ranks that draw together.
        selection (`str`, *optional*, defaults to `"joint"`): `"joint"` is Algorithm 1 of JEST, `"independent"` draws
            by each example's own score, `"top_k"` takes the highest scores, `"uniform"` draws by noise alone.
        uniform_size (`int`, *optional*, defaults to 0): How many examples of the sub-batch are drawn uniformly, in a
            chunk before all others. The rest is selected from the other examples, in a joint draw given the uniform
            ones.

    Returns:
        `list[Chunk]`: the chunks; their indices are positions in the super-batch of all ranks, the same on every rank.

    Raises:
        FloatingPointError: on all ranks, if a score is NaN or infinite on one of them.
        ValueError: for an unknown selection, and as [`select_jointly`].

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import Ranks
    >>> from jest_hf.selection import PointwiseLosses, draw_sub_batch
    >>> losses = {"learner": PointwiseLosses(torch.tensor([0.5, 2.0, 0.1, 3.0]))}
    >>> (chunk,) = draw_sub_batch(
    ...     losses, torch.ones(4, dtype=torch.bool), torch.arange(4), size=2, n_chunks=1, criterion="hard_learner",
    ...     loss=None, gain=1.0, seed=0, step=1, start=0, total=4, ranks=Ranks(), selection="top_k",
    ... )
    >>> chunk.indices
    tensor([3, 1])

    ```
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
    """Raise a `FloatingPointError` on all ranks if an example is marked as broken, bool `[n]`. A collective."""
    counts = ranks.gather_counts(int(broken.sum()), broken.device)
    if not any(counts):
        return
    total = sum(ranks.gather_counts(len(broken), broken.device))
    ids = ranks.gather_rows(example_ids[broken], counts).tolist()
    where = ", ".join(str(rank) for rank, count in enumerate(counts) if count)
    raise FloatingPointError(
        f"step {step}: the scores of {sum(counts)} of {total} examples are NaN or infinite (rank {where}; example "
        f"ids {ids[:_IDS_SHOWN]}); the learner has diverged or the reference is broken: try a lower learning_rate, or "
        "train in fp32."
    )


__all__ = ["SELECTIONS", "Independent", "Joint", "Selector", "TopK", "Uniform", "draw_sub_batch"]
