# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pushes to the Hub whose failure does not end the training run.

A Trainer pushes in two ways. During training it uploads in the background and ignores the result: a failed push is not
reported, and a push that fails before its upload starts ends the run. After training it uploads in the foreground, and
does not try again if the commit, the last request, fails because the Hub is busy.

Here a failed push in the background is a warning, once in a run, and is repeated when training ends. A push in the
foreground is repeated if its error is temporary. Repeating is cheap: the Hub already has the large files, and makes no
commit without a change. The end of training waits for uploads as long as the Hub answers.

Of `output_dir` only the files in `PUBLIC` are pushed: the model, its processor, the card, results and the ledger. What
else lies there (a reference cache, logs, files of the user) stays on the disk.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import get_session
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: see can_pass
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
)
from transformers import TrainingArguments
from transformers import trainer as trainer_module
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from jest_hf.hub.pull import reason


logger = logging.get_logger(__name__)

WAITS = (1.0, 4.0)  # seconds before the second and third try
PROBE = 10.0  # seconds between two looks at whether the Hub still answers, while its uploads are waited for
SILENCE = 60.0  # seconds without an answer after which they are not
LONGEST_WAIT = 60  # seconds, where a busy Hub sends a longer Retry-After
# Statuses of temporary errors: the Hub is busy or restarting, or another push came first (409, 412).
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


# The files of output_dir that are pushed, by their paths, besides those of the processor.
PUBLIC = re.compile(
    r"README\.md|LICENSE(\.\w+)?|selection\.png|(adapter_|generation_)?config\.json"
    r"|(pytorch_|adapter_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|training_args\.bin|(all|train|eval|test|predict)_results\.json"
    r"|selections\.parquet(/part-\d+\.parquet)?"
)


def public_files(folder: str | os.PathLike[str], processor: Any = None) -> list[str]:
    """Return the files that a push of an output folder holds.

    Args:
        folder (`str` or `os.PathLike`): The output folder of a run.
        processor (*optional*): The run's processor, whose files are pushed too, whatever their names.

    Returns:
        `list[str]`: Paths relative to `folder`, of files that exist.
    """
    root = Path(folder)
    with tempfile.TemporaryDirectory() as saved:
        if processor is not None:
            processor.save_pretrained(saved)
        names = {path.relative_to(saved).as_posix() for path in Path(saved).rglob("*") if path.is_file()}
    found = {path.relative_to(root).as_posix() for path in [*root.glob("*"), *root.glob("*/*")] if path.is_file()}
    return sorted(path for path in found if path in names or PUBLIC.fullmatch(path))


class _Allowing:
    """A client of the Hub whose uploads of one folder, the output folder of a run, hold [`public_files`] alone."""

    def __init__(self, api: Any, folder: str, processor: Any) -> None:
        self._api = api
        self._folder = os.path.realpath(folder)
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
        if os.path.realpath(folder_path) == self._folder:
            files = public_files(folder_path, self._processor)
            options["allow_patterns"] = [glob.escape(path) for path in files]
        return self._api.upload_folder(folder_path=folder_path, **options)


class Pushing(Protocol):
    """The attributes of a [`~transformers.Trainer`] that a push reads, and `push_in_progress`, which it changes."""

    push_in_progress: Any
    is_in_train: bool
    processing_class: Any

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
                with self._public_files_only(trainer):
                    return push()
            except Exception as error:
                if not can_pass(error):
                    raise
            # Without saving again: that needs all ranks, and the others have returned.
            return try_repeatedly(
                self._allowing(trainer, hf_api()).upload_folder,
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
            with self._public_files_only(trainer):
                push(folder)
        except Exception as error:
            self._warn(trainer, error)
            return
        self._has_started = True
        for job in _jobs(trainer):
            if job not in earlier:
                job.add_done_callback(partial(self._warn_if_failed, trainer))

    def finish(self, trainer: Pushing, push_checkpoint: Callable[[str], None]) -> None:
        """Wait for the uploads, as long as the Hub answers. At the end of training, push the newest checkpoint again
        if its push failed."""
        if not self._wait(trainer) or self._newest is None or not trainer.is_in_train:
            return
        for seconds in WAITS:
            if self._has_started and not any(_failure(job) for job in _jobs(trainer)):
                return
            time.sleep(seconds)
            # The newest, whichever push failed: an older checkpoint must not overwrite it on the Hub.
            push_checkpoint(self._newest)
            if not self._wait(trainer):
                return

    def _wait(self, trainer: Pushing) -> bool:
        """Wait for the uploads; whether they are over. If the Hub is silent for `SILENCE` seconds, give them up."""
        heard = time.monotonic()
        while futures.wait(_jobs(trainer), timeout=PROBE).not_done:
            if _answers():
                heard = time.monotonic()
            elif time.monotonic() - heard >= SILENCE:
                for job in _jobs(trainer):
                    job.cancel()
                trainer.push_in_progress = None
                logger.warning(
                    f"The Hub has not answered for {SILENCE:.0f} s, so the uploads to {self._repository(trainer)!r} "
                    f"are not waited for; what was saved is kept, so {self._later(trainer)}."
                )
                return False
        return True

    def _allowing(self, trainer: Pushing, api: Any) -> _Allowing:
        return _Allowing(api, str(self.args.output_dir), trainer.processing_class)

    @contextmanager
    def _public_files_only(self, trainer: Pushing) -> Iterator[None]:
        """Within this block, the Trainer's uploads of `output_dir` hold [`public_files`] alone."""
        module: Any = trainer_module
        make = module.hf_api
        module.hf_api = lambda: self._allowing(trainer, make())
        try:
            yield
        finally:
            module.hf_api = make

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
    in_progress = getattr(trainer, "push_in_progress", None)  # the Trainer sets it with push_to_hub alone
    return [] if in_progress is None else list(in_progress.jobs)


def _failure(job: Future[Any]) -> BaseException | None:
    """Return the exception of a finished upload; `None` if it succeeded or was cancelled."""
    return None if job.cancelled() else job.exception()


def _answers() -> bool:
    """Return whether the Hub answers at all; an error is an answer."""
    try:
        get_session().head(hf_api().endpoint, timeout=PROBE)
    except Exception:  # of the library of the connection, which differs with the version of the client
        return False
    return True


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


__all__ = ["PUBLIC", "Publisher", "can_pass", "privacy", "public_files", "try_repeatedly"]
