# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Any model with labels: its scores are what it says of each example alone, and its FLOPs those of the closed form."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    SiglipConfig,
    SiglipForImageClassification,
)

from jest_hf.data.labelled import ImageLabelCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks
from jest_hf.images.pixels import decode_image, geometry_of, to_uint8
from jest_hf.losses.pointwise import IGNORED
from jest_hf.models import View
from jest_hf.objectives.pointwise import PointwiseObjective, kind_of
from jest_hf.selection import PointwiseLosses
from tests.helpers import tiny_clip_processor, tiny_siglip_processor, tiny_tokenizer
from tests.objectives.labelled import (
    CLASSES,
    KINDS,
    NAMED,
    TOWER,
    VOCABULARY,
    image_rows,
    prepared,
    text_rows,
    tiny_bert,
    tiny_llama,
    tiny_vit,
    tiny_vit_processor,
)


def spoilt(rows):
    """With a row that cannot be used."""
    return [*rows[:2], {**rows[2], "image": None, "text": ""}, *rows[3:]]


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_the_models_own_losses_of_one_row_at_a_time(name):
    """As transformers computes them, given labels and images that its processor has normalised."""
    model, _, reader, collator, rows = prepared(name, 7)
    batch = collator(spoilt(rows))
    scores = reader.score(model.train(), batch, batch_size=3)
    assert isinstance(scores, PointwiseLosses) and scores.losses.dtype == torch.float32 and not model.training
    assert not scores.losses.requires_grad
    for index, score in enumerate(scores.losses):
        if index == 2:
            assert score == 0
            continue
        inputs = {key: batch[key][index : index + 1] for key in reader.inputs(batch) if key in batch}
        if name == "vit":
            processor = tiny_vit_processor()
            resized = to_uint8(decode_image(rows[index]["image"]), geometry_of(processor))  # at most 2 levels off PIL
            inputs = processor(Image.fromarray(resized.permute(1, 2, 0).numpy()), return_tensors="pt")
        with torch.no_grad():
            own = model(**inputs, labels=batch["labels"][index : index + 1]).loss
        torch.testing.assert_close(score, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_do_not_depend_on_the_size_of_a_forward(name, batch_size):
    model, _, reader, collator, rows = prepared(name, 9)
    batch = collator(rows)
    expected = reader.score(model, batch, 9).losses
    torch.testing.assert_close(reader.score(model, batch, batch_size).losses, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_label_smoothing_is_that_of_torch(name):
    model, objective, reader, collator, rows = prepared(name, 6, label_smoothing=0.1)
    batch = collator(rows)
    logits = reader(model, batch).logits
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(reader.score(model, batch, 6).losses, expected)
    torch.testing.assert_close(objective.loss(reader(model, batch), batch, Ranks()), expected.mean())


@pytest.mark.parametrize("name", KINDS)
def test_the_training_loss_is_the_mean_of_the_scores(name):
    model, objective, reader, collator, rows = prepared(name, 6)
    batch = collator(rows)
    loss = objective.loss(reader(model, batch), batch, Ranks())
    torch.testing.assert_close(loss.detach(), reader.score(model, batch, 6).losses.mean())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_a_model_is_not_given_labels_nor_asked_to_remember(name):
    model, _, reader, collator, rows = prepared(name, 3)
    batch = collator(rows)
    inputs = reader.inputs(batch, slice(1, 3))
    texts = {"input_ids", "attention_mask"}
    expected = {"vit": {"pixel_values"}, "bert": texts, "llama": {*texts, "use_cache"}}
    assert set(inputs) == expected[name]
    assert all(len(value) == 2 for value in inputs.values() if isinstance(value, torch.Tensor))
    assert set(reader(model, batch).keys()) == {"logits"}  # no loss, no past keys


def test_a_reference_reads_its_own_images_in_its_own_colours():
    learner, objective, reader, collator, rows = prepared("vit", 4)
    processor = tiny_vit_processor(24, image_mean=[0.1, 0.2, 0.3])
    reference = tiny_vit(seed=1, size=24)
    batch = collator.with_reference(processor)(rows)
    alone = ImageLabelCollator(processor, CLASSES)(rows)
    view = objective.reader(reference, processor, "reference", prefix="ref_")
    assert set(view.inputs(batch)) == {"pixel_values"} and set(reader.inputs(batch)) == {"pixel_values"}
    expected = objective.reader(reference, processor, "reference").score(reference, alone, 4).losses
    assert torch.equal(view.score(reference, batch, 4).losses, expected)
    assert torch.equal(reader.score(learner, batch, 4).losses, reader.score(learner, collator(rows), 4).losses)


def test_a_reference_that_reads_what_the_learner_reads_shares_it():
    learner, objective, reader, collator, rows = prepared("bert", 4)
    view = objective.reader(tiny_bert(seed=1), tiny_tokenizer(), "reference", prefix="ref_")
    batch = collator(rows)
    assert torch.equal(view.inputs(batch)["input_ids"], reader.inputs(batch)["input_ids"])


def test_a_reference_with_tokens_of_its_own_takes_nothing_of_the_learners():
    _, objective, _, collator, rows = prepared("bert", 4)
    tokenizer = tiny_tokenizer(with_mask=False)
    view = objective.reader(tiny_bert(seed=1), tokenizer, "reference", prefix="ref_")
    assert set(view.inputs(collator.with_reference(tokenizer)(rows))) == {"input_ids"}


# What an objective is chosen by


def test_kinds_are_known_by_the_model():
    assert [kind_of(model) for model in (tiny_vit(), tiny_bert(), tiny_llama())] == [
        kind for *_, kind in KINDS.values()
    ]


def test_a_subclass_of_a_language_model_is_one():
    class Mine(LlamaForCausalLM):
        pass

    assert kind_of(Mine(tiny_llama().config)) == "language_model"


def test_classes_may_be_named_one_way_round():
    config = BertConfig(id2label=NAMED["id2label"], **TOWER, **VOCABULARY)
    assert config.label2id is None
    objective = PointwiseObjective("classification", config)
    assert objective.collator(tiny_tokenizer(), None, 0).classes.label2id == CLASSES
    objective.reader(tiny_bert(), tiny_tokenizer(), "reference")
    config.label2id = {name: str(number) for name, number in CLASSES.items()}
    assert PointwiseObjective("classification", config).label2id == CLASSES


def test_collators_are_known_by_the_processor():
    vit, llama = (PointwiseObjective(kind_of(model), model.config) for model in (tiny_vit(), tiny_llama()))
    assert type(vit.collator(tiny_vit_processor(), None, 0)) is ImageLabelCollator
    assert type(vit.collator(tiny_siglip_processor(), tiny_clip_processor(), 0)) is ImageLabelCollator
    assert type(vit.collator(tiny_tokenizer(), None, 0)) is TextLabelCollator
    assert type(llama.collator(tiny_clip_processor(), None, 0)) is LanguageModelCollator
    with pytest.raises(ValueError, match="the learner reads images, and a .* does not"):
        vit.collator(tiny_vit_processor(), tiny_tokenizer(), 0)
    with pytest.raises(ValueError, match="ViTImageProcessorPil does not read the inputs of this model"):
        llama.collator(tiny_vit_processor(), None, 0)


# What does not fit together


def test_unknown_kinds_and_other_problems_are_refused():
    config = tiny_vit().config
    with pytest.raises(
        ValueError, match="objective='contrastive' is not an objective with labels; choose one of class"
    ):
        PointwiseObjective("contrastive", config)
    with pytest.raises(ValueError, match="label_smoothing_factor=1.5"):
        PointwiseObjective("classification", config, label_smoothing=1.5)
    config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="num_labels=5, problem_type='multi_label_classification'"):
        PointwiseObjective("classification", config)
    with pytest.raises(ValueError, match="num_labels=1,"):
        PointwiseObjective("classification", SiglipConfig(num_labels=1))


def test_a_reference_with_other_classes_is_refused():
    objective = PointwiseObjective("classification", tiny_vit().config)
    reference = tiny_vit()
    swapped = {**CLASSES, "red": 1, "green": 0}
    for label2id in ({"red": 0, "green": 1}, swapped):
        reference.config.label2id = label2id
        with pytest.raises(ValueError, match="the reference has the classes .* and the learner has .*label2id"):
            objective.reader(reference, tiny_vit_processor(), "reference")
    reference.config.label2id = {f"LABEL_{number}": number for number in range(5)}
    objective.reader(reference, tiny_vit_processor(), "reference")  # the same numbers, without names


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_vocabulary_that_is_too_small_is_refused(name):
    model, objective, *_ = prepared(name, 1)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["octagon", "hexagon"])
    with pytest.raises(ValueError, match="goes up to token 15, but the proxy has 14 tokens"):
        objective.reader(model, tokenizer, "proxy")


