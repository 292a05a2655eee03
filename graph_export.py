"""A saved model as one graph, ONNX or OpenVINO: ids and mask in; the embedding and every task's numbers out.

The graph does what `MultiTaskModel.forward` does: positions from the mask, pooling, projection, normalisation, heads.
Batch and length are free. Its outputs are named: `sentence_embedding`, and each task by its name: the logits of a head;
the vectors (not normalised) of a task that compares or learns embeddings. `graph_model` runs it; what it runs on
(`onnxruntime`, `openvino`) is imported here only when it is asked for.

    export_graph(model, tokenizer, folder, "onnx", "int8")
    GraphModel.from_pretrained(folder).predict(texts, tokenizer)
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configuration_multitask import SENTENCE_SIMILARITY
from graph_model import import_openvino, open_graph
from modeling_multitask import MultiTaskModel

PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16")}
"""Format -> the precisions it is written in; the first is the default.

int8 is ONNX Runtime's dynamic quantisation of the matrix products, a scale a channel; embeddings and norms stay in
float32. bf16 keeps the weights in 16 bits and asks OpenVINO to compute in bfloat16; a CPU without it computes in
float32.
"""

LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99, "int8": 0.9}
"""How near every output of a graph must be to the model's on `SAMPLE`, or something went wrong in writing it."""

SAMPLE = ["A short text.", "And a longer one, so that the first is padded in a batch of the three.", "The last."]


class RowByRow(nn.Module):
    """A layer over vectors (items, features), which it sees as (items, 1, features).

    ONNX writes a linear layer over vectors as Gemm, whose weights ONNX Runtime's dynamic quantisation transposes in
    place, once for each use: a projection that several poolings share would be wrong.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        """Features (items, in) -> (items, out)."""
        return self.layer(features.unsqueeze(1)).squeeze(1)


class GraphForward(nn.Module):
    """What the graph computes: tensors in, a flat dict of named tensors out."""

    def __init__(self, model: MultiTaskModel):
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu().eval()
        self.model.projection = RowByRow(self.model.projection)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Ids, mask and types (items, tokens) -> the embedding (items, dim) and each task's tensor."""
        tasks = self.model.config.tasks
        compared = [name for name, spec in tasks.items() if spec["kind"] == SENTENCE_SIMILARITY]
        others = [name for name in tasks if name not in compared]
        output = self.model.run_tasks(input_ids, attention_mask, token_type_ids, tasks=others)
        vectors = {
            name: self.model.sentence_vectors(output.last_hidden_state, attention_mask, tasks[name].get("pooling"))
            for name in compared
        }
        return {"sentence_embedding": output.sentence_embedding, **output.logits, **vectors}


def graph_inputs(model: MultiTaskModel) -> list[str]:
    """The names of the graph's inputs: types are among them only if a task tells two joined texts apart by them."""
    joint = any(spec.get("text_pair") for spec in model.config.tasks.values())
    has_types = getattr(model.config.encoder_config, "type_vocab_size", 0) > 1
    with_types = joint and has_types and "token_type_ids" in model.encoder_inputs
    return ["input_ids", "attention_mask", *(["token_type_ids"] if with_types else [])]


def check_names(model: MultiTaskModel) -> None:
    """Raise ValueError if a task is called as an input of the graph is."""
    taken = [name for name in model.config.tasks if name in graph_inputs(model)]
    if taken:
        raise ValueError(f"A graph's inputs and outputs differ in name, but tasks are called {taken}. Rename them.")


def sample_inputs(model: MultiTaskModel, tokenizer: Any) -> dict[str, Tensor]:
    """A padded batch that the graph is traced with; more than one row, so that the number of rows stays free."""
    batch = tokenizer(SAMPLE, padding=True, return_tensors="pt")
    if "token_type_ids" not in batch:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    return {name: batch[name] for name in graph_inputs(model)}


def exporter_for(graph_format: str, precision: str, dynamic_shapes: dict[str, Any]) -> tuple[Any, Any]:
    """The exporter of transformers and its settings."""
    if graph_format == "onnx":
        from transformers.exporters import OnnxConfig, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
        from transformers.exporters.exporter_onnx import OnnxExporter

        settings = OnnxRuntimeDynamicConfig(per_channel=True, op_types_to_quantize=["MatMul"])
        quantizer = OnnxRuntimeQuantizer(settings) if precision == "int8" else None
        return OnnxExporter(), OnnxConfig(dynamic=True, dynamic_shapes=dynamic_shapes, quantizer=quantizer)
    import_openvino()
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    compress = precision == "bf16"
    return OpenVINOExporter(), OpenVINOConfig(
        dynamic=True, dynamic_shapes=dynamic_shapes, compress_to_fp16=compress, stateful=False
    )


@torch.no_grad()
def check_graph(forward: GraphForward, inputs: dict[str, Tensor], folder: Path, precision: str) -> None:
    """Raise ValueError unless the graph in a folder gives what it was made of, as near as its precision lets it."""
    run, _ = open_graph(folder)
    found = run({name: tensor.numpy() for name, tensor in inputs.items()})
    real = inputs["attention_mask"].bool()
    for name, expected in forward(**inputs).items():
        pair = [torch.from_numpy(found[name]), expected]
        one, other = (tensor[real] if tensor.dim() == 3 else tensor for tensor in pair)
        cosine = torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        if not cosine >= LEAST_COSINE[precision]:
            raise ValueError(
                f"A graph must give what its model does, but the cosine of both for {name!r} is {cosine:.4f} in "
                f"{precision}; at least {LEAST_COSINE[precision]} was expected. Export it in fp32; {folder} is no use."
            )


def export_graph(model: MultiTaskModel, tokenizer: Any, folder: Path, graph_format: str, precision: str) -> None:
    """Write the graph, the configuration and the tokenizer.

    Args:
        model (MultiTaskModel): It stays as it is.
        tokenizer: The one saved beside it.
        folder (Path): Gets `model.onnx` with `model.onnx.data`, or `openvino_model.xml` with `.bin`; `config.json`, in
            which `max_seq_length` is the length at which the model cuts; and the tokenizer.
        graph_format (str): `onnx` or `openvino`.
        precision (str): One of `PRECISIONS[graph_format]`.

    Raises:
        ValueError: for a precision that the format is not written in, a task with the name of an input, or a graph
            that does not give the model's numbers.
    """
    if precision not in PRECISIONS[graph_format]:
        raise ValueError(
            f"The precision of {graph_format} is one of {', '.join(PRECISIONS[graph_format])}; got {precision}."
        )
    check_names(model)
    inputs = sample_inputs(model, tokenizer)
    forward = GraphForward(model)
    free = {0: torch.export.Dim("items"), 1: torch.export.Dim("tokens")}
    exporter, settings = exporter_for(graph_format, precision, dict.fromkeys(inputs, free))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own tree specifications
        exported = exporter.export(forward, inputs, config=settings)
    if graph_format == "openvino":  # read by OpenVINO when it compiles the graph
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        exported.program.set_rt_info(hint, ["runtime_options", "INFERENCE_PRECISION_HINT"])
    exported.save_pretrained(folder)
    check_graph(forward, inputs, folder, precision)
    config = copy.deepcopy(model.config)
    config.max_seq_length = model.max_length(tokenizer)
    config.auto_map = config.custom_pipelines = {}  # there are no weights here that an auto class could open
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
