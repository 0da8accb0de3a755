# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTTrainer`: a `transformers.Trainer` that chooses what it trains on.

A step is five verbs: **score** the super-batch with learner and reference, **select** the sub-batch, **take** it,
**learn** from it alone, and **record** what was chosen. Everything else is the Trainer's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoProcessor, PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging

from jest_hf.collator import JESTDataCollator
from jest_hf.config import JESTConfig
from jest_hf.datahooks import DataHooks, check_functions, number_of_rows
from jest_hf.distributed import Ranks, Shares
from jest_hf.hub.push import SafePushes
from jest_hf.late import LateImages
from jest_hf.losses import backward_in_chunks
from jest_hf.models import DualEncoderOutput, View, add_adapter, base_model, load_model, without_temperature
from jest_hf.models.mixture import chunks_by_view, rows_at_view
from jest_hf.models.sharding import check_shardable, prepare_for_fsdp2
from jest_hf.objectives import objective_of
from jest_hf.onlinehooks import OnlineHooks
from jest_hf.recordhooks import RecordHooks
from jest_hf.referencehooks import ReferenceHooks
from jest_hf.report.flops import StepFlops
from jest_hf.report.ledger import LedgerCallback, SelectionLedger
from jest_hf.report.metrics import RunStatistics, compare_selected
from jest_hf.report.progress import JESTProgress
from jest_hf.report.sources import Sources
from jest_hf.selection import (
    ContrastiveEmbeddings,
    Scored,
    SelectionSchedule,
    Selector,
    compare_selectors,
    draw_sub_batch,
    gumbel_noise,
    take_readable,
    take_sub_batch,
)
from jest_hf.validation import (
    check_arguments,
    check_distinct,
    check_gradient_cache,
    check_launch,
    check_objective,
    check_train_size,
    warn_of_low_precision,
)


logger = logging.get_logger(__name__)


