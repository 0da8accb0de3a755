# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""An objective from outside the package: regression, on rows with an image and a number."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from jest_hf import JESTTrainer
from jest_hf.distributed import gather_to_cpu
from jest_hf.losses import mean_over_ranks
from jest_hf.models import load_model
from jest_hf.objectives import OBJECTIVES, Objective, ObjectiveOptions, PointwiseReader
from jest_hf.report import forward_flops_of
from tests.distributed.processes import run
from tests.extensions.runs import highest, selected
from tests.helpers import encode
from tests.objectives.labelled import tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged


class TargetCollator:
    """Rows with the bytes of an `image` and a number `target` to a super-batch."""

    image_column = "image"
    ref_processor = None  # a reference reads what the learner reads

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = rows or [{"image": None, "target": None}]  # of an empty share of evaluation data
        images = [self.read(row["image"]) for row in rows]
        valid = [image is not None and row["target"] is not None for image, row in zip(images, rows, strict=True)]
        blank = Image.new("RGB", (1, 1))
        pixels = self.processor(images=[image or blank for image in images], return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixels,
            "labels": torch.tensor([float(row["target"] or 0.0) for row in rows]),
            "example_id": torch.tensor([row.get("example_id", -1) for row in rows]),
            "valid": torch.tensor(valid),
        }

    @staticmethod
    def read(image: bytes | None) -> Image.Image | None:
        try:
            return Image.open(io.BytesIO(image)).convert("RGB")
        except (TypeError, OSError):
            return None


class RegressionReader(PointwiseReader):
    """The model's one output is compared with the row's number."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits[:, 0].float() - labels).square()


@dataclass
class RegressionResult:
    """Predictions and squared errors of a whole data set."""

    predictions: np.ndarray
    errors: np.ndarray
    label_ids: np.ndarray | None = None

    @property
    def n_examples(self) -> int:
        return len(self.errors)

    def metrics(self) -> dict[str, float]:
        return {"loss": float(self.errors.mean()), "rmse": float(self.errors.mean() ** 0.5)}


class Regression(Objective):
    """The squared error of one number for each image."""

    name = "regression"
    loss_name = "squared error"
    collator_type = TargetCollator

    def __init__(self) -> None:
        self.read = RegressionReader(causal=False)
        self.architectures: dict[type, type] = {}

    @classmethod
    def fits(cls, model: Any) -> bool:
        return getattr(model.config, "problem_type", None) == "regression"

    @classmethod
    def make(cls, model: Any, options: ObjectiveOptions) -> Regression:
        return cls()

    def collator(self, processor: Any, ref_processor: Any, seed: int) -> TargetCollator:
        return TargetCollator(processor)

    def reader(self, model: Any, processor: Any, role: str, prefix: str = "") -> RegressionReader:
        self.architectures[type(model.config)] = type(model)
        return self.read

    def loss(self, output: Any, batch: Mapping[str, Tensor], ranks: Any, teacher: None = None) -> Tensor:
        return mean_over_ranks(self.read.losses(output.logits, batch["labels"]), ranks)

    def forward_flops(self, config: Any, inputs: Mapping[str, Any], view: None = None) -> float:
        return float(forward_flops_of(self.architectures[type(config)], config, inputs))

    def eval_collator(self, collator: TargetCollator) -> TargetCollator:
        return collator

    @torch.no_grad()
    def evaluate(self, read: Any, model: Any, batches: Any, device: torch.device, ranks: Any) -> RegressionResult:
        model.eval()
        predictions, errors = [], []
        for batch in batches:
            batch = {name: value.to(device) for name, value in batch.items()}
            logits, valid = read(model, batch).logits, batch["valid"]
            predictions.append(logits[valid, 0].float())
            errors.append(self.read.losses(logits, batch["labels"])[valid])
        whole = [gather_to_cpu(ranks, torch.cat(parts).cpu(), device).numpy() for parts in (predictions, errors)]
        return RegressionResult(*whole)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, Regression.name, Regression)


def regressor(seed: int = 0, architecture: type = ViTForImageClassification) -> ViTForImageClassification:
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = ViTConfig(**tower, image_size=16, patch_size=8, num_labels=1, problem_type="regression")
    return architecture(config).eval()


def grey_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Grey images, and how bright they are: a number that a linear layer can learn."""
    shades = np.random.default_rng(seed).integers(0, 256, n)
    return [{"image": encode(Image.new("RGB", (16, 16), (s, s, s))), "target": s / 255} for s in map(int, shades)]


ROWS = grey_rows(32)


def regression_trainer(folder, ref_model=None, rows=ROWS, model=None, **changes) -> JESTTrainer:
    return JESTTrainer(
        model=regressor(0) if model is None else model,
        ref_model=ref_model,
        args=arguments(folder, **{"selection": "independent", **changes}),
        train_dataset=rows,
        eval_dataset=grey_rows(9, seed=1),
        processing_class=tiny_vit_processor(),
    )


@torch.no_grad()
def errors(seed: int) -> Tensor:
    images = [Image.open(io.BytesIO(row["image"])) for row in ROWS]
    pixels = tiny_vit_processor()(images=images, return_tensors="pt")["pixel_values"]
    return (regressor(seed)(pixels).logits[:, 0] - torch.tensor([row["target"] for row in ROWS])).square()


