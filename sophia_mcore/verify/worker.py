"""The processes that compare answers with sympy: one that imports everything once and forks the workers.

Started as ``python -m sophia_mcore.verify.worker CONTROL_FD MEMORY_MIB BACKSTOP_SECONDS MODULE:FUNCTION``. A fresh
interpreter is safe to start from a program with threads, and forking from a process without threads is safe too and
takes milliseconds, so that a killed worker is replaced at once. Messages are lines of JSON; nothing is unpickled.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

Compare = Callable[[dict[str, Any]], bool]


def serve(connection: socket.socket, compare: Compare, memory_limit_mib: int, backstop_seconds: float) -> None:
    """Answer tasks from ``connection`` until it closes.

    A task is ``{"gold", "prediction", "type", ...}``; the reply ``{"equal": bool}`` or ``{"error": str}``, each with
    "seconds" and "cpu" (CPU time of this task and of this process so far). Without memory the process ends: the parent
    asks a fresh one.
    """
    limit = memory_limit_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream = connection.makefile("rwb")

    def reply(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message).encode() + b"\n")
        stream.flush()

    reply({"pid": os.getpid(), "cpu": time.process_time()})
    for line in stream:
        started = time.process_time()
        # Only matters when the parent is gone or asleep: the kernel then ends a task that never ends by itself.
        signal.setitimer(signal.ITIMER_PROF, backstop_seconds)
        try:
            outcome: dict[str, Any] = {"equal": bool(compare(json.loads(line)))}
        except MemoryError:
            os._exit(1)
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"[:200]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        now = time.process_time()
        reply({**outcome, "seconds": now - started, "cpu": now})


def main() -> None:
    """Import once, then fork one worker per connection that arrives over the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    memory_limit_mib, backstop_seconds = int(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the sockets
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    logging.disable(logging.CRITICAL)
    try:
        module, _, name = sys.argv[4].partition(":")
        library = importlib.import_module(module)
        compare: Compare = getattr(library, name)
        getattr(library, "warm_up", lambda: None)()
    except Exception as error:
        control.send(f"{type(error).__name__}: {error}".encode()[:500])
        return
    gc.freeze()  # what is imported by now stays shared between the workers
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            try:
                serve(socket.socket(fileno=descriptors[0]), compare, memory_limit_mib, backstop_seconds)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the parent is gone
            finally:
                os._exit(0)
        os.close(descriptors[0])


if __name__ == "__main__":
    main()
