# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Full images for those examples alone that are trained on in full.

What is scored at a view of smaller images needs no larger ones, and most of a super-batch is never trained on. So the
loader's workers make the view alone, for which a JPEG is decoded at a half, a quarter or an eighth of its size, and
once the sub-batch is known its images are read a second time, in threads: PIL lets go of the interpreter to decode.

With c the CPU time of a full image, v c that of a view, and k the share of the super-batch that is trained on in full,
B examples cost B c when all are decoded in full, and B c (v + k) so. The step has to wait for the k B c: a loader that
keeps up anyway loses by it. So it is done where v is clearly below 1 and k is small ([`LateImages.where_it_serves`]).
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
from jest_hf.images.pixels import BrokenImage, Geometry, ImageGeometry, decode_image


logger = logging.getLogger(__name__)

MAX_LOGGED = 10
MOST_KEPT = 0.2  # benchmarks/data_path.py: at a quarter the gain is no longer safe


class LateImages:
    """
    Brings the full images of a sub-batch whose super-batch held a view of them alone.

    A row is read a second time: whatever a data set draws at random when it is read (`set_transform`) it draws anew.
    Where the image cannot be read any more, its view takes its place, enlarged: the example was chosen for what is in
    it, and shapes do not change.

    Args:
        rows ([`~data.rows.Rows`]): The training data; a stream cannot be read a second time.
        collator ([`JESTDataCollator`]): The run's, after [`~JESTDataCollator.at_view`].
        n_threads (`int`, *optional*, defaults to `1`): Threads that decode.

    Attributes:
        collator ([`JESTDataCollator`]): The one for the loader: the view, and nothing for a reference that looks at
            images.
        n_enlarged (`int`): Number of views that have taken an image's place so far.
    """

    def __init__(self, rows: Rows, collator: JESTDataCollator, n_threads: int = 1) -> None:
        self.rows = rows
        self.collator = collator.view_alone()
        self.n_threads = n_threads
        self.n_enlarged = 0
        self._full = collator.geometries[""]

    @classmethod
    def where_it_serves(
        cls, rows: Rows, collator: JESTDataCollator, kept: float, n_threads: int = 1
    ) -> LateImages | None:
        """
        [`LateImages`] where it pays, and `None` elsewhere.

        It pays if `collator` makes a view, if at most a fifth of the images are needed in full, and if the first row's
        image is decoded smaller for its view than in full: a JPEG well above the view's size, and no PNG. The answer
        depends on the data and the settings, never on measured times: a run can be repeated.

        Args:
            rows, collator, n_threads: As above.
            kept (`float`): Share of the super-batch that is trained on in full: (1 - filter ratio) times (1 - low
                resolution fraction).
        """
        if VIEW_PREFIX not in collator.geometries or kept > MOST_KEPT:
            return None
        source = rows[0][collator.image_column]
        try:
            small, large = (decode_image(source, [collator.geometries[prefix]]) for prefix in (VIEW_PREFIX, ""))
        except BrokenImage:
            return None
        return cls(rows, collator, n_threads) if small.size != large.size else None

    def __call__(self, batch: Mapping[str, Tensor], n_at_view: int) -> dict[str, Tensor]:
        """
        The sub-batch with full images.

        Args:
            batch (mapping of `str` to `torch.Tensor`): A sub-batch of b rows of what `collator` makes.
            n_at_view (`int`): So many rows at its beginning are trained on at the view.

        Returns:
            `dict[str, torch.Tensor]`: `batch`, with `pixel_values` and its companions `[b, ...]` on its device, the
            first `n_at_view` rows blank. If there are no other rows, `batch` as it is.

        Raises:
            ValueError: if `batch` has no images at the view: something else than `collator` has made it.
        """
        if VIEW_PREFIX + "pixel_values" not in batch:
            raise ValueError(
                f"the super-batch has no {VIEW_PREFIX}pixel_values (it has {', '.join(batch)}); let the loader "
                "collate with LateImages.collator."
            )
        ids = batch["example_id"]
        if n_at_view >= len(ids):
            return dict(batch)
        full = self._full.empty(len(ids))
        rows = self.rows.__getitems__(ids[n_at_view:].tolist())
        with ThreadPoolExecutor(self.n_threads) as pool:
            images = pool.map(self._decode, rows)
            for place, image in enumerate(images, start=n_at_view):
                if isinstance(image, BrokenImage):
                    image = self._enlarge(batch, place, image)
                for name, array in image.items():
                    full[name][place] = array
        return {**batch, **{name: torch.from_numpy(array).to(ids.device) for name, array in full.items()}}

    def _decode(self, row: Mapping[str, Any]) -> dict[str, np.ndarray] | BrokenImage:
        try:
            return self._full.encode(decode_image(row[self.collator.image_column], [self._full]))
        except BrokenImage as reason:
            return reason

    def _enlarge(self, batch: Mapping[str, Tensor], place: int, reason: BrokenImage) -> dict[str, np.ndarray]:
        self.n_enlarged += 1
        if self.n_enlarged <= MAX_LOGGED:
            last = " Further ones are counted, not logged." if self.n_enlarged == MAX_LOGGED else ""
            logger.warning(
                "Example %d is trained on at its view, enlarged: %s.%s", batch["example_id"][place], reason, last
            )
        view = {name: batch[VIEW_PREFIX + name][place].cpu().numpy() for name in self._full.empty(0)}
        return enlarge(view, self._full)


def enlarge(view: Mapping[str, np.ndarray], full: Geometry) -> dict[str, np.ndarray]:
    """
    Model inputs of one image that is left at a view only, as rows of `full.empty`.

    An image is resized. A NaFlex model takes as few patches as there are, so those of the view do as they are.
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
