# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The image cache of a run: checked when the trainer is made, written before the first step, read by the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.data.fingerprint import describe_images
from jest_hf.data.image_cache import ImageCache, describe_sizes, find_images
from jest_hf.data.image_writer import check_rows, write_images
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import is_stream
from jest_hf.distributed import Ranks, gather_objects
from jest_hf.images.views import View


logger = logging.get_logger(__name__)


class RunImages:
    """
    Checks, makes and opens the cache that `args.image_cache` names.

    Args:
        args ([`JESTConfig`]): Options of the run.
        view ([`~jest_hf.models.View`], *optional*): The scoring view.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.

    Attributes:
        cache ([`~jest_hf.data.image_cache.ImageCache`], *optional*): The whole cache, once there is one.
    """

    def __init__(self, args: JESTConfig, view: View | None, ranks: Ranks) -> None:
        self.args = args
        self.view = view
        self.ranks = ranks
        self.cache: ImageCache | None = None
        self.folder = None if args.image_cache is None else Path(args.image_cache).expanduser()

    def check(self, dataset: Any, collator: Any) -> None:
        """
        Check, before anything is written, that the images of the data can be cached, and that the folder has no cache
        of others.

        Raises:
            ValueError: for a stream, a random transform, data without images, and a cache of other images.
        """
        if self.folder is None or dataset is None:
            return
        rows = self._rows(dataset, collator)
        check_rows(rows, collator.image_column)
        if (cache := find_images(self.folder)) is not None:
            sizes = describe_sizes(self._geometries(collator), collator.scaled_jpeg_decoding)
            cache.check(sizes, describe_images(rows, collator.image_column))

    def make(self, dataset: Any, collator: Any) -> None:
        """
        Write what the cache lacks, and read from it from now on. A collective.

        Raises:
            ValueError: as in [`~RunImages.check`].
            OSError: on a rank that could not write.
            RuntimeError: on a rank that could, if another could not.
        """
        if self.folder is None or dataset is None:
            return
        failed: Exception | None = None
        try:
            self.cache = write_images(
                self.folder,
                self._rows(dataset, collator),
                collator.image_column,
                self._geometries(collator),
                scaled_jpeg_decoding=collator.scaled_jpeg_decoding,
                num_workers=self.args.dataloader_num_workers,
                disable_tqdm=bool(self.args.disable_tqdm) or self.ranks.rank > 0,
                tell=logger.warning if self.ranks.rank == 0 else logger.debug,
            )
        except Exception as error:  # of any kind: the other ranks must not wait for this one
            failed = error
        messages = gather_objects(self.ranks, failed and str(failed), self.args.device)
        if failed is not None:
            raise failed
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f"rank {rank} could not make the image cache: {message}")

    def _rows(self, dataset: Any, collator: Any) -> Rows:
        if is_stream(dataset):
            raise ValueError(
                f"image_cache={self.args.image_cache!r} reads images by index, and a stream has no index; leave it "
                "out, or pass a map-style data set."
            )
        if getattr(collator, "geometries", None) is None:
            raise ValueError(
                f"image_cache={self.args.image_cache!r} keeps images, and a {type(collator).__name__} reads none; "
                "leave it out."
            )
        return Rows(dataset, collator.image_column)

    def _geometries(self, collator: Any) -> list[Any]:
        """The sizes that the loader makes: of the learner, of a reference with other images, and of the view."""
        return list((collator if self.view is None else collator.at_view(self.view)).geometries.values())


__all__ = ["RunImages"]
