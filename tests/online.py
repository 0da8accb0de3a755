# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Online models of tiny architectures, for an objective with pairs and one without, shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, ViTConfig
from transformers import ViTForImageClassification as ViT

from jest_hf.distributed import Ranks
from jest_hf.models import has_logit_bias
from jest_hf.models.labelled import PointwiseReader
from jest_hf.objectives import ContrastiveObjective
from jest_hf.objectives.pointwise import PointwiseObjective
from jest_hf.training.online_model import OnlineModel
from tests.helpers import TOWER, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments


def tiny_vit(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return ViT(ViTConfig(**TOWER, image_size=16, patch_size=8, num_labels=5))


def tiny_resnet(seed: int = 0) -> ResNetForImageClassification:
    """With batch norm: it has statistics as well as weights."""
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5, layer_type="basic")
    return ResNetForImageClassification(config)


MODELS = {"siglip": tiny_siglip, "clip": tiny_clip, "vit": tiny_vit, "resnet": tiny_resnet}
PROCESSORS = {"siglip": tiny_siglip_processor, "clip": tiny_clip_processor}


def tiny_online(
    kind: str,
    folder: Path,
    *,
    model: PreTrainedModel | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    steps: int | None = 10,
    chunk_size: int | None = None,
    ranks: Ranks | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = "proxy",
    **changes: Any,
) -> OnlineModel:
    """An online model, started for so many `steps` (`None`: not yet); `changes` are those of its arguments."""
    args = arguments(folder, **changes)
    model = (model or MODELS[kind](seed)).to(dtype)
    set_dropout(model, dropout)
    if kind not in PROCESSORS:
        objective, reader = PointwiseObjective("classification", model.config), PointwiseReader(causal=False)
    else:
        objective = ContrastiveObjective("sigmoid" if has_logit_bias(model) else "softmax")
        reader = objective.reader(model, PROCESSORS[kind](), "proxy")
    online = OnlineModel(
        model,
        reader,
        objective,
        name=name,
        learning_rate=args.learning_rate,
        args=args,
        ranks=ranks or Ranks(),
        device=torch.device("cpu"),
        chunk_size=chunk_size,
    )
    if steps is not None:
        online.start(steps)
    return online


def set_dropout(model: nn.Module, dropout: float) -> None:
    for tower in (module for module in model.modules() if type(module).__name__.endswith("Attention")):
        tower.dropout = dropout


def tiny_batch(kind: str, n_rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A super-batch of images with captions or with labels; float images are not normalised by a reader."""
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "pixel_values": torch.randn(n_rows, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype),
        "example_id": torch.arange(n_rows),
        "valid": torch.ones(n_rows, dtype=torch.bool),
    }
    if kind not in PROCESSORS:
        return batch | {"labels": torch.randint(0, 5, (n_rows,), generator=generator)}
    ids = torch.randint(3, 13, (n_rows, 8), generator=generator)
    ids[:, -1] = 2
    return batch | {"input_ids": ids}


def own_rows(batch: dict[str, Tensor], shares: list[int], rank: int) -> dict[str, Tensor]:
    start = sum(shares[:rank])
    return {name: value[start : start + shares[rank]] for name, value in batch.items()}


def state_of(online: OnlineModel) -> dict[str, Tensor]:
    """Weights and statistics, apart from the model."""
    return {name: value.detach().clone() for name, value in online.model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
