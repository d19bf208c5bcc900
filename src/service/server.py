"""Starts the service in this process, and stops it when the requests in flight are answered."""

import gc
import os
import signal
import socket
from pathlib import Path

import torch

from ..errors import UserError
from ..prediction.recommender import Recommender
from ..runs.proposals import how_to_install
from ..settings.schema import InferenceConfig

SECONDS_TO_STOP = 10
SECONDS_IDLE = 75  # of a connection; proxies keep theirs for a minute


def serve(checkpoints: list[Path], settings: InferenceConfig) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Raises:
        UserError: if the libraries for it are not installed, or the port is in use.
    """
    try:
        import uvicorn

        from .app import make_app
    except ImportError as error:
        raise UserError(
            f"inference.serve needs a library that is not installed ({error.name}): {how_to_install('serve')}"
        ) from error
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a second one gains nothing with one history, and waits where a processor is shared
    with listening(settings.host, settings.port) as listener:
        recommender = Recommender.from_checkpoint(checkpoints, for_few=True)
        named = ", ".join(map(str, checkpoints))
        print(f"model       {named}, {len(recommender.items):,} items")
        recommender.recommend([recommender.items[:1]])  # loads kernels, and fails if a weight is NaN
        gc.freeze()  # what is there by now stays: to look through it again and again takes 0.1 s each time
        app = make_app(recommender, named, settings.topk, settings.exclude_seen)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=SECONDS_IDLE,
                timeout_graceful_shutdown=SECONDS_TO_STOP,
            )
        )

        def stop(*_: object) -> None:
            server.should_exit = True

        # Of the signals before it runs; and uvicorn raises them once more when it has stopped, which would be the end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        host, port = listener.getsockname()[:2]
        print(f"service     http://{f'[{host}]' if ':' in host else host}:{port}, Ctrl-C stops it", flush=True)
        server.run(sockets=[listener])
        print("stopped")


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        UserError: if the port is in use, or this machine has no such address.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno or 0) if (error.errno or 0) > 0 else error.strerror  # below 0: no such name
        raise UserError(
            f"inference.host={host} inference.port={port} cannot be listened at ({why}): give another host or port"
        ) from error
    # Of its connections too. asyncio leaves it out for those of a socket made like this, and answers took 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
