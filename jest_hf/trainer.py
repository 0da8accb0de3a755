# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTTrainer`: a `transformers.Trainer` that chooses what it trains on.

A step **scores** the super-batch with learner and reference, **selects** the sub-batch, **takes** it, **records** what
was chosen, and **learns** from the sub-batch alone. Each is a part in `jest_hf.training`, which the methods here call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from jest_hf.config import JESTConfig
from jest_hf.curation.tracked import TrackedSelection
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.streamed_rows import is_stream
from jest_hf.distributed import Ranks
from jest_hf.hub.publisher import privacy
from jest_hf.models import Reader, without_temperature
from jest_hf.models.load import restore_renamed
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceSource
from jest_hf.report import Report, RunStatistics, SelectionLedger, StepFlops
from jest_hf.training.callbacks import EpochCallback, ReportsCallback, keep_callbacks
from jest_hf.training.card import RunFacts, summarise_run, try_card, write_run_card
from jest_hf.training.checks import check_learner, check_overrides
from jest_hf.training.costs import check_evaluation
from jest_hf.training.engine import Engine
from jest_hf.training.online_model import OnlineModel
from jest_hf.training.setup import Parts, build_parts, plan_run
from jest_hf.training.trackers import adopt_callbacks


class JESTTrainer(Trainer):
    """
    Train on selected examples: a dual encoder (JEST, arXiv 2406.17711), or any model whose examples have labels.

    Takes the arguments of [`~transformers.Trainer`], in the same order, and these in addition or with these meanings:

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            The learner, or its Hub id or local path: a SigLIP, SigLIP 2 or CLIP model, which learns from images with
            captions; or a `...ForImageClassification`, `...ForSequenceClassification` or `...ForCausalLM`, which
            learns from examples with labels.
        args ([`JESTConfig`]):
            All options.
        data_collator ([`JESTDataCollator`] or a collator of `jest_hf.data.labelled`, *optional*):
            Makes a super-batch of rows. Default: a collator made from `processing_class`.
        train_dataset ([`~datasets.Dataset`] or a sequence of dicts, *optional*):
            Rows with an image and one or more captions. Broken rows are skipped and counted (`examples_skipped`).
        eval_dataset (*optional*):
            Rows of the same form, or a dict of several data sets; pairs are evaluated by [`retrieval_recall`].
        processing_class (*optional*):
            The learner's processor. Default: that of the collator, or the one stored with a model named by id or path.
        ref_model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            The frozen reference, or its Hub id or local path (`args.ref_model_revision` pins the revision), for
            criteria that use a reference. With `args.reference="adapter"`: the id or path of an adapter for the
            learner's backbone, or `None` for the backbone itself.
        ref_processing_class (*optional*):
            The reference's processor. Default: the one stored with a reference named by id or path; a reference given
            as a model gets the learner's inputs.
        proxy_model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            With `args.scoring="proxy"`, the small model that scores in the learner's place and is trained beside it,
            on the reference's inputs. Default: a new model of the reference's architecture.
        peft_config (`peft.PeftConfig`, *optional*):
            Train this adapter (such as LoRA) on the frozen model instead of all weights.
        reports (sequence of [`~jest_hf.report.Report`], *optional*):
            Further records of each step, such as an exporter of your own.

    Raises:
        ValueError: for settings, models, processors and data that do not fit together, before anything is trained.
    """

    args: JESTConfig
    model: PreTrainedModel
    eval_dataset: Any

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: JESTConfig | None = None,
        data_collator: JESTDataCollator | None = None,
        train_dataset: Dataset[Any] | None = None,
        eval_dataset: Dataset[Any] | dict[str, Dataset[Any]] | None = None,
        processing_class: Any | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        *,
        ref_model: PreTrainedModel | str | None = None,
        ref_processing_class: Any | None = None,
        proxy_model: PreTrainedModel | str | None = None,
        peft_config: Any | None = None,
        reports: Sequence[Report] = (),
        callbacks: list[TrainerCallback] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        check_overrides(type(self), JESTTrainer)
        self.model_init = cast(Any, model_init)
        # Before `Trainer.__init__`, which calls some of the methods below: these use the plan, and not the parts.
        self.plan = plan = plan_run(
            *(model, cast(JESTConfig, args), data_collator, train_dataset, processing_class),
            Engine(lambda: self.accelerator),
            first_learner=None if model_init is None else cast(Any, super().call_model_init),
            ref_model=ref_model,
            ref_processing_class=ref_processing_class,
            proxy_model=proxy_model,
            peft_config=peft_config,
            reports=reports,
            functions=trainer_arguments,
        )
        super().__init__(
            model=plan.model,
            args=plan.args,
            data_collator=plan.collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=plan.processor,
            model_init=model_init,
            callbacks=plan.callbacks + (callbacks or []),
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer must not rescale it
        check_learner(self.model, plan.view, deepspeed=self.is_deepspeed_enabled)
        adopt_callbacks(self.callback_handler)
        self.parts: Parts = build_parts(plan, self.model, proxy_model)
        tracked = TrackedSelection(lambda: self.ledger, self.callback_handler, train_dataset, plan.collator)
        for callback in (*self.parts.callbacks, tracked):
            self.add_callback(callback)
        if reports:
            self.add_callback(ReportsCallback(lambda: plan.recorder.finish(summarise_run(self.facts))))
        check_evaluation(self.eval_dataset, self.get_eval_dataloader, plan.args)

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As the Trainer's: each trial of a hyperparameter search starts from a new learner, and new companions."""
        return self.plan.new_learner(partial(super().call_model_init, trial))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As the Trainer's, but for the temperature: decay would pull it towards where similarities are all alike."""
        return without_temperature(super().get_decay_parameter_names(model))

    # ---- What a run is made of ----

    @property
    def learning_objective(self) -> Objective:
        """What the run trains for. (`Trainer.objective` is the score of a hyperparameter search.)"""
        return self.plan.objective

    @property
    def ranks(self) -> Ranks:
        """All processes of the run."""
        return self.plan.ranks

    @property
    def reference(self) -> ReferenceSource | None:
        """The reference in use: a model, or a cache once there is one."""
        return self.plan.reference.source

    @property
    def ref_model(self) -> PreTrainedModel | None:
        """The reference's model, as long as the run needs it."""
        return self.plan.reference.ref_model

    @property
    def statistics(self) -> RunStatistics:
        """Counts of the run, and means of its logging window."""
        return self.plan.recorder.settled().statistics

    @property
    def ledger(self) -> SelectionLedger | None:
        """The ledger of selections, on the first process of a run with `record_selection=True`."""
        return self.plan.recorder.settled().ledger

    @property
    def learner_view(self) -> Reader:
        """How the learner reads a super-batch."""
        return self.parts.reader

    @property
    def proxy(self) -> OnlineModel | None:
        """The small model that scores in the learner's place."""
        return self.plan.companions.proxy

    @property
    def online_models(self) -> list[OnlineModel]:
        """The models that are trained beside the learner."""
        return self.plan.companions.models

    @property
    def step_flops(self) -> StepFlops:
        """FLOPs of a step all of whose rows can be read."""
        return self.plan.recorder.costs.of_step()

    @property
    def cache_flops(self) -> float:
        """FLOPs of caching the reference."""
        return self.plan.recorder.costs.of_cache

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of what the steps so far did, and of caching the reference, plain convention."""
        return self.plan.recorder.run_flops

    @property
    def facts(self) -> RunFacts:
        """What the run knows about itself now, for its model card."""
        return self.plan.facts(self.state, self.model, self.hub_model_id)

    # ---- The step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step on one super-batch: score, select, take, record, learn."""
        super_batch, step = cast(dict[str, Tensor], self._prepare_input(inputs)), self.state.global_step + 1
        sub_batch, pool = self.parts.step(model, super_batch, step)
        self.plan.recorder.record(step, sub_batch, pool)
        if sub_batch.is_empty:
            return self.parts.update.nothing()
        self.plan.recorder.statistics.add(self.plan.companions.step(pool, sub_batch.rows))
        batch = self.parts.update.prepare(model, sub_batch, step)
        with self.parts.update.learning(batch):
            return self.parts.watch(self.learn(model, batch.rows, num_items_in_batch))

    def learn(
        self, model: nn.Module, sub_batch: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of ONE loss over the whole sub-batch; the loss, detached."""
        chunk_size = self.args.gradient_cache_chunk_size
        if chunk_size is None:
            return super().training_step(model, sub_batch, num_items_in_batch)
        return self.parts.update.backward_in_chunks(model, sub_batch, chunk_size, self.compute_loss_context_manager)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The objective's loss of the sub-batch of all ranks, an fp32 scalar, from this rank's rows."""
        loss, output = self.parts.update.loss(model, inputs)
        return (loss, output) if return_outputs else loss

    # ---- Data and evaluation ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's share of super-batches, whose order depends on (data_seed, epoch) alone: the same for any number
        of ranks. The last, incomplete one is dropped. Of a stream each rank reads its own part, as it comes."""
        if is_stream(self.train_dataset):
            return self.parts.loaders.stream(self.train_dataset, self.data_collator)
        rows, sampler = self.parts.loaders.rows(self.train_dataset, self.data_collator, self.reference)
        self.pop_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        if (early := self.parts.loaders.early_loader(rows, sampler, self.data_collator, self.reference)) is not None:
            return early
        return self._get_dataloader(
            dataset=rows,
            description="Training",
            batch_size=self.args.per_device_super_batch_size,
            sampler_fn=lambda _: sampler,
            is_training=True,
        )

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """The training collator. It cannot be set on the finished loader, which accelerate wraps in another one."""
        return self.parts.loaders.training_collator(self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This rank's share of the rows, in order, each image with all of its captions ([`CaptionCollator`])."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("eval_dataset=None: pass the rows to evaluate on to JESTTrainer or to evaluate().")
        return self.parts.loaders.evaluation(dataset, self.data_collator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As [`~JESTTrainer.get_eval_dataloader`], of rows to predict: they need no labels."""
        return self.parts.loaders.prediction(test_dataset, self.data_collator)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, timed: a loader that cannot keep up shows as `loading_seconds`."""
        if self.state.global_step >= self.state.max_steps:  # resumed at its end: the Trainer would take one more step
            return [], None
        with self.plan.recorder.timed("loading_seconds"):
            return super().get_batch_samples(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        The objective's metrics over the whole data set, and `compute_metrics` over the rows with a label.
        With `args.eval_at_view` also at the scoring view, as `{prefix}_at_view_R@1` and so on. Without pairs, each row
        has a prediction and a label, in order: NaN for a row that cannot be read, -100 for a row without a label.
        """
        return self.parts.evaluator.evaluate(self.model_wrapped, dataloader, metric_key_prefix, self.compute_metrics)

    # ---- Records and checkpoints ----

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's, after making the caches that `args` name; resumes from whole checkpoints."""
        with self.plan.running(self, resume_from_checkpoint, trial) as checkpoint:
            return super().train(checkpoint, trial, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> float:  # type: ignore[override]  # the Trainer adds floats
        """FLOPs of the step just taken, for `state.total_flos`: both towers, scoring, reference and selection."""
        return self.plan.recorder.flops_of_last_step / self.args.world_size  # the Trainer adds up those of all ranks

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the steps since the last log, and the counts of the run, to a training log."""
        self.parts.watch.check(self.state.global_step)
        self.plan.recorder.complete(logs)
        super().log(logs, start_time)

    def create_model_card(self, language: Any = None, **about: Any) -> None:  # type: ignore[override]  # more arguments
        """Write the model card of this run to `output_dir/README.md`; see [`~training.card.summarise_run`]."""
        if self.is_world_process_zero():
            write_run_card(self.facts, language=language, **about)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.plan.recorder.on_checkpoint(self.state.global_step)  # first: a run may be killed while it saves
        if self.args.push_to_hub:  # it goes up with the checkpoint
            try_card(self.create_model_card)
        with self.plan.checkpoints.saving(self.state, self._get_output_dir(trial)):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.plan.checkpoints.finish_rank(output_dir, self.parts.loaders.position(self.state.global_step))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.plan.companions.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.plan.companions.resumed_from = checkpoint

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        keep_callbacks(self.callback_handler, self.plan.callbacks)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or self.is_fsdp_enabled or not restore_renamed(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.plan.checkpoints.checked(self.state.best_model_checkpoint)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not best or not restore_renamed(self.model, best):
            super()._load_best_model()

    # ---- The Hub: see `hub.publisher.Publisher` ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As the Trainer's, with more patience; raises `OSError` if the Hub refuses."""
        self.plan.publisher.make_repository(self, partial(super().init_hf_repo, token, **privacy(private)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, except that a failed push is a warning: the model has been saved."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            push = partial(self.push_to_hub, commit_message="Model save", revision=self.args.hub_revision)
            self.plan.publisher.push_or_warn(self, push)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **about: Any,
    ) -> Any:
        """As [`~transformers.Trainer.push_to_hub`], tried again if the Hub is busy; `OSError` if the push failed."""
        return self.plan.publisher.push(
            self,
            partial(super().init_hf_repo, token, **privacy(private)),
            partial(super().push_to_hub, commit_message, blocking, token, revision, **privacy(private), **about),
            commit_message=commit_message,
            token=token,
            revision=revision,
        )

    def _push_from_checkpoint(self, folder: str) -> None:
        self.plan.publisher.push_checkpoint(self, folder, super().init_hf_repo, super()._push_from_checkpoint)

    def _finish_current_push(self) -> None:
        self.plan.publisher.finish(self, self._push_from_checkpoint)
