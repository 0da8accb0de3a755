# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train a dual encoder on selected examples, from any data set, with any reference.

    accelerate launch examples/run_jest.py                                   # the demonstration: no data, no network
    accelerate launch examples/run_jest.py --config examples/recipes/hub_siglip.yaml --learning_rate 1e-4

Flags are the fields of `ScriptArguments` below and of `JESTConfig` (every `TrainingArguments` field among them); a
YAML recipe takes the same names, and flags win over it. Without any argument the script trains a reference on a small
curated set, then the same learner twice on a large noisy one, IID and with JEST, and shows what each reached at which
cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoModel, AutoProcessor, HfArgumentParser, PreTrainedModel, TrainerCallback
from transformers.utils import logging

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from jest_hf.collator import CAPTION_COLUMNS
from jest_hf.data import build_processor, load_source
from jest_hf.models import build_siglip
from jest_hf.report import QualityPoint, first_reaching, format_table, plot_quality


DEMONSTRATION = Path(__file__).parent / "recipes" / "demo.yaml"


@dataclass
class ScriptArguments:
    """What to train on what; how is in `JESTConfig`."""

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
    caption_column: str | None = field(
        default=None, metadata={"help": "Column of the captions; default: text, caption or captions."}
    )

    learner: str | None = field(default=None, metadata={"help": "Hub id or path of the learner to start from."})
    learner_size: str = field(default="tiny", metadata={"help": "Without one: tiny, small or base, random weights."})
    image_size: int = field(default=32, metadata={"help": "Pixels a side, for a learner from a size."})
    patch_size: int = field(default=8, metadata={"help": "Pixels a side of a patch, for a learner from a size."})
    vocab_size: int = field(default=2048, metadata={"help": "Of the tokenizer trained for a learner from a size."})
    max_length: int | None = field(default=None, metadata={"help": "Text tokens; 20 for a learner from a size."})

    ref_model: str | None = field(default=None, metadata={"help": "Hub id or path of the reference."})
    proxy_model: str | None = field(
        default=None, metadata={"help": "Hub id or path of the proxy; default: fresh, like the reference."}
    )
    train_reference_on: str | None = field(
        default=None, metadata={"help": "Without one: curated data on which to train it first, named like dataset."}
    )
    train_reference_split: str | None = field(default=None, metadata={"help": "Its split."})
    train_reference_where: dict | str | None = field(default=None, metadata={"help": "Its rows, as dataset_where."})
    reference_steps: int = field(default=300, metadata={"help": "Steps of its training."})
    reference_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of its training."})

    compare_uniform_steps: int = field(
        default=0, metadata={"help": "Also train the IID baseline, for so many steps, and compare."}
    )

    def __post_init__(self) -> None:
        for name in ("dataset_where", "eval_where", "test_where", "train_reference_where"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, json.loads(getattr(self, name)))
        if self.dataset.startswith("scenes"):
            self.eval_dataset = self.eval_dataset or "scenes:validation"
            self.test_dataset = self.test_dataset or "scenes:test"
            if self.ref_model is None:
                self.train_reference_on = self.train_reference_on or "scenes:curated"


class History(TrainerCallback):
    """Keeps the quality at every evaluation, and what had been spent by then."""

    def __init__(self) -> None:
        self.points: list[QualityPoint] = []
        self.trainer: JESTTrainer | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_R@5" in metrics:
            counts, flops = self.trainer.statistics, self.trainer.run_flops.total
            self.points.append(QualityPoint(counts.trained, counts.seen, flops, metrics["eval_R@5"]))


def parse(argv: list[str]) -> tuple[ScriptArguments, JESTConfig]:
    """Flags over a YAML recipe over defaults; the demonstration's recipe where there is no argument at all."""
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config", type=Path, default=None if argv else DEMONSTRATION)
    path, argv = recipe.parse_known_args(argv)
    settings: dict[str, Any] = yaml.safe_load(path.config.read_text()) or {} if path.config is not None else {}
    known = {one.name for kind in (ScriptArguments, JESTConfig) for one in fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"the recipe has settings that do not exist: {', '.join(unknown)}.")
    # Defaults of this script where neither the recipe nor a flag says otherwise.
    settings = {
        "output_dir": "jest-out",
        "report_to": "none",
        "eval_strategy": "steps",
        "logging_steps": 20,
    } | settings
    parser = HfArgumentParser((ScriptArguments, JESTConfig))
    parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(argv)


def load_rows(what: str | None, split: str | None, where: dict | None, max_rows: int | None = None) -> Dataset | None:
    """Rows of one source, or none."""
    return load_source(what, split=split, where=where, max_rows=max_rows) if what else None


