# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train a classifier of images or texts, or a causal language model, on selected examples (RHO-LOSS, ClassAct).

    accelerate launch examples/run_labelled.py                                # RHO-LOSS on the built-in data
    accelerate launch examples/run_labelled.py --config examples/recipes/class_act.yaml \
        --learner google/vit-base-patch16-224-in21k --dataset uoft-cs/cifar100 --label_column fine_label ...

Flags are the fields of `ScriptArguments` below and of `JESTConfig` (every `TrainingArguments` field among them); a
YAML recipe takes the same names, and flags win over it. Where no reference is named, one is trained first, on a small
clean hold-out set; with `compare_uniform_steps` the same learner is trained without selection too, and compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedModel,
    TrainerCallback,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data import load_source, train_tokenizer
from jest_hf.data.labelled import ImageLabelCollator, LabelledCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.data.tasks import class_names, flip_labels, label_scenes, scramble_texts
from jest_hf.report import QualityPoint, first_reaching, format_table, plot_quality


DEMONSTRATION = Path(__file__).parent / "recipes" / "rho_loss.yaml"
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
class ScriptArguments:
    """What to train on what; how is in `JESTConfig`."""

    kind: str = field(
        default="image_classification",
        metadata={"help": "image_classification, text_classification or language_model.", "choices": list(MODELS)},
    )
    dataset: str = field(
        default="scenes:web",
        metadata={"help": "Training data: scenes:<split>, a local file, glob or folder, or a Hub data set id."},
    )
    dataset_split: str | None = field(default=None, metadata={"help": "Its split."})
    dataset_where: dict | str | None = field(
        default=None, metadata={"help": 'Keep rows by column value, as JSON: {"split": "train"}.'}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Data evaluated on during training; default: scenes:validation for scenes."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Its split."})
    eval_where: dict | str | None = field(default=None, metadata={"help": "Its rows, as dataset_where."})
    test_dataset: str | None = field(default=None, metadata={"help": "Data for the final figure."})
    test_split: str | None = field(default=None, metadata={"help": "Its split."})
    test_where: dict | str | None = field(default=None, metadata={"help": "Its rows, as dataset_where."})
    max_train_rows: int | None = field(default=None, metadata={"help": "Keep the first so many training rows."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts; default: text, or caption."})
    label_column: str = field(default="label", metadata={"help": "Column of the labels: numbers, or names."})
    task: str | None = field(
        default=None, metadata={"help": "Labels of scenes: shape (default) or colour of the first thing, or count."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of the training labels to make wrong first, in [0, 1] (by seed)."}
    )
    text_noise: float = field(
        default=0.0, metadata={"help": "Share of the training texts whose words to scramble first, in [0, 1]."}
    )

    learner: str | None = field(default=None, metadata={"help": "Hub id or path of the learner to start from."})
    learner_config: dict | str | None = field(
        default=None, metadata={"help": 'Without one: {"model_type": "vit", ...} as JSON, random weights; tiny.'}
    )
    image_size: int = field(default=32, metadata={"help": "Pixels a side, for a learner from a configuration."})
    vocab_size: int = field(default=512, metadata={"help": "Of the tokenizer trained for one."})
    max_length: int | None = field(default=None, metadata={"help": "Text tokens; 20 for such a learner."})

    ref_model: str | None = field(default=None, metadata={"help": "Hub id or path of the reference."})
    proxy_model: str | None = field(
        default=None, metadata={"help": "Hub id or path of the proxy; default: fresh, like the reference."}
    )
    train_reference_on: str | None = field(
        default=None, metadata={"help": "Without one: clean data held out, on which to train it first."}
    )
    train_reference_split: str | None = field(default=None, metadata={"help": "Its split."})
    train_reference_where: dict | str | None = field(default=None, metadata={"help": "Its rows, as dataset_where."})
    reference_config: dict | str | None = field(
        default=None, metadata={"help": "Its configuration, as learner_config; default: what the learner starts from."}
    )
    reference_steps: int = field(default=300, metadata={"help": "Steps of its training."})
    reference_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of its training."})

    compare_uniform_steps: int = field(
        default=0, metadata={"help": "Also train without selection, for so many steps, and compare."}
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if "dict" in str(one.type) and isinstance(value, str):
                setattr(self, one.name, json.loads(value))
        if self.dataset.startswith("scenes"):
            self.eval_dataset = self.eval_dataset or "scenes:validation"
            self.test_dataset = self.test_dataset or "scenes:test"
            self.task = self.task or "shape"
            self.text_column = self.text_column or "caption"
            if self.ref_model is None:
                self.train_reference_on = self.train_reference_on or "scenes:curated"
        self.text_column = self.text_column or "text"

    @property
    def has_labels(self) -> bool:
        return self.kind != "language_model"


class History(TrainerCallback):
    """Keeps the quality at every evaluation, and what had been spent by then."""

    def __init__(self) -> None:
        self.points: list[QualityPoint] = []
        self.trainer: JESTTrainer | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_loss" in metrics:
            counts, flops = self.trainer.statistics, self.trainer.run_flops.total
            quality = metrics.get("eval_accuracy", -metrics["eval_loss"])  # of language models: higher is better too
            self.points.append(QualityPoint(counts.trained, counts.seen, flops, quality))


def parse(argv: list[str]) -> tuple[ScriptArguments, JESTConfig]:
    """Flags over a YAML recipe over defaults; the recipe of RHO-LOSS where there is no argument at all."""
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config", type=Path, default=None if argv else DEMONSTRATION)
    path, argv = recipe.parse_known_args(argv)
    settings: dict[str, Any] = yaml.safe_load(path.config.read_text()) or {} if path.config is not None else {}
    known = {one.name for kind in (ScriptArguments, JESTConfig) for one in fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"the recipe has settings that do not exist: {', '.join(unknown)}.")
    # Defaults of this script where neither the recipe nor a flag says otherwise; joint selection needs pairs.
    settings = {
        "output_dir": "jest-out",
        "report_to": "none",
        "eval_strategy": "steps",
        "logging_steps": 20,
        "adam_beta2": 0.999,
    } | settings
    if not settings.get("preset") and "--preset" not in argv:
        settings = {"selection": "independent"} | settings
    parser = HfArgumentParser((ScriptArguments, JESTConfig))
    parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(argv)


class Job:
    """The models, the data and the settings of one call of this script."""

    def __init__(self, script: ScriptArguments, args: JESTConfig) -> None:
        self.script, self.args = script, args
        self.train = self.rows(script.dataset, script.dataset_split, script.dataset_where, script.max_train_rows)
        self.eval = self.rows(script.eval_dataset, script.eval_split, script.eval_where)
        self.test = self.rows(script.test_dataset, script.test_split, script.test_where)
        self.clean = self.rows(script.train_reference_on, script.train_reference_split, script.train_reference_where)
        if self.eval is None:
            args.eval_strategy = "no"
        self.names = class_names(self.train, script.label_column) if script.has_labels else []
        self.processor = self.make_processor()
        if script.label_noise:
            self.train = flip_labels(self.train, script.label_noise, args.seed, script.label_column)
        if script.text_noise:
            self.train = scramble_texts(self.train, script.text_noise, args.seed, script.text_column)

    def rows(self, what: str | None, split: str | None, where: dict | None, n: int | None = None) -> Dataset | None:
        """Rows of one source, or none; scenes get the labels of the task."""
        rows = load_source(what, split=split, where=where, max_rows=n) if what else None
        if rows is not None and self.script.has_labels and what.startswith("scenes"):
            rows = label_scenes(rows, self.script.task)
        return rows

    def make_processor(self) -> Any:
        """The learner's image processor or tokenizer; for a learner from a configuration one made here."""
        script = self.script
        if script.learner is not None:
            processor = AutoProcessor.from_pretrained(script.learner)
            if script.kind != "image_classification" and processor.pad_token is None:  # as decoders have none
                processor.pad_token = processor.eos_token
            return processor
        if script.kind == "image_classification":
            return ViTImageProcessorPil(size={"height": script.image_size, "width": script.image_size})
        sources = [rows for rows in (self.clean, self.train) if rows is not None]
        texts = [text for rows in sources for text in rows[script.text_column] if isinstance(text, str)]
        tokenizer = train_tokenizer(texts, script.vocab_size, script.max_length or 20)
        # These models, other than SigLIP's text tower, are told which tokens are padding.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
        return tokenizer

    def fresh_model(self, config: dict[str, Any] | None, seed: int) -> PreTrainedModel:
        """The learner before training, or another model of its kind by its configuration."""
        script, architecture = self.script, MODELS[self.script.kind]
        labels = {"id2label": dict(enumerate(self.names)), "label2id": {n: i for i, n in enumerate(self.names)}}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if config is None and script.learner is not None:
                known = AutoConfig.from_pretrained(script.learner).label2id
                if not script.has_labels or known == labels["label2id"]:
                    return architecture.from_pretrained(script.learner)
                return architecture.from_pretrained(script.learner, **labels, ignore_mismatched_sizes=True)
            sizes = {"image_size": script.image_size} if script.kind == "image_classification" else self.vocabulary()
            sizes |= labels if script.has_labels else {}
            return architecture.from_config(
                AutoConfig.for_model(**sizes, **(config or script.learner_config or TINY_CONFIGS[script.kind]))
            )

    def vocabulary(self) -> dict[str, Any]:
        """What a configuration has to know of the tokenizer."""
        tokenizer = self.processor
        return {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": self.script.max_length or tokenizer.model_max_length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }

    def collator(self, model: PreTrainedModel) -> LabelledCollator:
        """Images or texts and their labels from the columns that were named."""
        script, label2id = self.script, model.config.label2id
        if script.kind == "image_classification":
            columns = {"image_column": script.image_column, "label_column": script.label_column}
            return ImageLabelCollator(self.processor, label2id, **columns)
        texts = {"text_column": script.text_column, "max_length": script.max_length}
        if script.kind == "language_model":
            return LanguageModelCollator(self.processor, **texts)
        return TextLabelCollator(self.processor, label2id, label_column=script.label_column, **texts)

    def settings(self, **changes: Any) -> JESTConfig:
        """This run's arguments with some changed; uniform training has no selectors to compare."""
        if changes.get("selection") == "uniform":
            changes["compare_selectors"] = None
        values = {one.name: getattr(self.args, one.name) for one in fields(JESTConfig) if one.init}
        return JESTConfig(**{**values, **changes})

    def trainer(self, args: JESTConfig, model: PreTrainedModel, rows: Dataset, **options: Any) -> JESTTrainer:
        """A trainer on these rows, evaluated on the evaluation data."""
        return JESTTrainer(
            model=model,
            args=args,
            data_collator=self.collator(model),
            train_dataset=rows,
            eval_dataset=self.eval,
            processing_class=self.processor,
            **options,
        )

    def reference(self) -> PreTrainedModel | str | None:
        """The reference: named, or trained now on the clean rows; none where nobody asks it."""
        script = self.script
        if self.args.reference == "online" or not self.args.uses_reference:
            return None
        if script.ref_model is not None or self.clean is None:
            return script.ref_model
        folder = Path(self.args.output_dir) / "reference"
        if self.args.resume_from_checkpoint and (folder / "model.safetensors").exists():
            return str(folder)
        print(f"Training the reference on {script.train_reference_on} ({len(self.clean):,} rows)", flush=True)
        args = self.settings(
            output_dir=str(folder),
            selection="uniform",
            max_steps=script.reference_steps,
            learning_rate=script.reference_learning_rate,
            eval_steps=script.reference_steps,
            save_strategy="no",
            load_best_model_at_end=False,
            push_to_hub=False,
            record_selection=False,
            source_column=None,
        )
        trainer = self.trainer(args, self.fresh_model(script.reference_config, self.args.seed + 1000), self.clean)
        trainer.train()
        trainer.save_model(str(folder))
        trainer.create_model_card(role="reference", dataset=script.train_reference_on)
        return trainer.model

    def run(self, name: str, reference: PreTrainedModel | str | None, **changes: Any) -> JESTTrainer:
        """Train one learner; its trainer carries the history of its quality."""
        args = self.settings(**changes)
        print(f"Training {name} for {args.max_steps} steps" if args.max_steps > 0 else f"Training {name}", flush=True)
        history = History()
        models = {"ref_model": reference, "proxy_model": self.script.proxy_model}
        trainer = self.trainer(args, self.fresh_model(None, args.seed), self.train, **models, callbacks=[history])
        history.trainer = trainer
        # "True" is the last checkpoint of the output folder, as in the Trainer.
        checkpoint = args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint=True if checkpoint == "True" else checkpoint)
        if self.eval is not None and (not history.points or history.points[-1].trained != trainer.statistics.trained):
            trainer.evaluate()
        trainer.history = history.points
        return trainer


def main(argv: list[str]) -> None:
    script, args = parse(argv)
    if not argv:
        logging.set_verbosity_error()
    job = Job(script, args)
    out = Path(args.output_dir)
    reference = job.reference()

    trainers: dict[str, JESTTrainer] = {}
    if script.compare_uniform_steps:
        trainers["uniform"] = job.run(
            "uniform", None, selection="uniform", max_steps=script.compare_uniform_steps,
            output_dir=str(out / "uniform"), push_to_hub=False, resume_from_checkpoint=None,
        )  # fmt: skip
    name = args.preset or args.selection
    trainers[name] = learner = job.run(name, reference)

    final = {}
    for run, trainer in trainers.items():
        data = job.test if job.test is not None else job.eval
        final[run] = trainer.evaluate(data, metric_key_prefix="test") if data is not None else {}
    learner.save_model(args.output_dir)
    job.processor.save_pretrained(args.output_dir)
    learner.create_model_card(dataset=script.dataset)
    summary = report(trainers, final, out)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\nLearner, processor, model card, selections and summary.json are in {out}/")
    if args.push_to_hub:
        learner.push_to_hub(dataset=script.dataset)


def report(trainers: dict[str, JESTTrainer], final: dict[str, dict[str, float]], out: Path) -> dict[str, Any]:
    """Print the table, draw the plot, and return both as data."""
    metric = "accuracy" if any("test_accuracy" in metrics for metrics in final.values()) else "perplexity"
    rows, summary = [], {"runs": {}}
    for name, trainer in trainers.items():
        counts, metrics, flops = trainer.statistics, final[name], trainer.run_flops.total
        summary["runs"][name] = {
            **counts.totals(),
            "flops": flops,
            "sources": counts.sources,
            "test": metrics,
            "evaluations": [point._asdict() for point in trainer.history],
        }
        value = f"{metrics[f'test_{metric}']:.3f}" if metrics else ""
        rows.append([name, f"{counts.trained:,}", f"{counts.seen:,}", f"{flops:.2e}", value])
    print("\n" + format_table(["run", "examples trained", "examples seen", "FLOPs", metric], rows))
    histories = {name: trainer.history for name, trainer in trainers.items() if trainer.history}
    if histories:
        quality = "accuracy" if metric == "accuracy" else "minus loss"
        plot_quality(histories, out / "quality.png", f"{quality} (validation)")
        print(f"\nQuality against examples and FLOPs: {out / 'quality.png'}")
    if len(histories) == 2:
        (_, baseline), (name, points) = histories.items()
        reached = first_reaching(points, baseline[-1].quality)
        if reached is None:
            print(f"{name} did not become as good as uniform training was in the end.")
        else:
            summary["examples_ratio"] = reached.trained / baseline[-1].trained
            summary["flops_ratio"] = reached.flops / baseline[-1].flops
            print(
                f"{name} was as good as uniform training in the end with {summary['examples_ratio']:.0%} of its "
                f"trained examples and {summary['flops_ratio']:.0%} of its FLOPs."
            )
    return summary


if __name__ == "__main__":
    main(sys.argv[1:])
