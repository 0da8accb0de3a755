# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The objective of any Hugging Face model with labels: every example has a loss of its own, whatever the others are.

Classifiers of images and of texts, and causal language models, through the forward that all of them have. It is called
without labels: the loss that a model computes by itself is a mean over the batch, and here each example's own is
wanted (ClassAct, arXiv 2312.05328; RHO-LOSS, arXiv 2206.07137).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jest_hf.data.classes import label2id_of
from jest_hf.data.labelled import ImageLabelCollator, LabelledCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.distributed import Ranks
from jest_hf.evaluation.labelled import EvaluationCollator, LabelledResults, evaluate_labelled
from jest_hf.images.normalise import Normalisation
from jest_hf.losses.pointwise import mean_over_ranks, per_example_losses
from jest_hf.models import View, base_model
from jest_hf.models.families import is_dual_encoder
from jest_hf.models.labelled import KINDS, PointwiseReader
from jest_hf.objectives.objective import OBJECTIVES, ObjectiveOptions
from jest_hf.report.flops import forward_flops_of


def kind_of(model: PreTrainedModel) -> str:
    """`"language_model"` for a causal one (a class of `AutoModelForCausalLM` or below), else `"classification"`."""
    names = {one.__name__ for one in type(base_model(model)).__mro__}
    causal = not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return "language_model" if causal else "classification"


class PointwiseObjective:
    """
    See [`~objectives.objective.Objective`].

    Args:
        kind (`str`): `"classification"` (one label for each example, or one for each token) or `"language_model"`
            (causal: the next token).
        config ([`~transformers.PretrainedConfig`]): The learner's, for its classes.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Of training and scores; ClassAct's is 0.1. Evaluation
            goes without.

    Raises:
        ValueError: for an unknown kind, a `label_smoothing` outside of [0, 1), or a model of regression or of several
            labels at a time.
    """

    name: str
    pairs = False
    loss_kind = None
    collator_type: ClassVar[type] = LabelledCollator
    refused: ClassVar[Mapping[str, Any]] = {
        "scoring_view": None,
        "gradient_cache_chunk_size": None,
        "reference_cache": None,
        "loss": None,
        "distillation_weight": 0.0,
        "pair_score": "loss",
    }
    cached_as: ClassVar[str | None] = "losses"

    def __init__(self, kind: str, config: PretrainedConfig, label_smoothing: float = 0.0) -> None:
        if kind not in KINDS:
            raise ValueError(f"objective={kind!r} has no labels; choose one of {', '.join(KINDS)}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing_factor={label_smoothing} must be in [0, 1): 0.1 is usual.")
        self.name = kind
        self.config = config
        self.label_smoothing = label_smoothing
        self.causal = kind == "language_model"
        if not self.causal and (config.num_labels < 2 or config.problem_type in _OTHER_PROBLEMS):
            raise ValueError(
                f"objective='classification' needs one of at least two classes for each example, and the model has "
                f"num_labels={config.num_labels}, problem_type={config.problem_type!r}; load it with num_labels of "
                "the data, and problem_type='single_label_classification'."
            )
        self.label2id = label2id_of(config)
        self._architectures: dict[type[PretrainedConfig], type[PreTrainedModel]] = {}

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        return not is_dual_encoder(model) and kind_of(model) == cls.name

    @classmethod
    def make(cls, model: PreTrainedModel | None, options: ObjectiveOptions) -> PointwiseObjective:
        if model is None:
            raise ValueError(
                f"objective={cls.name!r} needs the learner's classes from the start; pass model or model_init."
            )
        return cls(cls.name, model.config, options.label_smoothing)

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> LabelledCollator:
        """By what the processor reads: images or texts; `seed` is for captions, of which there are none."""
        read = _tokenizer if self.causal or not _has_images(processor) else _image_processor
        own, reference = read(processor), None if ref_processor is None else read(ref_processor)
        if self.causal:
            return LanguageModelCollator(own, reference)
        make = ImageLabelCollator if read is _image_processor else TextLabelCollator
        return make(own, self.label2id, reference)

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> PointwiseReader:
        """How `model` reads a super-batch, once it is known to have the learner's classes and the words it reads."""
        model = base_model(model)
        config = model.config
        self._architectures[type(config)] = type(model)
        if not self.causal:
            self._check_classes(label2id_of(config), role)
        normalisation = None
        if not self.causal and _has_images(processor):
            normalisation = Normalisation(_image_processor(processor))
        else:
            _check_vocabulary(_tokenizer(processor), config, role)
        return PointwiseReader(self.causal, normalisation, self.label_smoothing, prefix)

    def open_up(self, model: PreTrainedModel) -> None:
        """Nothing: the forward of such a model gives all that a step needs."""

    def check_data(self, dataset: Any, collator: LabelledCollator) -> None:
        """Labels that the model does not have; those of a language model are its texts."""
        if not self.causal:
            collator.check_labels(dataset)

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        """Sizes, lengths and logits, by the model's own words: only it knows which images it takes."""
        way_out = f"give the {role} the processor that belongs to it"
        # By attribute: a configuration may keep it under another name (GPT-2: n_positions).
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        if "input_ids" in inputs and longest is not None and inputs["input_ids"].shape[1] > longest:
            raise ValueError(
                f"texts are padded to {inputs['input_ids'].shape[1]} tokens, and the {role} has {longest} positions; "
                f"set max_length={longest} in the collator, or {way_out}."
            )
        outputs = []

        def watched(config: PretrainedConfig) -> PreTrainedModel:
            model = self._architectures[type(config)](config)
            model.register_forward_hook(lambda _, arguments, output: outputs.append(output))
            return model

        try:
            forward_flops_of(watched, config, inputs)
        except ValueError as error:
            raise ValueError(f"the {role} refuses what its processor makes ({error}); {way_out}.") from error
        if labels is not None:
            self._check_logits(getattr(outputs[0], "logits", None), labels, config, role)

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        """Of classifiers: the logits of every token of a data set would fill the memory."""
        if self.causal and compute_metrics is not None:
            raise ValueError(
                "compute_metrics would need the logits of every token, and an evaluation of objective='language_model'"
                " keeps the losses alone; leave it out (loss and perplexity are computed), or measure in a callback."
            )

    def _check_logits(self, logits: Tensor | None, labels: Tensor, config: PretrainedConfig, role: str) -> None:
        """One prediction for each label: a bare encoder gives none, a masked language model one for each token."""
        shape = [] if logits is None else list(logits.shape)
        wanted = [1, *labels.shape[1:], *([] if self.causal else [config.num_labels])]
        if shape[: -1 if self.causal else None] != wanted:
            gives = f"logits of shape {shape}" if shape else "no logits"
            head = "CausalLM" if self.causal else "ImageClassification or AutoModelForSequenceClassification"
            raise ValueError(
                f"the {role} is a {self._architectures[type(config)].__name__}, which gives {gives} for one example, "
                f"and objective={self.name!r} needs {wanted}{' by tokens' if self.causal else ''}; load it with "
                f"AutoModelFor{head}."
            )

    def _check_classes(self, label2id: Mapping[str, int], role: str) -> None:
        own = self.label2id
        if len(label2id) != len(own) or any(label2id.get(name, number) != number for name, number in own.items()):
            raise ValueError(
                f"the {role} has the classes {_some(label2id)}, and the learner {_some(own)}, so their losses of an "
                "example are not of the same label; give both the same label2id."
            )

    def loss(self, output: Any, batch: Mapping[str, Tensor], ranks: Ranks, teacher: None = None) -> Tensor:
        """Mean over the examples of all ranks, also for language models; see [`mean_over_ranks`]."""
        losses = per_example_losses(
            output.logits, batch["labels"], label_smoothing=self.label_smoothing, causal=self.causal
        )
        return mean_over_ranks(losses, ranks)

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        """Of a model that has a reader: it is built once more, without weights, as what it was then."""
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
        """Loss with accuracy or perplexity; the predictions are logits, or the losses of a language model."""
        return evaluate_labelled(read, model, batches, device, causal=self.causal, ranks=ranks)


