# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Late images: decode full images only for the examples that are trained on at full resolution.

Scoring at a view of smaller images needs no full images, and most of a super-batch is never trained on. With late
images the loader's workers make the view only, for which a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the
collator has `scaled_jpeg_decoding`. After the selection the full images of the sub-batch are read a second time, in
threads (PIL and simplejpeg release the GIL while they decode).

Let c be the CPU time of a full image, v c the CPU time of a view, and k the share of the super-batch that is trained
on at full resolution. B examples cost B c with full images for all, and B c (v + k) with late images. The step waits
for the k B c, which is a loss if the loader is faster than the step. Late images are therefore used only if v is
clearly below 1 and k is small ([`LateImages.where_it_serves`]). They cannot be decoded ahead: which ones are needed
depends on the weights that the step before has left. The wait is in the logs as `late_images_seconds`. (Where the
loader selects, it decodes the full images of the sub-batch itself, and no image is late.)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jest_hf.batch import VIEW_PREFIX
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.images.pixels import BrokenImage, Geometry, ImageGeometry, decode_image, decode_pixels


logger = logging.getLogger(__name__)

MAX_LOGGED = 10
MOST_KEPT = 0.2  # measured by benchmarks/data_path.py: at 0.25 late images do not always save time


class LateImages:
    """Adds full images to a sub-batch whose super-batch holds images at a view only.

    A row is read a second time, so a random transform of the data set (`set_transform`) draws anew. If the image of a
    selected example cannot be read any more, the enlarged view is used in its place.

    Args:
        rows ([`~jest_hf.data.rows.Rows`]): The training data. A stream is not supported, since it cannot be read by
            index.
        collator ([`JESTDataCollator`]): The collator of the run, after [`~JESTDataCollator.at_view`].
        n_threads (`int`, *optional*, defaults to `1`): Threads that decode.

    Attributes:
        collator ([`JESTDataCollator`]): The collator for the loader, which makes the view only.
        n_enlarged (`int`): Number of enlarged views used so far.
    """

    def __init__(self, rows: Rows, collator: JESTDataCollator, n_threads: int = 1) -> None:
        self.rows = rows
        self.collator = collator.view_alone()
        self.n_enlarged = 0
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="late-images")
        self._full = collator.geometries[""]

    @classmethod
    def where_it_serves(
        cls, rows: Rows, collator: JESTDataCollator, kept: float, n_threads: int = 1
    ) -> LateImages | None:
        """Return [`LateImages`] if they save time, and `None` otherwise.

        Late images save time if `collator` makes a view and has `scaled_jpeg_decoding`, at most a fifth of the images
        are needed at full resolution, and the first row's image is decoded at a smaller size for the view (a JPEG much
        larger than the view, not a PNG). Without `scaled_jpeg_decoding` a view takes the same decoding as a full
        image. The decision depends on data and settings, not on measured times, so that a run can be repeated.

        Args:
            rows, collator, n_threads: As in [`LateImages`].
            kept (`float`): Share of the super-batch that is trained on at full resolution: (1 - filter ratio) times
                (1 - low resolution fraction).
        """
        if VIEW_PREFIX not in collator.geometries or kept > MOST_KEPT or not collator.scaled_jpeg_decoding:
            return None
        source = rows[0][collator.image_column]
        try:
            small, large = (
                decode_image(source, [collator.geometries[prefix]], scaled_jpeg_decoding=True)
                for prefix in (VIEW_PREFIX, "")
            )
        except BrokenImage:
            return None
        return cls(rows, collator, n_threads) if small.size != large.size else None

    def __call__(self, batch: Mapping[str, Tensor], n_at_view: int) -> dict[str, Tensor]:
        """Add full images to a sub-batch.

        Args:
            batch (mapping of `str` to `torch.Tensor`): A sub-batch of b rows, made by `collator`.
            n_at_view (`int`): Number of rows, the first ones, that are trained on at the view.

        Returns:
            `dict[str, torch.Tensor]`: `batch` with `pixel_values` (for NaFlex also mask and shapes) `[b, ...]` on its
            device; the first `n_at_view` rows are blank. If all rows are at the view, a copy of `batch`.

        Raises:
            ValueError: If `batch` has no images at the view.
        """
        if VIEW_PREFIX + "pixel_values" not in batch:
            raise ValueError(
                f"the super-batch has no {VIEW_PREFIX}pixel_values (it has {', '.join(batch)}); use "
                "LateImages.collator as the collate_fn of the loader."
            )
        ids = batch["example_id"]
        if n_at_view >= len(ids):
            return dict(batch)
        full = self._full.empty(len(ids))
        rows = self.rows.__getitems__(ids[n_at_view:].tolist())
        for place, image in enumerate(self._threads.map(self._decode, rows), start=n_at_view):
            if isinstance(image, BrokenImage):
                image = self._enlarge(batch, place, image)
            for name, array in image.items():
                full[name][place] = array
        return {**batch, **{name: _copy_to(ids.device, array) for name, array in full.items()}}

    def _decode(self, row: Mapping[str, Any]) -> dict[str, np.ndarray] | BrokenImage:
        try:
            source, scaled = row[self.collator.image_column], self.collator.scaled_jpeg_decoding
            return self._full.encode(decode_pixels(source, [self._full], scaled_jpeg_decoding=scaled))
        except BrokenImage as reason:
            return reason

    def _enlarge(self, batch: Mapping[str, Tensor], place: int, reason: BrokenImage) -> dict[str, np.ndarray]:
        self.n_enlarged += 1
        if self.n_enlarged <= MAX_LOGGED:
            last = " Further enlarged views are counted, not logged." if self.n_enlarged == MAX_LOGGED else ""
            logger.warning(
                "Example %d is trained on with its enlarged view: %s.%s", batch["example_id"][place], reason, last
            )
        view = {name: batch[VIEW_PREFIX + name][place].cpu().numpy() for name in self._full.empty(0)}
        return enlarge(view, self._full)


def _copy_to(device: torch.device, array: np.ndarray) -> Tensor:
    """Copy an array to a device; to a GPU from pinned memory, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def enlarge(view: Mapping[str, np.ndarray], full: Geometry) -> dict[str, np.ndarray]:
    """Make full-resolution inputs of one image from the image at a view.

    A fixed-size image is resized. A NaFlex model takes any number of patches, so the patches of the view are padded.

    Args:
        view (mapping of `str` to `np.ndarray`): The image at the view: `pixel_values` uint8 `[3, H, W]`, or for NaFlex
            `pixel_values`, `pixel_attention_mask` and `spatial_shapes`.
        full ([`~jest_hf.images.pixels.Geometry`]): Geometry at full resolution.

    Returns:
        `dict[str, np.ndarray]`: One row of `full.empty(n)`.
    """
    if isinstance(full, ImageGeometry):
        height, width = full.output_size
        image = Image.fromarray(view["pixel_values"].transpose(1, 2, 0)).resize((width, height), full.resample)
        return {"pixel_values": np.asarray(image).transpose(2, 0, 1)}
    enlarged = {name: array[0] for name, array in full.empty(1).items()}
    for name, array in view.items():
        enlarged[name][: len(array)] = array
    return enlarged


__all__ = ["LateImages", "enlarge"]
