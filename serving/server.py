"""Runs the app on a socket until SIGTERM, then drains: `/ready` says no, what is under way ends, newcomers get 503."""

import asyncio
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI


class DrainingServer(uvicorn.Server):
    """uvicorn, which would close its socket at the first signal, made to tell newcomers first.

    A second signal, or SIGINT (Ctrl-C), is uvicorn's: it closes at once and waits for requests under way. Pages of the
    demo that are open in a browser end when those are answered.

    Args:
        app (FastAPI): From `create_app`.
        host (str): Address to listen at.
        port (int): Port; 0 for a free one.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        # no access log: paths are counted in /metrics, and nothing else of a request may be written down
        super().__init__(uvicorn.Config(app, host, port, access_log=False, log_level="info", server_header=False))
        self.service = app.state.service
        self.finishing: asyncio.Task[None] | None = None

    async def serve(self, sockets: list | None = None) -> None:
        """Serve until a signal."""
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first SIGTERM."""
        if sig == signal.SIGTERM and not self.service.draining:
            self.service.draining = True
            self.loop.call_soon_threadsafe(self.begin_to_finish, None)
        else:
            super().handle_exit(sig, frame)
            self.loop.call_soon_threadsafe(self.begin_to_finish, 0.0)

    def begin_to_finish(self, drain: float | None) -> None:
        """Start to drain, in the event loop."""
        self.finishing = self.loop.create_task(self.finish(drain))

    async def finish(self, drain: float | None) -> None:
        """Wait for requests under way, then stop."""
        await self.service.finish(drain)
        self.should_exit = True
