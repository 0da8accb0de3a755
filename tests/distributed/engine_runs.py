# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The launches that test_engines.py looks at: each trains several times under one engine."""

from __future__ import annotations

import functools
import itertools

from transformers import AutoModel, AutoProcessor

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.report.ledger import read_selections
from tests.distributed.launching import launch, preset_of, start
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip_processor


WORLD_SIZE = 2
STEPS = 6
# Sums over ranks are taken in another order under each engine; six steps of Adam at 1e-3 carry that on.
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}

# name of an engine -> (the preset of its launch, the DeepSpeed settings that replace those of the preset)
ENGINES = {
    "ddp": ("ddp", None),
    "zero1": ("zero2", "zero1"),
    "zero2": ("zero2", "zero2"),
    "zero3": ("zero3", "zero3"),
    "zero3_offload": ("zero3", "zero3_offload"),
}
# Half of the sub-batch of each process is trained on at the view, in the forward of the other half.
VIEWS = {"scoring_view": "image:8", "low_resolution_fraction": 0.5}
# A proxy scores, and the reference learns: two models beside the engine's own.
BESIDE = {"scoring": "proxy", "reference": "online", "max_steps": 4}
CLIP_ENGINES = {"zero1", "zero2", "zero3"}
# A CLIP, whose temperature has no dimension. The model with the GREATEST loss is the best, so it is not the last one.
CLIP = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}
# preset -> (steps after which the last rank of a job is killed, step of the last checkpoint)
KILLED = {"ddp": (3, 2), "zero2": (5, 4)}
STAGES = {"ddp": None, "zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}


class Runs:
    """The runs of all engines, and what is left of them in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.reports = {}  # name of a run -> what each rank reports of it
        self.killed = {}  # preset -> the job of which a rank was killed
        for build, processor, kind in (
            (tiny_siglip, tiny_siglip_processor, ""),
            (tiny_clip, tiny_clip_processor, "clip_"),
        ):
            for name, seed in (("learner", 0), ("reference", 1)):
                build(seed).save_pretrained(folder / f"{kind}{name}")
                processor().save_pretrained(folder / f"{kind}{name}")

    def settings(self, name, **more):
        """Of JESTConfig; each process trains on 4 of 8 examples a step."""
        settings = {
            "output_dir": str(self.folder / name),
            "per_device_train_batch_size": 4,
            "filter_ratio": 0.5,
            "n_chunks": 2,
            "selection_gain": 10.0,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "adam_epsilon": 1e-5,  # attention's key biases have a gradient of 0 and noise, which Adam would blow up
            "max_steps": STEPS,
            "save_steps": 2,
            "logging_steps": 1,
            "record_selection": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return settings | ({"use_cpu": True} if name.startswith("ddp") else {"ddp_backend": "gloo"}) | more

    def run(self, name, deepspeed=None, **more):
        """Arguments of `train_script.train`."""
        options = {key: more.pop(key) for key in ("resume_from", "dies_after", "lora", "initialised") if key in more}
        kind = "clip_" if more.pop("clip", False) else ""
        options |= {"evaluates": "eval_steps" in more}
        paths = {name: str(self.folder / f"{kind}{name}") for name in ("learner", "reference")}
        return paths | {"settings": self.settings(name, **more), "deepspeed": deepspeed} | options

    @functools.cached_property
    def alone(self):
        """One process that trains on as many examples a step as the others together."""
        return self.train_alone(JESTTrainer, "alone")

    @functools.cached_property
    def alone_beside(self):
        """The same with a proxy and an online reference."""
        return self.train_alone(JESTTrainer, "alone_beside", **BESIDE)

    @functools.cached_property
    def alone_clip(self):
        """The same with CLIPs."""
        return self.train_alone(JESTTrainer, "alone_clip", kind="clip_", **CLIP)

    def train_alone(self, trainer_class, name, kind="", **more):
        settings = self.settings(name, use_cpu=True, ddp_backend=None, per_device_train_batch_size=8, **more)
        trainer = trainer_class(
            model=AutoModel.from_pretrained(self.folder / f"{kind}learner"),
            args=JESTConfig(**settings),
            train_dataset=random_rows(96, seed=5),
            eval_dataset=random_rows(16, seed=6) if "eval_steps" in more else None,
            ref_model=AutoModel.from_pretrained(self.folder / f"{kind}reference"),
            processing_class=AutoProcessor.from_pretrained(self.folder / f"{kind}learner"),
        )
        trainer.train()
        return trainer

    def launch(self, preset):
        """One launch, with all the runs that need this preset."""
        engines = [name for name, (launched_by, _) in ENGINES.items() if launched_by == preset]
        runs = {}
        if preset in KILLED:
            name, (dies_after, last_checkpoint) = f"{preset}_killed", KILLED[preset]
            folder = self.folder / f"{name}_reports"
            self.killed[preset] = start(preset_of(preset), folder, [self.run(name, dies_after=dies_after)])
            checkpoint = str(self.folder / name / f"checkpoint-{last_checkpoint}")
            runs[name] = self.run(name, resume_from=checkpoint)
        runs |= {name: self.run(name, ENGINES[name][1]) for name in engines}
        if preset == "zero3":
            runs["zero3_sharded"] = self.run("zero3_sharded", "zero3", ref_placement="sharded")
        for name in {"zero1", "zero3"} & set(engines):
            checkpoint = str(self.folder / name / "checkpoint-2")
            runs[f"{name}_resumed"] = self.run(f"{name}_resumed", ENGINES[name][1], resume_from=checkpoint)
        for name in CLIP_ENGINES & set(engines):
            more = CLIP | ({"ref_placement": "sharded"} if name == "zero3" else {})
            runs[f"{name}_clip"] = self.run(f"{name}_clip", ENGINES[name][1], clip=True, **more)
            if name == preset:
                resumed, checkpoint = f"{name}_clip_resumed", str(self.folder / f"{name}_clip" / "checkpoint-2")
                more |= {"clip": True, "initialised": True, "resume_from": checkpoint}
                runs[resumed] = self.run(resumed, ENGINES[name][1], **more)
        runs[f"{preset}_lora"] = self.run(
            f"{preset}_lora", ENGINES[preset][1], lora=True, reference="adapter", max_steps=3, learning_rate=1e-2
        )
        runs[f"{preset}_views"] = self.run(f"{preset}_views", ENGINES[preset][1], **VIEWS)
        runs[f"{preset}_beside"] = self.run(f"{preset}_beside", ENGINES[preset][1], **BESIDE)
        checkpoint = str(self.folder / f"{preset}_beside" / "checkpoint-2")
        runs[f"{preset}_beside_resumed"] = self.run(
            f"{preset}_beside_resumed", ENGINES[preset][1], resume_from=checkpoint, **BESIDE
        )
        runs[f"{preset}_bf16"] = self.run(f"{preset}_bf16", ENGINES[preset][1], bf16=True, max_steps=2)
        reported = launch(preset, self.folder / f"{preset}_reports", list(runs.values()))
        self.reports |= dict(zip(runs, reported, strict=True))

    def checkpoint(self, name, step=STEPS):
        """The model of a checkpoint, as anybody would load it."""
        return AutoModel.from_pretrained(self.folder / name / f"checkpoint-{step}")

    def selections(self, name):
        """The recorded selections of a run: the example ids of each step, in order of drawing."""
        table = read_selections(self.folder / name / "selections.parquet").to_pylist()
        table.sort(key=lambda row: (row["step"], row["order"]))
        return {
            step: [row["example_id"] for row in rows]
            for step, rows in itertools.groupby(table, key=lambda row: row["step"])
        }
