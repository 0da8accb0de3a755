# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How well the scores of `jest-hf score` find the right captions of noisy data, and what scoring costs.

A small reference is trained IID on the curated part of the data, and a learner, from random weights, for a few steps
IID on the pool. Both score the pool: the built-in `scenes:web`, of which 70 % of the rows are noise, or the emoji of
`datasets_shared.py` in several drawing styles, of which 60 % are. The answer key is the column `noise`, which no model
reads. A ROC-AUC of 1 puts all rows of the first kind before all of the second; 0.5 is chance.

- `aligned`: rows whose caption is right and whose scene is no near duplicate, against all others;
- `right caption`: aligned rows and near duplicates, whose captions are right too, against the rest (scenes alone).

The cost is the CPU time of scoring a part of the rows with both models, against a plain forward pass over the rows
with each model (loading, decoding and forward, no files). Rounds alternate; the table has the median.

    python benchmarks/score.py            # about 10 minutes of one core; also --data cross_style
    python benchmarks/score.py --quick    # a minute: does it run?
    python benchmarks/score.py --report   # only the table
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer, score_dataset  # noqa: E402
from jest_hf.curation import ScoreSet  # noqa: E402
from jest_hf.curation.choose import scores_by  # noqa: E402
from jest_hf.data import build_processor, load_scenes  # noqa: E402
from jest_hf.data.rows import Rows  # noqa: E402
from jest_hf.data.scenes import SPLIT_SIZES  # noqa: E402
from jest_hf.models import DualEncoder, build_siglip  # noqa: E402
from jest_hf.report import format_table  # noqa: E402
from jest_hf.selection import CRITERIA  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent))
from datasets_shared import cross_style  # noqa: E402


RESULTS = Path(__file__).parent / "results"
KEYS = {"aligned": ("aligned",), "right caption": ("aligned", "near-duplicate")}
MAX_LENGTH = {"scenes": 20, "cross_style": 10}  # tokens
SCORES = {
    "learnability": "learnability",
    "easy_reference": "minus the reference's loss",
    "hard_learner": "the learner's loss",
}
QUICK = {"reference_steps": 1, "learner_steps": 1, "rows": 200, "timed_rows": 64, "rounds": 1, "batch_size": 32}


def roc_auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The probability that a right row has a higher score than a wrong one; equal scores count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    n_right = int(right.sum())
    return float((ranks[right].sum() - n_right * (n_right + 1) / 2) / (n_right * (len(right) - n_right)))


