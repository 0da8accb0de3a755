# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Score a data set without training: the losses of a learner, of a reference, and their difference, for each row.

1. Each model reads every row once. Image-text pairs are embedded as for a reference cache (`learner/` and `reference/`
   in the folder of the scores), shard by shard; labelled rows get a loss each.
2. The scores are computed from these files, which are memory-mapped: no image is read again, and the embeddings of one
   chunk of rows are in memory at a time.

Both steps continue where they were interrupted, and share the work among the processes of `accelerate launch`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from jest_hf.curation.score_set import FORMAT, KEY, LEARNABILITY, ScoreSet, describe_like
from jest_hf.curation.score_writer import Source, write_scores
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.reasons import first_reasons
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import is_stream
from jest_hf.distributed import Ranks
from jest_hf.hub.card_parts import public_name
from jest_hf.objectives import ObjectiveOptions, find_objective
from jest_hf.reference import (
    CachedReference,
    identify_reference,
    load_reference,
    open_cache,
    place_reference,
    write_cache,
)
from jest_hf.reference.cache import SHARD_ROWS
from jest_hf.reference.fingerprint import difference
from jest_hf.reference.losses import IrreducibleLosses


def score_dataset(
    dataset: Any,
    output_dir: str | Path,
    *,
    learner: str | PreTrainedModel | None = None,
    ref_model: str | PreTrainedModel | None = None,
    ref_model_revision: str | None = None,
    reference_cache: str | Path | None = None,
    processing_class: Any | None = None,
    ref_processor: Any | None = None,
    batch_size: int = 256,
    draws: int = 8,
    seed: int = 0,
    loss: str | None = None,
    dtype: str = "float16",
    per_device_batch_size: int = 64,
    shard_rows: int = SHARD_ROWS,
    num_workers: int = 0,
    disable_tqdm: bool = False,
    source: Mapping[str, Any] | None = None,
    **reading: Any,
) -> ScoreSet:
    """Score every row of a data set, or continue where an earlier call was interrupted. A collective.

    Args:
        dataset (`datasets.Dataset`, sequence of `dict` or `None`): The data, map-style. `None` scores with
            `reference_cache` alone: no image is read, and the scores are those of the reference.
        output_dir (`str` or `Path`): Folder of the scores, on a file system that all processes share.
        learner, ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*): Hub id or path, or a model: a dual
            encoder, a classifier or a causal language model. One of them is enough; learnability needs both.
        ref_model_revision (`str`, *optional*): Branch, tag or commit of a `ref_model` on the Hub.
        reference_cache (`str` or `Path`, *optional*): A reference cache of these data, in place of `ref_model`.
        processing_class, ref_processor (*optional*): Processors of the learner and the reference. Default: those that
            are stored with an id or path. The reference reads with the learner's if it has none.
        batch_size (`int`, *optional*, defaults to `256`): Pairs in each random batch of the contrastive loss.
        draws (`int`, *optional*, defaults to `8`): Random batches for each row, whose losses are averaged.
        seed (`int`, *optional*, defaults to `0`): Seed of the random batches.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`. Default: the loss that the learner, or else the
            reference, was made for.
        dtype (`str`, *optional*, defaults to `"float16"`): Dtype of the stored embeddings, `"float16"` or `"float32"`.
        per_device_batch_size (`int`, *optional*, defaults to `64`): Rows in a forward on one device.
        shard_rows (`int`, *optional*, defaults to `65536`): Rows in a shard of embeddings and of scores.
        num_workers (`int`, *optional*, defaults to `0`): Processes that decode images.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bars.
        source (`Mapping`, *optional*): The arguments of [`~jest_hf.data.load_source`] that loaded `dataset`. They are
            written down for [`~jest_hf.curation.curate_dataset`].
        reading (*optional*): Options of the data collator: `image_column`, `caption_column`, `max_length` and
            `scaled_jpeg_decoding` for pairs, `image_column` or `text_column` and `label_column` for labelled rows.

    Returns:
        [`~jest_hf.curation.ScoreSet`]: the finished scores, opened.

    Raises:
        ValueError: if there is nothing to score with, if an option is out of range, or if `output_dir` has scores of
            other models, other data or other options.
        TypeError: for a stream.
        OSError: if a model cannot be loaded, or a file cannot be written; finished shards are kept.
    """
    reading = {name: value for name, value in reading.items() if value not in (None, False)}
    _check(dataset, learner, ref_model, reference_cache)
    for name, value, least in (("batch_size", batch_size, 2), ("draws", draws, 1), ("shard_rows", shard_rows, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    folder = Path(output_dir)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"WORLD_SIZE={started}, but accelerate uses {accelerator.num_processes} processes; start with `accelerate "
            "launch $(jest-hf preset ddp)`."
        )
    embed = _Embedder(
        accelerator,
        folder,
        dataset,
        reading,
        {"dtype": dtype, "shard_rows": shard_rows},
        {"batch_size": per_device_batch_size, "num_workers": num_workers, "disable_tqdm": disable_tqdm},
    )
    sources: dict[str, Source] = {}
    if learner is not None:
        sources["learner"], processing_class = embed("learner", learner, processing_class)
    if ref_model is not None:
        ref_processor = ref_processor or (processing_class if isinstance(ref_model, PreTrainedModel) else None)
        sources["reference"], _ = embed("reference", ref_model, ref_processor, ref_model_revision)
    elif reference_cache is not None:
        cache = open_cache(reference_cache, ranks=embed.ranks, device=accelerator.device)
        sources["reference"] = CachedReference(cache)
    data = _common_data(sources, embed.rows)
    pairs = [one.cache for one in sources.values() if isinstance(one, CachedReference)]
    plan: dict[str, Any] = {
        "format": FORMAT,
        **{name: _identity(one) for name, one in sources.items()},
        "data": data,
        "scoring": {"kind": "pairs" if pairs else "losses"},
        "storage": {"shard_rows": shard_rows},
        "names": _names({"learner": learner, "reference": ref_model or reference_cache}),
        "source": dict(source or {}),
        "columns": _columns(sources, embed.rows),
    }
    if pairs:
        plan["scoring"] |= {"loss": loss or pairs[0].loss, "batch_size": batch_size, "draws": draws, "seed": seed}
    why = partial(first_reasons, embed.rows, embed.collator)
    return write_scores(folder, plan, sources, embed.rows, embed.ranks, accelerator.device, disable_tqdm, why)


def _check(dataset: Any, learner: Any, ref_model: Any, reference_cache: Any) -> None:
    if learner is None and ref_model is None and reference_cache is None:
        raise ValueError("there is nothing to score with; pass a learner, ref_model or reference_cache.")
    if ref_model is not None and reference_cache is not None:
        raise ValueError("ref_model and reference_cache are both a reference; pass one of them.")
    if dataset is None and (learner is not None or ref_model is not None):
        raise ValueError("a model needs data to score; pass dataset, or reference_cache alone.")
    if dataset is not None and is_stream(dataset):
        raise TypeError(
            f"dataset is a stream ({type(dataset).__name__}), and rows are scored by their numbers, in random batches "
            "of the whole data set; name its files with load_source (scores of a webdataset have the __key__ too), or "
            "keep its rows with datasets.Dataset.from_generator."
        )


class _Embedder:
    """Lets a model read every row once, and returns what it computed as a source of scores. A call is a collective."""

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        dataset: Any,
        reading: Mapping[str, Any],
        storage: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.ranks = Ranks.world()
        self.rows = None if dataset is None else Rows(dataset, reading.get("image_column"))
        self.reading = dict(reading)
        self.storage = dict(storage)
        self.options = dict(options)
        self.collator: Any = None

    def __call__(
        self, name: str, model: str | PreTrainedModel, processor: Any | None, revision: str | None = None
    ) -> tuple[Source, Any]:
        """Return the source of scores, and the processor that the model reads with."""
        device, ranks = self.accelerator.device, self.ranks
        option = "learner" if name == "learner" else "ref_model"
        loaded, processor = load_reference(model, revision, processor, ranks=ranks, device=device, option=option)
        if processor is None:
            raise ValueError(
                f"{option} is a model object, whose processor is not known; pass it as "
                f"{'processing_class' if name == 'learner' else 'ref_processor'}."
            )
        identity = identify_reference(loaded)
        commit = getattr(loaded.config, "_commit_hash", None)
        if isinstance(model, str) and commit is not None:
            identity |= {"repo": model, "commit": commit}
        objective = find_objective(None, loaded).make(loaded, ObjectiveOptions())
        self.collator = collator = self._collator(objective, processor)
        placed = place_reference(loaded, self.accelerator)
        reader: Any = objective.reader(loaded, processor, option)
        options: dict[str, Any] = {
            "reference": identity,
            "precision": self.accelerator.mixed_precision,
            "device": device,
            "ranks": ranks,
            **self.options,
        }
        assert self.rows is not None  # checked: a model needs data
        with self.accelerator.autocast():
            if isinstance(collator, JESTDataCollator):
                cache = write_cache(
                    self.folder / name, reader, placed, loaded.config, self.rows, collator, **self.storage, **options
                )
                return CachedReference(cache), processor
            path = self.folder / f"{name}.safetensors"
            return IrreducibleLosses.compute(path, reader, placed, self.rows, collator, **options), processor

    def _collator(self, objective: Any, processor: Any) -> Any:
        """Make a collator of the objective's kind with the given columns."""
        made = objective.collator(processor, None, 0)
        if not self.reading:
            return made
        classes = {"label2id": objective.label2id} if hasattr(made, "classes") else {}
        first = processor if objective.pairs else made.processor
        try:
            return type(made)(first, *classes.values(), **self.reading)
        except TypeError as error:
            raise ValueError(
                f"{', '.join(self.reading)}: not all of these options belong to {type(made).__name__}, which reads "
                f"the data of a {objective.name} model ({error}); leave out what does not fit."
            ) from error


def _names(models: Mapping[str, Any]) -> dict[str, str]:
    """Return what people call the models, for the card: Hub id, last part of a path, or class."""
    given = {name: model for name, model in models.items() if model is not None}
    return {
        name: public_name(str(model)) or "" if isinstance(model, str | Path) else type(model).__name__
        for name, model in given.items()
    }


def _identity(source: Source) -> dict[str, Any]:
    about = source.cache.manifest["reference"] if isinstance(source, CachedReference) else source.origin["reference"]
    return dict(about)


def _common_data(sources: Mapping[str, Source], rows: Rows | None) -> dict[str, Any]:
    """Return the description of the data that all models read; raise a `ValueError` if they read different data."""
    described: list[dict[str, Any]] = []
    for source in sources.values():
        if isinstance(source, CachedReference):
            described.append(source.cache.manifest["data"])
        else:  # without the hashes of each model's own inputs
            described.append({name: value for name, value in source.origin["data"].items() if name != "row"})
    if len(described) == 1 and rows is not None:
        described.append(describe_like(described[0], rows))
    if len(described) == 2:
        found = difference({"data": described[1]}, {"data": described[0]})
        if found is not None:
            raise ValueError(
                f"the reference did not read this data set: {found}; name a reference_cache of this data set, or make "
                "one with `jest-hf cache-reference`."
            )
    return described[0]


def _columns(sources: Mapping[str, Source], rows: Rows | None) -> list[str]:
    names = ["row", "example_id"]
    if rows is not None and KEY in (getattr(rows.dataset, "column_names", None) or ()):
        names.append(KEY)
    names += [f"{name}_loss" for name in sources]
    return names + [LEARNABILITY] * (len(sources) == 2)


__all__ = ["score_dataset"]
