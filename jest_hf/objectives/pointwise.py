# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The objectives of models with labels: the loss of an example does not depend on the other examples.

These are classifiers of images or texts and causal language models (ClassAct, arXiv 2312.05328; RHO-LOSS, arXiv
2206.07137). Their `forward` is called without labels, because the loss that a model computes is a mean over the batch,
and selection needs the loss of each example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jest_hf.data.classes import label2id_of
from jest_hf.data.labelled import (
    ClassCollator,
    ImageLabelCollator,
    LabelledCollator,
    LanguageModelCollator,
    TextLabelCollator,
)
from jest_hf.distributed import Ranks
from jest_hf.evaluation.labelled import EvaluationCollator, LabelledResults, evaluate_labelled
from jest_hf.images.normalise import Normalisation
from jest_hf.losses.pointwise import mean_over_ranks, per_example_losses
from jest_hf.models import View, base_model
from jest_hf.models.families import embeds_pairs, is_dual_encoder
from jest_hf.models.labelled import KINDS, PointwiseReader
from jest_hf.objectives.objective import FOR_PAIRS_ALONE, OBJECTIVES, ObjectiveOptions
from jest_hf.report.counting import forward_flops_of


T = TypeVar("T")


def kind_of(model: PreTrainedModel) -> str:
    """Return `"language_model"` for a causal language model (a class of `AutoModelForCausalLM`, or a subclass), else
    `"classification"`."""
    names = {one.__name__ for one in type(base_model(model)).__mro__}
    causal = not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return "language_model" if causal else "classification"


