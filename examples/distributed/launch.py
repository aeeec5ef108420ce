"""Starts several workers on this machine: one command line, one process each.

    python -m examples.distributed.launch 2 -m examples.distributed.train --strategy workers

On a cluster the scheduler does this: every machine gets its own `TF_CONFIG`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the workers and wait.

    Returns:
        The exit status: 0 if that of all workers is.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workers", type=int, help="processes, at least 1")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="arguments of python")
    options = parser.parse_args(arguments)
    if options.workers < 1 or not options.command:
        parser.error(
            "needs at least one worker and a command, such as -m examples.distributed.train"
        )
    workers = start(options.workers, options.command)
    statuses = [worker.wait() for worker in workers]
    return next((status for status in statuses if status), 0)


def start(count: int, command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Start `python command` in so many processes that know each other.

    Args:
        count: of workers.
        command: arguments of the interpreter, the same for all.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [start_worker(index, addresses, command) for index in range(count)]


def start_worker(
    index: int, addresses: Sequence[str], command: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start one worker; also to put one back that was lost."""
    cluster = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(cluster)}
    return subprocess.Popen([sys.executable, *command], env=environment)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    raise SystemExit(main())
