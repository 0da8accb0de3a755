# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTTrainer`: a `transformers.Trainer` that chooses what it trains on.

A step is five verbs: **score** the super-batch with learner and reference, **select** the sub-batch, **take** it,
**learn** from it alone, and **record** what was chosen. Everything else is the Trainer's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from jest_hf.collator import JESTDataCollator
from jest_hf.config import JESTConfig
from jest_hf.data.rows import EpochSampler, Rows
from jest_hf.evaluation.tasks import CaptionCollator, embed_dataset
from jest_hf.hub.model_card import learner_card
from jest_hf.hub.run import summarise_run
from jest_hf.losses import LOSSES
from jest_hf.models import DualEncoder, expose_temperature, family_of
from jest_hf.reference import embed_rows, load_reference
from jest_hf.report.flops import StepFlops, flops_of_run
from jest_hf.report.ledger import LedgerCallback, SelectionLedger
from jest_hf.report.metrics import RunStatistics, compare_selected
from jest_hf.report.progress import JESTProgress
from jest_hf.selection import ContrastiveEmbeddings, PairwiseScores, draw_chunks, gumbel_noise, select_independently
from jest_hf.validation import (
    check_arguments,
    check_inputs,
    check_launch,
    check_loss,
    check_train_size,
    check_vocabulary,
)


logger = logging.get_logger(__name__)

# What decides which examples are selected; a resumed run is compared with its checkpoint in these.
_SELECTION_SETTINGS = (
    "selection",
    "criterion",
    "filter_ratio",
    "n_chunks",
    "selection_gain",
    "per_device_train_batch_size",
    "seed",
    "data_seed",
)