def test_images_and_texts_that_the_model_does_not_take_are_refused():
    model, objective, reader, _, rows = prepared("vit", 1)
    batch = ImageLabelCollator(tiny_vit_processor(24), CLASSES)(rows)
    with pytest.raises(ValueError, match="the learner does not accept the inputs of its processor .*24.*; give the"):
        objective.check(reader.inputs(batch), model.config, "learner")
    model, objective, reader, _, rows = prepared("bert", 1)
    batch = TextLabelCollator(tiny_tokenizer(max_length=9), CLASSES)(rows)
    with pytest.raises(ValueError, match="padded to 9 tokens, but the learner has 8 positions; set max_length=8"):
        objective.check(reader.inputs(batch), model.config, "learner")


def test_positions_have_other_names():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=4, **VOCABULARY))
    objective = PointwiseObjective(kind_of(gpt2), gpt2.config)
    batch = LanguageModelCollator(tiny_tokenizer())(text_rows(1))
    inputs = objective.reader(gpt2, tiny_tokenizer(), "learner").inputs(batch)
    with pytest.raises(ValueError, match="padded to 8 tokens, but the learner has 4 positions; set max_length=4"):
        objective.check(inputs, gpt2.config, "learner")


@pytest.mark.parametrize(
    ("architecture", "logits"),
    [
        (BertForTokenClassification, r"logits of shape \[1, 8, 5\]"),
        (BertForMaskedLM, r"logits of shape \[1, 8, 14\]"),
        (BertForNextSentencePrediction, r"logits of shape \[1, 2\]"),
        (BertModel, "no logits"),
    ],
)
def test_logits_that_are_not_one_for_each_label_are_refused(architecture, logits):
    model = architecture(tiny_bert().config)
    objective = PointwiseObjective(kind_of(model), model.config)
    batch = TextLabelCollator(tiny_tokenizer(), CLASSES)(text_rows(1))
    inputs = objective.reader(model, tiny_tokenizer(), "learner").inputs(batch)
    message = f"the learner is a {architecture.__name__}, which has {logits} .* needs \\[1, 5\\]; load"
    with pytest.raises(ValueError, match=message):
        objective.check(inputs, model.config, "learner", batch["labels"])


