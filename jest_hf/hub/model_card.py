# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a learner: a run told in the terms that a reader needs to judge or repeat it.

A card claims nothing that the run did not measure. What is unknown is left out, not filled with "N/A"; and of paths on
the machine that trained the model only the last part is told.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from jest_hf.report.flops import StepFlops
from jest_hf.report.table import format_table


SELECTIONS = {
    "joint": "joint example selection (JEST)",
    "independent": "independent example selection",
    "uniform": "IID training, without data selection",
}
CRITERIA = {
    "learnability": "learnability (loss of the learner minus loss of the reference)",
    "easy_reference": "easy reference (minus the loss of the reference)",
    "hard_learner": "hard learner (loss of the learner)",
}
SCORERS = {
    "learnability": "the learner and a reference model",
    "easy_reference": "a reference model",
    "hard_learner": "the learner itself",
}
# Figures that `Trainer.evaluate` adds and that say nothing about the model.
NOT_QUALITY = re.compile(r"^epoch$|runtime$|_per_second$|preparation_time$|^examples_skipped$")


@dataclass
class RunSummary:
    """
    A training run, as its card tells it. Everything but the first three may be unknown: `None` or empty.

    Args:
        architecture (`str`):
            Class of the learner, for instance `"SiglipModel"`.
        selection (`str`):
            `"joint"`, `"independent"` or `"uniform"`.
        loss (`str`):
            `"sigmoid"` or `"softmax"`.
        criterion (`str`, *optional*):
            `"learnability"`, `"easy_reference"` or `"hard_learner"`; not told of a uniform run.
        filter_ratio (`float`, *optional*):
            f, the share of the super-batch that was not trained on.
        n_chunks (`int`, *optional*):
            Chunks of a joint draw.
        sub_batch_size (`int`, *optional*):
            Examples trained on in a step, over all ranks.
        super_batch_size (`int`, *optional*):
            Examples loaded in a step, over all ranks.
        model_id (`str`, *optional*):
            Where the model will be on the Hub. The example code reads the current folder where it is not a Hub id.
        text_length (`int`, *optional*):
            Tokens that captions were padded to; for models whose processor does not say.
        base_model (`str`, *optional*):
            Hub id or path of the model that training started from; unknown or from scratch: `None`.
        datasets (sequence of `str`, *optional*):
            Training sets: Hub ids, paths or built-in names.
        eval_dataset (`str`, *optional*):
            What the metrics were measured on.
        reference (`str`, *optional*):
            Hub id or path of the reference model.
        reference_revision (`str`, *optional*):
            Its branch, tag or commit.
        steps (`int`, *optional*):
            Optimisation steps.
        examples_trained (`int`, *optional*):
            Examples trained on, repetitions counted.
        examples_seen (`int`, *optional*):
            Examples loaded, repetitions counted.
        rows_skipped (`int`, *optional*):
            Rows that could not be read, for instance broken images.
        unique_share (`float`, *optional*):
            Different examples among those trained on, as a share of them.
        flops ([`~jest_hf.report.StepFlops`], *optional*):
            FLOPs of the whole run.
        flops_convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`, as in [`~jest_hf.report.step_flops`].
        wall_time (`float`, *optional*):
            Seconds of training.
        hardware (`str`, *optional*):
            For instance `"1 x NVIDIA H200"`.
        metrics (`dict[str, float]`, *optional*):
            What `evaluate()` returned; timings in it are passed over.
        versions (`dict[str, str]`, *optional*):
            Version of each library.
        license (`str`, *optional*):
            Licence of the weights, as the Hub names it.
        language (sequence of `str`, *optional*):
            ISO codes of the captions' languages.
    """

    architecture: str
    selection: str
    loss: str
    criterion: str | None = None
    filter_ratio: float | None = None
    n_chunks: int | None = None
    sub_batch_size: int | None = None
    super_batch_size: int | None = None
    model_id: str | None = None
    text_length: int | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    eval_dataset: str | None = None
    reference: str | None = None
    reference_revision: str | None = None
    steps: int | None = None
    examples_trained: int | None = None
    examples_seen: int | None = None
    rows_skipped: int | None = None
    unique_share: float | None = None
    flops: StepFlops | None = None
    flops_convention: str = "plain"
    wall_time: float | None = None
    hardware: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: Sequence[str] = ()


