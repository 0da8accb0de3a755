# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTTrainer`: a `transformers.Trainer` that chooses what it trains on.

A step is five verbs: **score** the super-batch with learner and reference, **select** the sub-batch, **take** it,
**learn** from it alone, and **record** what was chosen. Everything else is the Trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from jest_hf.collator import JESTDataCollator
from jest_hf.config import JESTConfig
from jest_hf.data.rows import Rows
from jest_hf.datahooks import DataHooks, number_of_rows
from jest_hf.distributed import Exchanged, Ranks, Shares
from jest_hf.hub.model_card import learner_card
from jest_hf.hub.push import SafePushes
from jest_hf.hub.run import summarise_run
from jest_hf.losses import LOSSES, backward_in_chunks
from jest_hf.models import (
    DualEncoder,
    DualEncoderOutput,
    View,
    accept_views,
    add_adapter,
    add_reference_adapter,
    base_model,
    expose_temperature,
    family_of,
    has_logit_bias,
)
from jest_hf.models.sharding import check_shardable, prepare_for_fsdp2
from jest_hf.reference import (
    CachedReference,
    Reference,
    identify_reference,
    load_reference,
    open_cache,
    place_reference,
)
from jest_hf.report.flops import StepFlops, flops_of_run
from jest_hf.report.ledger import LedgerCallback, SelectionLedger
from jest_hf.report.metrics import RunStatistics, compare_selected
from jest_hf.report.progress import JESTProgress
from jest_hf.selection import ContrastiveEmbeddings, draw_sub_batch, gumbel_noise, take_readable, take_sub_batch
from jest_hf.validation import (
    check_arguments,
    check_gradient_cache,
    check_inputs,
    check_launch,
    check_loss,
    check_train_size,
    check_vocabulary,
)


logger = logging.get_logger(__name__)


