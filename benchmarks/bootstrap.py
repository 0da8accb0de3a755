# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Whether bootstrapping pays: a reference on the curated set and a learner on the noisy pool, against IID training.

Data: emoji across drawing styles (`cross_style` of `datasets_shared.py`: curated rows of two styles; a pool of six
styles in which 60 % of the rows have a wrong or empty name; tested on a style in neither), of every fifth concept
(`--every`), with which a run takes a minute of one core. For each seed, which decides the pool's noise, weights, order
and selection, there are four arms, all of them stages of `examples/bootstrap_reference.py`:

- `bootstrap`: a reference on the curated set, then the learner, from the reference's weights, on the pool;
- `iid_curated` and `iid_pool`: IID training on either set alone, from random weights;
- `reference_then_iid`: the same reference, then IID training on the pool: what the selection adds to the reference.

All spend the same FLOPs: those of `bootstrap` with its reference, the pass of the reference over the pool, scoring and
selection. Every run has a learning rate schedule of its own length. `--tune` compares settings of the learner on the
validation style, with a seed of its own, and never reads the test style; `noise` is only counted after the runs.

    python benchmarks/bootstrap.py --tune        # candidates for the learner, on the validation style
    python benchmarks/bootstrap.py               # seeds 0 1 2; what was measured before stays
    python benchmarks/bootstrap.py --report      # only the table
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf.report import format_table  # noqa: E402


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT / "examples"), str(Path(__file__).parent)]
import datasets_shared  # noqa: E402
from bootstrap_reference import Chain, Recipe  # noqa: E402
from stages import Stage  # noqa: E402


MODEL = {"size": "tiny", "image_size": 32, "patch_size": 16, "max_length": 8}
TRAINING = {
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 256,
    "lr_scheduler_type": "cosine",
    "learning_rate": 1e-3,
    "warmup_steps": 60,
    "weight_decay": 1e-4,
    "save_steps": 200,
    "logging_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
REFERENCE = {"max_steps": 180}
LEARNER = {"max_steps": 240, "filter_ratio": 0.6, "cache_reference": True, "record_selection": True}
CANDIDATES = {
    "easy_reference": LEARNER | {"criterion": "easy_reference"},
    "easy_reference, rate 5e-4": LEARNER | {"criterion": "easy_reference", "learning_rate": 5e-4},
    "learnability": LEARNER | {"max_steps": 131},  # as many FLOPs
}
CHOSEN = "easy_reference"
IID = {"selection": "uniform"}
ARMS = ("bootstrap", "iid_curated", "iid_pool", "reference_then_iid")
TUNING_SEED = 100  # none of the seeds of the table
QUICK = {"max_steps": 2, "per_device_train_batch_size": 8, "warmup_steps": 1}


def shrunk(row: dict[str, Any]) -> dict[str, Any]:
    """The image at the model's size, uncompressed: no arm then waits for the decoder."""
    image = row["image"].convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    size = (MODEL["image_size"],) * 2
    buffer = io.BytesIO()
    white.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "BMP")
    return {"image": {"bytes": buffer.getvalue(), "path": None}}


def data_of(seed: int, folder: Path, every: int, quick: bool) -> dict[str, str]:
    """The parts of the data of a seed, as folders to load them from."""
    if not (folder / "done").exists():
        for name, rows in datasets_shared.cross_style(seed).items():
            rows = rows.select(np.flatnonzero(np.array(rows["group"][:]) % every == 0))
            rows = rows.select(range(128)) if quick else rows
            rows.map(shrunk, keep_in_memory=True).save_to_disk(str(folder / name))
        (folder / "done").touch()
    return {name: str(folder / name) for name in ("curated", "pool", "validation", "test")}


def chain_of(seed: int, options: argparse.Namespace, test: bool) -> Chain:
    """The chain of a seed. Arms that are none of its own stages are trained by it as well."""
    folder = options.work / ("quick" if options.quick else f"every{options.every}") / f"seed{seed}"
    data = data_of(seed, folder / "data", options.every, options.quick)
    recipe = Recipe(
        output_dir=str(folder),
        pool={"spec": data["pool"]},
        curated_dataset={"spec": data["curated"]},
        validation={"spec": data["validation"]},
        test={"spec": data["test"]} if test else None,
        model=MODEL,
        training=TRAINING | {"seed": seed} | (QUICK if options.quick else {}),
        learner_starts_from_reference=True,
    )
    return Chain(recipe)


def reference_of(chain: Chain, quick: bool) -> Stage:
    settings = REFERENCE | IID | (QUICK if quick else {})
    # Weights of its own: the learner's seed plus a constant.
    settings["seed"] = chain.recipe.training["seed"] + 1000
    return chain.train("reference", chain.curated_rows, None, settings)


