# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a step, from those of the models' forwards and updates ([`~jest_hf.report.counting`]).

Training b examples costs U b, with U = 3 F where all weights are trained (the backward costs twice the forward F);
scoring a super-batch of B costs F B, the reference costs F_ref B unless its embeddings are cached, and joint selection
costs the matrix products of the conditional sums. At a cheaper view, F is that of the view.

One part is left out: the b x b logits of the loss, which are the same for every selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jest_hf.selection import SELECTIONS


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step or of several steps, over all ranks.

    Args:
        training (`float`, *optional*, defaults to `0.0`): Forward and backward of the sub-batch.
        scoring (`float`, *optional*, defaults to `0.0`): The learner's forward of the super-batch.
        reference (`float`, *optional*, defaults to `0.0`): The reference's forward of the super-batch.
        selection (`float`, *optional*, defaults to `0.0`): Drawing the sub-batch.
        beside (`float`, *optional*, defaults to `0.0`): Training a proxy or an online reference beside the learner.
        training_saved (`float`, *optional*, defaults to `0.0`):
            FLOPs saved in training by the part of the sub-batch that is trained on at a cheaper view. Not a part of
            the total.

    Example:

    ```python
    >>> from jest_hf.report import StepFlops
    >>> step = StepFlops(training=3.0, scoring=5.0) + StepFlops(reference=1.0)
    >>> step.total, step.relative_to_iid
    (9.0, 3.0)

    ```
    """

    training: float = 0.0
    scoring: float = 0.0
    reference: float = 0.0
    selection: float = 0.0
    beside: float = 0.0
    training_saved: float = 0.0

    @property
    def total(self) -> float:
        """The sum of training, scoring, reference, selection, and training of other models beside the learner."""
        return self.training + self.scoring + self.reference + self.selection + self.beside

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def relative_to_iid(self) -> float:
        """The total, divided by the FLOPs of IID training with the same sub-batch size at full resolution."""
        return self.total / (self.training + self.training_saved)


def step_flops(
    forward: float,
    *,
    sub_batch: int,
    super_batch: int,
    scoring_forward: float | None = None,
    low_resolution_forward: float | None = None,
    low_resolution_fraction: float = 0.0,
    update: float | None = None,
    low_resolution_update: float | None = None,
    reference_forward: float = 0.0,
    selection_widths: Sequence[int] = (),
    convention: Literal["plain", "paper"] = "plain",
) -> StepFlops:
    """Compute the FLOPs of a step, with b the size of the sub-batch and B that of the super-batch (arXiv 2406.17711).

    - training: U b, or ((1 - q) U + q U_low) b with a share q of the sub-batch at a cheaper view (Flexi-JEST), where
      U = 3 F unless it is given;
    - scoring: F_score B. In the paper's convention F (B - b) if F_score is F, so that the forward of the selected
      examples is not counted twice (2.33 in the paper), and F_score B if they are scored at another view (1.10);
    - reference: F_ref B;
    - selection: for each model, each of the b drawn examples is compared with the B candidates once as an image and
      once as a text, two products [B, D] x [D, b]: 2 * 2 B b D.

    A step without selection (IID training) consists of training only: pass `scoring_forward=0.0`.

    Args:
        forward (`float`):
            F, the learner's forward FLOPs of one example, both towers ([`forward_flops`]).
        sub_batch (`int`):
            Examples trained on, over all ranks.
        super_batch (`int`):
            Examples scored, over all ranks.
        scoring_forward (`float`, *optional*, defaults to `forward`):
            F_score, the learner's forward FLOPs of one example in scoring; 0.0 if the criterion does not use the
            learner.
        low_resolution_forward (`float`, *optional*, defaults to `forward`):
            F_low, the learner's forward FLOPs of one example at the view of a part of the sub-batch.
        low_resolution_fraction (`float`, *optional*, defaults to `0.0`):
            q, the share of the sub-batch that is trained on at that view, in [0, 1].
        update (`float`, *optional*, defaults to `3 * forward`):
            U, the FLOPs of training on one example: about 2 F for an adapter on a frozen model, 4 F with gradient
            caching.
        low_resolution_update (`float`, *optional*, defaults to `3 * low_resolution_forward`):
            U_low, the same at the view of a part of the sub-batch.
        reference_forward (`float`, *optional*, defaults to `0.0`):
            F_ref, the reference's forward FLOPs of one example; 0.0 if its embeddings are cached or not used.
        selection_widths (sequence of `int`, *optional*, defaults to `()`):
            The embedding width D of each model that scores in joint selection; empty for other selections.
        convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`.

    Returns:
        [`StepFlops`]: FLOPs of the step.

    Raises:
        ValueError: If `convention` is unknown, the sub-batch is larger than the super-batch, or
            `low_resolution_fraction` is outside of [0, 1].

    Example:

    ```python
    >>> from jest_hf.report import step_flops
    >>> step = step_flops(1.0, sub_batch=20, super_batch=100)  # filter ratio 0.8, cached reference
    >>> step.training, step.scoring, round(step.relative_to_iid, 2)
    (60.0, 100.0, 2.67)

    ```
    """
    if convention not in ("plain", "paper"):
        raise ValueError(f'convention={convention!r} is not known; choose "plain" or "paper".')
    if sub_batch > super_batch:
        raise ValueError(
            f"sub_batch={sub_batch} exceeds super_batch={super_batch}; pass a super_batch at least as large as the "
            "sub_batch."
        )
    if not 0.0 <= low_resolution_fraction <= 1.0:
        raise ValueError(
            f"low_resolution_fraction={low_resolution_fraction} must lie in [0, 1]; pass 0.0 for full resolution."
        )
    if scoring_forward is None:
        scoring_forward = forward
    if low_resolution_forward is None:
        low_resolution_forward = forward
    reused = sub_batch if convention == "paper" and scoring_forward == forward else 0
    update = 3.0 * forward if update is None else update
    if low_resolution_update is None:
        low_resolution_update = 3.0 * low_resolution_forward
    saved = sub_batch * low_resolution_fraction * (update - low_resolution_update)
    return StepFlops(
        training=update * sub_batch - saved,
        scoring=scoring_forward * (super_batch - reused),
        reference=reference_forward * super_batch,
        selection=sum(4.0 * super_batch * sub_batch * width for width in selection_widths),
        training_saved=saved,
    )


def flops_of_step(
    args: Any,
    forward: Mapping[str, float],
    widths: Mapping[str, int],
    *,
    trained: int | None = None,
    scored: int | None = None,
    readable: int | None = None,
) -> StepFlops:
    """Compute the FLOPs of one step of a [`~jest_hf.JESTTrainer`], over all ranks, in the plain convention.

    Args:
        args ([`~jest_hf.JESTConfig`]): Options of the run.
        forward (`dict`): Forward FLOPs of one example by model: `"learner"`, `"proxy"` and `"reference"` (absent if it
            is read from a cache), and `"learner_at_view"`, if the super-batch is scored and
            `args.low_resolution_fraction` of the sub-batch is trained on at a cheaper view. Where an update does not
            cost three forwards, the FLOPs of training on one example too: `"learner_update"` and
            `"learner_update_at_view"`.
        widths (`dict`): Embedding width of each model that scores.
        trained (`int`, *optional*, defaults to `args.sub_batch_size`): Examples trained on (fewer with many broken
            rows).
        scored (`int`, *optional*, defaults to `args.super_batch_size`): Rows scored; 0 in a step without selection.
        readable (`int`, *optional*, defaults to `args.super_batch_size`): Rows that an online reference is trained on.
    """
    trained = args.sub_batch_size if trained is None else trained
    scored = args.super_batch_size if scored is None else scored
    readable = args.super_batch_size if readable is None else readable
    scores = args.scored_models if scored else ()
    reference, proxy = forward.get("reference", 0.0), forward.get("proxy", 0.0)
    reference_in_step = 0.0 if args.cache_reference else reference
    at_view = forward.get("learner_at_view")
    cached = args.gradient_cache_chunk_size is not None  # one more forward, without a graph
    update = forward.get("learner_update", 3.0 * forward["learner"]) + cached * forward["learner"]
    update_at_view = None
    if at_view is not None:
        update_at_view = forward.get("learner_update_at_view", 3.0 * at_view) + cached * at_view
    step = step_flops(
        forward["learner"],
        update=update,
        low_resolution_update=update_at_view,
        sub_batch=trained,
        super_batch=max(scored, trained),
        scoring_forward=(proxy or at_view) if "learner" in scores else 0.0,
        low_resolution_forward=at_view,
        low_resolution_fraction=args.low_resolution_fraction if at_view is not None else 0.0,
        reference_forward=reference_in_step if "reference" in scores else 0.0,
        selection_widths=[widths[name] for name in scores] if SELECTIONS[args.selection].needs_pairs else [],
    )
    # A reference that is used for distillation only embeds the sub-batch and not the super-batch.
    n_distilled = trained if args.distillation_weight and "reference" not in scores else 0
    n_online = readable if args.reference == "online" and args.uses_reference else 0
    # Pairs that do not fit into one chunk are embedded once more: gradient caching.
    pairs = any(widths.values())
    of_proxy = 4.0 if pairs and trained > (args.gradient_cache_chunk_size or trained) * args.world_size else 3.0
    of_online = 4.0 if pairs and n_online > args.sub_batch_size else 3.0
    return replace(
        step,
        reference=step.reference + reference_in_step * n_distilled,
        beside=of_proxy * proxy * trained + of_online * reference * n_online,
    )


def flops_of_cache(args: Any, forward: Mapping[str, float], n_rows: int | None) -> float:
    """Compute the FLOPs of caching the reference before the first step; 0 without `args.cache_reference`.

    Args:
        args, forward: As in [`flops_of_step`].
        n_rows (`int`, *optional*): Rows of the training data; `None` for a stream, which cannot be cached.
    """
    if not args.cache_reference or n_rows is None:
        return 0.0
    return float(n_rows * forward.get("reference", 0.0))


__all__ = ["StepFlops", "flops_of_cache", "flops_of_step", "step_flops"]
