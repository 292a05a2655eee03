"""Run an exported graph: `predict` and `encode` as the model has them, on ONNX Runtime or OpenVINO instead of torch.

Tokenising and decoding are those of `pipeline_multitask`, so that answers differ only by what the graph's precision
changes. It runs on the CPU, with as many threads as torch has. It writes no graph (`graph_export` does).

    model = GraphModel.from_pretrained("outputs/news-onnx")
    tokenizer = AutoTokenizer.from_pretrained("outputs/news-onnx")
    model.predict(["Shares of Siemens rose."], tokenizer)
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configuration_multitask import SENTENCE_SIMILARITY, MultiTaskConfig
from modeling_multitask import MultiTaskOutput
from pipeline_multitask import encode, predict

ONNX_FILE = "model.onnx"
OPENVINO_FILE = "openvino_model.xml"

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""The graph's inputs by name -> its outputs by name."""


def onnx_graph(path: Path, threads: int) -> tuple[Run, list[str]]:
    """A function that runs an ONNX file, and the names of its inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True)), [i.name for i in session.get_inputs()]


def import_openvino() -> Any:
    """The package `openvino`, without its telemetry: as soon as it is imported, it would report to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino

    return openvino


def openvino_graph(path: Path, threads: int) -> tuple[Run, list[str]]:
    """A function that runs an OpenVINO file at the precision written in it, and the names of its inputs."""
    core = import_openvino().Core()
    graph = core.read_model(str(path))
    hint = graph.get_rt_info(
        ["runtime_options", "INFERENCE_PRECISION_HINT"]
    ).value  # by itself it takes what is fastest
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(graph, "CPU", settings)

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array for port, array in compiled(feed).items() for name in port.names}

    return run, [port.any_name for port in compiled.inputs]


def open_graph(folder: str | Path, threads: int | None = None) -> tuple[Run, list[str]]:
    """A function that runs the graph in a folder, and the names of its inputs; see `GraphModel.from_pretrained`."""
    graphs = {ONNX_FILE: onnx_graph, OPENVINO_FILE: openvino_graph}
    found = [name for name in graphs if (Path(folder) / name).is_file()]
    if len(found) != 1:
        raise ValueError(
            f"A folder with an exported graph holds either {' or '.join(graphs)}; {folder} holds "
            f"{' and '.join(found) or 'neither'}. Write one: python export_hf.py MODEL --format onnx --output FOLDER."
        )
    return graphs[found[0]](Path(folder) / found[0], threads or torch.get_num_threads())


class GraphModel(nn.Module):
    """An exported graph with the methods of `MultiTaskModel` that answer texts.

    Args:
        config (MultiTaskConfig): The configuration beside the graph.
        run (Callable): Runs it.
        inputs (Sequence[str]): What it takes: `input_ids`, `attention_mask`, for joint tasks also `token_type_ids`.
    """

    device = torch.device("cpu")
    dtype = None
    """Of the weights: the graph's own, whatever torch multiplies in."""

    def __init__(self, config: MultiTaskConfig, run: Run, inputs: Sequence[str]):
        super().__init__()
        self.config = config
        self.run = run
        self.inputs = tuple(inputs)
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path, threads: int | None = None) -> "GraphModel":
        """Open the graph in a folder of `export_hf.py`.

        Args:
            folder (str or Path): A local folder with `model.onnx` or `openvino_model.xml`, and `config.json`.
            threads (int): Default: as many as torch computes with.

        Raises:
            ValueError: if there is no graph, or one of each format.
        """
        run, inputs = open_graph(folder, threads)
        return cls(MultiTaskConfig.from_pretrained(folder), run, inputs)

    def max_length(self, tokenizer: Any) -> int:
        """Tokens a text is cut to; the export wrote the model's own limit into the configuration."""
        return min(self.config.max_seq_length, tokenizer.model_max_length)

    def outputs(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """All outputs of the graph by name. Shapes of the inputs (items, tokens); by default no padding, no types."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
        found = self.run({name: given[name].numpy() for name in self.inputs})
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_items: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> MultiTaskOutput:
        """The embedding and the tasks' logits, as `MultiTaskModel.forward` gives them; second texts are another run.

        Labels only say which tasks to answer: a graph computes no loss, and in its place there is a NaN.
        """
        found = self.outputs(input_ids, attention_mask, token_type_ids)
        logits = {}
        for name in tasks if tasks is not None else (labels if labels is not None else self.config.tasks):
            logits[name] = found[name]
            if self.config.tasks[name]["kind"] == SENTENCE_SIMILARITY:
                logits[name] = torch.full((len(input_ids),), float("nan"))
        if pair_input_ids is not None:
            seconds = self.outputs(pair_input_ids, pair_attention_mask)
            for name in logits:
                if self.config.tasks[name]["kind"] == SENTENCE_SIMILARITY:
                    logits[name][pair_items] = F.cosine_similarity(found[name][pair_items], seconds[name], dim=-1)
        loss = None if labels is None else torch.tensor(float("nan"))
        return MultiTaskOutput(loss=loss, sentence_embedding=found["sentence_embedding"], logits=logits)

    def embed(self, **inputs: Tensor) -> Tensor:
        """The sentence embedding as the graph gives it. Shape (items, embedding_size)."""
        return self.outputs(**inputs)["sentence_embedding"]

    def encode(self, texts: Sequence[str], tokenizer: Any, batch_size: int = 32, normalize: bool | None = None) -> Any:
        """The sentence embedding of every text; see `MultiTaskModel.encode`.

        Raises:
            ValueError: if embeddings are wanted as they were before a normalisation that is part of the graph.
        """
        if normalize is False and self.config.normalize_embeddings:
            raise ValueError("The graph normalises its embeddings; only the model it is from can leave that out.")
        return encode(self, tokenizer, texts, batch_size, normalize)

    def predict(
        self,
        texts: Sequence[Any],
        tokenizer: Any,
        tasks: Iterable[str] | None = None,
        batch_size: int = 32,
        aggregation_strategy: str = "first",
        top_k: int | None = None,
    ) -> list[dict[str, Any]]:
        """Every task's answer and the embedding for every text; see `MultiTaskModel.predict`."""
        return predict(self, tokenizer, texts, tasks, batch_size, aggregation_strategy, top_k)