def run(arm: str, chain: Chain, options: argparse.Namespace) -> dict[str, Any]:
    """One arm: its metrics, and what it cost with all that it needs."""
    quick = QUICK if options.quick else {}
    reference = reference_of(chain, options.quick)
    start = time.process_time()
    if arm == "bootstrap":
        stage = chain.train("learner", chain.pool, reference, CANDIDATES[CHOSEN] | quick)
        return summarised(stage, reference, chain, time.process_time() - start)
    budget = run("bootstrap", chain, options)["flops"]  # done before: read from its folder
    a_step = reference.result["flops"] / (quick or REFERENCE)["max_steps"]
    if arm == "reference_then_iid":
        steps = math.ceil((budget - reference.result["flops"]) / a_step)
        rate = {name: value for name, value in CANDIDATES[CHOSEN].items() if name == "learning_rate"}
        stage = chain.train(arm, chain.pool, reference, quick | IID | rate | {"max_steps": steps})
        return summarised(stage, reference, chain, time.process_time() - start)
    rows = chain.curated_rows if arm == "iid_curated" else chain.pool
    stage = chain.train(arm, rows, None, quick | IID | {"max_steps": math.ceil(budget / a_step)})
    return summarised(stage, None, chain, time.process_time() - start)


def summarised(stage: Stage, reference: Stage | None, chain: Chain, seconds: float) -> dict[str, Any]:
    """A stage as the results tell it."""
    before = reference.result["flops"] if reference is not None else 0.0
    result = {"flops": stage.result["flops"] + before, "cpu_seconds": round(seconds, 1)}
    if reference is not None:
        result["reference"] = reference.result
    selections = stage.folder / "selections.parquet"
    if selections.exists():
        noise = chain.pool["noise"][:]
        ids = pq.read_table(selections)["example_id"].to_pylist()
        result["aligned_share"] = sum(noise[row] == "aligned" for row in ids) / len(ids)
    return result | {name: value for name, value in stage.result.items() if name not in result}


def tune(options: argparse.Namespace) -> None:
    """Each candidate for the learner, on the validation style alone."""
    chain = chain_of(TUNING_SEED, options, test=False)
    reference = reference_of(chain, options.quick)
    path = options.results / "bootstrap_tune.json"
    tried = json.loads(path.read_text())["tried"] if path.exists() else {}
    tried["reference"] = {"flops": reference.result["flops"], "eval_R@5": reference.result["eval_R@5"]}
    for name, settings in CANDIDATES.items():
        if name in tried:
            continue
        folder = f"learner {name}".replace(", ", "_").replace(" ", "_")
        start = time.process_time()
        stage = chain.train(folder, chain.pool, reference, settings | (QUICK if options.quick else {}))
        tried[name] = summarised(stage, reference, chain, time.process_time() - start)
        path.write_text(
            json.dumps({"seed": TUNING_SEED, "every": options.every, **about(), "tried": tried}, indent=1) + "\n"
        )
        print(f"{name}: validation R@5 {tried[name]['eval_R@5']:.4f}, {tried[name]['flops']:.3g} FLOPs", flush=True)


def about() -> dict[str, Any]:
    """The machine, and the settings."""
    settings = {"model": MODEL, "training": TRAINING, "reference": REFERENCE, "learner": CANDIDATES[CHOSEN]}
    machine = {"threads": torch.get_num_threads(), "machine": platform.machine()}
    return {"torch": torch.__version__, **machine, "settings": settings}


def read(folder: Path, seed: int) -> dict[str, Any]:
    path = folder / f"bootstrap_seed{seed}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else {}


def measure(options: argparse.Namespace) -> None:
    """The arms that are not there yet, each for all seeds; a run is written as it ends."""
    for arm in options.arms:
        for seed in options.seeds:
            runs = read(options.results, seed)
            if arm in runs:
                continue
            runs[arm] = one = run(arm, chain_of(seed, options, test=True), options)
            path = options.results / f"bootstrap_seed{seed}.json"
            path.write_text(
                json.dumps({"seed": seed, "every": options.every, **about(), "runs": runs}, indent=1) + "\n"
            )
            print(f"seed {seed} {arm}: test R@5 {one['test_R@5']:.4f}, {one['cpu_seconds']:.0f} s", flush=True)


def table(seeds: dict[int, dict[str, Any]]) -> str:
    """A row for each arm, over the seeds in which it was measured."""
    rows = []
    for arm in ARMS:
        several = [runs[arm] for runs in seeds.values() if arm in runs]
        if several:
            rows.append(
                [
                    arm,
                    len(several),
                    f"{several[0]['flops'] / 1e12:.2f}",
                    *(spread([one[name] for one in several]) for name in ("test_R@1", "test_R@5", "eval_R@5")),
                    spread([one["aligned_share"] for one in several]) if "aligned_share" in several[0] else "",
                ]
            )
    headers = ["arm", "seeds", "TFLOPs", "test R@1", "test R@5", "validation R@5", "aligned share of the trained"]
    return format_table(headers, rows)


def spread(values: list[float]) -> str:
    """Mean and range over the seeds."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="the candidates for the learner, on the validation style")
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps, to see that it runs")
    parser.add_argument("--every", type=int, default=5, help="concepts: 5 is every fifth, 1 all of them")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="where stages are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_bootstrap"
    options.results.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if options.tune:
        tune(options)
        return
    if not options.report:
        measure(options)
    print(table({seed: read(options.results, seed) for seed in options.seeds}))


if __name__ == "__main__":
    main()
