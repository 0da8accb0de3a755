# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pushes to the Hub whose failure does not end the training run.

A Trainer pushes in two ways. During training it uploads in the background and ignores the result: a failed push is not
reported, and a push that fails before its upload starts ends the run. After training it uploads in the foreground, and
does not try again if the commit, the last request, fails because the Hub is busy.

Here a failed push in the background is a warning, once in a run, and is repeated when training ends. A push in the
foreground is repeated if its error is temporary. Repeating is cheap: the Hub already has the large files, and makes no
commit without a change. The Trainer also skips a push while another one is under way: the skipped one is made up when
training ends. The end of training waits for uploads as long as the Hub answers. Then the Hub holds the model of the
newest checkpoint (and with `hub_strategy="all_checkpoints"` all checkpoints), or a warning says that it does not, with
the command that pushes it.

Of `output_dir` only the files in [`public_files`] are pushed: the model, its processor, the card, results and the
ledger. What else lies there (a reference cache, logs, files of the user) stays on the disk.
"""

from __future__ import annotations

import glob
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import TrainingArguments
from transformers import trainer as trainer_module
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from jest_hf.hub import uploads
from jest_hf.hub.public_files import listed, processor_files, upload_command
from jest_hf.hub.pull import reason
from jest_hf.hub.retries import WAITS, can_pass, try_repeatedly


logger = logging.get_logger(__name__)


class _Skipped(Exception):
    """A push that the Trainer did not start."""


class _Allowing:
    """A client of the Hub whose uploads of one folder, the output folder of a run, hold [`public_files`] alone, and
    whose background uploads are started by `start`."""

    def __init__(
        self, api: Any, folder: str, names: Collection[str], start: Callable[[Callable[[], Any]], Future[Any]]
    ) -> None:
        self._api = api
        self._folder = os.path.realpath(folder)
        self._names = names
        self._start = start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, *, folder_path: str, run_as_future: bool = False, **options: Any) -> Any:
        if os.path.realpath(folder_path) == self._folder:
            files = listed(folder_path, self._names)
            options["allow_patterns"] = [glob.escape(path) for path in files]
        upload = partial(self._api.upload_folder, folder_path=folder_path, **options)
        return self._start(upload) if run_as_future else uploads.wait_to_upload(upload, options["repo_id"])


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
      end of training unless a later push has succeeded. So are those of a push that the Trainer skipped.
    - At the end of training: a warning, if the Hub does not hold the model of the newest checkpoint (or all
      checkpoints, with `hub_strategy="all_checkpoints"`).
    - `push_to_hub()`, called by the user: tried three times, then an `OSError` in one sentence.
    - `save_model()` with `push_to_hub=True`: the model is saved; a failed push is a warning.

    The methods take the Trainer's own methods as arguments, and call them to do the work.

    Args:
        args ([`~transformers.TrainingArguments`]): Options of the run.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        self._newest: str | None = None  # the checkpoint folder of the last push
        self._error: BaseException | None = None  # why its upload has not been started
        self._has_warned = False
        self._uploads = uploads.Uploads()
        self._names: Collection[str] | None = None  # the files of the processor

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
        """Start to upload a checkpoint in the background. A failure is a warning, and is repeated by [`finish`]; so is
        a push that the Trainer skips because another one is under way."""
        if not trainer.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        earlier = _jobs(trainer)
        self._newest, self._error = folder, _Skipped("another push was under way")
        try:
            if trainer.hub_model_id is None:
                make()
            with self._public_files_only(trainer):
                push(folder)
        except Exception as error:
            self._error = error
            self._warn(trainer, error)
            return
        for job in _jobs(trainer):
            if job not in earlier:
                self._error = None
                job.add_done_callback(partial(self._warn_if_failed, trainer))

    def finish(self, trainer: Pushing, push_checkpoint: Callable[[str], None]) -> None:
        """Wait for the uploads, as long as the Hub answers. At the end of training, push the newest checkpoint if its
        push was skipped, and again if it failed; with `all_checkpoints` also the others that the Hub lacks."""
        if not self._wait(trainer) or self._newest is None or not trainer.is_in_train:
            return
        for seconds in (0.0, *WAITS) if isinstance(self._failure(trainer), _Skipped) else WAITS:
            if self._failure(trainer) is None:
                break
            time.sleep(seconds)
            # The newest, whichever push failed: an older checkpoint must not overwrite it on the Hub.
            push_checkpoint(self._newest)
            if not self._wait(trainer):
                return
        wanted = f"the model of {Path(self._newest).name}"
        if self._failure(trainer) is None and self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            wanted = f"all checkpoints up to {Path(self._newest).name}"
            if not self._fill_gaps(trainer, Path(self._newest)):
                return
        if (error := self._failure(trainer)) is not None:
            logger.warning(
                f"Training has ended, and {self._repository(trainer)!r} on the Hub does not hold {wanted} "
                f"({reason(error)}); {self.args.output_dir} does, so {self._later(trainer)}."
            )

    def _failure(self, trainer: Pushing) -> BaseException | None:
        """Return why a push of the last ones failed, or why the newest has not been started."""
        failures = [error for job in _jobs(trainer) if (error := _failure(job)) is not None]
        return failures[-1] if failures else self._error

    def _fill_gaps(self, trainer: Pushing, newest: Path) -> bool:
        """Push the checkpoints up to the newest that the Hub lacks; whether that is over, see `_wait`."""
        api, where = hf_api(), {"repo_id": trainer.hub_model_id, "revision": self.args.hub_revision}
        where["token"] = self.args.hub_token
        try:
            there = set(try_repeatedly(api.list_repo_files, **where))
        except Exception as error:
            self._error = error
            return True
        jobs = []
        for folder in sorted(newest.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step):
            files = {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.is_file()}
            if 0 <= _step(folder) <= _step(newest) and not files <= there:
                upload = partial(api.upload_folder, folder_path=folder, path_in_repo=folder.name, **where)
                title = f"Training in progress, step {_step(folder)}, checkpoint"
                jobs.append(self._start(trainer, partial(try_repeatedly, upload, commit_message=title)))
        if jobs:
            trainer.push_in_progress = PushInProgress(cast(Any, jobs))
        return self._wait(trainer)

    def _start(self, trainer: Pushing, upload: Callable[[], Any]) -> Future[Any]:
        return self._uploads.start(upload, self._repository(trainer))

    def _wait(self, trainer: Pushing) -> bool:
        """Wait for the uploads; whether they are over. If the Hub is silent for too long, give them up."""
        if uploads.wait_for(lambda: _jobs(trainer)):
            return True
        trainer.push_in_progress = None
        self._uploads = uploads.Uploads()  # the old one waits for the Hub
        logger.warning(
            f"The Hub has not answered for {uploads.SILENCE:.0f} s, so the uploads to {self._repository(trainer)!r} "
            "are not waited for, and it may not hold the newest checkpoint; what was saved is kept, so "
            f"{self._later(trainer)}."
        )
        return False

    def _allowing(self, trainer: Pushing, api: Any) -> _Allowing:
        start = partial(self._start, trainer)
        return _Allowing(api, str(self.args.output_dir), self._names_of(trainer.processing_class), start)

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
        repository, folder, revision = self._repository(trainer), str(self.args.output_dir), self.args.hub_revision
        public = listed(folder, self._names_of(trainer.processing_class))
        commands = [upload_command(repository, folder, public, revision)]
        if self._newest is not None and self.args.hub_strategy == HubStrategy.CHECKPOINT:
            commands.append(shlex.join(["hf", "upload", repository, self._newest, "last-checkpoint"]))
        elif self._newest is not None and self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            pattern = f"{PREFIX_CHECKPOINT_DIR}-*"
            commands.append(shlex.join(["hf", "upload", repository, folder, "--include", pattern]))
        if revision:
            commands[1:] = [f"{command} {shlex.join(['--revision', revision])}" for command in commands[1:]]
        return f"push it later with `{' && '.join(commands)}` or trainer.push_to_hub()"

    def _names_of(self, processor: Any) -> Collection[str]:
        """The files of the processor. It is saved once: the thread of an upload must not save what a step uses."""
        if self._names is None:
            self._names = processor_files(processor)
        return self._names

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


def _step(folder: Path) -> int:
    """Return the step in the name of a checkpoint; -1 for another name."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def privacy(private: bool | None) -> dict[str, bool]:
    """Return the argument `private` of the Trainer's pushes, if it is set: transformers before 5.23 has none."""
    return {} if private is None else {"private": private}


__all__ = ["Publisher", "privacy"]
