"""Ports that nobody else gets while a test uses them."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port(number: int = 0) -> Iterator[int]:
    """Hold a port (0: any free one) as long as the block runs. Raise OSError if somebody has it.

    The socket is bound but does not listen, so Linux gives the port to nobody else. A server that asks for this very
    number with SO_REUSEADDR gets it.
    """
    with socket.socket() as holder:
        holder.bind(("", number))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: two holders could share the port
        yield int(holder.getsockname()[1])


def check_free(number: int) -> None:
    """Raise OSError if somebody has the port."""
    with reserved_port(number):
        pass
