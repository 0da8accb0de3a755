# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train a dual encoder on selected examples, from any data set, with any reference.

    accelerate launch examples/run_jest.py                                   # the demonstration: no data, no network
    accelerate launch examples/run_jest.py --config examples/recipes/hub_siglip.yaml --learning_rate 1e-4

The flags are the fields of `ScriptArguments` below and of `JESTConfig` (which include those of `TrainingArguments`). A
YAML recipe (`--config`) has the same names, and flags win over it. Without any flag, the script trains a reference on
a small curated set, then the same learner three times on a large noisy set (IID, with JEST, and with JEST by the
criterion easy_reference on cached scores), and compares the three.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from jest_hf import JESTConfig, JESTDataCollator
from jest_hf.data import build_processor
from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.formats import find_columns
from jest_hf.flags import Parser
from jest_hf.models import build_siglip
from jest_hf.models.load import load_processor
from jest_hf.reference import load_learner, locate_reference


sys.path.insert(0, str(Path(__file__).parent))
import comparison  # noqa: E402
import script_flags  # noqa: E402


DEMONSTRATION = Path(__file__).parent / "recipes" / "demo.yaml"
GROUPS = {"data": ("caption_column",), "models": ("learner_size", "patch_size")}


@dataclass
class ScriptArguments(script_flags.DataArguments):
    """The data and the models of a run; `JESTConfig` has all other options."""

    caption_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the captions, or the first that exists of several: txt;json. Default: the first of "
            "text, caption, captions and txt."
        },
    )
    learner_size: str = field(
        default="tiny", metadata={"help": "Size of a SigLIP learner with random weights, without --learner."}
    )
    patch_size: int = field(
        default=8, metadata={"help": "Height and width of a patch in pixels, for a learner with random weights."}
    )


def flags() -> Parser:
    """Return the parser of the script."""
    return script_flags.flags_of(ScriptArguments, GROUPS)


def parse(argv: list[str]) -> tuple[ScriptArguments, JESTConfig]:
    """Read the flags, the recipe and the defaults."""
    return script_flags.parse(flags(), ScriptArguments, argv, DEMONSTRATION)


def captions_of(rows: Dataset, column: str | None) -> list[str]:
    """Return all captions, to train the tokenizer of a learner with random weights."""
    column = column or next((name for name in CAPTION_COLUMNS if name in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"the data have none of the columns {', '.join(CAPTION_COLUMNS)} "
            f"(there are: {', '.join(rows.column_names)}); set --caption_column to the column of the captions."
        )
    values = (value if isinstance(value, list) else [value] for value in rows[column])
    return [caption for several in values for caption in several if isinstance(caption, str)]


class Job(comparison.Comparison):
    """The models, the data and the settings of one call of this script."""

    by_learnability = "JEST"

    def __init__(self, script: ScriptArguments, args: JESTConfig) -> None:
        super().__init__(script, args)
        if self.eval is not None and args.eval_group_column is None and "group" in self.eval.column_names:
            args.eval_group_column = "group"
        columns = script.image_column, script.caption_column
        self.image_column, self.caption_column = find_columns(self.train, *columns, spec=script.dataset)
        if script.learner is not None:
            folder = locate_reference(script.learner, weights=False, option="learner").folder
            self.processor = load_processor(folder, f"learner={script.learner!r}")
        else:
            if script.streaming:
                raise ValueError(
                    "streaming=True needs --learner: the tokenizer of a learner with random weights is trained on all "
                    "captions before the first step."
                )
            sources = [rows for rows in (self.curated, self.train) if rows is not None]
            captions = [caption for rows in sources for caption in captions_of(rows, self.caption_column)]
            self.processor = build_processor(captions, script.image_size, script.vocab_size, script.max_length or 20)

    def fresh_model(self, seed: int) -> PreTrainedModel:
        """Return the learner before training."""
        script = self.script
        if script.learner is not None:
            return load_learner(script.learner, self.processor, option="learner")[0]
        return build_siglip(
            script.learner_size,
            self.processor.tokenizer,
            image_size=script.image_size,
            patch_size=script.patch_size,
            seed=seed,
        )

    def collator(self, model: PreTrainedModel) -> JESTDataCollator:
        """Return a collator of images and captions, with the columns of the flags."""
        script = self.script
        return JESTDataCollator(
            self.processor,
            image_column=self.image_column,
            caption_column=self.caption_column,
            max_length=script.max_length,
            seed=self.args.seed,
            scaled_jpeg_decoding=script.scaled_jpeg_decoding,
        )

    def quality(self, metrics: dict[str, float]) -> float:
        return metrics["eval_R@5"]

    def measures(self) -> tuple[str, list[str]]:
        return "R@5", ["R@1", "R@5"]


def main(argv: list[str]) -> None:
    script, args = parse(argv)
    if not argv:
        logging.set_verbosity_error()
    name = "JEST" if args.selection == "joint" else args.selection
    if args.criterion != "learnability":
        name += f" by {args.criterion}"
    Job(script, args).compare(args.preset or name)


if __name__ == "__main__":
    script_flags.run_script(main, ScriptArguments, JESTConfig)