@pytest.mark.parametrize("name", KINDS)
def test_what_fits_is_accepted(name):
    model, objective, reader, collator, rows = prepared(name, 2)
    batch = collator(rows)
    objective.check(reader.inputs(batch), model.config, "learner", batch["labels"])


def test_views_are_refused():
    _, _, reader, collator, rows = prepared("vit", 1)
    with pytest.raises(ValueError, match="scoring_view='image:8' is for dual encoders"):
        reader.inputs(collator(rows), view=View.parse("image:8"))


# Evaluation


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_is_that_of_each_readable_row(name):
    model, objective, reader, collator, rows = prepared(name, 9, label_smoothing=0.1)
    rows = spoilt(rows)
    eval_collator = objective.eval_collator(collator)
    whole = collator([row for index, row in enumerate(rows) if index != 2])
    batches = [eval_collator(rows[start : start + 4]) for start in (0, 4, 8)] + [eval_collator([])]
    results = objective.evaluate(reader, model, batches, torch.device("cpu"), Ranks())
    metrics = results.metrics()
    with torch.no_grad():
        logits, labels = reader(model, whole).logits, whole["labels"]
    assert results.n_examples == 8 and metrics["examples_skipped"] == 1
    if name == "llama":
        own = [F.cross_entropy(x[:-1], y[1:], ignore_index=IGNORED) for x, y in zip(logits, labels, strict=True)]
        assert metrics["loss"] == pytest.approx(torch.stack(own).mean().item(), rel=1e-5)
        over_tokens = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        assert metrics["perplexity"] == pytest.approx(over_tokens.exp().item(), rel=1e-5)
        assert set(metrics) == {"loss", "perplexity", "examples_skipped"}
    else:
        assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert metrics["accuracy"] == (logits.argmax(dim=1) == labels).float().mean().item()
        kept = [index for index in range(9) if index != 2]
        torch.testing.assert_close(torch.from_numpy(results.predictions[kept]), logits, rtol=1e-4, atol=1e-5)
        assert np.isnan(results.predictions[2]).all() and results.predictions.shape == (9, 5)
        assert results.label_ids.tolist() == [*labels[:2].tolist(), IGNORED, *labels[2:].tolist()]


