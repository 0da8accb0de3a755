# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The construction of a run, in its order.

Before `Trainer.__init__`, in [`plan_run`]:

1. arguments and launch are checked;
2. the ranks are known, and wait for each other for `ddp_timeout`;
3. processor and learner are loaded, or `model_init` is called for the first time;
4. the objective is found;
5. the adapter is put on the learner;
6. the reference is found, and the collator completed with its processor;
7. the data and their image cache are checked; statistics, ledger and schedule are made;
8. publisher and checkpoints are made.

After it, in [`build_parts`]:

9. the learner's precision and view are checked;
10. the progress bar is replaced;
11. the learner's reader is made, which opens the model for views and its temperature;
12. the proxy is made;
13. the reference and the rows are identified, for a resume and for a cache, and then the reference is placed;
14. the learner is prepared for an engine that shards it;
15. one row is read and checked against every model: the dry run.

Until (15) the Trainer may call `call_model_init`, `init_hf_repo` and callbacks: what they use is in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback, TrainerState

from jest_hf.config import JESTConfig
from jest_hf.data.reasons import reasons_by_id
from jest_hf.data.streamed_rows import is_stream
from jest_hf.distributed import Ranks
from jest_hf.distributed.group import end_group_at_exit, limit_waits
from jest_hf.hub.publisher import Publisher
from jest_hf.images.views import View
from jest_hf.models import Reader, add_adapter, base_model
from jest_hf.models.sharding import add_dimensions, built_whole, prepare_for_fsdp2
from jest_hf.objectives import Objective
from jest_hf.reference import load_learner
from jest_hf.report.ledger import SelectionLedger
from jest_hf.report.report import Report
from jest_hf.report.sources import Sources
from jest_hf.report.statistics import RunStatistics
from jest_hf.scoring import Scorer
from jest_hf.training.advice import Overtaken, SlowLoading, loading_remedies
from jest_hf.training.callbacks import CompanionsCallback, LedgerCallback
from jest_hf.training.card import RunFacts
from jest_hf.training.checkpoints import Checkpoints
from jest_hf.training.checks import (
    check_arguments,
    check_distinct,
    check_functions,
    check_gradient_cache,
    check_launch,
    check_objective,
    check_train_size,
    number_of_rows,
    warn_of_precision,
)
from jest_hf.training.companions import Companions
from jest_hf.training.costs import RunCosts
from jest_hf.training.doubtful import warn_of_settings
from jest_hf.training.engine import Engine
from jest_hf.training.evaluator import Evaluator
from jest_hf.training.health import BrokenRows, LossWatch
from jest_hf.training.identity import check_same_rows, identify_run
from jest_hf.training.images import RunImages
from jest_hf.training.loaders import Loaders, first_row
from jest_hf.training.objective import objective_of
from jest_hf.training.price import price_run
from jest_hf.training.recorder import RunRecorder
from jest_hf.training.reference import ReferencePlan
from jest_hf.training.step import SelectionStep
from jest_hf.training.trials import trying
from jest_hf.training.update import Update


@dataclass(frozen=True)
class RunPlan:
    """What is decided before `Trainer.__init__`."""

    args: JESTConfig
    model: PreTrainedModel | None
    processor: Any
    collator: Any
    seeds_collator: bool
    train_dataset: Any
    objective: Objective
    view: View | None
    ranks: Ranks
    group: Ranks
    reference: ReferencePlan
    images: RunImages
    recorder: RunRecorder
    companions: Companions
    publisher: Publisher
    checkpoints: Checkpoints
    engine: Engine
    before_trials: dict[str, Any] = field(default_factory=dict)  # values of options that a trial has set

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """The callbacks that come before the user's."""
        recorder = self.recorder
        broken = BrokenRows(recorder.statistics, self.collator, self.train_dataset, lambda: self.reference.source)
        return [recorder.statistics, broken, *([] if recorder.ledger is None else [LedgerCallback(recorder.ledger)])]

    @contextmanager
    def running(self, trainer: Any, resume: str | bool | None, trial: Any) -> Iterator[str | bool | None]:
        """Train within, with the options of a trial and alone in the folder; yields the checkpoint to resume from."""
        in_folder = trial is None or trainer.hp_search_backend is None
        with trying(self, trainer, trial), self.checkpoints.running(resume, in_folder) as checkpoint:
            self.make_caches(trainer.train_dataset, trainer.data_collator)
            yield checkpoint

    def make_caches(self, dataset: Any, collator: Any) -> None:
        """Make the image cache, with `args.image_cache`, and then the cache of the reference. A collective."""
        self.images.make(dataset, collator)
        self.cache_reference(dataset, collator)

    def new_learner(self, model_init: Callable[[], nn.Module]) -> PreTrainedModel:
        """Start over with a new learner and new companions; the learner is prepared as [`build_parts`] prepares it."""
        self.companions.start_over()
        learner = _call_whole(model_init)
        self.objective.open_up(learner)
        self.prepare_for_engine(learner)
        return learner

    def prepare_for_engine(self, learner: nn.Module) -> None:
        """Prepare the learner for DeepSpeed or FSDP2, if one of them will wrap it."""
        if self.engine.is_fsdp:
            prepare_for_fsdp2(base_model(learner))
        if self.engine.is_deepspeed:
            add_dimensions(base_model(learner))

    def cache_reference(self, dataset: Any, collator: Any) -> None:
        """Cache the reference's scores of the training data, with `args.cache_reference`. A collective."""
        flops = self.reference.cache_now(self.objective, dataset, collator, self.engine, self.images.cache)
        if flops is not None:
            self.recorder.costs.of_cache = flops

    def facts(self, state: TrainerState, model: nn.Module, hub_model_id: str | None) -> RunFacts:
        """What the run knows about itself, for its model card."""
        return RunFacts(
            args=self.args,
            state=state,
            model=model,
            objective=self.objective,
            collator=self.collator,
            statistics=self.recorder.settled().statistics,
            flops=self.recorder.run_flops,
            reference=self.reference.about(),
            hub_model_id=hub_model_id,
        )


