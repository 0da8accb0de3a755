# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` metrics give the results of the functions, for rows in any batches."""

from __future__ import annotations

import sys

import evaluate
import numpy as np
import pytest
import torch

import jest_hf.evaluation
from jest_hf.evaluation import RetrievalMetric, ZeroShotMetric, retrieval_recall, zero_shot_accuracy


@pytest.fixture(params=[True, False], ids=["memory", "disk"])
def storage(request, tmp_path):
    return {"keep_in_memory": request.param, "cache_dir": str(tmp_path)}


@pytest.fixture
def data():
    """30 images with 2 captions each, the captions in random order."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((30, 8))
    text_groups = rng.permutation(np.repeat(np.arange(30), 2))
    return image, image[text_groups] + rng.standard_normal((60, 8)), text_groups


def test_retrieval_at_once(storage, data):
    image, text, text_groups = data
    metric = RetrievalMetric(**storage)
    assert isinstance(metric, evaluate.Metric)
    expected = retrieval_recall(image, text, text_groups=text_groups, ks=(1, 3))
    assert 0 < expected["R@1"] < expected["R@3"] < 1
    for _ in range(2):  # nothing is left over from the first
        assert metric.compute(image_embeds=image, text_embeds=text, text_groups=text_groups, ks=(1, 3)) == expected


def test_retrieval_in_batches_of_unequal_numbers(storage, data):
    image, text, text_groups = data
    metric = RetrievalMetric(**storage)
    for start in range(0, 60, 25):
        rows = slice(start, start + 25)
        metric.add_batch(text_embeds=torch.from_numpy(text[rows]), text_groups=torch.from_numpy(text_groups[rows]))
        if start < 30:
            metric.add_batch(image_embeds=image[start : start + 25].tolist())
    assert metric.compute() == retrieval_recall(image, text, text_groups=text_groups)


def test_retrieval_pairs_are_numbered_over_batches(storage, data):
    image, text, _ = data
    text = image + 0.7 * text[:30]
    metric = RetrievalMetric(**storage)
    expected = retrieval_recall(image, text)
    for _ in range(2):
        for start in range(0, 30, 8):
            metric.add_batch(image_embeds=image[start : start + 8], text_embeds=text[start : start + 8])
        assert metric.compute() == expected


def test_retrieval_takes_bfloat16_with_gradients(storage):
    image = torch.eye(4, dtype=torch.bfloat16, requires_grad=True)
    assert RetrievalMetric(**storage).compute(image_embeds=image, text_embeds=image)["R@1"] == 1.0


def test_retrieval_errors_leave_the_metric_usable(storage):
    metric = RetrievalMetric(**storage)
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="nothing to compute"):
        metric.compute()
    with pytest.raises(ValueError, match="neither image_embeds nor text_embeds"):
        metric.add_batch()
    with pytest.raises(ValueError, match="rows of text_embeds hold NaN"):
        metric.add_batch(image_embeds=eye, text_embeds=eye * torch.nan)  # and adds no images either
    with pytest.raises(ValueError, match="only one of images and texts"):
        metric.compute(image_embeds=eye)
    with pytest.raises(ValueError, match=r"widths \[2, 3\]"):
        metric.compute(image_embeds=eye, text_embeds=torch.ones(3, 2))
    with pytest.raises(ValueError, match="no counterpart"):
        metric.compute(image_embeds=eye, text_embeds=eye[:2])
    assert metric.compute(image_embeds=eye, text_embeds=eye)["R@1"] == 1.0


def test_retrieval_over_processes_needs_groups(tmp_path):
    metric = RetrievalMetric(num_process=2, process_id=0, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="image_groups is needed with num_process=2"):
        metric.add_batch(image_embeds=torch.eye(3))


def test_zero_shot(storage, data):
    image, class_embeds, _ = data
    labels = np.arange(30) % 7
    expected = zero_shot_accuracy(image, class_embeds[:7], labels, ks=(1, 2))
    metric = ZeroShotMetric(**storage)
    at_once = metric.compute(image_embeds=image, labels=labels, class_embeds=class_embeds[:7], ks=(1, 2))
    assert at_once == expected
    for start in range(0, 30, 8):
        rows = slice(start, start + 8)
        metric.add_batch(image_embeds=torch.from_numpy(image[rows]), labels=labels[rows])
    assert metric.compute(class_embeds=class_embeds[:7], ks=(1, 2)) == expected


def test_zero_shot_errors_leave_the_metric_usable(storage):
    metric = ZeroShotMetric(**storage)
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="nothing to compute"):
        metric.compute(class_embeds=eye)
    with pytest.raises(ValueError, match="without labels"):
        metric.compute(image_embeds=eye, class_embeds=eye)
    with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
        metric.compute(image_embeds=eye, labels=[0, 1, 3], class_embeds=eye)
    assert metric.compute(image_embeds=eye, labels=[0, 1, 2], class_embeds=eye)["accuracy@1"] == 1.0


def test_missing_evaluate_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, "jest_hf.evaluation.metrics")
    monkeypatch.delattr(jest_hf.evaluation, "metrics")
    with pytest.raises(ImportError, match=r"pip install 'jest_hf\[eval\]'"):
        jest_hf.evaluation.RetrievalMetric  # noqa: B018
    assert jest_hf.evaluation.retrieval_recall([[1.0]], [[1.0]], ks=(1,))["R@1"] == 1.0
    with pytest.raises(AttributeError, match="no attribute 'Recall'"):
        jest_hf.evaluation.Recall  # noqa: B018
