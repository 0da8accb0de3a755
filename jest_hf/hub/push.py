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
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from jest_hf.hub.pull import reason


logger = logging.get_logger(__name__)

WAITS = (1.0, 4.0)  # seconds before the second and third try
LONGEST_WAIT = 60  # seconds, of what a busy Hub may ask for
# Busy, restarting, or somebody else has just pushed (409, 412).
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


class SafePushes:
    """
    To be mixed into a [`~transformers.Trainer`], left of it: no training run ends because of a push.

    - While the Trainer is made: a refused token or name is an error at once, since it costs a second now; a Hub that
      is down is a warning, and the repository is made by the first push that gets through.
    - During training: a failed push is a warning, the first time in a run. What was to be pushed stays on the disk and
      is pushed at the end of training, if no later push has brought it.
    - `push_to_hub()`, which the user calls: tried three times, then an `OSError` in one sentence.
    - `save_model()` with `push_to_hub=True`: the model is saved; a failed push is a warning.
    """

    _newest: str | None = None  # the checkpoint folder of the last push
    _has_started = True  # whether the upload of that push could be started
    _has_warned = False

    # ---- As the Trainer calls them ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As the Trainer's, with more patience; raises `OSError` if the Hub refuses."""
        try:
            try_repeatedly(super().init_hf_repo, token, private)
        except Exception as error:
            if not can_pass(error):
                raise OSError(
                    f"push_to_hub: the repository {self._repo_name!r} cannot be used ({reason(error)}); log in with "
                    "`hf auth login` and a token that may write, change hub_model_id, or set push_to_hub=False."
                ) from error
            self.push_in_progress = None
            self._warn(error)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, except that a failed push is a warning: the model has been saved."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            except OSError as error:
                self._warn(error.__cause__ or error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **about: Any,
    ) -> Any:
        """
        As [`~transformers.Trainer.push_to_hub`], tried again where the Hub is busy.

        Raises:
            OSError: in one sentence, if the push failed. The model is in `output_dir` all the same.
        """
        try:
            if self.hub_model_id is None and self.is_world_process_zero():
                try_repeatedly(super().init_hf_repo, token, private)
            try:
                return super().push_to_hub(commit_message, blocking, token, revision, private, **about)
            except Exception as error:
                if not can_pass(error):
                    raise
            # Not all of it again: saving needs all ranks, and the others are done.
            return try_repeatedly(
                hf_api().upload_folder,
                repo_id=self.hub_model_id,
                folder_path=self.args.output_dir,
                commit_message=commit_message,
                token=token or self.args.hub_token,
                ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
                revision=revision or self.args.hub_revision,
            )
        except Exception as error:
            raise OSError(
                f"the push to {self._repo_name!r} failed ({reason(error)}); what was saved is kept, so {self._later}."
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the Trainer's: starts an upload in the background. A failure is noted and warned about."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        earlier = self._jobs
        self._newest, self._has_started = checkpoint_folder, False
        try:
            if self.hub_model_id is None:
                super().init_hf_repo()
            super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:
            self._warn(error)
            return
        self._has_started = True
        for job in self._jobs:
            if job not in earlier:
                job.add_done_callback(self._warn_if_failed)

    def _finish_current_push(self) -> None:
        """As the Trainer's: waits. At the end of training, what has not been pushed is pushed again."""
        super()._finish_current_push()
        if self._newest is None or not self.is_in_train:
            return
        for wait in WAITS:
            if self._has_started and not any(_failure(job) for job in self._jobs):
                return
            time.sleep(wait)
            # The newest, whichever failed: an older checkpoint must not be pushed over it.
            self._push_from_checkpoint(self._newest)
            super()._finish_current_push()

    # ---- How ----

    @property
    def _repo_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    @property
    def _later(self) -> str:
        """How to push what is on the disk."""
        return (
            f"push it later with `hf upload {self._repo_name} {self.args.output_dir} --exclude "
            f"'{PREFIX_CHECKPOINT_DIR}-*'` or trainer.push_to_hub()"
        )

    @property
    def _jobs(self) -> list[Future]:
        """Uploads of the last push."""
        return [] if self.push_in_progress is None else list(self.push_in_progress.jobs)

    def _warn_if_failed(self, job: Future) -> None:
        """Called when an upload is over, in the thread that uploads."""
        if (error := _failure(job)) is not None:
            self._warn(error)

    def _warn(self, error: BaseException) -> None:
        tell = logger.info if self._has_warned else logger.warning
        self._has_warned = True
        tell(
            f"A push to {self._repo_name!r} failed ({reason(error)}); nothing is lost: training goes on, checkpoints "
            f"are kept in {self.args.output_dir}, and the next push brings everything; if none gets through, "
            f"{self._later}."
        )


def _failure(job: Future) -> BaseException | None:
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


__all__ = ["SafePushes", "can_pass", "try_repeatedly"]
