# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Make a reference cache: embed every row of a data set once, shard by shard.

A frozen model always computes the same embedding of an example. Embedding the data set once costs less than embedding
every super-batch from the second epoch on. Later runs use the cache for free, and need no weights of the reference.

1. The missing shards are assigned to the ranks in turn. The batches of a shard start at its first row, so the contents
   of a shard depend neither on the number of ranks nor on where the work was interrupted.
2. A finished shard is written under another name and renamed: a shard file is always whole, and work that was killed
   continues with the next shard. Meanwhile `unfinished.json` describes the shards. Before the work goes on, the
   finished shards are checked by the hash in each, and a damaged one is made again.
3. The manifest, with the sha256 of every shard, is written last. A folder without it is not a cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PretrainedConfig
from transformers.utils import logging

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.files import CLAIM, claim_folder, release_folder
from jest_hf.data.image_cache import ImageCache, describe_sizes
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks, gather_objects
from jest_hf.models import base_model, family_of
from jest_hf.models.reader import Reader
from jest_hf.reference.compared import DigestingCollator
from jest_hf.reference.fingerprint import describe_data, describe_reading, difference, lacking, own_keys
from jest_hf.reference.shards import DIGESTS, DTYPES, fault_of, pack, plan_of, sealed, shard_name
from jest_hf.reference.store import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    ReferenceCache,
    about_shard,
    is_whole,
    open_folder,
    read_manifest,
    to_json,
    write_atomically,
)
from jest_hf.reference.verified import sha256_of
from jest_hf.report.counting import flops_of_inputs, tower_flops_of


logger = logging.get_logger(__name__)

SHARD_ROWS = 65536  # 200 MB of fp16 embeddings of width 768