class PointwiseObjective:
    """The [`~jest_hf.objectives.Objective`] of examples with a loss each.

    Args:
        kind (`str`): `"classification"` (one label for each example, or one for each token) or `"language_model"`
            (causal: the next token).
        config ([`~transformers.PretrainedConfig`]): The learner's configuration, which has its classes.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Label smoothing of the training loss and the scores,
            in [0, 1); ClassAct uses 0.1. The evaluation uses none.

    Raises:
        ValueError: for an unknown kind, a `label_smoothing` outside of [0, 1), or a model for regression or for
            several labels at a time.
    """

    name: str
    pairs = False
    loss_kind: str | None = None
    loss_name = "cross-entropy"
    collator_type: ClassVar[type] = LabelledCollator
    refused: ClassVar[Mapping[str, Any]] = FOR_PAIRS_ALONE
    cached_as: ClassVar[str | None] = "losses"

    def __init__(self, kind: str, config: PretrainedConfig, label_smoothing: float = 0.0) -> None:
        if kind not in KINDS:
            raise ValueError(f"objective={kind!r} is not an objective with labels; choose one of {', '.join(KINDS)}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing_factor={label_smoothing} must be in [0, 1); a usual value is 0.1.")
        self.name = kind
        self.config = config
        self.label_smoothing = label_smoothing
        self.causal = kind == "language_model"
        if not self.causal and ((config.num_labels or 0) < 2 or config.problem_type in _OTHER_PROBLEMS):
            raise ValueError(
                "objective='classification' needs a model with at least two classes, one for each example, and this "
                f"model has num_labels={config.num_labels}, problem_type={config.problem_type!r}; load it with the "
                "num_labels of the data, and problem_type='single_label_classification'."
            )
        self.label2id = label2id_of(config)
        self._architectures: dict[type[PretrainedConfig], type[PreTrainedModel]] = {}

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        return not (is_dual_encoder(model) or embeds_pairs(model)) and kind_of(model) == cls.name

    @classmethod
    def make(cls, model: PreTrainedModel | None, options: ObjectiveOptions) -> PointwiseObjective:
        if model is None:
            raise ValueError(
                f"objective={cls.name!r} needs the learner's classes from the start; pass model or model_init."
            )
        return cls(cls.name, model.config, options.label_smoothing)

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> LabelledCollator:
        """Make a collator of images or of texts, whichever the processor reads. Nothing is drawn: `seed` is unused."""
        if not self.causal and _has_images(processor):
            images, ref_images = _both(_image_processor, processor, ref_processor)
            return ImageLabelCollator(images, self.label2id, ref_images)
        texts, ref_texts = _both(_tokenizer, processor, ref_processor)
        if self.causal:
            return LanguageModelCollator(texts, ref_texts)
        return TextLabelCollator(texts, self.label2id, ref_texts)

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> PointwiseReader:
        """Check that `model` has the learner's classes and its tokenizer's tokens, and return how it reads a batch."""
        base: Any = base_model(model)
        config: PretrainedConfig = base.config
        self._architectures[type(config)] = type(base)
        if not self.causal:
            self._check_classes(label2id_of(config), role)
        normalisation = None
        if not self.causal and _has_images(processor):
            normalisation = Normalisation(_image_processor(processor))
        else:
            _check_vocabulary(_tokenizer(processor), config, role)
        return PointwiseReader(self.causal, normalisation, self.label_smoothing, prefix)

    def open_up(self, model: PreTrainedModel) -> None:
        """Change nothing: the `forward` of a model with labels returns all that a step needs."""

    def check_data(self, dataset: Any, collator: LabelledCollator) -> None:
        """Check that the model has the labels of the data. The labels of a language model are its texts."""
        if not self.causal and isinstance(collator, ClassCollator):
            collator.check_labels(dataset)

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        """Check the text length, and run the model on fake tensors: only its `forward` can tell which sizes fit."""
        way_out = f"give the {role} the processor that belongs to it"
        # As an attribute, which transformers maps to the configuration's own name (GPT-2: n_positions).
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        if "input_ids" in inputs and longest is not None and inputs["input_ids"].shape[1] > longest:
            raise ValueError(
                f"texts are padded to {inputs['input_ids'].shape[1]} tokens, but the {role} has {longest} positions; "
                f"set max_length={longest} in the collator, or {way_out}."
            )
        outputs: list[Any] = []

        def build(config: PretrainedConfig) -> PreTrainedModel:
            model = self._architectures[type(config)](config)
            model.register_forward_hook(lambda _, arguments, output: outputs.append(output))
            return model

        architecture: Any = build  # called as the class would be
        try:
            forward_flops_of(architecture, config, inputs)
        except ValueError as error:
            raise ValueError(
                f"the {role} does not accept the inputs of its processor ({error}); {way_out}."
            ) from error
        if labels is not None:
            self._check_logits(getattr(outputs[0], "logits", None), labels, config, role)

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        """Refuse `compute_metrics` for language models: the logits of all tokens of a data set would fill memory."""
        if self.causal and compute_metrics is not None:
            raise ValueError(
                "compute_metrics would need the logits of every token, and the evaluation of "
                "objective='language_model' keeps the losses alone; leave it out (loss and perplexity are computed), "
                "or compute other metrics in a callback."
            )

    def _check_logits(self, logits: Tensor | None, labels: Tensor, config: PretrainedConfig, role: str) -> None:
        """Check that there is one prediction for each label: a bare encoder has no logits, a masked language model
        has logits for each token."""
        shape = [] if logits is None else list(logits.shape)
        wanted = [1, *labels.shape[1:], *([] if self.causal else [config.num_labels])]
        if shape[: -1 if self.causal else None] != wanted:
            given = f"logits of shape {shape}" if shape else "no logits"
            head = "CausalLM" if self.causal else "ImageClassification or AutoModelForSequenceClassification"
            raise ValueError(
                f"the {role} is a {self._architectures[type(config)].__name__}, which has {given} for one example, "
                f"and objective={self.name!r} needs {wanted}{' times the vocabulary' if self.causal else ''}; load it "
                f"with AutoModelFor{head}."
            )

    def _check_classes(self, label2id: Mapping[str, int], role: str) -> None:
        own = self.label2id
        if len(label2id) != len(own) or any(label2id.get(name, number) != number for name, number in own.items()):
            raise ValueError(
                f"the {role} has the classes {_some(label2id)} and the learner has {_some(own)}, so their losses of "
                "an example would be for different labels; load both with the same label2id."
            )

    def loss(self, output: Any, batch: Mapping[str, Tensor], ranks: Ranks, teacher: None = None) -> Tensor:
        """Compute the mean over the examples of all ranks, also for language models. A collective; see
        [`~jest_hf.losses.pointwise.mean_over_ranks`]."""
        losses = per_example_losses(
            output.logits, batch["labels"], label_smoothing=self.label_smoothing, causal=self.causal
        )
        return mean_over_ranks(losses, ranks)

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        """Count the FLOPs of a model for which [`reader`] was called; it is built once more, without weights."""
        return float(forward_flops_of(self._architectures[type(config)], config, inputs))

    def width(self, config: PretrainedConfig) -> int:
        return 0

    def text_length(self, collator: LabelledCollator) -> int | None:
        return None

    def prediction_collator(self, collator: LabelledCollator) -> LabelledCollator:
        return collator.without_labels()

    def eval_collator(self, collator: LabelledCollator) -> EvaluationCollator:
        return EvaluationCollator(collator)

    def evaluate(
        self,
        read: Callable[..., Any],
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        device: torch.device,
        ranks: Ranks,
    ) -> LabelledResults:
        """Evaluate loss, and accuracy or perplexity; the predictions are logits, or a language model's losses."""
        return evaluate_labelled(read, model, batches, device, causal=self.causal, ranks=ranks)