class Classification(PointwiseObjective):
    """A label for each image or text, or one for each token: any model with `num_labels` that is not causal."""

    name = "classification"


class LanguageModel(PointwiseObjective):
    """The next token of each text: a class of `AutoModelForCausalLM`."""

    name = "language_model"


for _objective in (Classification, LanguageModel):
    OBJECTIVES[_objective.name] = _objective

_OTHER_PROBLEMS = ("regression", "multi_label_classification")


def _has_images(processor: Any) -> bool:
    """Whether it reads images, among other things."""
    return isinstance(_part(processor, "image_processor"), BaseImageProcessor)


def _image_processor(processor: Any) -> BaseImageProcessor:
    if not _has_images(processor):
        raise ValueError(
            f"the learner reads images, and a {type(processor).__name__} does not; give the reference its image "
            "processor."
        )
    return _part(processor, "image_processor")


def _tokenizer(processor: Any) -> PreTrainedTokenizerBase:
    tokenizer = _part(processor, "tokenizer")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"a {type(processor).__name__} does not read what this model does; pass the model's tokenizer, image "
            "processor, or processor."
        )
    return tokenizer


def _part(processor: Any, name: str) -> Any:
    """A part of a processor of several, or the whole."""
    return getattr(processor, name, None) if isinstance(processor, ProcessorMixin) else processor


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, role: str) -> None:
    """A token beyond the model's vocabulary would be an index error in the middle of the run, or worse on a GPU."""
    largest, known = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if largest >= known:
        raise ValueError(
            f"the tokenizer goes up to token {largest}, and the {role} knows {known} tokens; give the {role} the "
            "tokenizer that belongs to it."
        )


def _some(label2id: Mapping[str, int]) -> str:
    """The first few classes, and how many there are."""
    shown = ", ".join(f"{name!r}: {number}" for name, number in list(label2id.items())[:3])
    return f"{{{shown}{', ...' if len(label2id) > 3 else ''}}} ({len(label2id)})"


__all__ = ["Classification", "LanguageModel", "PointwiseObjective", "kind_of"]