@dataclass(frozen=True)
class Parts:
    """The parts of a run that need the Trainer's model."""

    reader: Reader
    step: SelectionStep
    update: Update
    loaders: Loaders
    evaluator: Evaluator
    watch: LossWatch = field(default_factory=LossWatch)
    callbacks: list[TrainerCallback] = field(default_factory=list)


def plan_run(
    model: PreTrainedModel | str | None,
    args: JESTConfig,
    data_collator: Any,
    train_dataset: Any,
    processing_class: Any,
    engine: Engine,
    *,
    first_learner: Callable[[], PreTrainedModel] | None,
    ref_model: PreTrainedModel | str | None,
    ref_processing_class: Any,
    proxy_model: PreTrainedModel | str | None,
    peft_config: Any,
    reports: Sequence[Report],
    functions: Mapping[str, Any],
) -> RunPlan:
    """
    Decide what can be decided before `Trainer.__init__`: lines 1 to 8 of this module.

    Args:
        first_learner (`Callable`, *optional*): Calls `model_init`, to see what the learner is made for.
        engine ([`Engine`]): The accelerator that the Trainer will make.
        functions (mapping): Further arguments of the Trainer, some of which are functions of the user.
        model, args, data_collator, train_dataset, processing_class, ref_model, ref_processing_class, proxy_model:
            As in [`JESTTrainer`]; so are `peft_config` and `reports`.

    Raises:
        ValueError: for settings, models, processors and data that do not fit together.
    """
    check_arguments(args, data_collator, ref_model)  # 1
    check_distinct(model=model, ref_model=ref_model, proxy_model=proxy_model)
    check_launch(args)
    check_gradient_cache(args)
    warn_of_precision(args)

    ranks = Ranks.world()  # 2
    limit_waits(args.ddp_timeout)
    end_group_at_exit()

    if processing_class is None and data_collator is not None:  # 3
        processing_class = data_collator.processor
    if isinstance(model, str):
        model, processing_class = load_learner(model, processing_class, ranks=ranks, device=args.device)
    if processing_class is None:
        raise ValueError("processing_class=None: pass the learner's processor, or a data_collator made from it.")
    learner = _call_whole(first_learner) if model is None and first_learner is not None else model

    objective = objective_of(args, learner)  # 4
    check_objective(args, objective, data_collator)
    check_functions(objective, functions)

    if peft_config is not None:  # 5
        model = cast(PreTrainedModel, add_adapter(model, peft_config))

    reference = ReferencePlan(args, ranks)  # 6
    collator = data_collator or objective.collator(processing_class, None, args.seed)
    ref_processing_class = reference.find(model, ref_model, ref_processing_class, collator)
    if data_collator is None:
        collator = objective.collator(processing_class, ref_processing_class, args.seed)
    elif ref_processing_class is not None and collator.ref_processor is None:
        collator = collator.with_reference(ref_processing_class)
    elif reference.cache is not None and args.scoring == "learner":  # no model reads the reference's images
        collator = collator.with_reference(None)

    group = ranks if args.selection_scope == "global" else Ranks()  # 7
    recorder = _recorder(args, objective, collator, train_dataset, ranks, group, reports)
    view = View.parse(args.scoring_view) if args.scoring_view else None
    images = RunImages(args, view, ranks)
    images.check(train_dataset, collator)

    return RunPlan(
        args=args,
        model=model,
        processor=processing_class,
        collator=collator,
        seeds_collator=data_collator is None,
        train_dataset=train_dataset,
        objective=objective,
        view=view,
        ranks=ranks,
        group=group,
        reference=reference,
        images=images,
        recorder=recorder,
        companions=Companions(args, objective, ranks, engine, collator.ref_processor or processing_class),
        publisher=Publisher(args),  # 8
        checkpoints=Checkpoints(args, ranks, recorder.ledger),
        engine=engine,
    )


def _call_whole(model_init: Callable[[], nn.Module]) -> PreTrainedModel:
    """Call `model_init`; ZeRO-3 could partition neither a CLIP nor a model that is built from a configuration."""
    with built_whole():
        return cast(PreTrainedModel, model_init())


