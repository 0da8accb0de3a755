# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""JEST++: bootstrap data quality, from a small trusted set to a learner trained on the best of a large noisy pool.

    accelerate launch examples/bootstrap_reference.py --config examples/recipes/bootstrap.yaml
    accelerate launch examples/bootstrap_reference.py --config examples/recipes/bootstrap.yaml learner.max_steps=300

A recipe describes a chain of stages, each with a folder in `output_dir`:

1. `aligner`: a first model, trained on a small trusted set (`seed_dataset`), or an existing one (`aligner: <id>`);
2. `measures`: scores of every row of the pool, by the aligner and a few plain functions; `curated`: the rows that pass
   the `filters`;
3. `reference`: trained on the curated set, IID;
4. `learner`: trained on the examples of the whole pool that are selected with the reference; with `rounds: 2` and
   more, repeated with the learner as the next reference (`learner-2`, ...).

With `curated_dataset` the chain starts at 3. When the script is started again, finished stages are skipped, and an
interrupted stage continues from its last checkpoint (the measures: from the last part of the pool). A stage is
identified by the settings in its `_stage.json`: its section of the recipe and the shared sections, the data
(captions, and a sample of the images), and the stages before it. If any of these has changed, the script stops with a
message that names the change: no old result is reused, and nothing is deleted. With `hub_name: me/name` every finished
stage is published: `me/name-curated`, `me/name-reference` and so on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from accelerate import PartialState
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from jest_hf.curation import CurationFilters, curate, join, measure_alignment, measure_captions, measure_images
from jest_hf.data import build_processor, load_source
from jest_hf.data.rows import Rows
from jest_hf.hub import CuratedSummary
from jest_hf.models import build_siglip
from jest_hf.models.load import load_processor
from jest_hf.reference import identify_reference, load_learner, load_reference
from jest_hf.reference.fingerprint import describe_data, describe_reading
from jest_hf.report import forward_flops


sys.path.insert(0, str(Path(__file__).parent))
import run_jest  # noqa: E402
from stages import Stage, publish_data, publish_folder, replacing, table_of  # noqa: E402


logger = logging.get_logger(__name__)

ROWS_IN_PART = 8192  # rows of the pool between two saves of the measures
# Prefixes of settings that do not change the results of a stage.
HOW = ("dataloader_", "disable_tqdm", "logging_", "report_to", "save_", "hub_", "scoring_batch_size")
QUIET = {"report_to": "none", "eval_strategy": "no", "save_strategy": "steps", "save_total_limit": 1}


@dataclass
class Recipe:
    """The settings of the whole chain. A source is as in [`~jest_hf.data.load_source`]: `{spec: scenes:web}`.

    `model` describes the model that every training starts from: `learner` (Hub id or path), or `size`, `image_size`,
    `patch_size`, `vocab_size` and `max_length` for random weights. `training` has options of [`JESTConfig`] for all
    stages; `aligner_training`, `reference` and `learner` have options for one stage.
    """

    output_dir: str
    pool: dict[str, Any]
    curated_dataset: dict[str, Any] | None = None
    seed_dataset: dict[str, Any] | None = None
    aligner: str | None = None
    aligner_revision: str | None = None
    validation: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    image_column: str = "image"
    caption_column: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    filters: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    aligner_training: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    learner_starts_from_reference: bool = False
    rounds: int = 1
    hub_name: str | None = None
    hub_private: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("curated_dataset", "seed_dataset", "aligner") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"the recipe sets {' and '.join(given) or 'none'} of curated_dataset, aligner and seed_dataset; set "
                "one: curated_dataset (a data set that is already curated), aligner (a model that scores how well "
                "captions fit) or seed_dataset (data to train such a model on)."
            )
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds} must be at least 1.")
        self.model = MODEL | self.model
        _check_names("model", self.model, MODEL)
        _check_names("filters", self.filters, [one.name for one in fields(CurationFilters)])
        for section in ("training", "aligner_training", "reference", "learner"):
            _check_names(section, getattr(self, section), [one.name for one in fields(JESTConfig)])