def test_a_language_model_beyond_all_numbers_has_an_infinite_perplexity():
    model, objective, reader, collator, rows = prepared("llama", 3)
    with torch.no_grad():
        model.lm_head.weight *= 1e5
    results = objective.evaluate(
        reader, model, [objective.eval_collator(collator)(rows)], torch.device("cpu"), Ranks()
    )
    assert results.metrics()["perplexity"] == float("inf") and results.metrics()["loss"] > 1000


def test_nothing_to_evaluate():
    model, objective, reader, collator, rows = prepared("vit", 1)
    batch = objective.eval_collator(collator)([{**rows[0], "label": None}])
    with pytest.raises(ValueError, match="not one of the 1 evaluation rows can be read"):
        objective.evaluate(reader, model, [batch], torch.device("cpu"), Ranks())


# FLOPs: four projections, two products of the attention and the MLP's of each layer; a multiply-add is two.

WIDTH, MLP = TOWER["hidden_size"], TOWER["intermediate_size"]


def layers(tokens: int, n_products: int = 2, n_layers: int = 1) -> int:
    one = 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH + n_products * tokens * WIDTH * MLP
    return 2 * n_layers * one


BY_HAND = {
    "vit": 2 * 4 * WIDTH * 3 * 8**2 + layers(5) + 2 * WIDTH * 5,
    "bert": layers(8) + 2 * WIDTH**2 + 2 * WIDTH * 5,
    "llama": layers(8, n_products=3) + 2 * 8 * WIDTH * 14,
}


@pytest.mark.parametrize("name", KINDS)
def test_flops_are_those_of_the_closed_form_and_of_the_real_forward(name):
    model, objective, reader, collator, rows = prepared(name, 3)
    inputs = reader.inputs(collator(rows))
    flops = objective.forward_flops(model.config, inputs)
    assert flops == pytest.approx(BY_HAND[name], rel=0.01)
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    # Not exactly: Llama in transformers before 5.19 makes the angles of the position embedding by a matrix product,
    # once for all examples.
    assert counter.get_total_flops() == pytest.approx(3 * flops, rel=1e-3)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_flops_of_models_that_look_at_their_masks():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_inner=MLP, n_layer=1, n_head=2, n_positions=8, **VOCABULARY))
    objective = PointwiseObjective(kind_of(gpt2), gpt2.config)
    batch = LanguageModelCollator(tiny_tokenizer())([{"text": "a red star"}])
    inputs = objective.reader(gpt2, tiny_tokenizer(), "learner").inputs(batch)
    assert objective.forward_flops(gpt2.config, inputs) == pytest.approx(layers(8) + 2 * 8 * WIDTH * 14, rel=0.01)
    llama = LlamaForSequenceClassification(LlamaConfig(**TOWER, **NAMED, **VOCABULARY, num_key_value_heads=2))
    objective = PointwiseObjective(kind_of(llama), llama.config)
    reader = objective.reader(llama, tiny_tokenizer(), "learner")
    inputs = reader.inputs(TextLabelCollator(tiny_tokenizer(), CLASSES)([{"text": "a red star", "label": 0}]))
    expected = layers(8, n_products=3) + 2 * 8 * WIDTH * 5  # it classifies at every token, and takes the last
    assert objective.forward_flops(llama.config, inputs) == pytest.approx(expected, rel=0.01)


def test_a_dual_encoders_vision_tower_as_a_classifier():
    config = SiglipConfig(vision_config={**TOWER, "image_size": 16, "patch_size": 8}, text_config=TOWER, **NAMED)
    model = SiglipForImageClassification(config)
    objective = PointwiseObjective(kind_of(model), config)
    collator = objective.collator(tiny_siglip_processor(), None, 0)
    reader = objective.reader(model, tiny_siglip_processor(), "learner")
    batch = collator(image_rows(3))
    objective.check(reader.inputs(batch), config, "learner")
    assert len(reader.score(model, batch, 2)) == 3


def test_a_language_model_has_no_labels_to_check():
    _, objective, _, collator, _ = prepared("llama", 1)
    objective.check_data(datasets.Dataset.from_dict({"text": ["a red star"], "label": [7]}), collator)


def test_rows_of_a_data_set_with_class_labels():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    dataset = datasets.Dataset.from_list(image_rows(4), features=features)
    model, objective, reader, collator, _ = prepared("vit", 1)
    objective.check_data(dataset, collator)
    with pytest.raises(ValueError, match="label"):
        objective.check_data(datasets.Dataset.from_dict({"label": [7]}), collator)
    batch = collator(Rows(dataset, collator.image_column).__getitems__([2, 0]))
    assert batch["valid"].all() and batch["example_id"].tolist() == [2, 0]
