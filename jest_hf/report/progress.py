# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer's progress bar with the few figures that a person watches; trackers get all of them."""

from __future__ import annotations

import re
from typing import Any

from transformers.trainer_callback import ProgressCallback


HIDDEN = re.compile(r"^effective_sample_size|_to_(text|image)_R@|_seconds$|_per_second$|eval_runtime$|^total_flos$")


class JESTProgress(ProgressCallback):
    """[`~transformers.ProgressCallback`] without what `HIDDEN` matches: a joint run logs some thirty figures."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        shown = {name: value for name, value in (logs or {}).items() if not HIDDEN.search(name)}
        super().on_log(args, state, control, logs=shown, **kwargs)
