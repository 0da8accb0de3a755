# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation never needs the network: all tests here run without it."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("evaluation tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
