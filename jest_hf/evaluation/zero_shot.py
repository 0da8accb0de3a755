# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification: an image belongs to the class whose name, put into a sentence, lies closest to it.

A class is embedded by an ensemble of prompts (arXiv 2103.00020, section 3.1.4): each template gets the name, the
normalised embeddings of the prompts are averaged, and the mean is normalised again. The rest is retrieval with the
classes as the gallery, ties against the image included: classes that a model cannot tell apart count as wrong,
whichever comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.evaluation.retrieval import Array, as_embeddings, as_groups, check_ks, group_ranks, share_below


DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a close-up photo of a {}.",
    "{}",
)


@torch.no_grad()
def zero_shot_classifier(
    encode_text: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 256,
) -> Tensor:
    """
    Embeddings of classes from their names.

    Args:
        encode_text (`Callable[[list[str]], torch.Tensor]`):
            Embeds n prompts as `[n, D]`, normalised or not; tokenizes as the model wants it (padding, lower case).
        class_names (sequence of `str`):
            Names of the `C` classes, in the order of their labels.
        templates (sequence of `str`, *optional*, defaults to [`DEFAULT_TEMPLATES`]):
            Sentences with one `{}` for the name.
        batch_size (`int`, *optional*, defaults to `256`):
            Prompts embedded at a time.

    Returns:
        `torch.Tensor` of shape `[C, D]`: normalised float32 embeddings, on the device of `encode_text`'s.

    Raises:
        ValueError: if there is no class or template, a template has no `{}`, `batch_size` is below 1, or the
            embeddings are not one finite row per prompt.
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise ValueError(
            "class_names and templates must be lists of strings, but one is a single string: put it in a list."
        )
    if not class_names or not templates:
        raise ValueError(
            f"{len(class_names)} class_names and {len(templates)} templates make no prompt: pass at least one of each."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"The template {template!r} must contain {{}} once: it is where the class name goes.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but is {batch_size}: the default is 256.")

    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    embeddings = as_embeddings("the prompts' embeddings", torch.cat([encode_text(batch) for batch in batches]))
    if len(embeddings) != len(prompts):
        raise ValueError(
            f"encode_text returned {len(embeddings)} rows for {len(prompts)} prompts: return one per prompt."
        )
    return F.normalize(embeddings.view(len(class_names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot_accuracy(
    image: Array,
    class_embeds: Array,
    labels: Array,
    ks: Sequence[int] = (1, 5),
    tile_size: int = 1024,
) -> dict[str, float]:
    """
    Accuracy of nearest-class classification.

    Args:
        image (`torch.Tensor`, `np.ndarray` or nested list of shape `[N, D]`):
            Image embeddings, any floating dtype; normalised here.
        class_embeds (`torch.Tensor`, `np.ndarray` or nested list of shape `[C, D]`):
            Class embeddings, from [`zero_shot_classifier`].
        labels (integers of shape `[N]`):
            Class of each image, from 0 to C - 1.
        ks (sequence of `int`, *optional*, defaults to `(1, 5)`):
            The k of accuracy at k; at least 1. A k of C and more is always met.
        tile_size (`int`, *optional*, defaults to `1024`):
            Images classified at a time. Bounds memory, does not change the result.

    Returns:
        `dict[str, float]`: `accuracy@k` for each k, and `mean_per_class_accuracy`, the mean over the classes that
        occur in `labels` of the accuracy at 1 among their images; each between 0 and 1.

    Raises:
        ValueError: if embeddings are empty, not finite or of different widths, a label is missing or names no class,
            or `ks` or `tile_size` hold a number below 1.
    """
    image, class_embeds = as_embeddings("image", image), as_embeddings("class_embeds", class_embeds)
    class_embeds = class_embeds.to(image.device)
    labels = as_groups("labels", labels, image)
    check_ks(ks)
    classes = len(class_embeds)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, but go from {int(labels.min())} to {int(labels.max())}: "
            f"number them in the order of class_embeds."
        )
    ranks = group_ranks(image, class_embeds, labels, torch.arange(classes, device=image.device), tile_size)
    result = {f"accuracy@{k}": share_below(ranks, k) for k in ks}
    images = labels.bincount(minlength=classes)
    right = labels[ranks < 1].bincount(minlength=classes)
    result["mean_per_class_accuracy"] = (right / images)[images > 0].double().mean().item()
    return result
