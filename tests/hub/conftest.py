# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""One served Hub and one preloaded client for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub_server import Clients, Hub


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[tuple[Hub, Clients]]:
    with Hub() as hub, Clients(hub.endpoint, tmp_path_factory.mktemp("home")) as clients:
        yield hub, clients


@pytest.fixture
def hub(served) -> Hub:
    """An empty Hub with the users alice and bob."""
    served[0].reset()
    return served[0]


@pytest.fixture
def client(served, tmp_path):
    """Calls a function in a fresh process; those of a test share the cache in `client.home`. See [`Clients`]."""

    def call(function, *args, home=tmp_path / "home", **options):
        return served[1](function, *args, home=home, **options)

    call.home = tmp_path / "home"
    return call