MODEL = {"learner": None, "size": "tiny", "image_size": 32, "patch_size": 8, "vocab_size": 2048, "max_length": None}


def _check_names(section: str, given: Any, known: Any) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"the recipe has settings that do not exist in {section}: {', '.join(unknown)}.")


def parse(argv: list[str]) -> Recipe:
    """Read the recipe, and change it by `section.name=value` from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file with the recipe")
    parser.add_argument("changes", nargs="*", help="changes to the recipe, e.g. learner.max_steps=300")
    options = parser.parse_args(argv)
    settings = yaml.safe_load(options.config.read_text())
    for change in options.changes:
        name, equals, value = change.partition("=")
        if not equals:
            parser.error(f"{change!r} is not a setting; write name=value or section.name=value.")
        *sections, name = name.split(".")
        holder = settings
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[name] = yaml.safe_load(value)
    _check_names("the recipe", settings, [one.name for one in fields(Recipe)])
    return Recipe(**settings)


class Chain:
    """The stages of a recipe, in order. Each method runs one stage, or returns it if it is finished."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.out = recipe, Path(recipe.output_dir)
        self.stages: list[Stage] = []
        self.pool, self.seed_rows, self.curated_rows, self.validation, self.test = (
            load_source(**source) if source else None
            for source in (recipe.pool, recipe.seed_dataset, recipe.curated_dataset, recipe.validation, recipe.test)
        )
        model = recipe.model
        self.model = model  # as it identifies a stage: by the commit or the weights of a given learner
        if model["learner"] is not None:
            self.model = model | {"learner": identify_reference(model["learner"])}
            self.processor = load_processor(model["learner"])
        else:
            known = [rows for rows in (self.seed_rows, self.curated_rows, self.pool) if rows is not None]
            captions = [text for rows in known for text in run_jest.captions_of(rows, recipe.caption_column)]
            length = model["max_length"] or 20
            self.processor = build_processor(captions, model["image_size"], model["vocab_size"], length)

    def run(self) -> None:
        """Run all stages, and print a table of their results."""
        curated = self.curated_rows if self.curated_rows is not None else self.curate(self.first_model())
        reference = self.train("reference", curated, None, self.recipe.reference | {"selection": "uniform"})
        for number in range(1, self.recipe.rounds + 1):
            name = "learner" if number == 1 else f"learner-{number}"
            reference = self.train(name, self.pool, reference, self.recipe.learner)
        if PartialState().is_main_process:
            print("\n" + table_of(self.stages))

    # ---- 1 and 2: the curated set ----

    def first_model(self) -> tuple[str, str | None]:
        """Return the model that scores how well captions fit (id or path, and revision); train it if none is given."""
        recipe = self.recipe
        if recipe.aligner is not None:
            return recipe.aligner, recipe.aligner_revision
        settings = recipe.aligner_training | {"selection": "uniform"}
        return str(self.train("aligner", self.seed_rows, None, settings).folder), None

    def curate(self, aligner: tuple[str, str | None]) -> datasets.Dataset:
        """Return the rows of the pool that pass the filters."""
        recipe, state = self.recipe, PartialState()
        filters = CurationFilters(**recipe.filters)
        measured = self.measure(aligner, filters)
        stage = self.stage("curated", {"filters": asdict(filters), "measures": measured.digest})
        data = stage.folder / "data"
        if not stage.done and state.is_main_process:
            parts = [dict(np.load(path)) for path in sorted(measured.folder.glob("part-*.npz"))]
            captions = measure_captions(self.pool, recipe.caption_column)
            rows, results = curate(self.pool, (join(parts) if parts else {}) | captions, filters)
            rows.save_to_disk(str(data))
            stage.finish(
                rows=len(rows),
                pool=len(self.pool),
                filters=[asdict(result) for result in results],
                columns=rows.column_names,
            )
        state.wait_for_everyone()
        stage.reload()
        if state.is_main_process:
            left = ", ".join(f"{one['name']} {one['rows_left']:,}" for one in stage.result["filters"])
            print(f"Curated: {stage.result['pool']:,} rows, left after each filter: {left}", flush=True)
        rows = datasets.load_from_disk(str(data))
        if state.is_main_process:
            self.publish(stage, lambda repo: publish_data(rows, repo, self.about(stage, repo), recipe.hub_private))
        return rows

    def about(self, stage: Stage, repo: str) -> CuratedSummary:
        """Return the summary of the curated set for its card."""
        recipe = self.recipe
        named = {"alignment_model": recipe.aligner, "alignment_revision": recipe.aligner_revision}
        if recipe.aligner is None:
            named = {"alignment_model": self.hub_id("aligner")}
        limits = [
            (one["name"], {} if one["limit"] is None else {"limit": one["limit"]}, one["rows_left"])
            for one in stage.result["filters"]
        ]
        columns = stage.result["columns"]
        return CuratedSummary(repo, recipe.pool["spec"], limits, stage.result["pool"], columns=columns, **named)

    def measure(self, aligner: tuple[str, str | None], filters: CurationFilters) -> Stage:
        """Measure each row of the pool, in parts; the processes share the parts."""
        recipe, state = self.recipe, PartialState()
        columns = {"image_column": recipe.image_column, "caption_column": recipe.caption_column}
        measured = {"images": filters.needs_images, "alignment": filters.needs_alignment}
        stage = self.stage(
            "measures",
            {
                "pool": self.describe(self.pool),
                "rows_in_part": ROWS_IN_PART,
                "aligner": identify_reference(*aligner),
                **measured,
                **columns,
            },
        )
        if stage.done:
            return stage
        model, processor = load_reference(*aligner)
        model.to("cpu" if recipe.training.get("use_cpu") else state.device)
        max_length = recipe.model["max_length"] if recipe.aligner is None else None
        flops = 0.0
        if filters.needs_alignment:
            flops = len(self.pool) * float(sum(forward_flops(model, text_length=max_length).values()))
        for number, start in enumerate(range(0, len(self.pool), ROWS_IN_PART)):
            part = stage.folder / f"part-{number:05d}.npz"
            if number % state.num_processes != state.process_index or part.exists():
                continue
            rows = self.pool.select(range(start, min(start + ROWS_IN_PART, len(self.pool))))
            values = measure_images(rows, recipe.image_column) if filters.needs_images else {}
            if filters.needs_alignment:
                values |= measure_alignment(rows, model, processor, max_length=max_length, **columns)
            with replacing(part) as temporary:
                np.savez(temporary, **values)
        state.wait_for_everyone()
        if state.is_main_process:
            stage.finish(flops=flops)
        state.wait_for_everyone()
        stage.reload()
        return stage

    # ---- 3 and 4: the models ----

    def train(self, name: str, rows: datasets.Dataset, reference: Stage | None, settings: dict[str, Any]) -> Stage:
        """Train one model on these rows, and save it in the stage's folder."""
        recipe = self.recipe
        settings = QUIET | recipe.training | settings
        warm = reference is not None and recipe.learner_starts_from_reference
        stage = self.stage(
            name,
            {
                "training": {one: value for one, value in settings.items() if not one.startswith(HOW)},
                "model": self.model,
                "starts_from_reference": warm,
                "data": self.describe(rows),
                "reading": describe_reading(self.collator()),
                "reference": None if reference is None else reference.digest,
                "processes": PartialState().num_processes,
            },
        )
        about = _about(recipe, name) | {"role": "learner" if "learner" in name else "reference"}
        trainer = None
        if not stage.done:
            trainer = self.trainer(stage, settings, rows, reference, warm)
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(stage.folder)))
            metrics = trainer.evaluate() if self.validation is not None else {}
            if self.test is not None:
                metrics |= trainer.evaluate(self.test, metric_key_prefix="test")
            trainer.save_model()
            trainer.create_model_card(**about)
            if trainer.is_world_process_zero():
                kept = {one: value for one, value in metrics.items() if "R@" in one}
                stage.finish(flops=trainer.run_flops.total, **trainer.statistics.totals(), **kept)
            PartialState().wait_for_everyone()
            stage.reload()
        if trainer is not None:
            self.publish(stage, lambda repo: trainer.push_to_hub(**about))
        elif PartialState().is_main_process:
            self.publish(stage, lambda repo: publish_folder(stage.folder, repo, recipe.hub_private))
        PartialState().wait_for_everyone()
        stage.reload()
        return stage

    def trainer(
        self, stage: Stage, settings: dict[str, Any], rows: datasets.Dataset, reference: Stage | None, warm: bool
    ) -> JESTTrainer:
        """Make the trainer of a stage."""
        recipe = self.recipe
        args = JESTConfig(
            output_dir=str(stage.folder),
            hub_model_id=self.hub_id(stage.folder.name),
            hub_private_repo=recipe.hub_private,
            **settings,
        )
        ref_model, revision = None, None
        if reference is not None and args.selection != "uniform":
            # From the Hub where it is published, so that the card names the repository and the commit.
            ref_model, revision = reference.published or (str(reference.folder), None)
            args.ref_model_revision = revision
        if self.validation is not None and "group" in self.validation.column_names:
            args.eval_group_column = args.eval_group_column or "group"
        return JESTTrainer(
            model=load_learner(str(reference.folder), self.processor)[0] if warm else self.fresh_model(args.seed),
            ref_model=ref_model,
            args=args,
            data_collator=self.collator(args.seed),
            train_dataset=rows,
            eval_dataset=self.validation,
            processing_class=self.processor,
        )

    def fresh_model(self, seed: int) -> PreTrainedModel:
        """Return a model before training."""
        model = self.recipe.model
        if model["learner"] is not None:
            return load_learner(model["learner"], self.processor, option="learner")[0]
        sizes = {name: model[name] for name in ("image_size", "patch_size")}
        return build_siglip(model["size"], self.processor.tokenizer, seed=seed, **sizes)

    # ---- Shared by all stages ----

    def stage(self, name: str, settings: dict[str, Any]) -> Stage:
        """Open or begin the folder of a stage; raise a `ValueError` if other settings made it."""
        stage = Stage(self.out / name, settings, writes=PartialState().is_main_process)
        self.stages.append(stage)
        PartialState().wait_for_everyone()
        return stage

    def describe(self, rows: datasets.Dataset) -> dict[str, Any]:
        """Identify data by their contents."""
        return describe_data(Rows(rows, self.recipe.image_column), self.collator())

    def collator(self, seed: int = 0) -> JESTDataCollator:
        """Return a collator of images and captions, with the columns of the recipe."""
        recipe = self.recipe
        return JESTDataCollator(
            self.processor,
            image_column=recipe.image_column,
            caption_column=recipe.caption_column,
            max_length=recipe.model["max_length"],
            seed=seed,
        )

    def hub_id(self, name: str) -> str | None:
        return f"{self.recipe.hub_name}-{name}" if self.recipe.hub_name else None

    def publish(self, stage: Stage, push: Callable[[str], Any]) -> None:
        """Push a finished stage once. A failure is a warning; the next start of the script tries again."""
        repo = self.hub_id(stage.folder.name)
        if repo is None or stage.published:
            return
        try:
            commit = push(repo)
        except (OSError, HTTPError) as error:
            logger.warning(f"{stage.folder} is finished but not published ({error}); start the script again to retry.")
            return
        if PartialState().is_main_process:
            stage.note_published(repo, getattr(commit, "oid", commit))


def _about(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return what a model's card tells about the data that it was trained and measured on."""
    source = {"aligner": recipe.seed_dataset, "reference": recipe.curated_dataset}.get(stage, recipe.pool)
    name = source["spec"] if source else f"{recipe.hub_name}-curated" if recipe.hub_name else "curated"
    measured = recipe.validation or {}
    return {"dataset": name, "eval_dataset": measured.get("spec"), "eval_split": measured.get("split")}


def main(argv: list[str]) -> Chain:
    chain = Chain(parse(argv))
    chain.run()
    return chain


if __name__ == "__main__":
    run_jest.script_flags.run_script(main)