class JESTTrainer(Trainer):
    """
    Train a dual encoder on selected examples (JEST, arXiv 2406.17711).

    Takes what [`~transformers.Trainer`] takes, in the same order, with these meanings:

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            The learner: a SigLIP, SigLIP 2 or CLIP model, or its Hub id or local path.
        args ([`JESTConfig`]):
            All settings.
        data_collator ([`JESTDataCollator`], *optional*):
            Turns rows into a super-batch. Default: one made from `processing_class`.
        train_dataset ([`~datasets.Dataset`] or a sequence of dicts, *optional*):
            Rows with an image and one or more captions. Broken rows are skipped and counted (`examples_skipped`).
        eval_dataset (*optional*):
            The same, or a dict of several; evaluation is retrieval in both directions ([`retrieval_recall`]).
        processing_class (*optional*):
            The learner's processor. Default: that of the collator, or the one stored with a model named by id or path.
        ref_model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            The frozen reference, or its Hub id or local path (`args.ref_model_revision` pins it). Needed by the
            criteria `learnability` and `easy_reference`; otherwise it is left alone.
        ref_processing_class (*optional*):
            The reference's processor. Default: the one stored with a reference named by id or path; a reference given
            as a model reads what the learner reads.

    Raises:
        ValueError: for settings, models, processors and data that do not fit together, before anything is trained.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: JESTConfig | None = None,
        data_collator: JESTDataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        *,
        ref_model: PreTrainedModel | str | None = None,
        ref_processing_class: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        check_arguments(args, data_collator, ref_model)
        check_launch(args)
        if processing_class is None and data_collator is not None:
            processing_class = data_collator.processor
        if isinstance(model, str):
            processing_class = processing_class or AutoProcessor.from_pretrained(model)
            model = AutoModel.from_pretrained(model)
        if processing_class is None:
            raise ValueError("processing_class=None: pass the learner's processor, or a data_collator made from it.")

        self.ref_model = None
        if "reference" in args.scored_models:
            self.ref_model, ref_processing_class = load_reference(
                ref_model, args.ref_model_revision, ref_processing_class
            )
        if data_collator is None:
            data_collator = JESTDataCollator(processing_class, ref_processing_class, seed=args.seed)
        elif self.ref_model is not None and data_collator.ref_processor is None:
            data_collator = data_collator.with_reference(ref_processing_class)

        n_examples = 0
        if train_dataset is not None:
            n_examples = len(Rows(train_dataset, data_collator.image_column))
            check_train_size(n_examples, args)
        settings = {name: getattr(args, name) for name in _SELECTION_SETTINGS}
        self.statistics = RunStatistics(n_examples, settings)
        self.ledger = SelectionLedger(Path(args.output_dir) / "selections.parquet") if args.record_selection else None
        own_callbacks = [self.statistics] + ([LedgerCallback(self.ledger)] if self.ledger else [])

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            callbacks=own_callbacks + (callbacks or []),
            **trainer_arguments,
        )
        # The loss is this trainer's, a mean over the batch: the Trainer must not rescale it.
        self.model_accepts_loss_kwargs = False

        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(JESTProgress)

        self.loss_kind = args.loss or family_of(self.model.config).loss
        self.learner_view = self._view(self.model, data_collator.processor, "learner")
        if self.ref_model is not None:
            self.reference_view = self._view(
                self.ref_model, data_collator.ref_processor or data_collator.processor, "reference", prefix="ref_"
            )
            self.ref_model.to(args.device)
        self.reference_cache: ContrastiveEmbeddings | None = None
        self.step_flops, self.cache_flops = StepFlops(training=0.0), 0.0
        self._try_inputs()

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As the Trainer's: each trial of a hyperparameter search starts from a new learner."""
        model = super().call_model_init(trial)
        expose_temperature(model)
        return model

    def _view(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> DualEncoder:
        view = DualEncoder(model.config, processor, prefix)
        check_loss(self.loss_kind, role, model)
        check_vocabulary(processor.tokenizer, model.config, role)
        expose_temperature(model)
        return view

    def _try_inputs(self) -> None:
        """Collate one row of each data set: a missing column or a foreign processor shows here and not in a worker."""
        if self.train_dataset is not None:
            batch = self.data_collator([Rows(self.train_dataset, self.data_collator.image_column)[0]])
            inputs = {"learner": self.learner_view.inputs(batch)}
            check_inputs(inputs["learner"], self.model.config, "learner")
            if self.ref_model is not None:
                inputs["reference"] = self.reference_view.inputs(batch)
                check_inputs(inputs["reference"], self.ref_model.config, "reference")
            configs = {"learner": self.model.config, "reference": self.ref_model and self.ref_model.config}
            self.step_flops, self.cache_flops = flops_of_run(self.args, configs, inputs, len(self.train_dataset))
        if self.eval_dataset is not None:
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for dataset in several.values():
                loader = self.get_eval_dataloader(dataset)
                loader.collate_fn([loader.dataset[0]])

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        """Super-batches of `args.per_device_super_batch_size` rows, in an order that depends on (data_seed, epoch)."""
        if self.train_dataset is None:
            raise ValueError("train_dataset=None: pass the rows to train on to JESTTrainer.")
        return self._get_dataloader(
            dataset=Rows(self.train_dataset, self.data_collator.image_column),
            description="Training",
            batch_size=self.args.per_device_super_batch_size,
            sampler_fn=lambda rows: EpochSampler(len(rows), seed=self.args.data_seed),
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Every row once, in order, each image with all of its captions (see [`CaptionCollator`])."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("eval_dataset=None: pass the rows to evaluate on to JESTTrainer or to evaluate().")
        return DataLoader(
            Rows(eval_dataset, self.data_collator.image_column),
            batch_size=self.args.eval_batch_size,
            collate_fn=CaptionCollator(self.data_collator, self.args.eval_group_column),
            num_workers=self.args.dataloader_num_workers,
        )

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As [`get_eval_dataloader`]."""
        return self.get_eval_dataloader(test_dataset)

    # ---- The step ----

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`], after caching the reference if `args.cache_reference`."""
        if self.args.cache_reference and self.ref_model is not None and self.reference_cache is None:
            with self.accelerator.autocast():
                self.reference_cache = embed_rows(
                    self.reference_view,
                    self.ref_model,
                    Rows(self.train_dataset, self.data_collator.image_column),
                    self.data_collator,
                    self.args.scoring_batch_size or self.args.per_device_train_batch_size,
                    self.args.device,
                    self.args.dataloader_num_workers,
                    self.args.disable_tqdm,
                )
        return super().train(*args, **kwargs)

    @property
    def _step(self) -> int:
        """Number of the step being taken, from 1 as in the names of checkpoints; it seeds the selection's noise."""
        return self.state.global_step + 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step on one super-batch: score, select, take, record, learn."""
        super_batch = self._prepare_input(inputs)
        eligible = super_batch["valid"]
        if not eligible.any():
            raise ValueError(
                f"step {self._step}: not one of the {len(eligible)} rows of the super-batch can be read; "
                "check that the image files are still there."
            )
        if self.args.selection == "uniform":
            # None takes all without a copy, which for the images alone can cost a per cent of a small model's step.
            indices = None if eligible.all() else eligible.nonzero().flatten()
        else:
            with self._timed("scoring_seconds"):
                embeddings = self.score(model, super_batch)
            with self._timed("selection_seconds"):
                indices = self.select(embeddings, super_batch)
            self.statistics.add(compare_selected(embeddings, indices, eligible, self.loss_kind))
        sub_batch = super_batch
        if indices is not None:
            sub_batch = {name: value.index_select(0, indices) for name, value in super_batch.items()}
        self.record(sub_batch["example_id"], eligible)
        return super().training_step(model, sub_batch, num_items_in_batch)

    def score(self, model: nn.Module, super_batch: dict[str, Tensor]) -> dict[str, ContrastiveEmbeddings]:
        """Embed the super-batch with the models that the criterion compares: `"learner"`, `"reference"`, or both."""
        batch_size = self.args.scoring_batch_size or self.args.per_device_train_batch_size
        embeddings = {}
        with self.accelerator.autocast():
            if "learner" in self.args.scored_models:
                embeddings["learner"] = self.learner_view.embed(model, super_batch, batch_size)
            if self.ref_model is not None and self.reference_cache is None:
                embeddings["reference"] = self.reference_view.embed(self.ref_model, super_batch, batch_size)
        if self.reference_cache is not None:
            cached = self.reference_cache.take(super_batch["example_id"].cpu())
            embeddings["reference"] = cached.to(self.args.device)
        return embeddings

    def select(self, embeddings: dict[str, ContrastiveEmbeddings], super_batch: dict[str, Tensor]) -> Tensor:
        """Positions of the sub-batch in the super-batch, int64 `[b]`, a function of (scores, seed, step) alone."""
        args, step, eligible = self.args, self._step, super_batch["valid"]
        scores = PairwiseScores.from_embeddings(**embeddings, criterion=args.criterion, loss=self.loss_kind)
        diagonal = scores.diagonal()
        broken = eligible & ~diagonal.isfinite()
        if broken.any():
            ids = super_batch["example_id"][broken].tolist()
            raise FloatingPointError(
                f"step {step}: the scores of {len(ids)} of {len(eligible)} examples are NaN or infinite (example ids "
                f"{ids[:10]}); the learner has diverged or the reference is broken: try a lower learning_rate or fp32."
            )
        size = min(args.per_device_train_batch_size, int(eligible.sum()))
        n_chunks = args.n_chunks if args.selection == "joint" else 1
        noise = gumbel_noise(args.seed, step, n_chunks, len(scores), device=diagonal.device)
        if args.selection == "independent":
            return select_independently(diagonal, size, noise[0], gain=args.selection_gain, eligible=eligible)
        chunks = list(draw_chunks(scores, size, n_chunks, args.selection_gain, noise, eligible))
        self.statistics.add(
            {f"effective_sample_size/chunk_{k:02d}": c.effective_sample_size for k, c in enumerate(chunks, start=1)}
        )
        return torch.cat([chunk.indices for chunk in chunks])

    def record(self, trained_ids: Tensor, eligible: Tensor) -> None:
        """Count the step, and write down which examples it trains on, in order of drawing."""
        trained_ids = trained_ids.cpu()
        self.statistics.count(seen=len(eligible), skipped=int((~eligible).sum()), trained_ids=trained_ids)
        if self.ledger is not None:
            self.ledger.record(self._step, trained_ids)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """ONE contrastive loss over the whole sub-batch: an fp32 scalar."""
        output = self.learner_view(model, inputs)
        loss = LOSSES[self.loss_kind](
            output.image_embeds,
            output.text_embeds,
            output.logit_scale,
            output.logit_bias,
            tile_size=self.args.loss_tile_size,
        )
        return (loss, output) if return_outputs else loss

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Wall time of a verb, with the device's queue drained: the Trainer waits for the loss of each step anyway."""
        start = time.perf_counter()
        yield
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.statistics.add({name: time.perf_counter() - start})

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> float:
        """FLOPs of one step, for `state.total_flos`: both towers, scoring, reference and selection."""
        return self.step_flops.total

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of the run so far, caching the reference included, plain convention."""
        parts = dataclasses.asdict(self.step_flops)
        run = StepFlops(**{name: self.state.global_step * flops for name, flops in parts.items()})
        return dataclasses.replace(run, reference=run.reference + self.cache_flops)

    # ---- Evaluation ----

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Retrieval in both directions over the whole data set; the predictions are the image and text embeddings."""
        model = self.model_wrapped if self.is_in_train else self.model
        with self.accelerator.autocast():
            embedded = embed_dataset(self.learner_view, model, dataloader, self.args.device, self.loss_kind)
        return EvalLoopOutput(
            predictions=(embedded.image.numpy(), embedded.text.numpy()),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in embedded.metrics().items()},
            num_samples=len(embedded.image),
        )

    # ---- Records ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the selections of the logging window looked like to a training log."""
        if "loss" in logs:
            logs.update(self.statistics.pop())
        elif "train_runtime" in logs:
            logs.update(self.statistics.totals())
        super().log(logs, start_time)

    def create_model_card(self, language: str | list[str] | None = None, **about: Any) -> None:
        """Write the model card of this run to `output_dir/README.md`; the arguments are those of the Trainer's."""
        if self.is_world_process_zero():
            card = learner_card(summarise_run(self, language=language, **about))
            card.save(Path(self.args.output_dir) / "README.md")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First: a run killed in between resumes from the older checkpoint, whose ledger is a part of this one.
        if self.ledger is not None:
            self.ledger.flush()
        super()._save_checkpoint(model, trial)