class Classification(PointwiseObjective):
    """A label for each image or text, or for each token: any model with `num_labels` that is not causal."""

    name = "classification"


class LanguageModel(PointwiseObjective):
    """The next token of each text: a class of `AutoModelForCausalLM`."""

    name = "language_model"


for _objective in (Classification, LanguageModel):
    OBJECTIVES[_objective.name] = _objective

_OTHER_PROBLEMS = ("regression", "multi_label_classification")


def _has_images(processor: Any) -> bool:
    """Return whether a processor reads images (and perhaps texts too)."""
    return isinstance(_part(processor, "image_processor"), BaseImageProcessor)


def _both(read: Callable[[Any], T], processor: Any, ref_processor: Any | None) -> tuple[T, T | None]:
    """Return a part of the learner's processor, and of the reference's if it has its own."""
    return read(processor), None if ref_processor is None else read(ref_processor)


def _image_processor(processor: Any) -> BaseImageProcessor:
    if not _has_images(processor):
        raise ValueError(
            f"the learner reads images, and a {type(processor).__name__} does not; pass the reference's image "
            "processor."
        )
    return _part(processor, "image_processor")


def _tokenizer(processor: Any) -> PreTrainedTokenizerBase:
    tokenizer = _part(processor, "tokenizer")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"a {type(processor).__name__} does not read the inputs of this model; pass the model's tokenizer, image "
            "processor or processor."
        )
    return tokenizer


def _part(processor: Any, name: str) -> Any:
    """Return a part of a `ProcessorMixin` (`None` if it has no such part), or anything else as it is."""
    return getattr(processor, name, None) if isinstance(processor, ProcessorMixin) else processor


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, role: str) -> None:
    """Refuse a token beyond the model's vocabulary: an index error in the middle of the run, or worse on a GPU."""
    largest, known = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if largest >= known:
        raise ValueError(
            f"the tokenizer goes up to token {largest}, but the {role} has {known} tokens; give the {role} the "
            "tokenizer that belongs to it."
        )


def _some(label2id: Mapping[str, int]) -> str:
    """Return the first few classes, and how many there are, as text."""
    shown = ", ".join(f"{name!r}: {number}" for name, number in list(label2id.items())[:3])
    return f"{{{shown}{', ...' if len(label2id) > 3 else ''}}} ({len(label2id)})"


__all__ = ["Classification", "LanguageModel", "PointwiseObjective", "kind_of"]