class JESTTrainer(DataHooks, ReferenceHooks, OnlineHooks, RecordHooks, SafePushes, Trainer):
    """
    Train on selected examples: a dual encoder (JEST, arXiv 2406.17711), or any model whose examples have labels.

    Takes what [`~transformers.Trainer`] takes, in the same order, with these meanings:

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            The learner, or its Hub id or local path: a SigLIP, SigLIP 2 or CLIP model; or one such as
            `...ForImageClassification`, `...ForSequenceClassification` or `...ForCausalLM`, for which what is said of
            captions below holds for labels.
        args ([`JESTConfig`]):
            All settings.
        data_collator ([`JESTDataCollator`] or one of `jest_hf.data.labelled`, *optional*):
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
        proxy_model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            With `args.scoring="proxy"`, the small model that scores in the learner's place and is trained beside it;
            it reads what the reference reads. Default: a fresh model of the reference's architecture.
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
        proxy_model: PreTrainedModel | str | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        check_arguments(args, data_collator, ref_model)
        check_distinct(model=model, ref_model=ref_model, proxy_model=proxy_model)
        check_launch(args)
        check_gradient_cache(args)
        if processing_class is None and data_collator is not None:
            processing_class = data_collator.processor
        if isinstance(model, str):
            processing_class = processing_class or AutoProcessor.from_pretrained(model)
            model = load_model(model, dtype=torch.float32)  # to train: in less, small steps round away
        if processing_class is None:
            raise ValueError("processing_class=None: pass the learner's processor, or a data_collator made from it.")
        learner = model
        if model is None and model_init is not None:  # as the Trainer will: here to see what it is made for
            self.model_init = model_init
            learner = super().call_model_init()
        self.objective = objective_of(args, learner)
        check_objective(args, self.objective, data_collator)
        check_functions(self.objective, args, trainer_arguments)
        if peft_config is not None:
            model = add_adapter(model, peft_config)

        self.ranks = Ranks.world()
        collator = data_collator or self.objective.collator(processing_class, None, args.seed)
        ref_processing_class = self.find_reference(args, model, ref_model, ref_processing_class, collator)
        if data_collator is None:
            data_collator = self.objective.collator(processing_class, ref_processing_class, args.seed)
        elif ref_processing_class is not None and data_collator.ref_processor is None:
            data_collator = data_collator.with_reference(ref_processing_class)
        elif self.reference_cache is not None and args.scoring == "learner":  # nobody would look at its images
            data_collator = data_collator.with_reference(None)
        if train_dataset is not None:
            self.objective.check_data(train_dataset, data_collator)

        self.group = self.ranks if args.selection_scope == "global" else Ranks()
        n_examples = number_of_rows(train_dataset, data_collator.image_column, self.ranks)
        if train_dataset is not None:
            check_train_size(n_examples, args)
        self.schedule = SelectionSchedule(args.filter_ratio, args.selection_warmup_steps, args.filter_ratio_ramp_steps)
        self.sources = None if args.source_column is None else Sources.read(train_dataset, args.source_column)
        source_names = [] if self.sources is None else self.sources.names
        self.statistics = RunStatistics(n_examples, args.selection_settings, source_names)
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
        else:  # its engine keeps float32 weights itself
            warn_of_low_precision(self.model)
        # The loss is this trainer's, a mean over the batch: the Trainer must not rescale it.
        self.model_accepts_loss_kwargs = False

        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(JESTProgress)

        self.scoring_view = View.parse(args.scoring_view) if args.scoring_view else None
        if self.scoring_view is not None:
            self.scoring_view.check(self.model.config)
        self.learner_view = self.objective.reader(self.model, processing_class, "learner")
        self.make_proxy(proxy_model)
        self.reference = self.place_reference()
        self.late_images: LateImages | None = None
        self._teacher: ContrastiveEmbeddings | None = None
        self.step_flops, self.cache_flops = StepFlops(training=0.0), 0.0
        self.try_inputs()

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As the Trainer's: each trial of a hyperparameter search starts from a new learner."""
        model = super().call_model_init(trial)
        self.objective.open_up(model)
        return model

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the Trainer's, but for the temperature: decay would pull it towards where similarities are all alike."""
        return without_temperature(super().get_decay_parameter_names(model))

    # ---- The step ----

    @property
    def _step(self) -> int:
        """Number of the step being taken, from 1 as in the names of checkpoints; it seeds the selection's noise."""
        return self.state.global_step + 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step on one super-batch: score, select, take, record, learn."""
        super_batch = self._prepare_input(inputs)
        if self.reference is not None:
            super_batch["valid"] = self.reference.readable(super_batch)
        super_batch = self._scheduled(super_batch)
        shares = Shares.of(self.group, super_batch["valid"])
        if sum(shares.readable) < self.group.size:
            raise ValueError(
                f"step {self._step}: only {sum(shares.readable)} of the {sum(shares.rows)} rows of the super-batch "
                f"can be read, and {self.group.size} are needed; check that they have their images, texts and labels."
            )
        scored = {}
        if not self.selects:
            taken = take_readable(super_batch, shares)
        else:
            with self.timed("scoring_seconds"):
                embeddings = self.score(model, super_batch)
            with self.timed("selection_seconds"):
                indices = self.select(embeddings, super_batch, shares)
            taken, parts = take_sub_batch(shares, super_batch, embeddings, indices)
            scored = parts["selected"]
            self.statistics.add(compare_selected(parts, self.objective.loss_kind, self.group))
        self.record(taken, super_batch)
        self.train_beside(super_batch, shares, taken.batch)
        sub_batch, self._teacher = self.shuffle(taken.batch, self.teach(model, taken.batch, scored))
        if self.late_images is not None:
            sub_batch = self.late_images(sub_batch, self._n_at_view(len(sub_batch["example_id"])))
        return self.learn(model, sub_batch, num_items_in_batch)

    @property
    def selects(self) -> bool:
        """Whether the step being taken scores and selects."""
        return self.args.selection != "uniform" and self.schedule.selects(self._step)

    def _scheduled(self, super_batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        The part of this rank's rows that the schedule lets a step see: all of them, once it is through, and always
        enough for a sub-batch of rows that can be read.
        """
        args, n_rows = self.args, len(super_batch["valid"])
        if args.selection == "uniform":
            return super_batch
        n_scored = self.schedule.scored(self._step, n_rows, args.per_device_train_batch_size)
        if n_scored == n_rows:
            return super_batch
        n_needed = 1 + int((super_batch["valid"].cumsum(0) < args.per_device_train_batch_size).sum())
        if self.selects:  # an engine makes each forward that scores a collective
            n_needed = max(self.ranks.gather_counts(n_needed, args.device))
        return {name: rows[: max(n_scored, n_needed)] for name, rows in super_batch.items()}

    def score(self, model: nn.Module, super_batch: dict[str, Tensor]) -> dict[str, Scored]:
        """
        What the models that the criterion compares say of the super-batch, under `"learner"` (the proxy, where there
        is one), `"reference"`, or both.
        """
        batch_size = self.args.scoring_batch_size or self.args.per_device_train_batch_size
        scored = {}
        with self.accelerator.autocast():
            if "learner" in self.args.scored_models:
                if self.proxy is not None:
                    scored["learner"] = self.proxy.score(super_batch, batch_size)
                else:
                    scored["learner"] = self.learner_view.score(model, super_batch, batch_size, self.scoring_view)
            if "reference" in self.args.scored_models:
                scored["reference"] = self.reference.score(model, super_batch, batch_size)
        return scored

    def select(self, scored: dict[str, Scored], super_batch: dict[str, Tensor], shares: Shares) -> Tensor:
        """Positions of the sub-batch in the super-batch, int64 `[b]`, the same on every rank that selects with us."""
        args, n_rows = self.args, len(super_batch["valid"])
        size = min(args.per_device_train_batch_size * self.group.size, sum(shares.readable))
        draw = partial(
            draw_sub_batch,
            scored,
            super_batch["valid"],
            super_batch["example_id"],
            size=size,
            n_chunks=args.n_chunks,
            loss="similarity" if args.pair_score == "similarity" else self.objective.loss_kind,
            gain=args.selection_gain,
            seed=args.seed,
            step=self._step,
            start=self.ranks.rank * n_rows,
            total=args.world_size * n_rows,
            ranks=self.group,
        )
        uniform_size = round(args.uniform_fraction * size)
        chunks = draw(selection=args.selection, criterion=args.criterion, uniform_size=uniform_size)
        of_scores = chunks[uniform_size > 0 :]  # the first is the uniform one
        self.statistics.add(
            {f"effective_sample_size/chunk_{k:02d}": c.effective_sample_size for k, c in enumerate(of_scores, start=1)}
        )
        indices = torch.cat([chunk.indices for chunk in chunks])
        if args.compare_selectors:
            others = [Selector.parse(name) for name in args.compare_selectors]
            of_rows = {}
            if self.sources is not None:
                sources = self.sources.of(super_batch["example_id"]).to(indices.device)
                of_rows = {"sources": sources, "source_names": self.sources.names}
            loss = self.objective.loss_kind
            self.statistics.add(compare_selectors(others, draw, shares, scored, indices, loss, **of_rows))
        return indices

    def teach(
        self, model: nn.Module, sub_batch: dict[str, Tensor], scored: dict[str, Scored]
    ) -> ContrastiveEmbeddings | None:
        """What the reference says of the sub-batch, where the learner is to learn it: often it has been asked."""
        if self.args.distillation_weight == 0:
            return None
        if "reference" in scored:
            return scored["reference"]
        with self.accelerator.autocast():
            return self.reference.score(model, sub_batch, len(sub_batch["example_id"]))

    def shuffle(
        self, sub_batch: dict[str, Tensor], teacher: ContrastiveEmbeddings | None
    ) -> tuple[dict[str, Tensor], ContrastiveEmbeddings | None]:
        """
        With a scoring view, in random order, a function of (seed, step): the first `low_resolution_fraction` are
        trained on at that view, and the order of drawing is not random.
        """
        if self.scoring_view is None:
            return sub_batch, teacher
        args, ids = self.args, sub_batch["example_id"]
        start = self.ranks.rank * args.per_device_train_batch_size
        # A row of noise that no draw has used.
        noise = gumbel_noise(
            args.seed, self._step, args.n_chunks + 1, args.sub_batch_size, start=start, stop=start + len(ids)
        )
        order = noise[-1].argsort().to(ids.device)
        shuffled = {name: value.index_select(0, order) for name, value in sub_batch.items()}
        return shuffled, None if teacher is None else teacher.take(order)

    def learn(
        self, model: nn.Module, sub_batch: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of ONE loss over the whole sub-batch; the loss, detached."""
        if self.args.gradient_cache_chunk_size is None:
            return super().training_step(model, sub_batch, num_items_in_batch)
        model.train()

        def forward(rows: slice) -> DualEncoderOutput:
            with self.compute_loss_context_manager():
                return self.learner_view(model, sub_batch, rows, self.scoring_view, n_at_view)

        n_rows = len(sub_batch["example_id"])
        smallest = self._fewest_rows(n_rows)
        n_chunks = min(-(-self.args.per_device_train_batch_size // self.args.gradient_cache_chunk_size), smallest)
        fraction = 0.0 if self.scoring_view is None else self.args.low_resolution_fraction
        n_at_view = rows_at_view(fraction, n_rows, smallest)
        return backward_in_chunks(
            forward,
            n_rows,
            chunks_by_view(fraction, n_rows, smallest, n_chunks),
            loss=lambda *embedded: self.objective.loss(
                DualEncoderOutput.of(*embedded), sub_batch, self.ranks, self._teacher
            ),
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
        """The objective's loss of the sub-batch of all ranks, an fp32 scalar, from this rank's rows."""
        n_at_view = self._n_at_view(len(inputs["example_id"]))
        output = self.learner_view(model, inputs, view=self.scoring_view, n_at_view=n_at_view)
        loss = self.objective.loss(output, inputs, self.ranks, self._teacher)
        return (loss, output) if return_outputs else loss