def learner_card(summary: RunSummary) -> ModelCard:
    """
    Writes the card of a learner from the template `model_cards/learner.md`.

    Args:
        summary ([`RunSummary`]):
            The run.

    Returns:
        `huggingface_hub.ModelCard`: `save` it as the README.md of the model.

    Raises:
        `ValueError`: if the summary's `selection` or `criterion` is not known.
    """
    if summary.selection not in SELECTIONS:
        raise ValueError(f"selection={summary.selection!r} is not known: choose one of {', '.join(SELECTIONS)}.")
    if summary.criterion not in (None, *CRITERIA):
        raise ValueError(f"criterion={summary.criterion!r} is not known: choose one of {', '.join(CRITERIA)}.")
    selects = summary.selection != "uniform"
    metrics = _quality(summary.metrics)
    return ModelCard.from_template(
        _metadata(summary, metrics),
        template_str=read_template("learner.md"),
        title=summary.model_id if _is_hub_id(summary.model_id) else summary.architecture,
        model_id=summary.model_id if _is_hub_id(summary.model_id) else ".",
        architecture=summary.architecture,
        method=SELECTIONS[summary.selection],
        selection=summary.selection,
        scorers=SCORERS.get(summary.criterion),
        uses_reference=selects and summary.criterion in ("learnability", "easy_reference"),
        sigmoid=summary.loss == "sigmoid",
        text_length=summary.text_length,
        base=_name(summary.base_model),
        training_sets=[_name(name) for name in summary.datasets],
        curation=_table(_curation(summary, selects)),
        compute=_table(_compute(summary)),
        evaluation=format_table(["metric", "value"], list(metrics.items())) if metrics else "",
        evaluated_on=_name(summary.eval_dataset),
        versions=summary.versions,
    )


def read_template(name: str) -> str:
    """Reads a Jinja template of `model_cards/` by its file name."""
    try:
        folder = resources.files("jest_hf.model_cards")
    except ModuleNotFoundError:  # a source tree that is on the path without being installed
        folder = Path(__file__).parents[2] / "model_cards"
    return (folder / name).read_text(encoding="utf-8")


def _metadata(summary: RunSummary, metrics: Mapping[str, float]) -> ModelCardData:
    tags = ["jest_hf", "contrastive-learning"]
    if summary.selection != "uniform":
        tags.insert(1, "data-curation")
    if summary.selection == "joint":
        tags.insert(0, "jest")
    measured_on = _name(summary.eval_dataset) or "evaluation set"
    results = [
        EvalResult(
            task_type="zero-shot-image-classification" if "accuracy" in name else "image-text-retrieval",
            dataset_type=measured_on,
            dataset_name=measured_on,
            metric_type=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]
    return ModelCardData(
        base_model=summary.base_model if _is_hub_id(summary.base_model) else None,
        datasets=[name for name in summary.datasets if _is_hub_id(name)] or None,
        eval_results=results or None,
        language=list(summary.language) or None,
        library_name="transformers",
        license=summary.license,
        model_name=_name(summary.model_id) or summary.architecture,
        pipeline_tag="zero-shot-image-classification",
        tags=tags,
    )


def _curation(summary: RunSummary, selects: bool) -> list[tuple[str, object]]:
    reference = _name(summary.reference)
    if reference and summary.reference_revision:
        reference = f"{reference}@{summary.reference_revision}"
    method = [
        ("criterion", CRITERIA.get(summary.criterion)),
        ("reference", reference),
        ("filter ratio", summary.filter_ratio),
        ("chunks", summary.n_chunks if summary.selection == "joint" else None),
        ("super-batch (examples scored a step)", summary.super_batch_size),
    ]
    return [
        ("selection", summary.selection),
        *(method if selects else []),
        ("sub-batch (examples trained on a step)" if selects else "batch", summary.sub_batch_size),
        ("loss", summary.loss),
        ("steps", summary.steps),
        ("examples trained on", summary.examples_trained),
        ("examples seen", summary.examples_seen),
        ("different examples among those trained on", _percent(summary.unique_share)),
        ("rows skipped as unreadable", summary.rows_skipped),
    ]


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
            rows.append(("counting convention", summary.flops_convention))
    rows.append(("training time", None if summary.wall_time is None else f"{summary.wall_time:,.0f} s"))
    rows.append(("hardware", summary.hardware))
    return rows


def _table(rows: Sequence[tuple[str, object]]) -> str:
    # As texts, since a column of numbers and words is no column of numbers.
    known = [
        (name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows if value is not None
    ]
    return format_table(["", "value"], known) if known else ""


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _quality(metrics: Mapping[str, float]) -> dict[str, float]:
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in named.items()
        if isinstance(value, (int, float)) and math.isfinite(value) and not NOT_QUALITY.search(name)
    }


def _is_hub_id(name: str | None) -> bool:
    """Only `owner/name`: a bare name, or a relative path that exists, is more likely something on this machine."""
    return name is not None and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not os.path.exists(name)


def _name(name: str | None) -> str | None:
    """A Hub id as it is; of a path the last part, since the rest tells about the machine and not about the model."""
    return name if name is None or _is_hub_id(name) else os.path.basename(os.path.normpath(name))
