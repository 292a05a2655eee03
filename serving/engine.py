"""The model of a server: it answers in a thread of its own, one call at a time, so that the event loop stays free.

The same thread opens the model: every thread that computes gets a pool of OpenMP threads, and with more of these in a
process than cores they no longer wait for work awake, which costs every call a third of its speed.

engine = Engine("outputs/news")
await engine.predict(["Shares of Siemens rose."], ["topic"], "first")
"""

import asyncio
import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from configuration_multitask import TOKEN_CLASSIFICATION
from graph_model import ONNX_FILE, OPENVINO_FILE, GraphModel
from pipeline_multitask import Text, in_bfloat16, predict, token_counts
from prediction_engine import open_engine

WARM_UP = "Once is enough. "
WARM_UP_TOKENS = 128
"""Up to this length: a start takes seconds, also of a model that reads 8,192 tokens."""
CPU_PASS = 8
"""Texts that go through the encoder together on a CPU: what is joined by chance has mixed lengths, and padding little
pays more there than computing much at once."""


class Reading(NamedTuple):
    """What a model reads of a text that stands in a batch with others.

    Attributes:
        tokens (list[str]): As the tokenizer names them, special ones and padding included.
        mask (list[int]): 1 for a token that is read, 0 for padding.
        length (int): Tokens before cutting and padding.
    """

    tokens: list[str]
    mask: list[int]
    length: int


class Engine:
    """A model or an exported graph, its tokenizer, and the threads that they run in.

    Tokens are counted in a thread apart, by a copy of the tokenizer (one tokenizer serves one thread).

    Args:
        name (str): Folder of a saved model or an exported graph, or a Hub id.
        bf16 (bool): Whether a float32 model multiplies in bfloat16. Default: where the hardware has it.
        offline (bool): Never ask the Hub.

    Raises:
        ValueError: for what cannot be opened.
    """

    def __init__(self, name: str, bf16: bool | None = None, offline: bool = False) -> None:
        self.worker = ThreadPoolExecutor(1, "engine")
        model, self.tokenizer = self.worker.submit(open_engine, name, offline).result()
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.model = model.to(device or "cpu")
        self.on_cpu = device is None or isinstance(self.model, GraphModel)
        self.bf16 = bf16
        self.precision = in_bfloat16(self.model, bf16)
        folder = Path(name).expanduser()
        self.name = folder.resolve().name if folder.is_dir() else name
        files = {ONNX_FILE: "onnx", OPENVINO_FILE: "openvino"}
        found = [kind for file, kind in files.items() if (folder / file).is_file()]
        self.kind = found[0] if isinstance(self.model, GraphModel) else "torch"
        self.counter = ThreadPoolExecutor(1, "tokens")
        self.counting_tokenizer = copy.deepcopy(self.tokenizer)
        self.worker.submit(self.get_ready).result()

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """`config.tasks`."""
        return self.model.config.tasks

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads; longer texts are read further for tags only."""
        return self.model.max_length(self.tokenizer)

    @property
    def tag_tasks(self) -> set[str]:
        """The tasks whose answer depends on the aggregation strategy."""
        return {name for name, spec in self.tasks.items() if spec["kind"] == TOKEN_CLASSIFICATION}

    def get_ready(self) -> None:
        """Convert the weights and answer texts of all lengths: kernels and memory are there before the first client."""
        # as long as this is open, the weights are converted once and not at every call: a fifth of one sentence's time
        self.precision.__enter__()
        room = min(self.max_length, WARM_UP_TOKENS) - self.tokenizer.num_special_tokens_to_add()
        times = room // max(1, *token_counts(self.tokenizer, [WARM_UP]))
        self.predict_now([(WARM_UP, WARM_UP)], list(self.tasks), "first")
        for repeats, texts in (*((count + 1, 1) for count in range(times)), (times, CPU_PASS)):
            self.predict_now([WARM_UP * repeats] * texts, list(self.tasks), "first")

    def predict_now(self, texts: list[Text], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
        """One call of the model in this thread; see `MultiTaskModel.predict`."""
        size = CPU_PASS if self.on_cpu else len(texts)
        return predict(self.model, self.tokenizer, texts, tasks, size, strategy, None, self.bf16)

    async def predict(self, texts: list[Text], tasks: list[str], strategy: str) -> list[dict[str, Any]]:
        """One call of the model in its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.worker, self.predict_now, texts, tasks, strategy)

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the model reads of some texts, special ones included."""
        loop = asyncio.get_running_loop()
        counts = await loop.run_in_executor(self.counter, token_counts, self.counting_tokenizer, texts)
        special = self.counting_tokenizer.num_special_tokens_to_add()
        return sum(min(count + special, self.max_length) for count in counts)

    async def read(self, texts: Sequence[str]) -> list[Reading]:
        """The tokens of some texts as one batch: cut to `max_length`, padded to the longest of them."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.counter, self.read_now, list(texts))

    def read_now(self, texts: list[str]) -> list[Reading]:
        """`read` in this thread."""
        tokenizer = self.counting_tokenizer
        special = tokenizer.num_special_tokens_to_add()
        batch = tokenizer(texts, truncation=True, max_length=self.max_length, padding=True).encodings
        counts = token_counts(tokenizer, texts)
        return [Reading(row.tokens, row.attention_mask, n + special) for row, n in zip(batch, counts, strict=True)]

    def description(self) -> dict[str, Any]:
        """Name, tasks with their labels, embedding and versions."""
        fields = ("kind", "problem_type", "labels", "text_pair")
        config = self.model.config
        return {
            "model": self.name,
            "engine": self.kind,
            "tasks": {
                name: {field: spec.get(field) for field in fields if spec.get(field)}
                for name, spec in self.tasks.items()
            },
            "embedding": {
                "size": config.embedding_size,
                "normalized": bool(config.normalize_embeddings),
                "max_tokens": self.max_length,
            },
            "versions": {package: version(package) for package in ("torch", "transformers", "fastapi")},
        }

    def close(self) -> None:
        """End the threads, after what they are doing."""
        self.worker.submit(self.precision.__exit__, None, None, None).result()
        self.worker.shutdown()
        self.counter.shutdown()
