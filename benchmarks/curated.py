# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Offline scores against online selection at equal FLOPs: when is it worth selecting while training?

The arm `curated/<criterion>/<keep>` scores the pool once (`jest-hf score`), keeps the best rows (`jest-hf curate
--keep`), and trains a fresh learner on them uniformly, for as long as the rest of the FLOPs lasts. Scores by
`easy_reference` cost one pass of the reference over the pool. Scores by `learnability` need a learner too: one that
was trained IID on the pool for `LEARNER_STEPS` steps. Its training and its pass are paid for as well.

The other arms, data, learner, reference and rules are those of `equal_flops.py`, whose results file gets the new arms.

    python benchmarks/curated.py --data scenes     # and cross_style, cifar10; what was measured before stays
    python benchmarks/curated.py --data scenes --report
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parent))
import equal_flops  # noqa: E402
from transformers import SiglipModel  # noqa: E402

from jest_hf import score_dataset  # noqa: E402
from jest_hf.curation import ScoreSet, curate_dataset  # noqa: E402
from jest_hf.data import select_subset  # noqa: E402
from jest_hf.report import forward_flops  # noqa: E402


ONLINE = ("iid", "joint/easy_reference/0.8", "joint/learnability/0.8")
CURATED = ("curated/easy_reference/0.3", "curated/learnability/0.3")
ARMS = {arm: equal_flops.ARMS[arm] for arm in ONLINE} | {arm: arm for arm in CURATED}
SCORING = {"batch_size": 256, "draws": 8}
LEARNER_STEPS = 60
LEARNER_SEED = 2000  # added to the seed: the learner that scores is not the one that is trained on what it scored


def train(
    options: argparse.Namespace,
    parts: dict[str, Any],
    seed: int,
    arm: str,
    rate: float,
    iid_steps: int,
    reference: SiglipModel | None = None,
) -> tuple[dict[str, Any], SiglipModel]:
    """As [`equal_flops.train`], on the curated part of `parts["train"]` if the arm is a curated one."""
    if not arm.startswith("curated/"):
        return equal_flops.train(options, parts, seed, arm, rate, iid_steps, reference)
    assert reference is not None
    _, criterion, keep = arm.split("/")
    of_row = sum(forward_flops(reference).values())
    of_step = 3 * of_row * options.batch_size
    start, cpu_start = time.perf_counter(), time.process_time()
    learner = None
    if criterion == "learnability":
        warm_up = parts | {"test": parts["validation"]}
        _, learner = equal_flops.train(options, warm_up, seed + LEARNER_SEED, "iid", rate, LEARNER_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        scores = score_dataset(
            parts["train"],
            f"{folder}/scores",
            learner=learner,
            ref_model=reference,
            processing_class=parts["processor"],
            seed=seed,
            disable_tqdm=True,
            **SCORING,
        )
        kept = f"{folder}/kept.parquet"
        curate_dataset(scores.folder, keep=float(keep), criterion=criterion, list_path=kept)
        rows = select_subset(parts["train"], kept)
        spent = flops_of_scores(scores, reference) + (LEARNER_STEPS * of_step if learner is not None else 0.0)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        run, model = equal_flops.train(
            options, parts | {"train": rows}, seed, "iid", rate, iid_steps - spent / of_step
        )
    for end in run["evaluations"]:
        end["flops"] += spent
        end["seconds"] += seconds
        end["cpu_seconds"] += cpu_seconds
    return run | {"flops_before": spent, "kept": len(rows)}, model


def flops_of_scores(scores: ScoreSet, model: SiglipModel) -> float:
    """What the scores of models like this one cost: a forward of each row, and its products with the other pairs of
    each random batch, once as an image and once as a text."""
    scoring, n_models = scores.manifest["scoring"], len(set(scores.columns) - {"learnability"})
    width = model.config.text_config.projection_size
    pairs = 2 * 2 * width * scoring["batch_size"] * scoring["draws"]
    return float(n_models * scores.n_rows * (sum(forward_flops(model).values()) + pairs))


def main(argv: list[str] | None = None) -> None:
    equal_flops.main(argv, ARMS, train, __doc__)


if __name__ == "__main__":
    main()
