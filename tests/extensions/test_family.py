# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A dual encoder from outside the package: its own configuration and model, known by one entry in `FAMILIES`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from jest_hf import JESTTrainer
from jest_hf.models import FAMILIES, Family, View, load_model
from tests.distributed.processes import run
from tests.extensions.runs import ROWS, selected
from tests.helpers import tiny_clip, tiny_clip_processor
from tests.trainers import arguments, logged


class TinyTowerConfig(PretrainedConfig):
    """Settings of one tower."""

    def __init__(self, image_size=16, max_position_embeddings=8, vocab_size=14, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.max_position_embeddings = max_position_embeddings
        self.vocab_size = vocab_size


class TinyPairConfig(PretrainedConfig):
    """Settings of a `TinyPair`."""

    model_type = "tiny_pair"
    sub_configs = {"vision_config": TinyTowerConfig, "text_config": TinyTowerConfig}

    def __init__(self, vision_config=None, text_config=None, width=12, **kwargs):
        self.vision_config = TinyTowerConfig(**(vision_config or {}))
        self.text_config = TinyTowerConfig(**(text_config or {}))
        self.width = width
        super().__init__(**kwargs)


@dataclass
class TinyPairOutput(ModelOutput):
    """Embeddings of n images and of m texts, and the logits of all pairs of them."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits: Tensor | None = None


class TinyPair(PreTrainedModel):
    """A linear layer for images, the mean of token embeddings for texts, and a temperature."""

    config_class = TinyPairConfig

    def __init__(self, config: TinyPairConfig) -> None:
        super().__init__(config)
        self.image = nn.Linear(3 * config.vision_config.image_size**2, config.width)
        self.text = nn.EmbeddingBag(config.text_config.vocab_size, config.width)
        self.join = nn.Linear(config.width, config.width)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.post_init()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> TinyPairOutput:
        image = F.normalize(self.image(pixel_values.flatten(1)), dim=1)
        text = F.normalize(self.join(self.text(input_ids)), dim=1)
        return TinyPairOutput(image, text, self.logit_scale.exp() * image @ text.T)


TINY_PAIR = Family("tiny_pair", loss="softmax", attention_mask=False, width=lambda config: config.width)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny_pair", TINY_PAIR)
    AutoConfig.register("tiny_pair", TinyPairConfig, exist_ok=True)
    AutoModel.register(TinyPairConfig, TinyPair, exist_ok=True)


def tiny_pair(seed: int = 0) -> TinyPair:
    torch.manual_seed(seed)
    return TinyPair(TinyPairConfig())


def family_trainer(folder, model, ref_model, processor=None, settings=None, rows=ROWS, **changes) -> JESTTrainer:
    return JESTTrainer(
        model=model,
        ref_model=ref_model,
        args=arguments(folder, **changes, **(settings or {})),
        train_dataset=rows,
        eval_dataset=ROWS[:9],
        processing_class=processor or tiny_clip_processor(),
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


# Multiply-adds of one image and one text through the three layers with weights of products, and the logit of the pair.
IMAGE, TEXT, LOGIT = 2 * 768 * 12, 2 * 12 * 12, 2 * 12


def test_it_learns_beside_a_reference_of_its_own_family(tmp_path):
    model = tiny_pair(0)
    before = weights(model)
    trainer = family_trainer(tmp_path, model, tiny_pair(1))
    trainer.train()
    assert not torch.equal(weights(model), before)
    assert logged(trainer, "selected/learnability")[0] > logged(trainer, "rejected/learnability")[0]
    assert set(trainer.evaluate()) >= {"eval_loss", "eval_image_to_text_R@1", "eval_text_to_image_R@5"}
    one = IMAGE + TEXT + LOGIT
    assert trainer.step_flops.training == 3 * 8 * one
    assert trainer.step_flops.scoring == trainer.step_flops.reference == 32 * one
    assert trainer.step_flops.selection == 2 * 4 * 32 * 8 * 12  # two models, embeddings of width 12


def test_its_loss_is_the_one_that_it_was_made_for(tmp_path):
    trainer = family_trainer(tmp_path, tiny_pair(0), None, selection="uniform", per_device_train_batch_size=32)
    output = tiny_pair(0)(**trainer.learner_view.inputs(trainer.data_collator(ROWS)))
    target = torch.arange(32)
    expected = (F.cross_entropy(output.logits, target) + F.cross_entropy(output.logits.T, target)) / 2
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(expected.item(), rel=1e-5)


def test_it_is_saved_and_loaded_by_its_path(tmp_path):
    trainer = family_trainer(tmp_path / "run", tiny_pair(0), tiny_pair(1))
    trainer.train()
    trainer.save_model()
    again = load_model(tmp_path / "run")
    assert type(again) is TinyPair and torch.equal(weights(again), weights(trainer.model))
    path = str(tmp_path / "run")
    (ids,) = selected(family_trainer(tmp_path / "next", path, path, max_steps=1, criterion="easy_reference"))
    (same,) = selected(
        family_trainer(tmp_path / "same", again, again_of(again), max_steps=1, criterion="easy_reference")
    )
    assert ids == same


def again_of(model: TinyPair) -> TinyPair:
    other = TinyPair(model.config)
    other.load_state_dict(model.state_dict())
    return other


def test_a_cached_reference_selects_the_same_and_its_costs_are_counted(tmp_path):
    live = family_trainer(tmp_path / "live", tiny_pair(0), tiny_pair(1))
    cached = family_trainer(tmp_path / "cached", tiny_pair(0), tiny_pair(1), cache_reference=True)
    ids = selected(live)
    assert selected(cached) == ids
    assert cached.ref_model is None
    assert cached.cache_flops == 32 * (IMAGE + TEXT + LOGIT) == cached.run_flops.reference
    again = family_trainer(
        tmp_path / "again", tiny_pair(0), None, reference_cache=str(tmp_path / "cached" / "reference_cache")
    )
    assert selected(again) == ids


def test_a_cache_costs_one_image_and_every_caption_of_a_row(tmp_path):
    rows = [{**row, "text": [row["text"], "a star", "a red star"]} for row in ROWS]
    trainer = family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), rows=rows, cache_reference=True, max_steps=1)
    trainer.train()
    assert trainer.cache_flops == 32 * (IMAGE + LOGIT) + 96 * TEXT


@pytest.mark.parametrize("role", ["learner", "reference"])
def test_it_goes_with_models_of_other_families(tmp_path, role):
    learner, reference = (tiny_pair(0), tiny_clip(1)) if role == "learner" else (tiny_clip(0), tiny_pair(1))
    trainer = family_trainer(tmp_path, learner, reference, max_steps=2)
    assert [len(ids) for ids in selected(trainer)] == [8, 8]
    assert trainer.step_flops.scoring != trainer.step_flops.reference > 0


def test_companions_can_be_of_the_family(tmp_path):
    proxy = family_trainer(tmp_path / "proxy", tiny_clip(0), tiny_pair(1), scoring="proxy", max_steps=2)
    proxy.train()
    assert type(proxy.proxy.model) is TinyPair and len(logged(proxy, "proxy_loss")) == 2
    online = family_trainer(tmp_path / "online", tiny_pair(0), None, settings={"reference": "online"}, max_steps=2)
    online.train()
    assert len(logged(online, "online_reference_loss")) == 2


def test_what_it_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="view 'patch:16' does not suit a tiny_pair model: leave scoring_view out"):
        family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), scoring_view="patch:16")
    assert View.parse("patch:16").kind not in TINY_PAIR.views
    with pytest.raises(ValueError, match="loss='sigmoid' needs a logit_bias, and the learner"):
        family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), loss="sigmoid")
    with pytest.raises(ValueError, match="images of 24 px, and the learner takes 16 px"):
        family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), processor=tiny_clip_processor(24))


def test_without_the_entry_it_is_no_dual_encoder(tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, "tiny_pair")
    with pytest.raises(ValueError, match="model_type='tiny_pair' is not a supported dual encoder; use one of siglip"):
        family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), objective="contrastive")


def test_the_card_names_its_class(tmp_path):
    trainer = family_trainer(tmp_path, tiny_pair(0), tiny_pair(1), max_steps=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "A `TinyPair` dual encoder of images and texts, trained with jest_hf" in card


def train_on_this_rank(folder: str) -> list[list[int]]:
    FAMILIES[TINY_PAIR.model_type] = TINY_PAIR  # in a process of this test's own
    return selected(
        family_trainer(folder, tiny_pair(0), tiny_pair(1), per_device_train_batch_size=4, cache_reference=True)
    )


def test_two_ranks_select_and_cache_what_one_does(tmp_path):
    one = selected(family_trainer(tmp_path / "one", tiny_pair(0), tiny_pair(1)))
    first, second = run(2, train_on_this_rank, str(tmp_path / "two"))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(step) for step in one]
