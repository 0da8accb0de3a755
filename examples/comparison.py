# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What `run_jest.py` and `run_labelled.py` share: the flags for data and models, and the runs, table and plot."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data import load_source
from jest_hf.flags import in_flags
from jest_hf.report import format_table, plot_quality


sys.path.insert(0, str(Path(__file__).parent))
from costs import History, sentence, shares_of  # noqa: E402
from script_flags import DataArguments  # noqa: E402


BUFFER = 1000  # rows of a stream in memory, to shuffle them


class Comparison(ABC):
    """The models, the data and the settings of one call of a script. It trains a reference on clean data, unless one
    is given; then the learner on selected examples. With `compare_uniform_steps`, it trains the learner without
    selection too, and with `compare_learnability_steps` by learnability.
    """

    baseline = "IID"  # name of the run without selection
    by_learnability = "learnability"  # name of the run with `compare_learnability_steps`

    def __init__(self, script: DataArguments, args: JESTConfig) -> None:
        self.script, self.args = script, args
        more = {"max_rows": script.max_train_rows, "subset": script.subset, "streaming": script.streaming}
        self.train = self.source("dataset", **{name: value for name, value in more.items() if value})
        if script.streaming and args.max_steps < 1:
            raise ValueError("streaming=True needs max_steps: the number of rows of a stream is not known.")
        self.eval = self.source("eval_dataset")
        self.test = self.source("test_dataset")
        self.curated = self.source("train_reference_on")
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

    def rows(self, what: str, **options: Any) -> Dataset:
        """Load the rows of one source: arguments of `load_source`."""
        return load_source(what, **options)

    def source(self, flag: str, **options: Any) -> Dataset | None:
        """Load the rows that a flag names, or `None` without it; an error speaks in this flag and its companions."""
        stem = {"dataset": "dataset", "train_reference_on": "train_reference"}.get(flag, flag.removesuffix("_dataset"))
        flags = {"spec": flag, "split": f"{stem}_split", "where": f"{stem}_where", "max_rows": "max_train_rows"}
        what, split, where = (getattr(self.script, flags[name]) for name in ("spec", "split", "where"))
        try:
            return self.rows(what, split=split, where=where, **options) if what else None
        except (ValueError, OSError) as error:
            raise ValueError(in_flags(str(error), (), flags)) from error

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
        if self.script.streaming:
            rows = rows.shuffle(seed=args.seed, buffer_size=BUFFER)
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