def _recorder(
    args: JESTConfig,
    objective: Objective,
    collator: Any,
    train_dataset: Any,
    ranks: Ranks,
    group: Ranks,
    reports: Sequence[Report],
) -> RunRecorder:
    """Check the training data, and make what counts them."""
    if train_dataset is not None:
        objective.check_data(train_dataset, collator)
    n_rows = number_of_rows(train_dataset, collator.image_column, ranks)
    if train_dataset is not None:
        check_train_size(n_rows, args)
    sources = None if args.source_column is None else Sources.read(train_dataset, args.source_column)
    statistics = RunStatistics(n_rows, args.selection_settings, [] if sources is None else sources.names)
    ledger = None
    if args.record_selection and args.process_index == 0:
        ledger = SelectionLedger(Path(str(args.output_dir)) / "selections.parquet")
    return RunRecorder(args, ranks, group, statistics, sources, ledger, reports)


def build_parts(plan: RunPlan, learner: PreTrainedModel, proxy_model: PreTrainedModel | str | None) -> Parts:
    """
    Make the parts of a run once the Trainer is there: lines 11 to 15 of this module.

    Args:
        plan ([`RunPlan`]): What was decided before.
        learner ([`~transformers.PreTrainedModel`]): The Trainer's model, not wrapped yet.
        proxy_model (*optional*): As in [`JESTTrainer`].

    Raises:
        ValueError: for models, processors and data that do not fit together.
    """
    args, objective, ranks, view = plan.args, plan.objective, plan.ranks, plan.view
    reference, recorder, collator, engine = plan.reference, plan.recorder, plan.collator, plan.engine
    warn_of_settings(args, objective, learner, reference.ref_model, plan.train_dataset)
    reader = objective.reader(learner, plan.processor, "learner")  # 11
    companions = plan.companions
    companions.make_proxy(proxy_model, reference.ref_model)  # 12
    companions.make_reference(reference.ref_model, learner)  # 13
    dataset = plan.train_dataset
    row = None if dataset is None else first_row(dataset, collator.image_column, is_stream(dataset))
    check_same_rows(ranks, dataset, collator, row, args.device)
    recorder.statistics.settings |= identify_run(
        objective, reference.frozen(learner), plan.train_dataset, collator.image_column, row
    )
    reference.place(objective, learner, reader, collator, plan.processor, plan.train_dataset, engine)
    if companions.reference is not None:
        reference.source = companions.reference
    plan.prepare_for_engine(learner)  # 14, since the reference identified at 13 may be the learner's own backbone
    scorer = Scorer(
        reader,
        lambda: reference.source,
        batch_size=args.scoring_batch_size or args.per_device_train_batch_size,
        view=view,
        proxy=None if companions.proxy is None else companions.proxy.score,
        autocast=engine.autocast,
    )
    loaders = Loaders(
        *(args, objective, view, ranks, plan.images), lambda: reference.source, plan.checkpoints.resumed_at
    )
    step = SelectionStep(
        args,
        objective.loss_kind,
        ranks=ranks,
        group=plan.group,
        scorer=scorer,
        reference=lambda: reference.source,
        metrics=recorder,
        sources=recorder.sources,
        early=lambda: loaders.early,
        reasons=partial(reasons_by_id, plan.train_dataset, collator),
    )
    update = Update(
        args,
        objective,
        reader,
        view,
        ranks=ranks,
        engine=engine,
        reference=lambda: reference.source,
        late_images=lambda: loaders.late_images,
        record=recorder.add,
    )
    if row is not None:  # 15
        recorder.costs = _costs(plan, reader, learner, row)
    slow_loading = SlowLoading(lambda: loading_remedies(args, collator, loaders, not is_stream(plan.train_dataset)))
    if ranks.rank == 0:
        recorder.reports = [*recorder.reports, slow_loading, *([Overtaken()] if Overtaken.concerns(args) else [])]
    return Parts(
        reader=reader,
        step=step,
        update=update,
        loaders=loaders,
        evaluator=Evaluator(args, objective, reader, view, ranks, engine),
        callbacks=[slow_loading, *([CompanionsCallback(companions)] if companions.models else [])],
    )


def _costs(plan: RunPlan, reader: Reader, learner: PreTrainedModel, row: dict[str, Any]) -> RunCosts:
    """Collate the first row: a missing column or a foreign processor shows here and not in a worker."""
    batch = plan.collator([row])
    proxy = plan.companions.proxy
    readers: dict[str, tuple[Reader, PretrainedConfig]] = {"learner": (reader, base_model(learner).config)}
    if proxy is not None:
        readers["proxy"] = (proxy.reader, proxy.model.config)
    source = plan.reference.source
    if source is not None and source.reader is not None and source.config is not None:
        readers["reference"] = (source.reader, source.config)
    return price_run(
        *(plan.args, batch, plan.objective, readers, plan.view, learner),
        cached_width=None if source is None else source.width,
        n_rows=plan.recorder.statistics.n_examples,
    )


__all__ = ["Parts", "RunPlan", "build_parts", "plan_run"]
