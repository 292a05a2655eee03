"""Measure the HTTP API under load: joined requests against one at a time and against the offline rate; then overload.

    python benchmarks/serving_load.py outputs/news --data_root DATA --output serving_load.json
    python benchmarks/serving_load.py outputs/news --text_file sentences.txt

The texts are those of `inference_speed.py` (AG News, SST-2, CoNLL-2003, STS-B), or the lines of a file. One process
serves (`serve_hf.py` over loopback), this one generates the load, on the same cores. A request is one text with all
tasks to `/predict`. In this order:

- offline: `model.predict` over all texts, sorted by length in batches, in this process before the server starts (median
  of three);
- single: one client, one request at a time;
- joined: `--clients` clients, each with one request at a time;
- memory: the server's resident memory after request 1,000 and after the last one of single and joined;
- overload: requests at twice the joined rate whether or not answers come, for `--overload` seconds; how many are
  answered and refused; then, 5 seconds later, the joined phase again for a while.

Every answer is compared with the offline one: every class's score within `--tolerance` (bfloat16 in batches of another
width differs); what does not agree, such as the answer to another text, is counted as wrong.
`tells_apart` is the share of texts whose answer the check would not take for the next text's: the check's power.
"""

import argparse
import asyncio
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference_speed import sentences
from recipe_results import ROOT, hardware

from command_help import CommandParser
from prediction_engine import open_engine

REST = 5.0
"""Seconds between the overload and the phase that shows that it left nothing behind."""


class Connection:
    """A connection that is kept, with one request on it at a time: less work than any client library's."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self.streams = self.streams or await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        head = f"POST {path} HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
        assert length, "an answer without its length"
        return int(answer[9:12]), await reader.readexactly(int(length.group(1)))

    def close(self) -> None:
        """Leave."""
        if self.streams:
            self.streams[1].close()


class Load:
    """Requests with known answers.

    Args:
        port (int): The server's.
        texts (list): One a request, in turn.
        expected (list): The offline answer of each.
        tolerance (float): How far a score may be off.
    """

    def __init__(self, port: int, texts: list[str], expected: list[dict[str, Any]], tolerance: float) -> None:
        self.port, self.expected, self.tolerance = port, expected, tolerance
        self.bodies = [json.dumps({"texts": [text]}).encode() for text in texts]
        self.next = itertools.count()

    async def ask(self, connection: Connection) -> tuple[str, float]:
        """One request: what came of it (`right`, `wrong`, or a status that refuses), and its seconds."""
        index = next(self.next) % len(self.bodies)
        began = time.perf_counter()
        status, body = await connection.post("/predict", self.bodies[index])
        seconds = time.perf_counter() - began
        if status != 200:
            return str(status), seconds
        right = agrees(json.loads(body)["answers"][0], self.expected[index], self.tolerance)
        return "right" if right else "wrong", seconds

    async def closed(self, clients: int, requests: int) -> dict[str, Any]:
        """Clients that each wait for their answer before they ask again."""
        left = iter(range(requests))
        found: list[tuple[str, float]] = []

        async def client() -> None:
            connection = Connection(self.port)
            for _ in left:
                found.append(await self.ask(connection))
            connection.close()

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return summary(found, time.perf_counter() - began)

    async def open(self, rate: float, seconds: float) -> dict[str, Any]:
        """Requests that come at a rate, each on a connection that is free, or else on a new one."""
        free: list[Connection] = []
        tasks: set[asyncio.Task[None]] = set()
        found: list[tuple[str, float]] = []

        async def one() -> None:
            connection = free.pop() if free else Connection(self.port)
            found.append(await self.ask(connection))
            free.append(connection)

        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for connection in free:
            connection.close()
        return summary(found, time.perf_counter() - began)


def agrees(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> bool:
    """Whether an answer is the offline one, by the scores of all classes; entities follow from the same pass."""
    scored = [name for name, answer in expected.items() if isinstance(answer, dict) and "scores" in answer]
    return bool(scored) and all(
        abs(found[name]["scores"][label] - score) <= tolerance
        for name in scored
        for label, score in expected[name]["scores"].items()
    )


def summary(found: list[tuple[str, float]], seconds: float) -> dict[str, Any]:
    """Rate of right answers, percentiles of their times in milliseconds, and how many of what came."""
    times = [taken * 1000 for outcome, taken in found if outcome == "right"]
    points = statistics.quantiles(times, n=100) if len(times) > 1 else [None] * 99
    return {
        "requests": len(found),
        "outcomes": dict(Counter(outcome for outcome, _ in found)),
        "per_second": len(times) / seconds,
        "p50_ms": points[49],
        "p95_ms": points[94],
    }


@contextmanager
def served(model: str, options: list[str]) -> Iterator[tuple[int, int]]:
    """Port and process number of a server of its own."""
    command = [sys.executable, str(ROOT / "serve_hf.py"), model, "--port", "0", "--offline", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                yield int(found.group(1)), process.pid
                break
        else:
            raise ValueError(f"The server did not start: {' '.join(command[1:])}.")
    finally:
        process.terminate()
        process.wait()


def resident_mib(process: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def phases(load: Load, given: argparse.Namespace, process: int) -> dict[str, Any]:
    """All that is measured of the server."""
    report: dict[str, Any] = {"warm_up": await load.closed(given.clients, max(100, given.requests // 10))}
    before = resident_mib(process)
    report["single"] = await load.closed(1, max(50, given.requests // 10))
    report["joined"] = await load.closed(given.clients, given.requests)
    after = resident_mib(process)
    report["memory_mib"] = {"after_warm_up": before, "after": after, "growth": after / before - 1}
    if given.overload:
        report["overload"] = await load.open(2 * report["joined"]["per_second"], given.overload)
        await asyncio.sleep(REST)
        report["afterwards"] = await load.closed(given.clients, given.requests // 4)
    return report


def texts_of(given: argparse.Namespace) -> list[str]:
    """What the requests hold, one each."""
    if given.data_root:
        return sentences(given.data_root, 512)
    return [line for line in given.text_file.read_text(encoding="utf-8").splitlines() if line.strip()]


def rate_of(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Texts a second of `predict`, batched."""
    began = time.perf_counter()
    model.predict(texts, tokenizer)
    return len(texts) / (time.perf_counter() - began)