class JESTTrainer(DataHooks, SafePushes, Trainer):
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
            criteria `learnability` and `easy_reference`; otherwise it is left alone. With `args.reference="adapter"`
            it is the id or path of an adapter for the learner's backbone, or `None` for the backbone itself.
        ref_processing_class (*optional*):
            The reference's processor. Default: the one stored with a reference named by id or path; a reference given
            as a model reads what the learner reads.
        peft_config (`peft.PeftConfig`, *optional*):
            Train this adapter (LoRA and so on) on the frozen model instead of all weights.

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
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        check_arguments(args, data_collator, ref_model)
        check_launch(args)
        check_gradient_cache(args)
        if processing_class is None and data_collator is not None:
            processing_class = data_collator.processor
        if isinstance(model, str):
            processing_class = processing_class or AutoProcessor.from_pretrained(model)
            model = AutoModel.from_pretrained(model)
        if processing_class is None:
            raise ValueError("processing_class=None: pass the learner's processor, or a data_collator made from it.")
        if peft_config is not None:
            model = add_adapter(model, peft_config)

        self.ref_model, self.reference_cache = None, None
        if args.reference_cache is not None and "reference" in args.scored_models:
            self.reference_cache = open_cache(args.reference_cache, args.reference_cache_revision)
            if ref_model is not None:
                self.reference_cache.check(reference=identify_reference(ref_model, args.ref_model_revision))
        elif args.reference == "adapter" and "reference" in args.scored_models:
            add_reference_adapter(model, ref_model, args.ref_model_revision)
        elif "reference" in args.scored_models:
            self.ref_model, ref_processing_class = load_reference(
                ref_model, args.ref_model_revision, ref_processing_class
            )
        if data_collator is None:
            data_collator = JESTDataCollator(processing_class, ref_processing_class, seed=args.seed)
        elif self.ref_model is not None and data_collator.ref_processor is None:
            data_collator = data_collator.with_reference(ref_processing_class)

        self.ranks = Ranks.world()
        self.group = self.ranks if args.selection_scope == "global" else Ranks()
        n_examples = number_of_rows(train_dataset, data_collator.image_column, self.ranks)
        if train_dataset is not None:
            check_train_size(n_examples, args)
        self.statistics = RunStatistics(n_examples, args.selection_settings)
        self.ledger = None
        if args.record_selection and args.process_index == 0:
            self.ledger = SelectionLedger(Path(args.output_dir) / "selections.parquet")
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
        if self.is_fsdp_enabled:
            prepare_for_fsdp2(base_model(self.model))
        if self.is_deepspeed_enabled:
            check_shardable(base_model(self.model))
        # The loss is this trainer's, a mean over the batch: the Trainer must not rescale it.
        self.model_accepts_loss_kwargs = False

        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(JESTProgress)

        self.loss_kind = args.loss or family_of(self.model.config).loss
        self.scoring_view = View.parse(args.scoring_view) if args.scoring_view else None
        if self.scoring_view is not None:
            self.scoring_view.check(self.model.config)
        self.learner_view = self._view(self.model, data_collator.processor, "learner")
        self.reference = self._reference(data_collator)
        self.step_flops, self.cache_flops = StepFlops(training=0.0), 0.0
        self._try_inputs()

    def _reference(self, data_collator: JESTDataCollator) -> Reference | None:
        if "reference" not in self.args.scored_models:
            return None
        if self.reference_cache is not None:
            check_loss(self.loss_kind, "reference cache", self.reference_cache.logit_bias is not None)
            return CachedReference.of(self.reference_cache, self.train_dataset, data_collator)
        if self.args.cache_reference:  # before the weights are spread or rounded
            self.reference_identity = identify_reference(self.ref_model or self.model)
        if self.args.reference == "adapter":
            return Reference(self.learner_view, self.model, shared=True)
        processor = data_collator.ref_processor or data_collator.processor
        view = self._view(self.ref_model, processor, "reference", prefix="ref_")
        return Reference(view, place_reference(self.ref_model, self.accelerator, self.args.ref_placement))

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As the Trainer's: each trial of a hyperparameter search starts from a new learner."""
        model = super().call_model_init(trial)
        self._open_up(model)
        return model

    def _view(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> DualEncoder:
        view = DualEncoder(model.config, processor, prefix)
        check_loss(self.loss_kind, f"{role} ({type(model).__name__})", has_logit_bias(model))
        check_vocabulary(processor.tokenizer, model.config, role)
        self._open_up(model)
        return view

    def _open_up(self, model: PreTrainedModel) -> None:
        """What a step needs through the forward of whatever wraps the model: its temperature, and views of images."""
        expose_temperature(base_model(model))
        if self.args.scoring_view is not None:
            accept_views(base_model(model))

    def _try_inputs(self) -> None:
        """Collate one row of each data set: a missing column or a foreign processor shows here and not in a worker."""
        if self.train_dataset is not None:
            batch = self.data_collator([self.first_row()])
            inputs = {"learner": self.learner_view.inputs(batch)}
            check_inputs(inputs["learner"], self.model.config, "learner")
            configs = {"learner": self.model.config}
            if isinstance(self.reference, Reference):
                inputs["reference"] = self.reference.view.inputs(batch)
                configs["reference"] = (self.ref_model or self.model).config  # a DeepSpeed engine has another one
                check_inputs(inputs["reference"], configs["reference"], "reference")
            self.step_flops, self.cache_flops = flops_of_run(
                self.args,
                configs,
                inputs,
                self.statistics.n_examples,
                self.scoring_view,
                cached_width=None if self.reference_cache is None else self.reference_cache.width,
            )
        if self.eval_dataset is not None:
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for dataset in several.values():
                loader = self.get_eval_dataloader(dataset)
                loader.collate_fn([loader.dataset[0]])

    # ---- The step ----

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`], after caching the reference if `args.cache_reference`."""
        if self.args.cache_reference and isinstance(self.reference, Reference):
            with self.accelerator.autocast():
                self.reference = self.reference.write_cache(
                    Path(self.args.output_dir) / "reference_cache",
                    base_model(self.ref_model or self.model).config,
                    Rows(self.train_dataset, self.data_collator.image_column),
                    self.data_collator,
                    reference=self.reference_identity,
                    batch_size=self.args.scoring_batch_size or self.args.per_device_train_batch_size,
                    dtype="float32",
                    precision=self.accelerator.mixed_precision,
                    replace=True,
                    device=self.args.device,
                    num_workers=self.args.dataloader_num_workers,
                    disable_tqdm=self.args.disable_tqdm,
                    ranks=self.ranks,
                )
            self.ref_model, self.cache_flops = None, self.reference.cache.flops
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
        if isinstance(self.reference, CachedReference):
            super_batch["valid"] = self.reference.readable(super_batch)
        shares = Shares.of(self.group, super_batch["valid"])
        if sum(shares.readable) < self.group.size:
            raise ValueError(
                f"step {self._step}: only {sum(shares.readable)} of the {sum(shares.rows)} rows of the super-batch "
                f"can be read, and {self.group.size} are needed; check that the image files are still there."
            )
        if self.args.selection == "uniform":
            sub_batch = take_readable(super_batch, shares)
        else:
            with self._timed("scoring_seconds"):
                embeddings = self.score(model, super_batch)
            with self._timed("selection_seconds"):
                indices = self.select(embeddings, super_batch, shares)
            sub_batch, parts = take_sub_batch(shares, super_batch, embeddings, indices)
            self.statistics.add(compare_selected(parts, self.loss_kind, self.group))
        self.record(sub_batch, super_batch["valid"])
        return self.learn(model, self.shuffle(sub_batch.batch), num_items_in_batch)

    def score(self, model: nn.Module, super_batch: dict[str, Tensor]) -> dict[str, ContrastiveEmbeddings]:
        """Embed the super-batch with the models that the criterion compares: `"learner"`, `"reference"`, or both."""
        batch_size = self.args.scoring_batch_size or self.args.per_device_train_batch_size
        embeddings = {}
        with self.accelerator.autocast():
            if "learner" in self.args.scored_models:
                embeddings["learner"] = self.learner_view.score(model, super_batch, batch_size, self.scoring_view)
            if self.reference is not None:
                embeddings["reference"] = self.reference.score(model, super_batch, batch_size)
        return embeddings

    def select(
        self, embeddings: dict[str, ContrastiveEmbeddings], super_batch: dict[str, Tensor], shares: Shares
    ) -> Tensor:
        """Positions of the sub-batch in the super-batch, int64 `[b]`, the same on every rank that selects with us."""
        args = self.args
        chunks = draw_sub_batch(
            embeddings,
            super_batch["valid"],
            super_batch["example_id"],
            size=min(args.per_device_train_batch_size * self.group.size, sum(shares.readable)),
            n_chunks=args.n_chunks if args.selection == "joint" else 1,
            criterion=args.criterion,
            loss=self.loss_kind,
            gain=args.selection_gain,
            seed=args.seed,
            step=self._step,
            start=self.ranks.rank * args.per_device_super_batch_size,
            total=args.super_batch_size,
            ranks=self.group,
        )
        self.statistics.add(
            {f"effective_sample_size/chunk_{k:02d}": c.effective_sample_size for k, c in enumerate(chunks, start=1)}
        )
        return torch.cat([chunk.indices for chunk in chunks])

    def record(self, taken: Exchanged, valid: Tensor) -> None:
        """Count the step, and write down which examples every rank trains on, and when they were drawn."""
        seen, skipped = self.ranks.sum(torch.stack([torch.ones_like(valid).sum(), (~valid).sum()])).tolist()
        columns = torch.stack([taken.batch["example_id"], taken.order], dim=1)
        counts = self.ranks.gather_counts(len(columns), columns.device)
        ids, order = self.ranks.gather_rows(columns, counts).cpu().T
        if self.group.size > 1:
            self.statistics.add({"exchange/examples": taken.moved, "exchange/bytes": taken.bytes_moved})
        self.statistics.count(seen=seen, skipped=skipped, trained_ids=ids)
        if self.ledger is not None:
            ranks = torch.arange(self.ranks.size).repeat_interleave(torch.tensor(counts))
            self.ledger.record(self._step, ids, ranks, order)

    def shuffle(self, sub_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        With a scoring view, in random order, a function of (seed, step): the first `low_resolution_fraction` are
        trained on at that view, and the order of drawing is not random.
        """
        if self.scoring_view is None:
            return sub_batch
        args, ids = self.args, sub_batch["example_id"]
        start = self.ranks.rank * args.per_device_train_batch_size
        # A row of noise that no draw has used.
        noise = gumbel_noise(
            args.seed, self._step, args.n_chunks + 1, args.sub_batch_size, start=start, stop=start + len(ids)
        )
        order = noise[-1].argsort().to(ids.device)
        return {name: value.index_select(0, order) for name, value in sub_batch.items()}

    def learn(
        self, model: nn.Module, sub_batch: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of ONE contrastive loss over the whole sub-batch; the loss, detached."""
        if self.args.gradient_cache_chunk_size is None:
            return super().training_step(model, sub_batch, num_items_in_batch)
        model.train()

        def forward(rows: slice) -> DualEncoderOutput:
            with self.compute_loss_context_manager():
                return self.learner_view(model, sub_batch, rows, self.scoring_view, n_at_view)

        n_rows = len(sub_batch["example_id"])
        n_at_view = round(self.args.low_resolution_fraction * n_rows)
        # As many forwards on every rank: where many rows are broken, ranks may be an example apart.
        smallest = min(self.ranks.gather_counts(n_rows, self.args.device))
        n_chunks = -(-self.args.per_device_train_batch_size // self.args.gradient_cache_chunk_size)
        return backward_in_chunks(
            forward,
            n_rows,
            min(n_chunks, smallest),
            loss=self._contrastive_loss,
            backward=self.accelerator.backward,
            no_sync=lambda: self.accelerator.no_sync(model),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The contrastive loss of the sub-batch of all ranks, an fp32 scalar, from this rank's rows."""
        n_at_view = round(self.args.low_resolution_fraction * len(inputs["example_id"]))
        output = self.learner_view(model, inputs, view=self.scoring_view, n_at_view=n_at_view)
        loss = self._contrastive_loss(output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias)
        return (loss, output) if return_outputs else loss

    def _contrastive_loss(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        args = self.args
        loss = LOSSES[self.loss_kind]
        return loss(
            image, text, scale, bias, tile_size=args.loss_tile_size, ranks=self.ranks, exchange=args.loss_exchange
        )

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
        return self.step_flops.total / self.args.world_size  # the Trainer adds up what the ranks say

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of the run so far, caching the reference included, plain convention."""
        parts = asdict(self.step_flops)
        run = StepFlops(**{name: self.state.global_step * flops for name, flops in parts.items()})
        return replace(run, reference=run.reference + self.cache_flops)

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
