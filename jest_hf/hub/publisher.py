# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pushes to the Hub whose failure does not end the training run.

A Trainer pushes in two ways. During training it uploads in the background and ignores the result: a failed push is not
reported, and a push that fails before its upload starts ends the run. After training it uploads in the foreground, and
does not try again if the commit, the last request, fails because the Hub is busy.

Here a failed push in the background is a warning, once in a run, and is repeated when training ends. A push in the
foreground is repeated if its error is temporary. Repeating is cheap: the Hub already has the large files, and makes no
commit without a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: see can_pass
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
)
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from jest_hf.hub.pull import reason


logger = logging.get_logger(__name__)

WAITS = (1.0, 4.0)  # seconds before the second and third try
LONGEST_WAIT = 60  # seconds, where a busy Hub sends a longer Retry-After
# Statuses of temporary errors: the Hub is busy or restarting, or another push came first (409, 412).
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


class Pushing(Protocol):
    """The attributes of a [`~transformers.Trainer`] that a push reads, and `push_in_progress`, which it changes."""

    push_in_progress: Any
    is_in_train: bool

    @property
    def hub_model_id(self) -> str | None: ...

    def is_world_process_zero(self) -> bool: ...


class Publisher:
    """Makes the pushes of a [`~transformers.Trainer`], so that no failed push ends a training run.

    - While the Trainer is made: a refused token or name is an error at once, before any training. If the Hub is down,
      that is a warning, and the first push that succeeds creates the repository.
    - During training: the first failed push of a run is a warning. Its files stay on the disk, and are pushed at the
      end of training unless a later push has succeeded.
    - `push_to_hub()`, called by the user: tried three times, then an `OSError` in one sentence.
    - `save_model()` with `push_to_hub=True`: the model is saved; a failed push is a warning.

    The methods take the Trainer's own methods as arguments, and call them to do the work.

    Args:
        args ([`~transformers.TrainingArguments`]): Options of the run.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self._newest: str | None = None  # the checkpoint folder of the last push
        self._has_started = True  # whether the upload of that push could be started
        self._has_warned = False

    def make_repository(self, trainer: Pushing, make: Callable[[], None]) -> None:
        """Create the repository, with more tries than the Trainer.

        Args:
            trainer ([`Pushing`]): The Trainer.
            make (`Callable`): Creates the repository, as the Trainer does.

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
        """Call `push` to push the saved files; a failure is a warning."""
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
        """Push the model, and try again if the error is temporary.

        Args:
            trainer ([`Pushing`]): The Trainer.
            make (`Callable`): Creates the repository.
            push (`Callable`): Saves and pushes, as the Trainer does.
            commit_message, token, revision: As in `Trainer.push_to_hub`.

        Raises:
            OSError: in one sentence, if the push failed. The model is saved in `output_dir` in any case.
        """
        try:
            if trainer.hub_model_id is None and trainer.is_world_process_zero():
                try_repeatedly(make)
            try:
                return push()
            except Exception as error:
                if not can_pass(error):
                    raise
            # Without saving again: that needs all ranks, and the others have returned.
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
        """Start to upload a checkpoint in the background. A failure is a warning, and is repeated by [`finish`]."""
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
        """Wait for the uploads. At the end of training, push the newest checkpoint again if its push failed."""
        wait()
        if self._newest is None or not trainer.is_in_train:
            return
        for seconds in WAITS:
            if self._has_started and not any(_failure(job) for job in _jobs(trainer)):
                return
            time.sleep(seconds)
            # The newest, whichever push failed: an older checkpoint must not overwrite it on the Hub.
            push_checkpoint(self._newest)
            wait()

    def _repository(self, trainer: Pushing) -> str:
        return trainer.hub_model_id or self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name

    def _later(self, trainer: Pushing) -> str:
        """Return how to push the saved files later, for messages."""
        return (
            f"push it later with `hf upload {self._repository(trainer)} {self.args.output_dir} --exclude "
            f"'{PREFIX_CHECKPOINT_DIR}-*'` or trainer.push_to_hub()"
        )

    def _warn_if_failed(self, trainer: Pushing, job: Future[Any]) -> None:
        """Warn about a failed upload. Called in the uploading thread when the upload is over."""
        if (error := _failure(job)) is not None:
            self._warn(trainer, error)

    def _warn(self, trainer: Pushing, error: BaseException) -> None:
        log = logger.info if self._has_warned else logger.warning
        self._has_warned = True
        log(
            f"A push to {self._repository(trainer)!r} failed ({reason(error)}); nothing is lost: training goes on, "
            f"checkpoints are kept in {self.args.output_dir}, and the next push uploads everything; if none succeeds, "
            f"{self._later(trainer)}."
        )


def _jobs(trainer: Pushing) -> list[Future[Any]]:
    """Return the uploads of the last push."""
    return [] if trainer.push_in_progress is None else list(trainer.push_in_progress.jobs)


def _failure(job: Future[Any]) -> BaseException | None:
    """Return the exception of a finished upload; `None` if it succeeded or was cancelled."""
    return None if job.cancelled() else job.exception()


def can_pass(error: BaseException) -> bool:
    """Return whether an error of the Hub's client is temporary, such as a busy Hub or a lost connection."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # HTTPError comes from the library of the connection, which differs with the version of the client.
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def try_repeatedly(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, up to three times if it fails with a temporary error ([`can_pass`]).

    Args:
        action (`Callable`): The function.
        args, kwargs: Arguments of the function.

    Raises:
        Exception: the error of the last call.
    """
    for wait in WAITS:
        try:
            return action(*args, **kwargs)
        except Exception as error:
            if not can_pass(error):
                raise
            time.sleep(max(wait, _retry_after(error)))
    return action(*args, **kwargs)


def privacy(private: bool | None) -> dict[str, bool]:
    """Return the argument `private` of the Trainer's pushes, if it is set: transformers before 5.23 has none."""
    return {} if private is None else {"private": private}


def _retry_after(error: BaseException) -> float:
    """Return the seconds in the Hub's `Retry-After` header, at most [`LONGEST_WAIT`]; 0 without the header."""
    seconds = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(seconds), LONGEST_WAIT) if seconds.isdigit() else 0.0


__all__ = ["Publisher", "can_pass", "privacy", "try_repeatedly"]
