# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What `run_jest.py` and `run_labelled.py` share: the flags for data and models, and the runs, table and plot."""

from __future__ import annotations

import argparse
import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import HfArgumentParser, PreTrainedModel

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data import load_source, select_subset
from jest_hf.report import format_table, plot_quality


sys.path.insert(0, str(Path(__file__).parent))
from costs import History, sentence, shares_of  # noqa: E402


# Defaults of the scripts that differ from those of `JESTConfig`.
DEFAULTS = {"output_dir": "jest-out", "report_to": "none", "eval_strategy": "steps", "logging_steps": 20}

JSON = ("_where", "_config")  # endings of the names of flags whose values are JSON


@dataclass
class DataArguments:
    """The data and the models of a run; `JESTConfig` has all other options."""

    dataset: str = field(
        default="scenes:web",
        metadata={"help": "Training data: scenes:<split>, a local file, glob or folder, or a Hub data-set id."},
    )
    dataset_split: str | None = field(default=None, metadata={"help": "Split of --dataset, e.g. train."})
    dataset_where: dict | str | None = field(
        default=None,
        metadata={"help": 'Keep only rows of --dataset with these column values, as JSON: {"split": "train"}.'},
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data to evaluate on during training, named like --dataset. Default: scenes:validation if "
            "--dataset is scenes, else none."
        },
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split of --eval_dataset, e.g. validation."})
    eval_where: dict | str | None = field(
        default=None, metadata={"help": "Keep only rows of --eval_dataset with these column values, as JSON."}
    )
    test_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data for the results after training, named like --dataset. Default: scenes:test if --dataset is "
            "scenes, else --eval_dataset."
        },
    )
    test_split: str | None = field(default=None, metadata={"help": "Split of --test_dataset, e.g. test."})
    test_where: dict | str | None = field(
        default=None, metadata={"help": "Keep only rows of --test_dataset with these column values, as JSON."}
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Keep only this many rows of --dataset, the first ones. Default: all."}
    )
    subset: str | None = field(
        default=None,
        metadata={"help": "Keep only the rows of --dataset in this file, which `jest-hf curate --list` wrote."},
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    scaled_jpeg_decoding: bool = field(
        default=False, metadata={"help": "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, other pixels."}
    )

    learner: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the learner to start from. Default: a small one with random weights."},
    )
    image_size: int = field(
        default=32, metadata={"help": "Height and width of images in pixels, for a learner with random weights."}
    )
    vocab_size: int = field(
        default=2048,
        metadata={"help": "Vocabulary of the tokenizer that is trained for a learner with random weights."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that texts are padded to. Default: the learner's, or 20 with random weights."},
    )

    ref_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the reference. Default: trained first on --train_reference_on."},
    )
    proxy_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the proxy. Default: the reference's architecture, random weights."},
    )
    train_reference_on: str | None = field(
        default=None,
        metadata={
            "help": "Clean data to train a reference on first, without --ref_model; named like --dataset. Default: "
            "scenes:curated if --dataset is scenes, else none."
        },
    )
    train_reference_split: str | None = field(
        default=None, metadata={"help": "Split of --train_reference_on, e.g. train."}
    )
    train_reference_where: dict | str | None = field(
        default=None, metadata={"help": "Keep only rows of --train_reference_on with these column values, as JSON."}
    )
    reference_steps: int = field(
        default=300, metadata={"help": "Number of steps to train the reference on --train_reference_on."}
    )
    reference_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate to train the reference on --train_reference_on."}
    )

    lora_r: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters to train instead of all weights; 0 trains all weights."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers with a LoRA adapter. Default: PEFT's for the model."}
    )

    compare_uniform_steps: int = field(
        default=0,
        metadata={"help": "Train the learner without selection too, for this many steps, and compare; 0: do not."},
    )
    compare_uniform_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the run without selection. Default: --learning_rate."}
    )
    compare_learnability_steps: int = field(
        default=0,
        metadata={"help": "Train the learner by learnability too, for this many steps, and compare; 0: do not."},
    )
    compare_learnability_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the run by learnability. Default: --learning_rate."}
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith(JSON) and isinstance(value, str):
                setattr(self, name, json.loads(value))
        if self.dataset.startswith("scenes"):
            self.eval_dataset = self.eval_dataset or "scenes:validation"
            self.test_dataset = self.test_dataset or "scenes:test"
            if self.ref_model is None:
                self.train_reference_on = self.train_reference_on or "scenes:curated"


