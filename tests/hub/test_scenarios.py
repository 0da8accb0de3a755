# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every eighth scenario of the generator of faults; see `tests.hub.scenarios`."""

from __future__ import annotations

import pytest

from tests.hub import scenarios
from tests.hub.scenarios import of_pulls, of_pushes, pull, push_by_hand, push_while_training
from tests.hub.test_pull import files_of


EVERY = 8


@pytest.mark.parametrize(
    ("function", "tries"),
    [(push_by_hand, of_pushes()[::EVERY]), (push_while_training, of_pushes()[1::EVERY]), (pull, of_pulls()[::EVERY])],
    ids=["push_by_hand", "push_while_training", "pull"],
)
def test_a_fault_of_the_hub_is_survived_or_said(hub, client, tmp_path, function, tries):
    hub.put("alice/reference", files_of(tmp_path / "pull"))
    outcome = client(function, str(tmp_path / function.__name__), tries)
    assert len(outcome.value) == len(tries)
    assert not [line for tried in outcome.value for line in scenarios.complaints(function, tried)]
    assert "hf_alice" not in outcome.log
    there = [tried.there for tried in outcome.value]
    assert 0.2 < sum(there) / len(there) < 0.8, "of both outcomes there are some"


def test_how_many_there_are():
    pushes, pulls = of_pushes(), of_pulls()
    assert len({one.name for one in pushes}) == len(pushes) == 287
    assert len({one.name for one in pulls}) == len(pulls) == 225
    tried = pushes[::EVERY] + pushes[1::EVERY] + pulls[::EVERY]
    assert {one.kind for one in tried} == {one.kind for one in pushes + pulls}
    assert {one.request for one in tried} == {one.request for one in pushes + pulls}
