# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""[`retrieval_recall`] and [`zero_shot_accuracy`] as `evaluate` metrics: add batches, then compute one result.

`evaluate` keeps added batches in an Arrow table, whose columns have the same length, but there may be more texts than
images. A row of the table of [`RetrievalMetric`] is therefore one embedding, of an image or of a text, with its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, List, Value

from jest_hf.evaluation.retrieval import Array, as_embeddings, as_groups, retrieval_recall
from jest_hf.evaluation.zero_shot import zero_shot_accuracy


try:
    import evaluate
except ImportError as error:
    raise ImportError("The metric classes need the evaluate package; run: pip install 'jest_hf[eval]'.") from error


RETRIEVAL_INPUTS = """
Args:
    image_embeds: image embeddings, [Ni, D].
    text_embeds: text embeddings, [Nt, D]; Nt need not equal Ni, and a batch may hold one kind only.
    image_groups: one integer per image; the number of the image in the order of adding, if not given.
    text_groups: one integer per text; the number of the text in the order of adding, if not given.
"""

ZERO_SHOT_INPUTS = """
Args:
    image_embeds: image embeddings, [N, D].
    labels: one integer per image.
"""


class RetrievalMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate` metric that computes [`retrieval_recall`] over all batches that were added.

    An image and a text of the same group are right for each other. Without groups, image n and text n are a pair,
    counted over all batches in the order of adding. With several captions per image, pass the number of each text's
    image as `text_groups`.

    Args:
        args, kwargs: Arguments of `evaluate.Metric`. With `keep_in_memory=True` nothing is written to disk.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation import RetrievalMetric
    >>> metric = RetrievalMetric(keep_in_memory=True)
    >>> for _ in range(2):
    ...     metric.add_batch(image_embeds=torch.eye(2), text_embeds=torch.eye(2))
    >>> recalls = metric.compute(ks=(1, 2))
    >>> recalls["R@1"], recalls["R@2"]  # each pair occurs twice: a tie, which counts as a miss
    (0.0, 1.0)

    ```
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._added = {"image": 0, "text": 0}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall at k of image-to-text and text-to-image retrieval; ties count as misses.",
            citation="",
            inputs_description=RETRIEVAL_INPUTS,
            features=Features(
                {"embedding": List(Value("float32")), "is_image": Value("bool"), "group": Value("int64")}
            ),
        )

    def add_batch(
        self,
        *,
        image_embeds: Array | None = None,
        text_embeds: Array | None = None,
        image_groups: Array | None = None,
        text_groups: Array | None = None,
    ) -> None:
        """Add images, texts or both; arguments as in [`retrieval_recall`].

        Raises:
            ValueError: If there are neither images nor texts, embeddings are empty or not finite, groups do not match
                them, or groups are missing in a metric of several processes, which have no common order of adding.
        """
        if image_embeds is None and text_embeds is None:
            raise ValueError("add_batch got neither image_embeds nor text_embeds; pass at least one of them.")
        inputs = {"image": (image_embeds, image_groups), "text": (text_embeds, text_groups)}
        columns = {
            kind: self._columns(kind, embeds, groups)
            for kind, (embeds, groups) in inputs.items()
            if embeds is not None
        }
        for kind, rows in columns.items():
            super().add_batch(**rows)
            self._added[kind] += len(rows["group"])

    def _columns(self, kind: str, embeds: Array, groups: Array | None) -> dict[str, Any]:
        if groups is None and self.num_process > 1:
            raise ValueError(
                f"{kind}_groups is needed with num_process={self.num_process}; pass the row numbers of the data set."
            )
        embeds = as_embeddings(f"{kind}_embeds", embeds)
        first = 0 if groups is not None else self._added[kind]
        groups = as_groups(f"{kind}_groups", groups, embeds) + first
        return {
            "embedding": list(embeds.cpu().numpy()),
            "is_image": [kind == "image"] * len(embeds),
            "group": groups.cpu().numpy(),
        }

    def compute(
        self,
        *,
        image_embeds: Array | None = None,
        text_embeds: Array | None = None,
        image_groups: Array | None = None,
        text_groups: Array | None = None,
        ks: Sequence[int] = (1, 5, 10),
        tile_size: int = 256,
    ) -> dict[str, float] | None:
        """Compute recall over all batches that were added, and over the arguments, if any. Then start anew.

        Returns:
            `dict[str, float]`: As in [`retrieval_recall`]; `None` on processes other than the first.

        Raises:
            ValueError: If no images or no texts were added, and as in `add_batch` and [`retrieval_recall`].
        """
        if image_embeds is not None or text_embeds is not None:
            self.add_batch(
                image_embeds=image_embeds, text_embeds=text_embeds, image_groups=image_groups, text_groups=text_groups
            )
        if self.writer is None:
            raise ValueError("RetrievalMetric has nothing to compute; call add_batch first, or pass the embeddings.")
        self._added = {"image": 0, "text": 0}
        recalls: dict[str, float] | None = super().compute(ks=ks, tile_size=tile_size)
        return recalls

    def _compute(
        self,
        embedding: list[list[float]],
        is_image: list[bool],
        group: list[int],
        ks: Sequence[int],
        tile_size: int,
    ) -> dict[str, float]:
        widths = {len(row) for row in embedding}
        if len(widths) > 1:
            raise ValueError(f"RetrievalMetric got embeddings of widths {sorted(widths)}; add those of one model.")
        embeddings, groups, images = np.asarray(embedding, np.float32), np.asarray(group), np.asarray(is_image)
        if images.all() or not images.any():
            raise ValueError("RetrievalMetric got only one of images and texts; add the other kind before compute.")
        return retrieval_recall(
            embeddings[images], embeddings[~images], groups[images], groups[~images], ks=ks, tile_size=tile_size
        )


class ZeroShotMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate` metric that computes [`zero_shot_accuracy`] over all batches that were added.

    Args:
        args, kwargs: Arguments of `evaluate.Metric`. With `keep_in_memory=True` nothing is written to disk.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation import ZeroShotMetric
    >>> metric = ZeroShotMetric(keep_in_memory=True)
    >>> for label in (0, 1, 2):
    ...     metric.add_batch(image_embeds=torch.eye(3)[[label]], labels=[label])
    >>> metric.compute(class_embeds=torch.eye(3), ks=(1,))
    {'accuracy@1': 1.0, 'mean_per_class_accuracy': 1.0}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy at k of the class embeddings closest to an image, and its mean over classes at 1.",
            citation="",
            inputs_description=ZERO_SHOT_INPUTS,
            features=Features({"image_embeds": List(Value("float32")), "labels": Value("int64")}),
        )

    def add_batch(self, *, image_embeds: Array, labels: Array) -> None:
        """Add images with their labels; arguments as in [`zero_shot_accuracy`].

        Raises:
            ValueError: If embeddings are empty or not finite, or labels do not match them.
        """
        image = as_embeddings("image_embeds", image_embeds)
        labels = as_groups("labels", labels, image)
        super().add_batch(image_embeds=list(image.cpu().numpy()), labels=labels.cpu().numpy())

    def compute(
        self,
        *,
        class_embeds: Array,
        image_embeds: Array | None = None,
        labels: Array | None = None,
        ks: Sequence[int] = (1, 5),
        tile_size: int = 1024,
    ) -> dict[str, float] | None:
        """Compute accuracy over all batches that were added, and over the arguments, if any. Then start anew.

        Returns:
            `dict[str, float]`: As in [`zero_shot_accuracy`]; `None` on processes other than the first.

        Raises:
            ValueError: If no images were added, and as in `add_batch` and [`zero_shot_accuracy`].
        """
        if image_embeds is not None:
            if labels is None:
                raise ValueError("compute got image_embeds without labels; pass both, or neither after add_batch.")
            self.add_batch(image_embeds=image_embeds, labels=labels)
        if self.writer is None:
            raise ValueError("ZeroShotMetric has nothing to compute; call add_batch first, or pass the embeddings.")
        accuracies: dict[str, float] | None = super().compute(class_embeds=class_embeds, ks=ks, tile_size=tile_size)
        return accuracies

    def _compute(
        self,
        image_embeds: list[list[float]],
        labels: list[int],
        class_embeds: Array,
        ks: Sequence[int],
        tile_size: int,
    ) -> dict[str, float]:
        return zero_shot_accuracy(image_embeds, class_embeds, labels, ks=ks, tile_size=tile_size)
