"""Ports for servers that have to come back where they were."""

import random
import socket
from contextlib import suppress

LOW, HIGH = 20_000, 32_000
"""Below the ports that systems hand out by themselves: one of those goes to a neighbour while its server is away."""


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    while True:
        port = random.SystemRandom().randrange(LOW, HIGH)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
