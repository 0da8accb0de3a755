# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A cheaper view of the same image: fewer tokens for the vision tower, with the weights as they are.

    patch:32         patches of 32 pixels in place of the model's own, by PI-resize (FlexiViT, arXiv 2212.08013)
    image:112        an image of 112 pixels a side, with the model's own patches
    num_patches:64   at most 64 patches, for SigLIP 2 NaFlex models (arXiv 2502.14786)
    drop:0.5         half of the patches left out after the patch embedding; for comparison

A view is something that happens to images. With patches of 32 pixels, each patch is resized by the pseudo-inverse of
the bilinear resize, which gives the tokens of the PI-resized kernel ([`resize_patches`]); what reaches the tower is
then a smaller image, as with `image:`. So no view touches a parameter, every view trains the one kernel there is, and
only position embeddings and dropping are left to the tower ([`accept_views`]).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jest_hf.images.pixels import naflex_size
from jest_hf.images.resize import resize_patches


EXAMPLES = {"patch": "patch:32", "image": "image:112", "num_patches": "num_patches:64", "drop": "drop:0.5"}


@dataclass(frozen=True)
class View:
    """
    A cheaper view of an image.

    Args:
        kind (`str`): `"patch"`, `"image"`, `"num_patches"` or `"drop"`.
        value (`int` or `float`):
            Side of a patch or of the image in pixels; number of patches; or, for `"drop"`, the share of the patches
            that is left out, in (0, 1).

    Raises:
        ValueError: for an unknown kind, or a value out of its range.
    """

    kind: str
    value: int | float

    def __post_init__(self) -> None:
        if self.kind not in EXAMPLES:
            raise ValueError(f"view '{self}' is of no known kind; write one like {', '.join(EXAMPLES.values())}.")
        sound = 0 < self.value < 1 if self.kind == "drop" else isinstance(self.value, int) and self.value >= 1
        if not sound:
            meant = "a share between 0 and 1" if self.kind == "drop" else "a whole number of at least 1"
            raise ValueError(f"view '{self}': {self.value} must be {meant}, as in {EXAMPLES[self.kind]}.")

    @classmethod
    def parse(cls, text: str) -> View:
        """The view that `text` names, such as `"patch:32"`; `ValueError` if it names none."""
        parts = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)", text)
        if parts is None:
            raise ValueError(f"view '{text}' cannot be read; write one like {', '.join(EXAMPLES.values())}.")
        kind, value = parts.groups()
        return cls(kind, float(value) if "." in value else int(value))

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    def check_size(self, vision: Any) -> None:
        """
        Check that the view can be made of a model's images, and that it saves tokens.

        Args:
            vision: The model's `config.vision_config`.

        Raises:
            ValueError: for sizes that do not divide, or a view that saves nothing.
        """
        if self.kind == "num_patches":  # images of any number of patches can be reduced to fewer
            return
        size, patch = vision.image_size, vision.patch_size
        n_patches = (size // patch) ** 2
        if self.kind == "patch" and (self.value <= patch or size % self.value):
            raise ValueError(
                f"view '{self}': choose patches larger than the model's ({patch}) that divide its image size ({size})."
            )
        if self.kind == "image" and (self.value >= size or self.value % patch):
            raise ValueError(
                f"view '{self}': choose images smaller than the model's ({size}), a multiple of its patches ({patch})."
            )
        if self.kind == "drop" and not 0 < self._n_kept(vision) < n_patches:
            raise ValueError(f"view '{self}': choose a share that drops some of the {n_patches} patches, not all.")

    def images(self, images: Mapping[str, Tensor], vision: Any) -> dict[str, Any]:
        """
        Images at this view.

        Args:
            images (mapping of `str` to `torch.Tensor`):
                What the model reads at full resolution, normalised: `pixel_values` float `[b, 3, H, W]`; for NaFlex
                `[b, P, patch_size * patch_size * 3]` with `pixel_attention_mask` and `spatial_shapes`. They are
                reduced on their device, bilinearly with antialiasing, unless they are of the view's size already (of
                P = `value` patches, of `value` pixels a side with `image:`).
            vision: The model's `vision`.

        Returns:
            `dict`: an element of the tuple that the model's `forward` takes as `pixel_values` after [`accept_views`].

        Raises:
            ValueError: if the images are of a size from which the view cannot be made.
        """
        pixels = images["pixel_values"]
        if self.kind == "num_patches":
            if pixels.shape[1] < self.value:
                raise ValueError(f"view '{self}' has more patches than the {pixels.shape[1]} of the full images.")
            same = pixels.shape[1] == self.value
            return dict(images) if same else _fewer_patches(images, vision.patch_size, self.value)
        own, (height, width) = vision.image_size, pixels.shape[-2:]
        if self.kind == "image" and height == width == self.value:
            return {"pixel_values": pixels, "interpolate_pos_encoding": True}
        if not height == width == own:
            raise ValueError(f"view '{self}' is made from images of {own} x {own} pixels, got {height} x {width}.")
        if self.kind == "drop":
            return {"pixel_values": pixels, "kept_patches": self._kept(vision, pixels.device)}
        if self.kind == "patch":
            pixels = resize_patches(pixels, self.value, vision.patch_size)
        else:
            size = (self.value, self.value)
            pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        return {"pixel_values": pixels, "interpolate_pos_encoding": True}

    def _n_kept(self, vision: Any) -> int:
        return round((1 - self.value) * (vision.image_size // vision.patch_size) ** 2)

    def _kept(self, vision: Any, device: torch.device) -> Tensor:
        """
        Indices of the patches that stay, int64: equally far apart on a path that turns at each end of a row.

        For a half this is a chequerboard. The same patches of every image: no noise, nothing that a resumed run or
        another number of devices could change.
        """
        side, n_kept = vision.image_size // vision.patch_size, self._n_kept(vision)
        path = torch.arange(side * side, device=device).view(side, side)
        path[1::2] = path[1::2].flip(1)
        return path.flatten()[torch.arange(n_kept, device=device) * side * side // n_kept].sort().values


def _fewer_patches(images: Mapping[str, Tensor], patch: int, max_num_patches: int) -> dict[str, Tensor]:
    """Reduce images that are cut into patches, those of one shape together, to the size that their processor would."""
    pixels, shapes = images["pixel_values"], images["spatial_shapes"]
    reduced = {
        "pixel_values": pixels.new_zeros(len(pixels), max_num_patches, pixels.shape[2]),
        "pixel_attention_mask": images["pixel_attention_mask"].new_zeros(len(pixels), max_num_patches),
        "spatial_shapes": torch.empty_like(shapes),
    }
    for rows, columns in {tuple(shape) for shape in shapes.tolist()}:
        these = (shapes == shapes.new_tensor([rows, columns])).all(dim=1)
        patches = pixels[these, : rows * columns].unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
        whole = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [m, 3, H, W]
        height, width = naflex_size(rows * patch, columns * patch, patch, max_num_patches)
        small = interpolate(whole, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        cut = small.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
        n_patches = (height // patch) * (width // patch)
        reduced["pixel_values"][these, :n_patches] = cut.flatten(3, 5).flatten(1, 2)
        reduced["pixel_attention_mask"][these, :n_patches] = 1
        reduced["spatial_shapes"][these] = shapes.new_tensor([height // patch, width // patch])
    return reduced


__all__ = ["View"]
