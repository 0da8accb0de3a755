# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection before decoding of a stream on two processes: each decodes the drawn rows among its own."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import jest_hf.data.collator as collator_module
from jest_hf import JESTConfig, JESTTrainer
from jest_hf.report import read_selections
from tests.distributed.processes import run
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.reference.caching import make_cache


SUB_BATCH, STEPS = 16, 6  # 200 rows are three super-batches of 64: two passes
TWO_STAGES = {"prefilter_ratio": 0.5, "filter_ratio": 0.5, "criterion": "learnability"}


def table(unreadable: tuple[int, ...] = ()) -> datasets.Dataset:
    rows = [{**row, "text": [row["text"], "a red square"][: 1 + i % 2]} for i, row in enumerate(random_rows(200))]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    if unreadable:
        data = datasets.Dataset.from_list(
            [
                {**row, "image": {"bytes": b"no image", "path": None}} if index in unreadable else row
                for index, row in enumerate(data.cast_column("image", datasets.Image(decode=False)))
            ]
        ).cast_column("image", datasets.Image())
    return data.add_column("example_id", [3 * index + 1 for index in range(200)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_cache(tmp_path_factory.mktemp("cache"), table(unreadable=(7, 8)), shard_rows=64).folder)


def _train(
    folder: str, changes: dict[str, Any], resumes: bool = False, broken: tuple[int, ...] = ()
) -> dict[str, Any]:
    if changes.get("dataloader_num_workers"):
        # A daemon, as which the ranks of these tests run, may have no children, and loader workers are children.
        multiprocessing.current_process()._config["daemon"] = False
    args = JESTConfig(
        output_dir=folder,
        per_device_train_batch_size=SUB_BATCH // 2,
        n_chunks=4,
        max_steps=STEPS,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="steps",
        save_steps=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        record_selection=True,
        **{"criterion": "easy_reference", "filter_ratio": 0.75, **changes},
    )
    torch.manual_seed(0)
    trainer = JESTTrainer(
        model=tiny_siglip(0),
        args=args,
        train_dataset=table((7, 8, *broken)).to_iterable_dataset(4).shuffle(seed=3, buffer_size=20),
        processing_class=tiny_siglip_processor(),
    )
    decoded: list[int] = []
    decode = collator_module.decode_pixels
    collator_module.decode_pixels = lambda *given, **more: decoded.append(1) or decode(*given, **more)
    pools: list[list[int]] = []
    pool = trainer.parts.step.pool
    trainer.parts.step.pool = lambda rows, step: pools.append(rows["example_id"].tolist()) or pool(rows, step)
    try:
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-4" if resumes else None)
    finally:
        collator_module.decode_pixels = decode
    return {
        "decoded": len(decoded),
        "early": trainer.parts.loaders.early is not None,
        "weights": torch.cat([value.detach().flatten() for value in trainer.model.parameters()]),
        "counts": {name: trainer.statistics.totals()[name] for name in ("examples_seen", "examples_skipped")},
        "pools": pools,
        "moved": [entry["exchange/examples"] for entry in trainer.state.log_history if "exchange/examples" in entry],
    }


def ledger(folder: Path) -> dict[str, list[int]]:
    return read_selections(folder / "selections.parquet").select(["step", "rank", "order", "example_id"]).to_pydict()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_two_ranks_train_as_with_selection_in_the_step(tmp_path, cache, scope):
    reports = {}
    for early in (False, True):
        changes = {"select_before_decoding": early, "selection_scope": scope, "reference_cache": cache}
        reports[early] = run(2, _train, str(tmp_path / str(early)), changes)
    assert [report["early"] for report in reports[True]] == [True, True]
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")  # ranks and places in the order of drawing too
    for early, late in zip(reports[True], reports[False], strict=True):
        assert torch.equal(early["weights"], late["weights"])
        assert early["counts"] == late["counts"]
        assert early["moved"] == late["moved"] and (sum(early["moved"]) > 0) == (scope == "global")
    decoded = [sum(report["decoded"] for report in reports[early]) for early in (False, True)]
    # Steps times the rows of all ranks; the loader has started on one more batch.
    assert decoded[0] >= STEPS * 64 and decoded[1] in (STEPS * SUB_BATCH, STEPS * SUB_BATCH + SUB_BATCH)


def test_a_resumed_run_with_loader_workers_repeats_the_draws(tmp_path, cache):
    changes = {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork", "reference_cache": cache}
    run(2, _train, str(tmp_path / "run"), changes)
    whole = ledger(tmp_path / "run")
    run(2, _train, str(tmp_path / "late"), {**changes, "select_before_decoding": False})
    assert ledger(tmp_path / "late") == whole and len(whole["step"]) == STEPS * SUB_BATCH
    run(2, _train, str(tmp_path / "run"), changes, True)
    assert ledger(tmp_path / "run") == whole


def test_a_row_that_breaks_later_is_left_out_on_all_ranks(tmp_path, cache):
    broken = tuple(range(11, 200, 5))
    reports = run(2, _train, str(tmp_path), {"reference_cache": cache}, False, broken)
    written = ledger(tmp_path)
    assert not {3 * index + 1 for index in broken} & set(written["example_id"])
    of_step = Counter(written["step"])
    assert len(of_step) == STEPS and min(of_step.values()) < SUB_BATCH
    for step, n in of_step.items():  # what is left is shared evenly
        ranks = Counter(rank for rank, at in zip(written["rank"], written["step"], strict=True) if at == step)
        assert ranks == Counter({0: n - n // 2, 1: n // 2})
    skipped = STEPS * SUB_BATCH - len(written["step"])
    unreadable = reports[0]["counts"]["examples_skipped"] - skipped
    assert 0 < unreadable <= 2 * 2  # two rows could not be cached, in each of two passes


@pytest.mark.parametrize("scope", ["global", "local"])
def test_two_stages_load_a_super_batch_in_equal_parts(tmp_path, cache, scope):
    changes = {**TWO_STAGES, "selection_scope": scope, "reference_cache": cache}
    reports = run(2, _train, str(tmp_path), changes)
    assert len(ledger(tmp_path)["step"]) == STEPS * SUB_BATCH
    assert all(len(ids) == SUB_BATCH for report in reports for ids in report["pools"])  # two for one, halved
    loaded = [set(first) | set(second) for first, second in zip(*(report["pools"] for report in reports), strict=True)]
    assert len(loaded) == STEPS and all(len(ids) == 2 * SUB_BATCH for ids in loaded)
    written = ledger(tmp_path)
    for step, ids in enumerate(loaded, start=1):
        assert {one for one, at in zip(written["example_id"], written["step"], strict=True) if at == step} < ids
    decoded = sum(report["decoded"] for report in reports)
    assert decoded in (STEPS * 2 * SUB_BATCH, STEPS * 2 * SUB_BATCH + 2 * SUB_BATCH)
    assert reports[0]["counts"]["examples_seen"] == STEPS * 64