def captions_of(rows: Dataset, column: str | None) -> list[str]:
    """All captions, for the tokenizer of a learner that starts from nothing."""
    column = column or next((name for name in CAPTION_COLUMNS if name in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"the data have none of the columns {', '.join(CAPTION_COLUMNS)} "
            f"(there are: {', '.join(rows.column_names)}); name the column of the captions with caption_column."
        )
    values = (value if isinstance(value, list) else [value] for value in rows[column])
    return [caption for several in values for caption in several if isinstance(caption, str)]


class Job:
    """The models, the data and the settings of one call of this script."""

    def __init__(self, script: ScriptArguments, args: JESTConfig) -> None:
        self.script, self.args = script, args
        self.train = load_rows(script.dataset, script.dataset_split, script.dataset_where, script.max_train_rows)
        self.eval = load_rows(script.eval_dataset, script.eval_split, script.eval_where)
        self.test = load_rows(script.test_dataset, script.test_split, script.test_where)
        self.curated = load_rows(script.train_reference_on, script.train_reference_split, script.train_reference_where)
        if self.eval is None:
            args.eval_strategy = "no"
        elif args.eval_group_column is None and "group" in self.eval.column_names:
            args.eval_group_column = "group"
        if script.learner is not None:
            self.processor = AutoProcessor.from_pretrained(script.learner)
        else:
            sources = [rows for rows in (self.curated, self.train) if rows is not None]
            captions = [caption for rows in sources for caption in captions_of(rows, script.caption_column)]
            self.processor = build_processor(captions, script.image_size, script.vocab_size, script.max_length or 20)

    def fresh_model(self, seed: int) -> PreTrainedModel:
        """The learner before training."""
        script = self.script
        if script.learner is not None:
            return AutoModel.from_pretrained(script.learner)
        return build_siglip(
            script.learner_size,
            self.processor.tokenizer,
            image_size=script.image_size,
            patch_size=script.patch_size,
            seed=seed,
        )

    def collator(self) -> JESTDataCollator:
        """Images and captions from the columns that were named."""
        script = self.script
        return JESTDataCollator(
            self.processor,
            image_column=script.image_column,
            caption_column=script.caption_column,
            max_length=script.max_length,
            seed=self.args.seed,
        )

    def settings(self, **changes: Any) -> JESTConfig:
        """This run's arguments with some changed; uniform training is that alone, whatever it is compared with."""
        if changes.get("selection") == "uniform":
            changes |= {"distillation_weight": 0.0, "compare_selectors": None}
        values = {one.name: getattr(self.args, one.name) for one in fields(JESTConfig) if one.init}
        return JESTConfig(**{**values, **changes})

    def trainer(self, args: JESTConfig, model: PreTrainedModel, rows: Dataset, **options: Any) -> JESTTrainer:
        """A trainer on these rows, evaluated on the evaluation data."""
        return JESTTrainer(
            model=model,
            args=args,
            data_collator=self.collator(),
            train_dataset=rows,
            eval_dataset=self.eval,
            processing_class=self.processor,
            **options,
        )

    def reference(self) -> PreTrainedModel | str | None:
        """The reference: named, or trained now on the curated rows; none where nobody asks it, or a cache answers."""
        if self.args.reference_cache or self.args.reference == "online" or not self.args.uses_reference:
            return None
        if self.curated is None:
            return self.script.ref_model
        folder = str(Path(self.args.output_dir) / "reference")
        if self.args.resume_from_checkpoint and (Path(folder) / "model.safetensors").exists():
            return folder
        print(f"Training the reference on {self.script.train_reference_on} ({len(self.curated):,} rows)", flush=True)
        steps = self.script.reference_steps
        args = self.settings(
            output_dir=folder,
            selection="uniform",
            max_steps=steps,
            learning_rate=self.script.reference_learning_rate,
            eval_steps=steps,
            save_strategy="no",
            load_best_model_at_end=False,
            push_to_hub=False,
            record_selection=False,
        )
        trainer = self.trainer(args, self.fresh_model(self.args.seed + 1000), self.curated)
        trainer.train()
        trainer.save_model(folder)
        trainer.create_model_card(role="reference", dataset=self.script.train_reference_on)
        return trainer.model

    def run(self, name: str, rows: Dataset, reference: PreTrainedModel | str | None, **changes: Any) -> JESTTrainer:
        """Train one learner; its trainer carries the history of its quality."""
        args = self.settings(**changes)
        print(f"Training {name} for {args.max_steps} steps" if args.max_steps > 0 else f"Training {name}", flush=True)
        history = History()
        models = {"ref_model": reference, "proxy_model": self.script.proxy_model}
        trainer = self.trainer(args, self.fresh_model(args.seed), rows, **models, callbacks=[history])
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
        trainers["IID"] = job.run(
            "IID", job.train, None, selection="uniform", max_steps=script.compare_uniform_steps,
            output_dir=str(out / "iid"), push_to_hub=False, resume_from_checkpoint=None,
        )  # fmt: skip
    name = args.preset or {"joint": "JEST", "uniform": "IID"}.get(args.selection, args.selection)
    trainers[name] = learner = job.run(name, job.train, reference)

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
    rows, summary = [], {"runs": {}}
    for name, trainer in trainers.items():
        counts, metrics, points = trainer.statistics, final[name], trainer.history
        flops = trainer.run_flops.total
        summary["runs"][name] = {
            **counts.totals(),
            "flops": flops,
            "test": metrics,
            "evaluations": [point._asdict() for point in points],
        }
        rows.append(
            [name, f"{counts.trained:,}", f"{counts.seen:,}", f"{flops:.2e}"]
            + [f"{metrics[key]:.3f}" if key in metrics else "" for key in ("test_R@1", "test_R@5")]
        )
    print("\n" + format_table(["run", "examples trained", "examples seen", "FLOPs", "R@1", "R@5"], rows))
    histories = {name: trainer.history for name, trainer in trainers.items() if trainer.history}
    if histories:
        plot_quality(histories, out / "quality.png", "retrieval R@5 (validation)")
        print(f"\nQuality against examples and FLOPs: {out / 'quality.png'}")
    if len(histories) == 2:
        baseline, jest = histories.values()
        reached = first_reaching(jest, baseline[-1].quality)
        if reached is None:
            print(f"{list(histories)[1]} did not reach the IID run's final R@5.")
        else:
            summary["examples_ratio"] = reached.trained / baseline[-1].trained
            summary["flops_ratio"] = reached.flops / baseline[-1].flops
            print(
                f"{list(histories)[1]} reached the IID run's final validation R@5 ({baseline[-1].quality:.3f}) with "
                f"{summary['examples_ratio']:.0%} of its trained examples and "
                f"{summary['flops_ratio']:.0%} of its FLOPs."
            )
    return summary


if __name__ == "__main__":
    main(sys.argv[1:])
