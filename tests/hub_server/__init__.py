# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A Hub on 127.0.0.1 for the real clients, and fresh processes in which those clients run."""

from tests.hub_server.clients import Clients, Failed, Outcome
from tests.hub_server.faults import Fault
from tests.hub_server.server import Hub, Request


__all__ = ["Clients", "Failed", "Fault", "Hub", "Outcome", "Request"]