def test_it_is_chosen_by_its_name_and_by_what_fits(tmp_path, monkeypatch):
    for settings in ({"objective": "regression"}, {}):
        trainer = regression_trainer(tmp_path, criterion="hard_learner", **settings)
        assert type(trainer.learning_objective) is Regression
    monkeypatch.delitem(OBJECTIVES, "regression")
    with pytest.raises(ValueError, match="objective='classification' needs .*at least two classes"):
        regression_trainer(tmp_path, criterion="hard_learner")
    with pytest.raises(ValueError, match="objective='regression' is not known; choose one of contrastive, class"):
        regression_trainer(tmp_path, criterion="hard_learner", objective="regression")


def test_without_a_reference_it_selects_and_learns_what_is_hard(tmp_path):
    trainer = regression_trainer(tmp_path, selection="top_k", criterion="hard_learner", max_steps=30)
    before = trainer.evaluate()["eval_rmse"]
    first, *_ = selected(trainer)
    assert set(first) == highest(errors(0))
    assert logged(trainer, "loss")[0] == pytest.approx(errors(0)[first].mean().item(), rel=1e-5)
    assert logged(trainer, "selected/learner_loss")[0] == pytest.approx(errors(0)[first].mean().item(), rel=1e-5)
    assert trainer.evaluate()["eval_rmse"] < 0.5 * before
    assert trainer.step_flops.reference == 0 < trainer.step_flops.scoring == 32 / 24 * trainer.step_flops.training


@pytest.mark.parametrize("criterion", ["learnability", "easy_reference"])
def test_with_a_reference_it_selects_by_both_losses(tmp_path, criterion):
    trainer = regression_trainer(tmp_path, regressor(1), selection="top_k", criterion=criterion, max_steps=1)
    scores = -errors(1) if criterion == "easy_reference" else errors(0) - errors(1)
    assert set(selected(trainer)[0]) == highest(scores)
    assert trainer.step_flops.reference > 0
    independent = regression_trainer(tmp_path, regressor(1), criterion=criterion)
    assert all(len(set(ids)) == 8 for ids in selected(independent))


def test_a_reference_can_be_trained_beside_the_learner(tmp_path):
    trainer = regression_trainer(tmp_path, reference="online", max_steps=2)
    trainer.train()
    assert len(logged(trainer, "online_reference_loss")) == 2


def test_a_reference_is_loaded_by_its_path(tmp_path):
    regressor(1).save_pretrained(tmp_path / "reference")
    tiny_vit_processor().save_pretrained(tmp_path / "reference")
    path = regression_trainer(tmp_path, str(tmp_path / "reference"), max_steps=1)
    model = regression_trainer(tmp_path, regressor(1), max_steps=1)
    assert selected(path) == selected(model)


def test_broken_rows_are_skipped(tmp_path):
    rows = [*grey_rows(32)]
    rows[3]["image"], rows[4]["target"] = b"no image", None
    trainer = regression_trainer(tmp_path, rows=rows, criterion="hard_learner")
    assert not {3, 4} & {one for ids in selected(trainer) for one in ids}
    assert trainer.statistics.skipped == 2 * 3


def test_what_has_no_use_here_is_refused(tmp_path):
    options = {"selection": "joint", "cache_reference": True, "distillation_weight": 1.0, "loss": "sigmoid"}
    options |= {"pair_score": "similarity", "gradient_cache_chunk_size": 4, "scoring_view": "patch:16"}
    for option, value in options.items():
        with pytest.raises(ValueError, match=f"{option}={value!r} .*objective='regression'"):
            regression_trainer(tmp_path, regressor(1), **{option: value})
    with pytest.raises(ValueError, match=r"data_collator=TargetCollator\(...\) does not make what objective='class"):
        JESTTrainer(
            model=tiny_vit(),
            args=arguments(tmp_path, selection="uniform"),
            data_collator=TargetCollator(tiny_vit_processor()),
            train_dataset=ROWS,
        )


class PixelRegressor(ViTForImageClassification):
    """A class that is none of transformers'."""


def test_the_card_says_what_it_was_trained_for(tmp_path):
    model = regressor(0, PixelRegressor)
    trainer = regression_trainer(tmp_path, model=model, criterion="hard_learner")
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "A `PixelRegressor`, trained with jest_hf" in card
    assert "squared error" in card and "rmse" in card
    for word in ("dual encoder", "contrastive", "zero-shot", "AutoModel", "Radford", "cross-entropy"):
        assert word not in card
    assert '`PixelRegressor.from_pretrained(".")` loads it.' in card


def test_a_class_that_transformers_does_not_know_is_refused_by_its_path(tmp_path):
    regressor(0, PixelRegressor).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was saved as PixelRegressor, which is no class of transformers; load it"):
        load_model(tmp_path)


def train_on_this_rank(folder: str) -> tuple[list[list[int]], dict[str, float]]:
    OBJECTIVES[Regression.name] = Regression  # in a process of this test's own
    trainer = regression_trainer(folder, criterion="hard_learner", selection="top_k", per_device_train_batch_size=4)
    return selected(trainer), trainer.evaluate()


def test_two_ranks_train_and_evaluate_as_one(tmp_path):
    alone = regression_trainer(tmp_path / "one", criterion="hard_learner", selection="top_k")
    one, evaluation = selected(alone), alone.evaluate()
    (first, of_first), (second, of_second) = run(2, train_on_this_rank, str(tmp_path / "two"))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(step) for step in one]
    for name in ("eval_loss", "eval_rmse"):
        assert of_first[name] == of_second[name] == pytest.approx(evaluation[name], rel=1e-4)
