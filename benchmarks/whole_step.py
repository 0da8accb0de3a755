# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The wall time of whole steps, loading and decoding included, beside the FLOPs that they should cost.

    python benchmarks/whole_step.py            # a table, and benchmarks/results/whole_step.json
    python benchmarks/whole_step.py --quick    # a tiny model, to see that it runs

The arms take their steps in turns (see `overhead.py`), each in its own training loop. A step is timed from one hold
to the next: it has everything in it. Rows are JPEGs of 256 x 341 pixels, decoded in the main process, so that decoding
cannot hide behind the model. The ratios are those of neighbouring steps to the step of uniform training.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


sys.path.insert(0, str(Path(__file__).parent))
from overhead import processor_name, ratio_of, train_in_turns  # noqa: E402, I001  # sets the environment first

from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.data import build_processor  # noqa: E402
from jest_hf.models import build_siglip  # noqa: E402
from jest_hf.report import format_table  # noqa: E402


RESULTS = Path(__file__).parent / "results" / "whole_step.json"
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"selection": "uniform"},
    "easy_reference, before decoding": {"criterion": "easy_reference", "cache_reference": True},
    "easy_reference, in the step": {
        "criterion": "easy_reference",
        "cache_reference": True,
        "select_before_decoding": False,
    },
    "two stages, 10 : 2 : 1": {"preset": "two_stage"},
    "joint learnability, cached reference": {"cache_reference": True},
}
WORDS = ("red", "green", "blue", "small", "large", "cat", "dog", "car", "tree", "house")


def photographs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """JPEGs of 256 x 341 pixels, smooth with some noise, so that they are as large as photographs."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((341, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (pixels + generator.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=90)
        rows.append({"image": data.getvalue(), "text": " ".join(generator.choice(WORDS, 4))})
    return rows


def make_trainers(options: argparse.Namespace, folder: str) -> dict[str, JESTTrainer]:
    """The arms, of one learner and one reference, after caching the reference."""
    rows = photographs(options.rows)
    processor = build_processor((row["text"] for row in rows), image_size=options.image_size, max_length=16)
    sizes = {"image_size": options.image_size, "patch_size": options.image_size // 14}
    learner = build_siglip(options.size, processor.tokenizer, **sizes, seed=0)
    reference = build_siglip("micro", processor.tokenizer, **sizes, seed=1)
    trainers = {}
    for name in options.arms:
        settings = ARMS[name]
        trainers[name] = JESTTrainer(
            model=copy.deepcopy(learner),
            ref_model=None if settings.get("selection") == "uniform" else copy.deepcopy(reference),
            args=JESTConfig(
                output_dir=folder,  # the arms share the cache of the reference
                max_steps=options.rounds + options.skip,
                per_device_train_batch_size=options.batch_size,
                learning_rate=1e-4,
                optim="sgd",  # without a state: all arms are in memory together
                logging_steps=1000,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                **settings,
            ),
            train_dataset=rows,
            processing_class=processor,
        )
        trainers[name].plan.cache_reference(rows, trainers[name].data_collator)
    return trainers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="learner: micro, tiny, small or base")
    parser.add_argument("--image_size", type=int, default=224, help="pixels a side; patches are a fourteenth of it")
    parser.add_argument("--batch_size", type=int, default=8, help="examples trained on in a step")
    parser.add_argument("--rows", type=int, default=400, help="rows of the data set")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each arm")
    parser.add_argument("--skip", type=int, default=1, help="first steps of each arm that do not count")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="a tiny model and two rounds")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    options = parser.parse_args()
    if options.quick:
        options.size, options.image_size, options.rows, options.rounds = "micro", 28, 96, 2
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(options, folder)
        seconds = train_in_turns(trainers, options.threads, options.skip)
    uniform = seconds["uniform"]
    results = {}
    for name, values in seconds.items():
        predicted = trainers[name].step_flops.relative_to_iid
        measured = ratio_of(values, uniform)
        results[name] = {"predicted": predicted, **measured, "off": measured["ratio"] / predicted - 1}
    rows = [
        (name, f"{one['ratio']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}", f"{one['predicted']:.2f}",
         f"{one['off']:+.0%}") for name, one in results.items()
    ]  # fmt: skip
    print(format_table(["arm", "seconds, in uniform steps", "95 % interval", "FLOPs, in uniform steps", "off"], rows))
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "arms")}
    about = {"processor": processor_name(), "uniform_seconds": float(np.median(uniform)), **settings}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"about": about, "arms": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