def train(rows: datasets.Dataset, processor: Any, steps: int, seed: int, folder: str) -> Any:
    """Train a small model IID."""
    args = JESTConfig(
        output_dir=folder,
        selection="uniform",
        max_steps=steps,
        per_device_train_batch_size=192,
        learning_rate=1e-3,
        warmup_steps=min(60, steps // 3),
        lr_scheduler_type="constant_with_warmup",
        weight_decay=1e-4,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    model = build_siglip("tiny", processor.tokenizer, image_size=32, patch_size=8, seed=seed)
    JESTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor).train()
    return model


def plain_pass(model: Any, processor: Any, rows: datasets.Dataset) -> None:
    """Read every row and run one forward of the model over it."""
    view = DualEncoder(model.config, processor)
    loader = DataLoader(Rows(rows), batch_size=64, collate_fn=JESTDataCollator(processor))
    for batch in loader:
        view.score(model, {name: value.to(model.device) for name, value in batch.items()}, 64)


def cost(learner: Any, reference: Any, processor: Any, rows: datasets.Dataset, rounds: int) -> dict[str, float]:
    """Rows a second of CPU time: scoring with both models, and plain passes of both."""
    seconds: dict[str, list[float]] = {"score": [], "plain": []}
    for _ in range(rounds):
        start = time.process_time()
        for model in (learner, reference):
            plain_pass(model, processor, rows)
        seconds["plain"].append(time.process_time() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            scored(folder, learner, reference, processor, rows, batch_size=min(256, len(rows) // 2))
            seconds["score"].append(time.process_time() - start)
    found = {name: len(rows) / statistics.median(values) for name, values in seconds.items()}
    return found | {"ratio": found["score"] / found["plain"]}


def scored(folder: str, learner: Any, reference: Any, processor: Any, rows: Any, **options: Any) -> ScoreSet:
    return score_dataset(
        rows, folder, learner=learner, ref_model=reference, processing_class=processor, disable_tqdm=True, **options
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.data == "scenes":
        curated, web = (load_scenes(split, n=min(options.rows, SPLIT_SIZES[split])) for split in ("curated", "web"))
    else:
        curated, web = (cross_style(options.seed)[part] for part in ("curated", "pool"))
        web = web.select(range(min(options.rows, len(web))))
    processor = build_processor([*curated["caption"], *web["caption"]], 32, 2048, MAX_LENGTH[options.data])
    with tempfile.TemporaryDirectory() as folder:
        reference = train(curated, processor, options.reference_steps, options.seed, f"{folder}/reference")
        learner = train(web, processor, options.learner_steps, options.seed + 1, f"{folder}/learner")
        settings = {"batch_size": options.batch_size, "draws": options.draws}
        scores = scored(f"{folder}/scores", learner, reference, processor, web, **settings)
        losses, stability = scores.scores(), scores.stability
    noise = np.array(web["noise"][:])
    auc = {
        name: {
            key: roc_auc(scores_by(name, losses), np.isin(noise, kinds))
            for key, kinds in KEYS.items()
            if set(kinds) <= set(noise)
        }
        for name in SCORES
    }
    timed = web.select(range(min(options.timed_rows, len(web))))
    return {
        "settings": {name: value for name, value in vars(options).items() if name not in ("output", "report")},
        "auc": auc,
        "stability": stability,
        "rows_a_second": cost(learner, reference, processor, timed, options.rounds) if options.rounds else {},
        "machine": {"cpu": platform.processor(), "torch": torch.__version__, "threads": torch.get_num_threads()},
    }


def table(results: dict[str, Any]) -> str:
    shown = {"easy_reference": "reference_loss", "hard_learner": "learner_loss", "learnability": "learnability"}
    rows = [
        (
            f"{about} ({CRITERIA[name].name})",
            *(f"{value:.3f}" for value in results["auc"][name].values()),
            f"{results['stability'][shown[name]]:.4f}",
        )
        for name, about in SCORES.items()
    ]
    keys = [f"ROC-AUC, {key}" for key in results["auc"]["learnability"]]
    text, found = format_table(["score", *keys, "rank correlation of halves"], rows), results["rows_a_second"]
    if found:
        text += (
            f"\n\nRows a second of CPU time: {found['score']:.0f} scored by both models, {found['plain']:.0f} in "
            f"plain forward passes of both: {found['ratio']:.2f}."
        )
    return text


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", choices=MAX_LENGTH, default="scenes", help="data to score; default: scenes")
    add("--reference_steps", type=int, default=300, help="steps of 192 rows of the reference; default: 300")
    add("--learner_steps", type=int, default=40, help="steps of 192 rows of the learner; default: 40")
    add("--rows", type=int, default=24_000, help="rows of the pool to score; default: 24000, all")
    add("--batch_size", type=int, default=256, help="pairs in a random batch; default: 256")
    add("--draws", type=int, default=8, help="random batches for each row; default: 8")
    add("--timed_rows", type=int, default=4096, help="rows on which the cost is measured; default: 4096")
    add("--rounds", type=int, default=3, help="rounds of the cost; 0: it is not measured; default: 3")
    add("--seed", type=int, default=0, help="seed of weights and order; default: 0")
    add("--output", type=Path, help="JSON file of the results; default: by the data, in benchmarks/results")
    add("--quick", action="store_true", help="tiny sizes, to see whether it runs")
    add("--report", action="store_true", help="print the table of earlier results")
    options = parser.parse_args(argv)
    if options.output is None:
        options.output = RESULTS / ("score.json" if options.data == "scenes" else f"score_{options.data}.json")
    if options.quick:
        vars(options).update(QUICK)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if not options.report:
        results = measure(options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(json.loads(options.output.read_text())))


if __name__ == "__main__":
    main()
