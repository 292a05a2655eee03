"""What the parts of one server share: model, batcher, bounds, counters, token, and whether it is leaving."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from serving.batcher import Batcher
from serving.engine import Engine
from serving.limits import Limits
from serving.metrics import Metrics


class Service:
    """One model, ready to be asked by any endpoint.

    Args:
        engine (Engine): The model.
        limits (Limits): Bounds.
        token (str): What clients must send as `Authorization: Bearer`; None for everybody.
    """

    def __init__(self, engine: Engine, limits: Limits, token: str | None = None) -> None:
        self.engine, self.limits, self.token = engine, limits, token
        self.metrics = Metrics()
        self.batcher = Batcher(engine.predict, limits, self.metrics.batches.observe)
        self.runner: asyncio.Task[None] | None = None
        self.draining = False
        self.in_flight = 0
        self.open_pages = 0
        """Requests of the demo's pages that stay open, for what comes next."""
        self.demo_path: str | None = None
        """Where the web demo is; None without one."""
        self.finished = asyncio.Event()
        """Set when nothing more will be answered: what is still open ends."""
        self.metrics.gauge("multitask_queued_texts", "Texts that wait for the model.", lambda: self.batcher.queued)
        self.metrics.gauge("multitask_requests_in_flight", "Requests under way.", lambda: self.in_flight)

    @property
    def ready(self) -> bool:
        """Whether new requests would be answered."""
        return not self.draining and self.runner is not None and not self.runner.done()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests inside this context."""
        self.runner = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            self.runner.cancel()
            with suppress(asyncio.CancelledError):
                await self.runner

    def is_of_demo(self, path: str) -> bool:
        """Whether a path belongs to the web demo, or only leads there."""
        if self.demo_path is None:
            return False
        return path in ("/", "/favicon.ico") or f"{path}/".startswith(f"{self.demo_path}/")

    async def finish(self, drain: float | None = None) -> None:
        """Take no new requests; return when those under way are answered, and others had time to hear of it.

        Args:
            drain (float): Seconds that others have; default: as the limits say.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        last = loop.time() + (self.limits.drain if drain is None else drain)
        while self.in_flight or loop.time() < last:
            await asyncio.sleep(0.02)
        self.finished.set()
