"""The micro-batcher: texts of many requests become one call of the model, and every request gets its own answers.

A request is a job; its texts wait in one queue, first come, first served. When the model is free, the oldest texts are
joined, up to `max_batch`, after at most `max_wait`; texts of one large request may be answered in several calls. A job
whose request was cancelled (its deadline passed, its client left) is no longer in the queue. It knows nothing of HTTP.

    batcher = Batcher(engine.predict, Limits())
    running = asyncio.create_task(batcher.run())
    answers = await batcher.answer(["Shares of Siemens rose."], tasks=["topic"])
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline_multitask import Text
from serving.limits import Limits

EMBEDDING = "sentence_embedding"

Predict = Callable[[list[Text], list[str], str], Awaitable[list[dict[str, Any]]]]
"""Texts, tasks and aggregation strategy -> an answer a text, with the embedding."""


class QueueFull(Exception):
    """More texts would wait than may."""


@dataclass(eq=False)
class Job:
    """The texts of one request."""

    texts: Sequence[Text]
    tasks: Sequence[str]
    strategy: str
    arrived: float
    done: asyncio.Future[list[dict[str, Any]]]
    taken: int = 0
    """How many of its texts are in the model, or have been."""
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """How many of its texts have not come to the model."""
        return len(self.texts) - self.taken

    def add(self, answers: list[dict[str, Any]]) -> None:
        """Take the answers of its next texts: of its own tasks, whatever else the batch asked."""
        for answer in answers:
            self.answers.append({name: answer[name] for name in (*self.tasks, EMBEDDING) if name in answer})
        if len(self.answers) == len(self.texts) and not self.done.done():
            self.done.set_result(self.answers)

    def fail(self, error: Exception) -> None:
        """Raise an error where the job is awaited."""
        if not self.done.done():
            self.done.set_exception(error)


class Part(NamedTuple):
    """The texts of a job that are in one batch."""

    job: Job
    texts: list[Text]


class Batcher:
    """Joins texts.

    Args:
        predict (Predict): The model.
        limits (Limits): `max_batch`, `max_wait` and `max_queue`.
        observe (Callable): Is told the number of texts of every call.
    """

    def __init__(self, predict: Predict, limits: Limits, observe: Callable[[int], Any] = lambda texts: None) -> None:
        self.predict, self.limits, self.observe = predict, limits, observe
        self.jobs: list[Job] = []
        self.arrived = asyncio.Event()

    @property
    def queued(self) -> int:
        """Texts that wait for the model."""
        return sum(job.waiting for job in self.jobs)

    async def answer(
        self, texts: Sequence[Text], tasks: Sequence[str] = (), strategy: str = "first"
    ) -> list[dict[str, Any]]:
        """The answers of one request; cancelling this takes its texts out of the queue.

        Args:
            texts (Sequence): One or more texts or pairs.
            tasks (Sequence[str]): Names of the model's tasks; none for the embedding alone.
            strategy (str): How sub-words make entities; only requests of the same one are joined.

        Returns:
            One dict a text: task -> answer, and `sentence_embedding`.

        Raises:
            QueueFull: if its texts do not fit into the queue.
        """
        if self.queued + len(texts) > self.limits.max_queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        job = Job(texts, tasks, strategy, loop.time(), loop.create_future())
        self.jobs.append(job)
        self.arrived.set()
        try:
            return await job.done
        finally:
            if job in self.jobs:
                self.jobs.remove(job)

    async def run(self) -> None:
        """Answer whatever comes, until this is cancelled."""
        while True:
            await self.wait_for_texts()
            if parts := self.take():
                await self.compute(parts)

    async def wait_for_texts(self) -> None:
        """Return when a batch is full, or its oldest text has waited for `max_wait`."""
        while not self.jobs:
            await self.next_arrival()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.jobs[0].arrived + self.limits.max_wait):
                while self.queued < self.limits.max_batch:
                    await self.next_arrival()

    async def next_arrival(self) -> None:
        """Return when the next job comes."""
        self.arrived.clear()
        await self.arrived.wait()

    def take(self) -> list[Part]:
        """The oldest texts, `max_batch` at most, of the jobs with the strategy of the oldest job."""
        parts: list[Part] = []
        room = self.limits.max_batch
        for job in [job for job in self.jobs if job.strategy == self.jobs[0].strategy]:
            if room == 0:
                break
            texts = list(job.texts[job.taken : job.taken + room])
            job.taken += len(texts)
            room -= len(texts)
            parts.append(Part(job, texts))
        self.jobs = [job for job in self.jobs if job.waiting]
        return parts

    async def compute(self, parts: list[Part]) -> None:
        """Answer a batch by one call; if that fails, each part by itself, so that none fails for another's text."""
        texts = [text for part in parts for text in part.texts]
        tasks = sorted({name for part in parts for name in part.job.tasks})
        self.observe(len(texts))
        try:
            answers = iter(await self.predict(texts, tasks, parts[0].job.strategy))
        except Exception as error:
            if len(parts) == 1:
                parts[0].job.fail(error)
            else:
                for part in parts:
                    await self.compute([part])
            return
        for part in parts:
            part.job.add([next(answers) for _ in part.texts])
