# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification: an image gets the class whose embedded name is closest to the image's embedding.

A class is embedded by an ensemble of prompts (arXiv 2103.00020, section 3.1.4): the name is put into each template,
the normalised embeddings of these prompts are averaged, and the mean is normalised again. Accuracy is then computed as
in retrieval, with the classes as the items. Ties count against the image: if two classes have the same embedding,
their images count as wrong.
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
    """Embed classes by their names.

    Args:
        encode_text (`Callable[[list[str]], torch.Tensor]`):
            Tokenizes and embeds n prompts as `[n, D]`, normalised or not.
        class_names (sequence of `str`):
            Names of the `C` classes, in the order of their labels.
        templates (sequence of `str`, *optional*, defaults to [`DEFAULT_TEMPLATES`]):
            Sentences with one `{}`, which the class name replaces.
        batch_size (`int`, *optional*, defaults to `256`):
            Prompts embedded at a time.

    Returns:
        `torch.Tensor` of shape `[C, D]`: Normalised float32 embeddings, on the device of `encode_text`'s result.

    Raises:
        ValueError: If there is no class or template, a template does not contain `{}` once, `batch_size` is below 1,
            or `encode_text` does not return one finite row for each prompt.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation import zero_shot_classifier
    >>> def encode_text(prompts):  # stands for a model's text tower
    ...     return torch.tensor([[1.0, 0.0] if "cat" in prompt else [0.0, 1.0] for prompt in prompts])
    >>> zero_shot_classifier(encode_text, ["cat", "dog"], templates=["a photo of a {}.", "{}"])
    tensor([[1., 0.],
            [0., 1.]])

    ```
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise ValueError("class_names and templates must be lists and not a single string; pass a list of strings.")
    if not class_names or not templates:
        raise ValueError(
            f"{len(class_names)} class_names and {len(templates)} templates make no prompt; pass at least one of each."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"The template {template!r} must contain {{}} once; write {{}} in place of the class name."
            )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1; leave batch_size out for the default.")

    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    embeddings = as_embeddings("the prompts' embeddings", torch.cat([encode_text(batch) for batch in batches]))
    if len(embeddings) != len(prompts):
        raise ValueError(
            f"encode_text returned {len(embeddings)} rows for {len(prompts)} prompts; return one row for each prompt."
        )
    return F.normalize(embeddings.view(len(class_names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot_accuracy(
    image: Array,
    class_embeds: Array,
    labels: Array,
    ks: Sequence[int] = (1, 5),
    tile_size: int = 1024,
) -> dict[str, float]:
    """Compute the accuracy of nearest-class classification.

    Args:
        image (`torch.Tensor`, `np.ndarray` or nested list of shape `[N, D]`):
            Image embeddings, any floating dtype, normalised or not.
        class_embeds (`torch.Tensor`, `np.ndarray` or nested list of shape `[C, D]`):
            Class embeddings, from [`zero_shot_classifier`].
        labels (integers of shape `[N]`):
            Class of each image, from 0 to C - 1.
        ks (sequence of `int`, *optional*, defaults to `(1, 5)`):
            Values of k, each at least 1. Accuracy is 1 for a k of at least C.
        tile_size (`int`, *optional*, defaults to `1024`):
            Images classified at a time. It limits the memory and does not change the result.

    Returns:
        `dict[str, float]`: `accuracy@k` for each k, and `mean_per_class_accuracy`: the accuracy at 1 among the images
        of a class, averaged over the classes that occur in `labels`; each between 0 and 1.

    Raises:
        ValueError: If embeddings are empty, not finite or of different widths, there is not one label of a class for
            each image, or a number in `ks` or `tile_size` is below 1.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation import zero_shot_accuracy
    >>> zero_shot_accuracy(torch.eye(3), class_embeds=torch.eye(3), labels=[0, 1, 1], ks=(1,))
    {'accuracy@1': 0.6666666666666666, 'mean_per_class_accuracy': 0.75}

    ```
    """
    image, class_embeds = as_embeddings("image", image), as_embeddings("class_embeds", class_embeds)
    class_embeds = class_embeds.to(image.device)
    labels = as_groups("labels", labels, image)
    check_ks(ks)
    classes = len(class_embeds)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, but go from {int(labels.min())} to {int(labels.max())}; "
            "number the classes in the order of class_embeds."
        )
    ranks = group_ranks(image, class_embeds, labels, torch.arange(classes, device=image.device), tile_size)
    result = {f"accuracy@{k}": share_below(ranks, k) for k in ks}
    images = labels.bincount(minlength=classes)
    right = labels[ranks < 1].bincount(minlength=classes)
    result["mean_per_class_accuracy"] = (right / images)[images > 0].double().mean().item()
    return result
