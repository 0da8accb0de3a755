# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pushes that fail without taking the training run with them.

A Trainer pushes in two ways. During training it uploads in the background and never looks at the outcome: a push that
failed goes unnoticed, unless it fails before the upload starts, and then it ends the run. After training it uploads in
the foreground, without a second try where the commit, the last request of all, meets a Hub that is busy.

Here the first kind warns, once in a run, and is repeated when training ends; and the second kind is repeated if what
stopped it can pass. Repeating is cheap: the Hub has the large files already, and makes no commit without a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from jest_hf.hub.pull import reason


logger = logging.get_logger(__name__)

WAITS = (1.0, 4.0)  # seconds before the second and third try
LONGEST_WAIT = 60  # seconds, of what a busy Hub may ask for
# Busy, restarting, or somebody else has just pushed (409, 412).
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


class Pushing(Protocol):
    """The part of a [`~transformers.Trainer`] that a push reads and changes."""

    hub_model_id: str | None
    push_in_progress: Any
    is_in_train: bool

    def is_world_process_zero(self) -> bool: ...


class Publisher:
    """
    Makes the pushes of a [`~transformers.Trainer`], so that no training run ends because of one.

    - While the Trainer is made: a refused token or name is an error at once, since it costs a second now; a Hub that
      is down is a warning, and the repository is made by the first push that gets through.
    - During training: a failed push is a warning, the first time in a run. What was to be pushed stays on the disk and
      is pushed at the end of training, if no later push has brought it.
    - `push_to_hub()`, which the user calls: tried three times, then an `OSError` in one sentence.
    - `save_model()` with `push_to_hub=True`: the model is saved; a failed push is a warning.

    Each method gets the Trainer's own methods, which do the work.

    Args:
        args ([`~transformers.TrainingArguments`]): Options of the run.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self._newest: str | None = None  # the checkpoint folder of the last push
        self._has_started = True  # whether the upload of that push could be started
        self._has_warned = False

    def make_repository(self, trainer: Pushing, make: Callable[[], None]) -> None:
        """
        Make the repository, with more patience than the Trainer.

        Raises:
            OSError: if the Hub refuses.
        """
        try:
            try_repeatedly(make)
        except Exception as error:
            if not can_pass(error):
                raise OSError(
                    f"push_to_hub: the repository {self._repository(trainer)!r} cannot be used ({reason(error)}); log "
                    "in with `hf auth login` and a token that may write, change hub_model_id, or set "
                    "push_to_hub=False."
                ) from error
            trainer.push_in_progress = None
            self._warn(trainer, error)

    def push_or_warn(self, trainer: Pushing, push: Callable[[], Any]) -> None:
        """Push what has been saved; a failure is a warning."""
        try:
            push()
        except OSError as error:
            self._warn(trainer, error.__cause__ or error)

    def push(
        self,
        trainer: Pushing,
        make: Callable[[], None],
        push: Callable[[], Any],
        *,
        commit_message: str | None,
        token: str | None,
        revision: str | None,
    ) -> Any:
        """
        Push the model, tried again where the Hub is busy.

        Args:
            trainer ([`Pushing`]): The Trainer.
            make (`Callable`): Makes the repository.
            push (`Callable`): Saves and pushes, as the Trainer does it.
            commit_message, token, revision: As in `Trainer.push_to_hub`.

        Raises:
            OSError: in one sentence, if the push failed. The model is in `output_dir` all the same.
        """
        try:
            if trainer.hub_model_id is None and trainer.is_world_process_zero():
                try_repeatedly(make)
            try:
                return push()
            except Exception as error:
                if not can_pass(error):
                    raise
            # Not all of it again: saving needs all ranks, and the others are done.
            return try_repeatedly(
                hf_api().upload_folder,
                repo_id=trainer.hub_model_id,
                folder_path=self.args.output_dir,
                commit_message=commit_message,
                token=token or self.args.hub_token,
                ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
                revision=revision or self.args.hub_revision,
            )
        except Exception as error:
            raise OSError(
                f"the push to {self._repository(trainer)!r} failed ({reason(error)}); what was saved is kept, so "
                f"{self._later(trainer)}."
            ) from error

    def push_checkpoint(
        self, trainer: Pushing, folder: str, make: Callable[[], None], push: Callable[[str], None]
    ) -> None:
        """Start an upload of a checkpoint in the background. A failure is noted and warned about."""
        if not trainer.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        earlier = _jobs(trainer)
        self._newest, self._has_started = folder, False
        try:
            if trainer.hub_model_id is None:
                make()
            push(folder)
        except Exception as error:
            self._warn(trainer, error)
            return
        self._has_started = True
        for job in _jobs(trainer):
            if job not in earlier:
                job.add_done_callback(partial(self._warn_if_failed, trainer))

    def finish(self, trainer: Pushing, wait: Callable[[], None], push_checkpoint: Callable[[str], None]) -> None:
        """Wait for uploads. At the end of training, push again what has not been pushed."""
        wait()
        if self._newest is None or not trainer.is_in_train:
            return
        for seconds in WAITS:
            if self._has_started and not any(_failure(job) for job in _jobs(trainer)):
                return
            time.sleep(seconds)
            # The newest, whichever failed: an older checkpoint must not be pushed over it.
            push_checkpoint(self._newest)
            wait()

    def _repository(self, trainer: Pushing) -> str:
        return trainer.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _later(self, trainer: Pushing) -> str:
        """How to push what is on the disk."""
        return (
            f"push it later with `hf upload {self._repository(trainer)} {self.args.output_dir} --exclude "
            f"'{PREFIX_CHECKPOINT_DIR}-*'` or trainer.push_to_hub()"
        )

    def _warn_if_failed(self, trainer: Pushing, job: Future[Any]) -> None:
        """Called when an upload is over, in the thread that uploads."""
        if (error := _failure(job)) is not None:
            self._warn(trainer, error)

    def _warn(self, trainer: Pushing, error: BaseException) -> None:
        log = logger.info if self._has_warned else logger.warning
        self._has_warned = True
        log(
            f"A push to {self._repository(trainer)!r} failed ({reason(error)}); nothing is lost: training goes on, "
            f"checkpoints are kept in {self.args.output_dir}, and the next push brings everything; if none gets "
            f"through, {self._later(trainer)}."
        )


def _jobs(trainer: Pushing) -> list[Future[Any]]:
    """Uploads of the last push."""
    return [] if trainer.push_in_progress is None else list(trainer.push_in_progress.jobs)


def _failure(job: Future[Any]) -> BaseException | None:
    """What an upload that is over has raised."""
    return None if job.cancelled() else job.exception()


def can_pass(error: BaseException) -> bool:
    """Whether an error of the Hub's client may be gone at the next try: a busy Hub, a lost connection."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # HTTPError: the transport's own, which is another library by the version of the client.
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def try_repeatedly(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `action`, up to three times where it fails with an error that can pass; the last error is raised."""
    for wait in WAITS:
        try:
            return action(*args, **kwargs)
        except Exception as error:
            if not can_pass(error):
                raise
            time.sleep(max(wait, _asked_to_wait(error)))
    return action(*args, **kwargs)


def _asked_to_wait(error: BaseException) -> float:
    """Seconds of the Hub's `Retry-After`, within reason."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0


__all__ = ["Publisher", "can_pass", "try_repeatedly"]
