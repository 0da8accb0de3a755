# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train a classifier of images or texts, or a causal language model, on selected examples (RHO-LOSS, ClassAct).

    accelerate launch examples/run_labelled.py                                # RHO-LOSS on the built-in data
    accelerate launch examples/run_labelled.py --preset class_act --learner google/vit-base-patch16-224-in21k \
        --dataset uoft-cs/cifar100 --image_column img --label_column fine_label --ref_model <id> ...

The flags are the fields of `ScriptArguments` below and of `JESTConfig` (which include those of `TrainingArguments`). A
YAML recipe (`--config`) has the same names, and flags win over it. Without `--ref_model`, a reference is trained first
on a small clean hold-out set. With `--compare_uniform_steps`, the same learner is trained without selection too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

from jest_hf import JESTConfig
from jest_hf.data import train_tokenizer
from jest_hf.data.labelled import ImageLabelCollator, LabelledCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.data.tasks import class_names, flip_labels, label_scenes, scramble_texts
from jest_hf.flags import Parser
from jest_hf.models.load import check_loaded, load_config, load_processor
from jest_hf.reference import locate_reference


sys.path.insert(0, str(Path(__file__).parent))
import comparison  # noqa: E402
import script_flags  # noqa: E402


DEMONSTRATION = Path(__file__).parent / "recipes" / "rho_loss.yaml"
DEFAULTS = {"selection": "independent", "adam_beta2": 0.999}
GROUPS = {
    "data": ("kind", "text_column", "label_column", "task", "label_noise", "text_noise"),
    "models": ("learner_config",),
    "reference": ("reference_config",),
}
MODELS = {
    "image_classification": AutoModelForImageClassification,
    "text_classification": AutoModelForSequenceClassification,
    "language_model": AutoModelForCausalLM,
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TINY_CONFIGS = {
    "image_classification": {"model_type": "vit", "patch_size": 8, **TINY},
    "text_classification": {"model_type": "bert", **TINY},
    "language_model": {"model_type": "llama", **TINY},
}


@dataclass
class ScriptArguments(script_flags.DataArguments):
    """The data and the models of a run; `JESTConfig` has all other options."""

    kind: str = field(
        default="image_classification",
        metadata={
            "help": "Kind of model: image_classification, text_classification or language_model.",
            "choices": list(MODELS),
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the texts. Default: caption if --dataset is scenes, else text."}
    )
    label_column: str = field(
        default="label", metadata={"help": "Column of the labels, which are numbers or names of classes."}
    )
    task: str | None = field(
        default=None,
        metadata={"help": "Labels of scenes: shape or colour of the first thing, or count of things. Default: shape."},
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of the training labels to replace by wrong ones, in [0, 1] (by --seed)."}
    )
    text_noise: float = field(
        default=0.0,
        metadata={"help": "Share of the training texts whose words to scramble, in [0, 1] (by --seed)."},
    )
    vocab_size: int = field(
        default=512,
        metadata={"help": "Vocabulary of the tokenizer that is trained for a learner with random weights."},
    )
    learner_config: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Configuration of a learner with random weights, as JSON: {"model_type": "vit", ...}. Default: a '
            "tiny one."
        },
    )
    reference_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a reference with random weights, as JSON. Default: the model that the learner "
            "starts from."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset.startswith("scenes"):
            self.task = self.task or "shape"
            self.text_column = self.text_column or "caption"
        self.text_column = self.text_column or "text"

    @property
    def has_labels(self) -> bool:
        return self.kind != "language_model"


def flags() -> Parser:
    """Return the parser of the script."""
    return script_flags.flags_of(ScriptArguments, GROUPS, **DEFAULTS)


def parse(argv: list[str]) -> tuple[ScriptArguments, JESTConfig]:
    """Read the flags, the recipe and the defaults. Joint selection needs pairs, so the default is independent here."""
    return script_flags.parse(flags(), ScriptArguments, argv, DEMONSTRATION, **DEFAULTS)