def write_cache(
    folder: str | Path,
    view: Reader,
    model: nn.Module,
    config: PretrainedConfig,
    rows: Rows,
    collator: JESTDataCollator,
    *,
    reference: Mapping[str, Any],
    batch_size: int,
    dtype: str = "float16",
    shard_rows: int = SHARD_ROWS,
    precision: str = "no",
    replace: bool = False,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    disable_tqdm: bool = False,
    images: ImageCache | None = None,
    ranks: Ranks | None = None,
) -> ReferenceCache:
    """Embed every row with all of its captions, or continue where an earlier call was interrupted. A collective.

    With `scaled_jpeg_decoding` JPEGs are decoded at the size of the reference. In a run without a cache they are
    decoded at the larger of two sizes, the learner's and the reference's, so the pixels may differ a little.

    Args:
        folder (`str` or `Path`): Folder of the cache, on a file system that all processes share.
        view ([`~jest_hf.models.reader.Reader`]): How the reference reads a batch.
        model (`torch.nn.Module`): The reference, after [`~jest_hf.models.expose_temperature`].
        config ([`~transformers.PretrainedConfig`]): Configuration of the reference.
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        collator ([`JESTDataCollator`]): The collator of the run that the cache is for, or a collator made from the
            reference's processor.
        reference (`Mapping`): Identity of the reference, from [`identify_reference`].
        batch_size (`int`): Rows in a forward, on one device.
        dtype (`str`, *optional*, defaults to `"float16"`): Dtype of the stored embeddings: `"float16"` (4 D bytes for
            a row with one caption) or `"float32"` (8 D bytes, and the selections are those without a cache).
        shard_rows (`int`, *optional*, defaults to `65536`): Rows in a shard.
        precision (`str`, *optional*, defaults to `"no"`): The autocast that the caller has switched on: `"no"`,
            `"bf16"` or `"fp16"`.
        replace (`bool`, *optional*, defaults to `False`): Whether to start over, with a warning, if `folder` has a
            cache of another reference or other data.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the model.
        num_workers (`int`, *optional*, defaults to `0`): Processes that decode images.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.
        images ([`~jest_hf.data.image_cache.ImageCache`], *optional*): A cache of the images of the data. Used where it
            has the pixels that the collator would make.
        ranks ([`Ranks`], *optional*): The ranks that share the work. Default: this process alone.

    Returns:
        [`ReferenceCache`]: the finished cache, opened.

    Raises:
        ValueError: if `folder` has a whole or unfinished cache of another reference or other data, and `replace` is
            False; if an embedding is NaN, or its norm is not 1.
        OSError: if a file cannot be written; finished shards are kept.
    """
    for name, value in (("batch_size", batch_size), ("shard_rows", shard_rows)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
    folder, ranks = Path(folder), ranks or Ranks()
    # Without the learner's inputs, which nothing reads.
    collator = JESTDataCollator(
        collator.ref_processor or collator.processor,
        image_column=collator.image_column,
        caption_column=collator.caption_column,
        max_length=collator.max_length,
        scaled_jpeg_decoding=collator.scaled_jpeg_decoding,
    )
    captioned = DigestingCollator(collator)
    blank = captioned([])
    probe = _embed(view, model, blank, device)
    plan: dict[str, Any] = {
        "format": FORMAT,
        "reference": dict(reference),
        "reading": describe_reading(collator),
        "data": describe_data(rows, collator),
        "storage": {"dtype": dtype, "shard_rows": shard_rows, "batch_size": batch_size, "precision": precision},
        "keyed": own_keys(rows) is not None,
        "loss": family_of(config).loss,
        "width": probe.image.shape[1],
        "logit_scale": probe.logit_scale,
        "logit_bias": probe.logit_bias,
        DIGESTS: "xxh3_64",
    }
    spans = [range(start, min(start + shard_rows, len(rows))) for start in range(0, len(rows), shard_rows)]
    pending, plan = _begin(folder, plan, spans, replace, ranks, device)
    if pending is None:
        return open_folder(folder)

    try:
        tasks = list(_deal(pending, spans, batch_size, ranks))
        batches: Iterable[Any] = [task.batch for task in tasks]  # ranges, where torch names lists
        sizes = describe_sizes(collator.geometries.values(), collator.scaled_jpeg_decoding)
        read = rows if images is None or images.difference(sizes) is not None else rows.with_images(images)
        loader = DataLoader(
            read,
            batch_sampler=batches,
            collate_fn=captioned,
            num_workers=num_workers,
            generator=torch.Generator(),  # the seed of the workers: not drawn from the global random state
        )
        progress = logging.tqdm(
            loader, desc="Caching the reference", unit="batch", disable=disable_tqdm or ranks.rank > 0
        )
        keys = own_keys(rows)
        parts = []
        for task, batch in zip(tasks, progress, strict=True):
            part = _embed(view, model, batch, device)
            if task.shard is None:
                continue
            parts.append(part)
            if task.is_last:
                shard = _assemble(parts, spans[task.shard], plan)
                if keys is not None:
                    span = spans[task.shard]
                    shard["key"] = torch.from_numpy(keys[span.start : span.stop].copy())
                write_atomically(folder / shard_name(task.shard), pack(shard, task.shard, plan))
                parts = []
        return _finish(folder, plan, len(spans), _forward_flops(view, model, config, blank), ranks, device)
    finally:
        release_folder(folder, ranks)


class _Task(NamedTuple):
    """One forward, over a batch of a shard or over an empty batch."""

    shard: int | None
    batch: range
    is_last: bool


class _Part(NamedTuple):
    """The embeddings of a batch: n images that could be read, and their m captions in the same order."""

    ids: list[int]
    digest: Tensor
    image: Tensor
    text: Tensor
    caption_of: Tensor
    logit_scale: float
    logit_bias: float | None


def _deal(pending: Sequence[int], spans: Sequence[range], batch_size: int, ranks: Ranks) -> Iterator[_Task]:
    """Yield this rank's forwards. All ranks have the same number, because engines make every forward a collective: in
    each round a rank has one shard, and adds empty batches if its shard is shorter than another's or none is left.
    """
    for first in range(0, len(pending), ranks.size):
        dealt = pending[first : first + ranks.size]
        n_batches = max(-(-len(spans[shard]) // batch_size) for shard in dealt)
        own = []
        if ranks.rank < len(dealt):
            shard = dealt[ranks.rank]
            span = spans[shard]
            starts = range(span.start, span.stop, batch_size)
            own = [
                _Task(shard, range(start, min(start + batch_size, span.stop)), start == starts[-1]) for start in starts
            ]
        yield from own
        yield from [_Task(None, range(0), False)] * (n_batches - len(own))


@torch.no_grad()
def _embed(view: Reader, model: nn.Module, batch: Mapping[str, Any], device: torch.device | str) -> _Part:
    """Run one forward over a batch of a [`DigestingCollator`]."""
    model.eval()
    output = view(model, {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)})
    ids, caption_of = batch["groups"], batch["caption_of"]
    bias = output.logit_bias
    return _Part(
        ids,
        batch["digest"],
        # A batch without a readable row has one blank embedding, which only the probe uses.
        output.image_embeds[: len(ids) or None].float().cpu(),
        output.text_embeds[: len(caption_of) or None].float().cpu(),
        caption_of,
        output.logit_scale.item(),
        None if bias is None else bias.item(),
    )


def _forward_flops(
    view: Reader, model: nn.Module, config: PretrainedConfig, batch: Mapping[str, Any]
) -> dict[str, int]:
    """Count the FLOPs of one image and of one text, by the shapes in a batch of a [`DigestingCollator`]."""
    if family_of(config).towers:
        return flops_of_inputs(config, batch)
    inputs = view.inputs({name: value for name, value in batch.items() if isinstance(value, Tensor)})
    architecture: Any = type(base_model(extract_model_from_parallel(model)))
    return tower_flops_of(architecture, config, inputs)


def _assemble(parts: Sequence[_Part], span: range, plan: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a shard. A row that could not be read has zeros for its image, and for one caption."""
    width, dtype = plan["width"], DTYPES[plan["storage"]["dtype"]]
    parts = [part for part in parts if part.ids]
    valid, counts = torch.zeros(len(span), dtype=torch.bool), torch.ones(len(span), dtype=torch.int64)
    for part in parts:
        places = torch.tensor(part.ids) - span.start
        valid[places] = True
        counts[places] = part.caption_of.bincount(minlength=len(part.ids))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    image, text = torch.zeros(len(span), width, dtype=dtype), torch.zeros(int(offsets[-1]), width, dtype=dtype)
    if parts:
        image[valid] = torch.cat([part.image for part in parts]).to(dtype)
        text[valid.repeat_interleave(counts)] = torch.cat([part.text for part in parts]).to(dtype)
    shard = {"image": image, "text": text, "offsets": offsets, "valid": valid}
    if DIGESTS in plan:
        shard["digest"] = torch.zeros(len(span), 2, dtype=torch.int64)
        if parts:
            shard["digest"][valid] = torch.cat([part.digest for part in parts])
    return shard


def _begin(
    folder: Path, plan: dict[str, Any], spans: Sequence[range], replace: bool, ranks: Ranks, device: torch.device | str
) -> tuple[list[int] | None, dict[str, Any]]:
    """Prepare the folder. Return the shards to write, the same on every rank (`None` if the cache is finished), and
    the plan to write them by: that of the work which is continued. A collective.
    """
    pending = [k for k, span in enumerate(spans) if not is_whole(folder / shard_name(k), len(span), plan["width"])]
    existing = _existing(folder)
    foreign = _foreign(folder, existing, plan, pending)
    if foreign is not None:
        if not replace:
            raise ValueError(
                f"the reference cache in {folder} does not match this run: {foreign}; choose another folder, or "
                "delete this one."
            )
        pending = list(range(len(spans)))
    is_finished = (folder / MANIFEST).exists() and not pending
    if any(other != pending for other in gather_objects(ranks, pending, device)):
        raise ValueError(
            f"the processes do not find the same files in {folder}; choose a folder on a file system that all hosts "
            "share."
        )
    if is_finished:
        if ranks.rank == 0:
            for name in (UNFINISHED, CLAIM):  # of a run that was killed at the very end
                (folder / name).unlink(missing_ok=True)
        return None, plan
    claim_folder(folder, ranks, device)
    try:
        if existing is not None and foreign is None:
            pending = _with_damaged(folder, existing, pending, len(spans), ranks, device)
            plan = plan_of(existing) if len(pending) < len(spans) else plan
        if ranks.rank == 0:
            if foreign is not None:
                logger.warning(
                    "The reference cache in %s does not match this run (%s); making a new one.", folder, foreign
                )
                _clear(folder)
            write_atomically(folder / UNFINISHED, to_json(sealed(plan)))
            (folder / MANIFEST).unlink(missing_ok=True)
    except BaseException:
        release_folder(folder, ranks)
        raise
    _wait(ranks, device)
    return pending, plan


def _existing(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished cache, or the plan of an unfinished one."""
    return read_manifest(folder / MANIFEST) or read_manifest(folder / UNFINISHED)


def _with_damaged(
    folder: Path, existing: dict[str, Any], pending: list[int], n_shards: int, ranks: Ranks, device: torch.device | str
) -> list[int]:
    """Add the damaged shards of a cache to those that are missing. Each rank checks a part. A collective."""
    kept = [number for number in range(n_shards) if number not in pending]
    faults = {}
    for number in kept[ranks.rank :: ranks.size]:
        path = folder / shard_name(number)
        if "shards" in existing and sha256_of(path) != existing["shards"][number]["sha256"]:
            faults[number] = "its sha256 is not that of the manifest"
        elif "shards" not in existing and DIGESTS not in existing:
            faults[number] = "a shard of an earlier version has no hash of its own"
        elif (fault := fault_of(path, number, existing)) is not None:
            faults[number] = fault
    for number, fault in faults.items():
        logger.warning("%s is damaged (%s); making it again.", folder / shard_name(number), fault)
    return sorted(set(pending).union(*gather_objects(ranks, list(faults), device)))


def _foreign(
    folder: Path, existing: dict[str, Any] | None, plan: dict[str, Any], pending: Sequence[int]
) -> str | None:
    """Return why the folder's cache is not the planned one; `None` if it is, or an unfinished part, or absent."""
    if existing is None:
        return "its shards have no manifest" if any(folder.glob("shard-*.safetensors")) else None
    if existing.get("format") != FORMAT:
        return f"its format is {existing.get('format')!r}, and this version of jest_hf writes format {FORMAT}"
    wanted = {name: plan[name] for name in ("reference", "reading", "data", "storage")}
    if not pending and "shards" in existing:  # finished: the sizes of its shards and batches do not matter
        wanted["storage"] = {"dtype": plan["storage"]["dtype"]}
    return lacking(existing, wanted) or difference(existing, wanted)


def _clear(folder: Path) -> None:
    """Delete a cache; other files in the folder are kept."""
    for path in (folder / MANIFEST, folder / UNFINISHED, *folder.glob("shard-*.safetensors")):
        path.unlink(missing_ok=True)


def _finish(
    folder: Path, plan: dict[str, Any], n_shards: int, forward: Mapping[str, int], ranks: Ranks, device: Any
) -> ReferenceCache:
    """Write the manifest once all ranks have written their shards, and open the cache. A collective."""
    _wait(ranks, device)
    own = {k: about_shard(folder / shard_name(k), k, plan) for k in range(ranks.rank, n_shards, ranks.size)}
    about = {k: shard for of_rank in gather_objects(ranks, own, device) for k, shard in of_rank.items()}
    shards = [about[k] for k in range(n_shards)]
    flops = forward["image"] * sum(shard["readable"] for shard in shards)
    flops += forward["text"] * sum(shard["captions"] for shard in shards)
    if ranks.rank == 0:
        write_atomically(folder / MANIFEST, to_json(sealed(plan | {"flops": float(flops), "shards": shards})))
        (folder / UNFINISHED).unlink()
    _wait(ranks, device)
    return open_folder(folder)


def _wait(ranks: Ranks, device: torch.device | str) -> None:
    """Wait until all ranks have come here. A collective."""
    ranks.gather_counts(0, device)


__all__ = ["write_cache"]
