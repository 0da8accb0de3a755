# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What other selectors would have picked from the same super-batch: controls that cost a selection, and no training.

Every selector that looks for something draws with the noise of the step, so that two differ by what they look for and
not by chance. `"uniform"` has noise of its own: what it has in common with the selection is what chance gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jest_hf.distributed import Ranks, Shares
from jest_hf.losses import LOSSES
from jest_hf.selection.joint import Chunk
from jest_hf.selection.pairwise import CRITERIA
from jest_hf.selection.pointwise import PointwiseLosses, Scored
from jest_hf.selection.sub_batch import SELECTIONS, take_scored


@dataclass(frozen=True)
class Selector:
    """A way to select, by name.

    Args:
        selection (`str`): `"joint"`, `"independent"`, `"top_k"` or `"uniform"`.
        criterion (`str`, *optional*): What is looked for; `None` for `"uniform"`, which looks for nothing.
    """

    selection: str
    criterion: str | None = None

    @classmethod
    def parse(cls, name: str) -> Selector:
        """Read `"uniform"`, or `"<selection>/<criterion>"` such as `"joint/easy_reference"`.

        Raises:
            ValueError: for anything else.
        """
        selection, slash, criterion = name.partition("/")
        if name == "uniform" or (selection in SELECTIONS and selection != "uniform" and criterion in CRITERIA):
            return cls(selection, criterion or None)
        scored = " or ".join(selection for selection in SELECTIONS if selection != "uniform")
        raise ValueError(
            f"a selector must be 'uniform', or {scored} with a criterion ({', '.join(CRITERIA)}) after a slash, such "
            f"as 'joint/easy_reference', got {name!r}."
        )

    def __str__(self) -> str:
        return self.selection if self.criterion is None else f"{self.selection}/{self.criterion}"


@torch.no_grad()
def compare_selectors(
    selectors: Iterable[Selector],
    draw: Callable[..., list[Chunk]],
    shares: Shares,
    embeddings: Mapping[str, Scored],
    indices: Tensor,
    loss: str,
    sources: Tensor | None = None,
    source_names: Sequence[str] = (),
) -> dict[str, float]:
    """
    Compare a selection with what others would have drawn in its place. A collective.

    Args:
        selectors (iterable of [`Selector`]): The others, the same on every rank.
        draw (`Callable`): [`draw_sub_batch`] as the step has called it, with everything but `selection` and
            `criterion` filled in.
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        embeddings (`dict`): This rank's n examples, under `"learner"`, `"reference"` or both.
        indices (`torch.Tensor`): What was selected, int64 `[b]`, positions in the super-batch.
        loss (`str`): `"sigmoid"` or `"softmax"`: of a batch of pairs, and of the scores of joint selectors.
            [`PointwiseLosses`] are averaged.
        sources (`torch.Tensor`, *optional*): Where each of this rank's examples comes from, int64 `[n]`, numbers into
            `source_names`.
        source_names (sequence of `str`, *optional*): The sources.

    Returns:
        For every selector, under `compare/<selector>/`: `overlap` (the part of its sub-batch that was selected too),
        with both models `learnability` (learner's loss minus reference's of its sub-batch, taken as one batch), and
        `share/<source>` (the part of its sub-batch that comes from there).
    """
    metrics = {}
    for selector in selectors:
        # Joint scores are always made of losses: similarities say nothing of an example's negatives.
        by_loss = {"loss": loss} if selector.selection == "joint" else {}
        chunks = draw(selection=selector.selection, criterion=selector.criterion, **by_loss)
        drawn = torch.cat([chunk.indices for chunk in chunks])
        values = {"overlap": torch.isin(drawn, indices).double().mean().item()}
        if len(embeddings) == 2:
            batch = take_scored(shares, embeddings, drawn)
            learner, reference = (batch_loss(batch[name], loss, shares.ranks) for name in ("learner", "reference"))
            values["learnability"] = learner - reference
        if sources is not None:
            values |= {
                f"share/{name}": share for name, share in source_shares(shares, sources, source_names, drawn).items()
            }
        metrics |= {f"compare/{selector}/{name}": value for name, value in values.items()}
    return metrics


def batch_loss(scored: Scored, loss: str, ranks: Ranks | None = None) -> float:
    """The loss of examples taken as one batch, which is spread over `ranks`; a collective.

    Args:
        scored ([`ContrastiveEmbeddings`] or [`PointwiseLosses`]): This rank's rows; of pairs at least one.
        loss (`str`): `"sigmoid"` or `"softmax"`, for pairs; the loss of single examples is the mean of theirs.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): By default this process alone.
    """
    ranks = Ranks() if ranks is None else ranks
    if isinstance(scored, PointwiseLosses):
        own = scored.losses.detach().double().sum()
        total, n = ranks.gather(torch.stack([own, own.new_tensor(len(scored))])).sum(dim=0).tolist()
        return total / n
    return LOSSES[loss](scored.image, scored.text, scored.logit_scale, scored.logit_bias, ranks=ranks).item()


def source_shares(shares: Shares, sources: Tensor, names: Sequence[str], indices: Tensor) -> dict[str, float]:
    """
    The part of a selection that comes from each source; a collective.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        sources (`torch.Tensor`): Where this rank's examples come from, int64 `[n]`, numbers into `names`; an example
            with another number comes from nowhere that has a name.
        names (sequence of `str`): The sources.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
    """
    own = sources[shares.own(indices)]
    counts = (own[:, None] == torch.arange(len(names), device=own.device)).sum(dim=0)
    return dict(zip(names, (shares.ranks.sum(counts).double() / len(indices)).tolist(), strict=True))


__all__ = ["Selector", "batch_loss", "compare_selectors", "source_shares"]
