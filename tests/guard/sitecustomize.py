"""No network in tests: a socket that leaves this machine raises, here and in Python child processes.

`conftest.py` imports this file and puts its folder on PYTHONPATH; a Python that starts with it there imports
it before anything else. An audit hook can't be taken off again, so no library can go round it.
"""

import ipaddress
import os
import sys

_NAMES = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}


class NetworkBlockedError(RuntimeError):
    """A test tried to reach another machine."""


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost", os.uname().nodename):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in _NAMES:
        host = arguments[0]
    elif event in _ADDRESSES and isinstance(arguments[1], tuple):  # a Unix socket's address is a path
        host = arguments[1][0]
    else:
        return
    if not _is_local(host):
        raise NetworkBlockedError(f"{event} to {host!r}: tests reach no network but loopback")


sys.addaudithook(_guard)