def main() -> None:
    """Measure, print, write."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model or an exported graph.")
    texts_from = parser.add_mutually_exclusive_group(required=True)
    texts_from.add_argument("--data_root", type=Path, help="Data sets, 512 of whose sentences are sent; or unset.")
    texts_from.add_argument("--text_file", type=Path, help="UTF-8 text, a line a request; or unset.")
    parser.add_argument("--output", help="JSON file to write (default: only print).")
    parser.add_argument("--clients", type=int, default=64, help="Clients at one time (default: 64).")
    parser.add_argument("--requests", type=int, default=10_000, help="Requests of the joined phase (default: 10000).")
    parser.add_argument("--overload", type=float, default=60, help="Seconds of overload; 0 for none (default: 60).")
    parser.add_argument("--tolerance", type=float, default=0.05, help="How far a score may be off (default: 0.05).")
    given, options = parser.parse_known_args()

    texts = texts_of(given)
    model, tokenizer = open_engine(given.model, offline=True)
    expected = model.predict(texts, tokenizer)
    offline = statistics.median(rate_of(model, tokenizer, texts) for _ in range(3))
    del model
    with served(given.model, options) as (port, process):
        measured = asyncio.run(phases(Load(port, texts, expected, given.tolerance), given, process))
    joined = measured["joined"]["per_second"]
    ratios = {"joined_to_single": joined / measured["single"]["per_second"], "joined_to_offline": joined / offline}
    if given.overload:
        ratios["p95_afterwards_to_joined"] = measured["afterwards"]["p95_ms"] / measured["joined"]["p95_ms"]
    others = zip(expected, [*expected[1:], expected[0]], strict=True)
    tells_apart = statistics.mean(not agrees(answer, other, given.tolerance) for answer, other in others)
    settings = {
        "clients": given.clients,
        "requests": given.requests,
        "texts": len(texts),
        "server": options,
        "tells_apart": tells_apart,
    }
    report = {"settings": settings, "hardware": hardware(), "offline_per_second": offline, **measured, "ratios": ratios}
    written = json.dumps(report, indent=2)
    print(written)
    if given.output:
        Path(given.output).write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
