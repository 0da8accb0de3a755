# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Repositories to which somebody pushes whenever somebody else has asked what their newest commit is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from tests.hub_server import Hub
from tests.hub_server.api import Answer
from tests.hub_server.server import Request


class Moving:
    """
    Takes the place of a Hub's `api`: each answer about the head of `main` is out of date when it arrives.

    Args:
        hub ([`Hub`]): It is changed.
        pushes (`Mapping`): By the name of a repository, the files of one push after the other, over and over.
        kind (`str`): `"models"` or `"datasets"`.
    """

    def __init__(self, hub: Hub, pushes: Mapping[str, Sequence[dict[str, bytes]]], kind: str = "models") -> None:
        self.hub, self.api, self.kind = hub, hub.api, kind
        self.pushes = {name: itertools.cycle(files) for name, files in pushes.items()}
        self.counts = itertools.count()
        hub.api = self

    def __call__(self, request: Request) -> Answer:
        answer = self.api(request)
        for name, files in self.pushes.items():
            if request.path == f"/api/{self.kind}/{name}/revision/main":
                told = {"pushed": str(next(self.counts)).encode()}  # so that each push is a commit of its own
                self.hub.put(name, {**next(files), **told}, kind=self.kind)
        return answer
