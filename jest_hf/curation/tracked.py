# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and scores of selected and rejected rows, for the trackers of a run (TensorBoard, Weights & Biases)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

from jest_hf.curation.pictures import Picture, Pictures
from jest_hf.curation.report_on_run import N_PICTURES, spread
from jest_hf.curation.run_plots import plot_gallery
from jest_hf.curation.run_tally import Reservoir
from jest_hf.data.streamed_rows import is_stream
from jest_hf.report import SelectionLedger


logger = logging.get_logger(__name__)


class TrackedSelection(TrainerCallback):
    """
    Sends, at each evaluation, the scores of the rows that were selected and rejected since the last one to the run's
    trackers as histograms, and a uniform sample of these rows as pictures with captions and scores. Of more than
    100,000 rows the histogram is that of a uniform sample of 100,000. An error is logged once, and ends no run.

    Trackers are the `TensorBoardCallback` and `WandbCallback` of `report_to`. Of a stream there are no pictures, since
    its rows cannot be read again, and of data without images neither.

    Args:
        ledger (`Callable`): Returns the ledger of the run with all steps so far; `None` for a run without one.
        handler ([`~transformers.trainer_callback.CallbackHandler`]): Has the callbacks of the run.
        dataset (*optional*): The training data.
        collator: The data collator of the run, which knows the columns of the images and captions.
    """

    def __init__(
        self,
        ledger: Callable[[], SelectionLedger | None],
        handler: CallbackHandler,
        dataset: Any,
        collator: Any,
    ) -> None:
        self.ledger = ledger
        self.handler = handler
        self.dataset = dataset
        self.collator = collator
        self._shown = 0  # the last step of which rows were sent
        self._warned = False

    @cached_property
    def pictures(self) -> Pictures | None:
        """What makes pictures of the rows, if they have any."""
        column = getattr(self.collator, "image_column", None)
        if column is None or self.dataset is None or is_stream(self.dataset):
            return None
        return Pictures(self.dataset, column, getattr(self.collator, "caption_column", None), {})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._shown = state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        callbacks, ledger = self.handler.callbacks, self.ledger()
        targets = [send for one in callbacks if (send := _sender(one, state.global_step)) is not None]
        if not targets or ledger is None:
            return
        for part in ("selected", "rejected"):
            with self._harmless():
                self._send(part, ledger, targets)
        self._shown = state.global_step

    def _send(self, part: str, ledger: SelectionLedger, targets: list[Send]) -> None:
        reservoir = Reservoir()
        # After `_shown`: none at the evaluation of a second data set.
        for table in ledger.since(self._shown, ["example_id", "score"], rejected=part == "rejected"):
            reservoir.add(table["example_id"].to_numpy(), table["score"].to_numpy().astype(np.float32))
        sample, shown = reservoir.sample(), []
        if not len(sample.ids):
            return
        with self._harmless():  # the scores are sent without pictures then
            shown = [] if self.pictures is None else [
                self.pictures.of(one, f"score {score:.3g}" if np.isfinite(score) else "")
                for one, score in spread(sample.ids, sample.scores, N_PICTURES)
            ]  # fmt: skip
        for send in targets:
            with self._harmless():
                send(part, sample.scores[np.isfinite(sample.scores)], shown)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Warn once of an error: what a tracker shows must not end a run."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                logger.warning(
                    f"Scores or pictures of selected rows were not sent to a tracker ({type(error).__name__}: "
                    f"{error}); training goes on."
                )
            self._warned = True


Send = Callable[[str, np.ndarray, list[Picture]], None]


def _sender(callback: Any, step: int) -> Send | None:
    """Return what sends a part, its scores and its pictures to a tracker; `None` for other callbacks."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        return lambda part, scores, pictures: _to_tensorboard(callback.tb_writer, step, part, scores, pictures)
    if isinstance(callback, WandbCallback) and callback._wandb is not None and callback._initialized:
        return lambda part, scores, pictures: _to_wandb(callback._wandb, step, part, scores, pictures)
    return None


def _to_tensorboard(writer: Any, step: int, part: str, scores: np.ndarray, pictures: list[Picture]) -> None:
    if len(scores):
        writer.add_histogram(f"selection/scores_{part}", scores, step)
    if pictures:
        writer.add_figure(f"selection/{part}", plot_gallery(pictures), step)
    writer.flush()


def _to_wandb(wandb: Any, step: int, part: str, scores: np.ndarray, pictures: list[Picture]) -> None:
    logs: dict[str, Any] = {"train/global_step": step}  # as WandbCallback does
    if len(scores):
        logs[f"selection/scores_{part}"] = wandb.Histogram(scores)
    shown = []
    for one in pictures:
        if one.jpeg is not None:
            caption = " | ".join(filter(None, (one.note, one.caption, one.title)))
            shown.append(wandb.Image(Image.open(io.BytesIO(one.jpeg)), caption=caption))
    if shown:
        logs[f"selection/{part}"] = shown
    wandb.log(logs)


__all__ = ["TrackedSelection"]
