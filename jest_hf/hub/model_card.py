# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model cards of learners and references: all that a reader needs to judge or repeat a run.

A card claims nothing that the run did not measure. Unknown values are left out, not filled with "N/A", and a card has
only the last part of a local path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from jest_hf.hub.card_parts import about_table, at_revision, card_table, is_hub_id, percent, public_name, render_card
from jest_hf.losses import LOSSES
from jest_hf.report.summary import RunSummary
from jest_hf.selection import CRITERIA, SELECTIONS


# For models with labels, by the end of the class name: the Hub's name of the task, and an input to try.
TASKS = {
    "ForImageClassification": ("image-classification", 'Image.new("RGB", (256, 256), "red")'),
    "ForSequenceClassification": ("text-classification", '"A red square."'),
    "ForTokenClassification": ("token-classification", '"A red square."'),
    "ForCausalLM": ("text-generation", '"A red"'),
    "LMHeadModel": ("text-generation", '"A red"'),
}
TEMPLATES = {"learner": "learner.md", "reference": "reference.md"}
CONVENTIONS = {
    "plain": "plain (3 forwards for each example trained on, 1 for each that a model scored)",
    "paper": "the paper's (the scoring forward of a selected example is a part of its training)",
}
# Metrics of `Trainer.evaluate` that do not measure the model.
NOT_QUALITY = re.compile(r"^epoch$|runtime$|_per_second$|preparation_time$|^examples_skipped$")


def learner_card(summary: RunSummary) -> ModelCard:
    """Make the card of a learner from the template `model_cards/learner.md`.

    Args:
        summary ([`RunSummary`]): The run.

    Returns:
        `huggingface_hub.ModelCard`: for [`~jest_hf.hub.write_card`].

    Raises:
        ValueError: if the summary's `selection`, `criterion` or `flops_convention` is not known.
    """
    return run_card(replace(summary, role="learner"))


def reference_card(summary: RunSummary) -> ModelCard:
    """Make the card of a model that was trained to be a reference, from `model_cards/reference.md`; see
    [`learner_card`]."""
    return run_card(replace(summary, role="reference"))


def run_card(summary: RunSummary) -> ModelCard:
    """Make the card of a run's model: [`learner_card`] or [`reference_card`], by the summary's `role`."""
    for name, known in (
        ("role", TEMPLATES),
        ("selection", SELECTIONS),
        ("criterion", (None, *CRITERIA)),
        ("flops_convention", CONVENTIONS),
    ):
        if (value := getattr(summary, name)) not in known:
            raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(filter(None, known))}.")
    selector = SELECTIONS[summary.selection]
    selects = selector.scores
    if not selector.uses_criterion:
        summary = replace(summary, criterion=None)
    criterion = CRITERIA.get(summary.criterion or "")
    by_learner, by_reference = (
        (False, False) if criterion is None else (bool(criterion.learner), bool(criterion.reference))
    )
    task, sample = _task(summary)
    metrics = _quality(summary.metrics)
    hub_id = summary.model_id if is_hub_id(summary.model_id) else None
    return render_card(
        ModelCard,
        _metadata(summary, metrics),
        TEMPLATES[summary.role],
        title=hub_id or public_name(summary.name) or summary.architecture,
        role=summary.role,
        model_id=hub_id or ".",
        architecture=summary.architecture,
        adapter=summary.adapter,
        method=selector.title,
        sentence=selector.sentence,
        selection=summary.selection,
        scorers=_scorers(summary, by_learner, by_reference) if selector.uses_criterion else "",
        uses_reference=selects and by_reference,
        task=task,
        sample=sample,
        pairs=sample is None and task is not None,
        sigmoid=summary.loss == "sigmoid",
        text_length=summary.text_length,
        base=public_name(summary.base_model),
        base_is_public=is_hub_id(summary.base_model),
        training_sets=[public_name(name) for name in summary.datasets],
        curation=about_table(_curation(summary, selects)),
        sources=_sources(summary.sources, selects),
        plot=summary.plot,
        compute=about_table(_compute(summary)),
        evaluation=_evaluation(metrics, _quality(summary.reference_metrics)),
        evaluated_on=public_name(summary.eval_dataset),
        evaluated_split=summary.eval_split,
        evaluated_at=summary.evaluated_at if summary.evaluated_at != summary.steps else None,
        versions=summary.versions,
    )


def _task(summary: RunSummary) -> tuple[str | None, str | None]:
    """Return the Hub's name of the model's task and, for a model with labels, Python code of an input to try.

    The task is `None` for a class that is not in `TASKS`, unless its loss is one of pairs.
    """
    found = (task for ending, task in TASKS.items() if summary.architecture.endswith(ending))
    return next(found, ("zero-shot-image-classification" if summary.loss in LOSSES else None, None))


def _measured_task(task: str | None, sample: str | None, metric: str) -> str:
    if task is None:
        return "other"
    return task if sample is not None or "accuracy" in metric else "image-text-retrieval"


def _scorers(summary: RunSummary, by_learner: bool, by_reference: bool) -> str:
    learner = "a small proxy of the learner (trained beside it)" if summary.proxy else "the learner"
    reference = "a reference model (trained beside the learner)" if summary.online_reference else "a reference model"
    if not by_reference:
        return learner if summary.proxy else f"{learner} itself"
    return f"{learner} and {reference}" if by_learner else reference


