# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection before decoding on two processes: each reads its own share of one draw."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

import jest_hf.data.collator as collator_module
from jest_hf import JESTConfig, JESTTrainer
from jest_hf.report import read_selections
from jest_hf.training import early_selection
from tests.distributed.processes import run
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


SUB_BATCH, STEPS = 16, 6  # 200 rows are three super-batches of 64: two epochs


def _train(folder: str, changes: dict[str, Any], resumes: bool = False) -> dict[str, Any]:
    early_selection.MOST_FLOPS = changes.pop("most_flops", early_selection.MOST_FLOPS)
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rows = [{**row, "text": [row["text"], "a red square"][: 1 + i % 2]} for i, row in enumerate(random_rows(200))]
    rows[7]["image"] = b"no image"
    args = JESTConfig(
        output_dir=folder,
        cache_reference=True,
        per_device_train_batch_size=SUB_BATCH // world_size,
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
        ref_model=tiny_siglip(1),
        args=args,
        train_dataset=rows,
        processing_class=tiny_siglip_processor(),
    )
    if args.dataloader_num_workers:  # a rank is a daemon, which may have no children
        multiprocessing.current_process()._config["daemon"] = False
        multiprocessing.set_start_method("fork", force=True)
    trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
    decoded: list[int] = []
    decode = collator_module.decode_pixels
    collator_module.decode_pixels = lambda *given, **more: decoded.append(1) or decode(*given, **more)
    try:
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-4" if resumes else None)
    finally:
        collator_module.decode_pixels = decode
    return {
        "decoded": len(decoded),
        "early": trainer.parts.loaders.early is not None,
        "together": trainer.parts.loaders.early is not None and trainer.parts.loaders.early.together,
        "weights": torch.cat([value.detach().flatten() for value in trainer.model.parameters()]),
        "counts": {name: trainer.statistics.totals()[name] for name in ("examples_seen", "examples_skipped")},
    }


def ledger(folder: Path) -> dict[str, list[int]]:
    return read_selections(folder / "selections.parquet").select(["step", "rank", "order", "example_id"]).to_pydict()


@pytest.mark.parametrize(("scope", "together"), [("global", False), ("local", False), ("global", True)])
def test_two_ranks_train_as_with_selection_in_the_step(tmp_path, scope, together):
    """`together`: a draw that is too large for one CPU, which the ranks share: collectives in their loaders, four
    steps ahead of those of training."""
    reports = {}
    for early in (False, True):
        changes = {"select_before_decoding": early, "selection_scope": scope, "dataloader_num_workers": 2 * together}
        changes |= {"most_flops": 0.0 if together else 1e12}
        reports[early] = run(2, _train, str(tmp_path / str(early)), changes)
    assert [report["early"] for report in reports[True]] == [True, True]
    assert [report["together"] for report in reports[True]] == [together, together]
    assert ledger(tmp_path / "True") == ledger(tmp_path / "False")  # ranks and places in the order of drawing too
    for early, late in zip(reports[True], reports[False], strict=True):
        assert torch.equal(early["weights"], late["weights"])
        assert early["counts"] == late["counts"]
        # Steps times a rank's rows; the loader has started on one more batch, or not.
        if together:  # in the workers, where nothing is counted here
            continue
        assert late["decoded"] >= STEPS * 32 and early["decoded"] in (STEPS * 8, STEPS * 8 + 8)


def test_the_draw_is_that_of_one_process_and_a_resumed_run_repeats_it(tmp_path):
    _train(str(tmp_path / "one"), {})
    run(2, _train, str(tmp_path / "two"), {})

    def by_step(folder):
        found = ledger(tmp_path / folder)
        steps = {}
        for step, order, example_id in zip(found["step"], found["order"], found["example_id"], strict=True):
            steps.setdefault(step, {})[order] = example_id
        return steps

    whole = by_step("two")
    assert whole == by_step("one") and len(whole) == STEPS
    run(2, _train, str(tmp_path / "two"), {}, True)
    assert by_step("two") == whole


def test_two_stages_on_two_ranks_select_as_on_one(tmp_path):
    changes = {"prefilter_ratio": 0.5, "filter_ratio": 0.5, "criterion": "learnability"}
    one = _train(str(tmp_path / "one"), changes)
    two = run(2, _train, str(tmp_path / "two"), changes)
    for folder in ("one", "two"):
        assert len(ledger(tmp_path / folder)["step"]) == STEPS * SUB_BATCH
    first = [
        {i for i, step in zip(found["example_id"], found["step"], strict=True) if step == 1}
        for found in (ledger(tmp_path / folder) for folder in ("one", "two"))
    ]
    assert first[0] == first[1]  # from then on the learners differ by rounding
    assert one["counts"] == two[0]["counts"] and one["counts"]["examples_seen"] == STEPS * 64
    assert all(report["decoded"] in (STEPS * 16, STEPS * 16 + 16) for report in two)