class Job(comparison.Comparison):
    """The models, the data and the settings of one call of this script."""

    baseline = "uniform"

    def __init__(self, script: ScriptArguments, args: JESTConfig) -> None:
        super().__init__(script, args)
        self.names = class_names(self.train, script.label_column) if script.has_labels else []
        self.processor = self.make_processor()
        if script.label_noise:
            self.train = flip_labels(self.train, script.label_noise, args.seed, script.label_column)
        if script.text_noise:
            self.train = scramble_texts(self.train, script.text_noise, args.seed, script.text_column)

    def rows(self, what: str, **options: Any) -> Dataset:
        """Load the rows of one source; scenes get the labels of the task."""
        rows = super().rows(what, **options)
        if self.script.has_labels and what.startswith("scenes"):
            rows = label_scenes(rows, self.script.task)
        return rows

    def make_processor(self) -> Any:
        """Return the learner's image processor or tokenizer; for a learner with random weights, make one."""
        script = self.script
        if script.learner is not None:
            folder = locate_reference(script.learner, weights=False, option="learner").folder
            processor = load_processor(folder, f"learner={script.learner!r}")
            if script.kind != "image_classification" and processor.pad_token is None:  # as in many decoders
                processor.pad_token = processor.eos_token
            return processor
        if script.kind == "image_classification":
            return ViTImageProcessorPil(size={"height": script.image_size, "width": script.image_size})
        sources = [rows for rows in (self.curated, self.train) if rows is not None]
        texts = [text for rows in sources for text in rows[script.text_column] if isinstance(text, str)]
        tokenizer = train_tokenizer(texts, script.vocab_size, script.max_length or 20)
        # These models take an attention mask, unlike SigLIP's text tower.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
        return tokenizer

    def fresh_model(self, seed: int) -> PreTrainedModel:
        return self.model_of(None, seed)

    def fresh_reference(self, seed: int) -> PreTrainedModel:
        return self.model_of(self.script.reference_config, seed)

    def model_of(self, config: dict[str, Any] | None, seed: int) -> PreTrainedModel:
        """Return a model before training: with this configuration, or without one the learner."""
        script, architecture = self.script, MODELS[self.script.kind]
        labels = {"id2label": dict(enumerate(self.names)), "label2id": {n: i for i, n in enumerate(self.names)}}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if config is None and script.learner is not None:
                folder = locate_reference(script.learner, option="learner").folder
                known = load_config(folder).label2id
                same = not script.has_labels or known == labels["label2id"]
                head = {} if same else {**labels, "ignore_mismatched_sizes": True}
                options = {"dtype": torch.float32, "output_loading_info": True, **head}
                model, found = architecture.from_pretrained(folder, **options)
                body = [name for name in found["missing_keys"] if name.startswith(model.base_model_prefix)]
                check_loaded(body, [], f"learner={script.learner!r}")  # a head may be new
                return model
            sizes = {"image_size": script.image_size} if script.kind == "image_classification" else self.vocabulary()
            sizes |= labels if script.has_labels else {}
            return architecture.from_config(
                AutoConfig.for_model(**sizes, **(config or script.learner_config or TINY_CONFIGS[script.kind]))
            )

    def vocabulary(self) -> dict[str, Any]:
        """Return the fields of a configuration that depend on the tokenizer."""
        tokenizer = self.processor
        return {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": self.script.max_length or tokenizer.model_max_length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }

    def collator(self, model: PreTrainedModel) -> LabelledCollator:
        """Return a collator of images or texts with their labels, with the columns of the flags."""
        script, label2id = self.script, model.config.label2id
        if script.kind == "image_classification":
            columns = {"image_column": script.image_column, "label_column": script.label_column}
            scaled = script.scaled_jpeg_decoding
            return ImageLabelCollator(self.processor, label2id, **columns, scaled_jpeg_decoding=scaled)
        texts = {"text_column": script.text_column, "max_length": script.max_length}
        if script.kind == "language_model":
            return LanguageModelCollator(self.processor, **texts)
        return TextLabelCollator(self.processor, label2id, label_column=script.label_column, **texts)

    def quality(self, metrics: dict[str, float]) -> float:
        return metrics["eval_accuracy"] if self.script.has_labels else -metrics["eval_loss"]

    def measures(self) -> tuple[str, list[str]]:
        return ("accuracy", ["accuracy"]) if self.script.has_labels else ("minus loss", ["perplexity"])


def main(argv: list[str]) -> None:
    script, args = parse(argv)
    if not argv:
        logging.set_verbosity_error()
    Job(script, args).compare(args.preset or args.selection)


if __name__ == "__main__":
    script_flags.run_script(main, ScriptArguments, JESTConfig)