def parse(kind: type[DataArguments], argv: list[str], demonstration: Path, **defaults: Any) -> tuple[Any, JESTConfig]:
    """Read flags, a YAML recipe (flags win over it) and defaults; without any flag, the demonstration's recipe."""
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config", type=Path, default=None if argv else demonstration)
    recipe.add_argument("--preset")
    given, argv = recipe.parse_known_args(argv)
    settings: dict[str, Any] = yaml.safe_load(given.config.read_text()) or {} if given.config is not None else {}
    settings["preset"] = given.preset or settings.get("preset")
    known = {one.name for arguments in (kind, JESTConfig) for one in fields(arguments)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"the recipe has settings that do not exist: {', '.join(unknown)}.")
    if settings["preset"]:
        defaults.pop("selection", None)  # the preset sets it
    parser = HfArgumentParser((kind, JESTConfig))
    parser.set_defaults(**DEFAULTS | defaults | settings)
    return parser.parse_args_into_dataclasses(argv)


class Comparison(ABC):
    """The models, the data and the settings of one call of a script. It trains a reference on clean data, unless one
    is given; then the learner on selected examples. With `compare_uniform_steps`, it trains the learner without
    selection too, and with `compare_learnability_steps` by learnability.
    """

    baseline = "IID"  # name of the run without selection
    by_learnability = "learnability"  # name of the run with `compare_learnability_steps`

    def __init__(self, script: DataArguments, args: JESTConfig) -> None:
        self.script, self.args = script, args
        self.train = self.rows(script.dataset, script.dataset_split, script.dataset_where, script.max_train_rows)
        if script.subset is not None:
            self.train = select_subset(self.train, script.subset)
        self.eval = self.rows(script.eval_dataset, script.eval_split, script.eval_where)
        self.test = self.rows(script.test_dataset, script.test_split, script.test_where)
        self.curated = self.rows(script.train_reference_on, script.train_reference_split, script.train_reference_where)
        if self.eval is None:
            args.eval_strategy = "no"
        # Of training the reference here: its cost, its row in the results, and its metrics on the evaluation data.
        self.reference_cost: dict[str, float] | None = None
        self.reference_row: list[str] | None = None
        self.reference_metrics: dict[str, float] = {}
        if script.compare_learnability_steps and args.criterion == "learnability":
            raise ValueError(
                f"compare_learnability_steps={script.compare_learnability_steps} compares a run by another criterion "
                f"with one by learnability, and criterion={args.criterion!r}: set another criterion or leave it out."
            )

    # ---- What a script defines ----

    processor: Any

    @abstractmethod
    def fresh_model(self, seed: int) -> PreTrainedModel:
        """Return the learner before training."""

    def fresh_reference(self, seed: int) -> PreTrainedModel:
        """Return the reference before training."""
        return self.fresh_model(seed)

    @abstractmethod
    def collator(self, model: PreTrainedModel) -> Any:
        """Return the data collator for a model, with the columns of the flags."""

    @abstractmethod
    def quality(self, metrics: dict[str, float]) -> float:
        """Return the quality of a run from the metrics of an evaluation; higher is better."""

    @abstractmethod
    def measures(self) -> tuple[str, list[str]]:
        """Return the name of `quality`, and the names of the metrics in the table."""

    # ---- What the scripts share ----

    def rows(self, what: str | None, split: str | None, where: dict | None, n: int | None = None) -> Dataset | None:
        """Load the rows of one source, or `None` without a source."""
        return load_source(what, split=split, where=where, max_rows=n) if what else None

    def settings(self, **changes: Any) -> JESTConfig:
        """Return the run's arguments with some changed. A uniform run has no option that needs a selection."""
        if changes.get("selection") == "uniform":
            alone = {"distillation_weight": 0.0, "compare_selectors": None, "scoring_view": None}
            changes |= alone | {"low_resolution_fraction": None, "eval_at_view": False}
        values = {one.name: getattr(self.args, one.name) for one in fields(JESTConfig) if one.init}
        return JESTConfig(**{**values, **changes})

    def trainer(self, args: JESTConfig, model: PreTrainedModel, rows: Dataset, **options: Any) -> JESTTrainer:
        """Make a trainer on these rows, with the evaluation data."""
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
        """Return the reference: the given one, or one trained now on the clean rows; `None` if none is needed."""
        script, args = self.script, self.args
        if args.reference_cache or args.reference == "online" or not args.uses_reference:
            return None
        if script.ref_model is not None or self.curated is None or args.reference == "adapter":
            return script.ref_model
        folder = str(Path(args.output_dir) / "reference")
        if args.resume_from_checkpoint and (Path(folder) / "model.safetensors").exists():
            return folder
        print(f"Training the reference on {script.train_reference_on} ({len(self.curated):,} rows)", flush=True)
        args = self.settings(
            output_dir=folder,
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
        history = History(self.quality)
        trainer = self.trainer(args, self.fresh_reference(args.seed + 1000), self.curated, callbacks=[history])
        history.start(trainer)
        trainer.train()
        wall, cpu = history.spent.tolist()
        self.reference_cost = {"flops": trainer.run_flops.total, "seconds": wall, "cpu_seconds": cpu}
        self.reference_row = self.row("reference", trainer, f"{wall:.0f}", self.evaluate(trainer))
        self.reference_metrics = next((one for one in trainer.state.log_history[::-1] if "eval_loss" in one), {})
        trainer.save_model(folder)
        trainer.create_model_card(role="reference", **self.about(script.train_reference_on))
        return trainer.model

    def run(self, name: str, rows: Dataset, reference: PreTrainedModel | str | None, **changes: Any) -> JESTTrainer:
        """Train one learner; the returned trainer has the history of its quality."""
        args = self.settings(**changes)
        print(f"Training {name} for {args.max_steps} steps" if args.max_steps > 0 else f"Training {name}", flush=True)
        history = History(self.quality)
        models = {"ref_model": reference, "proxy_model": self.script.proxy_model}
        trainer = self.trainer(
            args, self.fresh_model(args.seed), rows, **models, peft_config=self.adapter(), callbacks=[history]
        )
        history.start(trainer)
        # "True" means the last checkpoint in the output folder, as in the Trainer.
        checkpoint = args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint=True if checkpoint == "True" else checkpoint)
        points = history.points
        if self.eval is not None and (not points or points[-1].trained != trainer.statistics.trained):
            trainer.evaluate()
        trainer.history, trainer.costs = history.points, history.costs
        return trainer

    def adapter(self) -> Any:
        """Return the adapter to train instead of all weights, a `peft.LoraConfig`, or `None`."""
        script = self.script
        if not script.lora_r:
            return None
        from peft import LoraConfig

        return LoraConfig(r=script.lora_r, lora_alpha=2 * script.lora_r, target_modules=script.lora_target_modules)

    def compare(self, name: str) -> None:
        """Train and evaluate all runs of the script, and save the learner and the results in `output_dir`."""
        script, out = self.script, Path(self.args.output_dir)
        reference = self.reference()
        trainers: dict[str, JESTTrainer] = {}
        if self.args.selection == "uniform":
            name = self.baseline
        else:
            others = {
                self.baseline: ("uniform", {"selection": "uniform"}, None),
                self.by_learnability: ("learnability", {"criterion": "learnability"}, reference),
            }
            for other, (option, changes, its_reference) in others.items():
                steps = getattr(script, f"compare_{option}_steps")
                rate = getattr(script, f"compare_{option}_learning_rate") or self.args.learning_rate
                if steps:
                    trainers[other] = self.run(
                        other, self.train, its_reference, **changes, max_steps=steps, learning_rate=rate,
                        output_dir=str(out / other.lower()), push_to_hub=False, resume_from_checkpoint=None,
                    )  # fmt: skip
        trainers[name] = learner = self.run(name, self.train, reference)

        final = {run: self.evaluate(trainer) for run, trainer in trainers.items()}
        learner.save_model(str(out))
        self.processor.save_pretrained(out)
        about = self.about(script.dataset) | {"reference_metrics": self.reference_metrics}
        learner.create_model_card(**about)
        summary = self.report(trainers, final, out)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"\nLearner, processor, model card, selections and summary.json are in {out}/")
        if self.args.push_to_hub:
            learner.push_to_hub(**about)

    def evaluate(self, trainer: JESTTrainer) -> dict[str, float]:
        """Return the metrics of a trained model on the test data, or else on the evaluation data."""
        data = self.test if self.test is not None else self.eval
        return trainer.evaluate(data, metric_key_prefix="test") if data is not None else {}

    def about(self, dataset: str) -> dict[str, Any]:
        """Return what a model card tells about the data of a run."""
        return {"dataset": dataset, "eval_dataset": self.script.eval_dataset, "eval_split": self.script.eval_split}

    def row(self, name: str, trainer: JESTTrainer, seconds: str, metrics: dict[str, float]) -> list[str]:
        """Return the row of a run in the table of results."""
        counts, shown = trainer.statistics, self.measures()[1]
        values = [f"{metrics[f'test_{one}']:.3f}" if f"test_{one}" in metrics else "" for one in shown]
        return [name, f"{counts.trained:,}", f"{counts.seen:,}", f"{trainer.run_flops.total:.2e}", seconds, *values]

    def report(
        self, trainers: dict[str, JESTTrainer], final: dict[str, dict[str, float]], out: Path
    ) -> dict[str, Any]:
        """Print the table, draw the plot, and return the data of both."""
        quality, shown = self.measures()
        rows = [] if self.reference_row is None else [self.reference_row]
        summary: dict[str, Any] = {"reference": self.reference_cost, "runs": {}}
        for name, trainer in trainers.items():
            counts = trainer.statistics
            summary["runs"][name] = {
                **counts.totals(),
                "flops": trainer.run_flops.total,
                "learning_rate": trainer.args.learning_rate,
                "sources": counts.sources,
                "test": final[name],
                "evaluations": trainer.costs,
            }
            seconds = f"{trainer.history[-1].seconds:.0f}" if trainer.history else ""
            rows.append(self.row(name, trainer, seconds, final[name]))
        print("\n" + format_table(["run", "examples trained", "examples seen", "FLOPs", "seconds", *shown], rows))
        print("FLOPs and seconds include the reference's pass over the data; no evaluation is in the seconds.")
        histories = {name: trainer.history for name, trainer in trainers.items() if trainer.history}
        if histories:
            compared = self.baseline if self.baseline in histories else None
            plot_quality(histories, out / "quality.png", f"{quality} (validation)", baseline=compared)
            print(f"\nQuality against examples, FLOPs and seconds: {out / 'quality.png'}")
        if self.baseline in histories:
            summary["to_baseline"] = shares = {}
            aim = f"{self.baseline}'s final validation {quality} ({histories[self.baseline][-1].quality:.3f})"
            for name in histories:
                if name != self.baseline:
                    shares[name] = shares_of(trainers[self.baseline].costs, trainers[name].costs, self.reference_cost)
                    print(sentence(name, aim, shares[name]))
        return summary