def _metadata(summary: RunSummary, metrics: Mapping[str, float]) -> ModelCardData:
    # The tag `jest` marks learners that were trained with joint selection, and references for them.
    tags = ["jest"] if SELECTIONS[summary.selection].needs_pairs or summary.role == "reference" else []
    tags += ["jest_hf"]
    tags += ["data-curation"] if SELECTIONS[summary.selection].scores else []
    tags += ["jest-reference"] if summary.role == "reference" else []
    task, sample = _task(summary)
    tags += ["contrastive-learning"] if sample is None and task is not None else []
    tags += summary.tags
    measured_on = public_name(summary.eval_dataset) or "evaluation set"
    results = [
        EvalResult(
            task_type=_measured_task(task, sample, name),
            dataset_type=measured_on,
            dataset_name=measured_on,
            dataset_split=summary.eval_split,
            metric_type=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]
    name = summary.model_id if is_hub_id(summary.model_id) else summary.name
    return ModelCardData(
        base_model=summary.base_model if is_hub_id(summary.base_model) else None,
        datasets=[name for name in summary.datasets if is_hub_id(name)] or None,
        eval_results=results or None,
        language=list(summary.language) or None,
        library_name="peft" if summary.adapter else "transformers",
        license=summary.license,
        model_name=(public_name(name) or summary.architecture) if results else None,
        pipeline_tag=task,
        tags=tags,
    )


def _curation(summary: RunSummary, selects: bool) -> list[tuple[str, object]]:
    shown = SELECTIONS[summary.selection].shown
    method = [
        ("preset", summary.preset),
        ("criterion", CRITERIA[summary.criterion].title if summary.criterion else None),
        ("score of a pair", summary.pair_score),
        ("reference", _reference(summary)),
        ("reference embeddings read from", at_revision(summary.reference_cache, summary.reference_cache_revision)),
        ("candidates dropped by cached scores before decoding", percent(summary.prefilter_ratio)),
        ("filter ratio", summary.filter_ratio),
        ("chunks", summary.n_chunks if "n_chunks" in shown else None),
        ("gain on the scores", summary.gain if "gain" in shown else None),
        ("precision of the products in scores", summary.precision if "n_chunks" in shown else None),
        ("super-batch (examples scored a step)", summary.super_batch_size),
    ]
    flexible = [
        ("view at which the learner scored", summary.scoring_view),
        ("share of the sub-batch trained on at that view", percent(summary.low_resolution_fraction)),
    ]
    return [
        ("selection", summary.selection),
        *(method if selects else []),
        *(flexible if summary.scoring_view is not None else []),
        ("sub-batch (examples trained on a step)" if selects else "batch", summary.sub_batch_size),
        ("JPEG decoding", "at 1/2, 1/4 or 1/8 of large images' size" if summary.scaled_jpeg_decoding else None),
        ("loss", summary.loss),
        ("steps", summary.steps),
        ("examples trained on", summary.examples_trained),
        ("examples seen", summary.examples_seen),
        ("different examples among those trained on", percent(summary.unique_share)),
        ("rows skipped as unreadable", summary.rows_skipped),
    ]


def _reference(summary: RunSummary) -> str | None:
    if summary.criterion is not None and not CRITERIA[summary.criterion].reference:
        return None
    name = at_revision(summary.reference, summary.reference_revision)
    if summary.reference_is_backbone:
        return f"the learner's backbone{f', {name}' if name else ''}"
    if summary.reference_weights is not None and summary.reference_revision is None:
        weights = f"weights of sha256 {summary.reference_weights[:12]}"
        return f"{name} ({weights})" if name else weights
    return name


def _sources(sources: Mapping[str, tuple[int, int]], selects: bool) -> str:
    if not sources:
        return ""
    if not selects:
        return card_table(["source", "seen"], [(public_name(name), seen) for name, (_, seen) in sources.items()])
    rows = [
        (public_name(name), seen, selected, percent(selected / seen) if seen else None)
        for name, (selected, seen) in sources.items()
    ]
    return card_table(["source", "seen", "selected", "rate"], rows)


def _compute(summary: RunSummary) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if summary.flops is not None:
        flops = summary.flops
        parts = {
            "training": flops.training,
            "scoring by the learner": flops.scoring,
            "scoring by the reference": flops.reference,
            "drawing the sub-batch": flops.selection,
        }
        rows = [(f"FLOPs, {part}", f"{value:.3g}") for part, value in parts.items() if value]
        rows.append(("FLOPs, total", f"{flops.total:.3g}"))
        if flops.total > flops.training:
            rows.append(("relative to IID training on as many examples", f"{flops.relative_to_iid:.2f}"))
        rows.append(("counting convention", CONVENTIONS[summary.flops_convention]))
    rows.append(("training time", None if summary.wall_time is None else f"{summary.wall_time:,.0f} s"))
    rows.append(("hardware", summary.hardware))
    return rows


def _evaluation(metrics: Mapping[str, float], of_reference: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    if not of_reference:
        return card_table(["metric", "value"], list(metrics.items()))
    rows = [(name, value, of_reference.get(name, "")) for name, value in metrics.items()]
    return card_table(["metric", "this model", "its reference"], rows)


def _quality(metrics: Mapping[str, float]) -> dict[str, float]:
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in named.items()
        if isinstance(value, (int, float)) and math.isfinite(value) and not NOT_QUALITY.search(name)
    }


__all__ = ["RunSummary", "learner_card", "reference_card", "run_card"]
