"""An exported graph gives the numbers and the answers of the model it is from, for any batch and length."""

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from tiny_models import MAX_LENGTH, TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import AutoTokenizer

from cased_vocabulary import cased_tokenizer
from configuration_multitask import MultiTaskConfig
from graph_export import PRECISIONS, GraphForward, check_graph, export_graph, graph_inputs, sample_inputs
from graph_model import GraphModel
from modeling_multitask import MultiTaskModel

TEXTS = ["Anna won the game in Paris.", "Rain.", "The new phone is FAST, and the team is very good today."]
LONG = " ".join(TEXTS * 12)
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
JOINT = {"kind": "text-classification", "labels": ["no", "yes"], "text_pair": True, "head": "mlp", "pooling": "cls"}

Exported = tuple[MultiTaskModel, Any, Path]


def build(family: str, **config: Any) -> tuple[MultiTaskModel, Any]:
    """A projected, normalising model with a task of every kind, poolings of their own and wide weights."""
    encoder, tokenizer = tiny_encoder(family), tiny_tokenizer(family)
    tasks = copy.deepcopy(TINY_TASKS) | {"joint": JOINT}
    tasks["similarity"]["pooling"] = "max"
    tasks["tags"]["pooling"] = "last_token"
    settings = {"projection_dim": 24, "normalize_embeddings": True} | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, **settings), encoder).eval()
        if family == "bert":
            tokenizer, bases, cases = cased_tokenizer(tokenizer)
            model.read_case(bases, cases)
            nn.init.normal_(model.get_input_embeddings().case.weight, std=0.5)
        for parameter in model.heads.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model, tokenizer


def write(family: str, graph_format: str, precision: str, folder: Path) -> Exported:
    """A model, its tokenizer, and the folder that its graph was exported to."""
    for package in PACKAGES[graph_format]:
        if importlib.util.find_spec(package) is None:  # not importorskip, which would start OpenVINO's telemetry
            pytest.skip(f"{package} is not installed: pip install -e .[{graph_format}]")
    model, tokenizer = build(family)
    export_graph(model, tokenizer, folder, graph_format, precision)
    return model, tokenizer, folder


@pytest.fixture(scope="module", params=list(PRECISIONS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny BERT, its vocabulary cased, in float32; in each format."""
    return write("bert", request.param, "fp32", tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def differences(model: MultiTaskModel, tokenizer: Any, graph: GraphModel, texts: list[Any]) -> dict[str, float]:
    """The largest difference between graph and model in the embedding and each task's logits, on real tokens."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    seconds = {f"pair_{name}": batch[name].flip(0) for name in ("input_ids", "attention_mask")}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
    inputs |= seconds | {"pair_items": torch.arange(len(texts))}
    ours, theirs = model(**inputs), graph(**inputs)
    assert ours.logits.keys() == theirs.logits.keys()
    found = {"embedding": (ours.sentence_embedding - theirs.sentence_embedding).abs().max().item()}
    for name, expected in ours.logits.items():
        assert theirs.logits[name].shape == expected.shape, name
        real = batch["attention_mask"].bool() if expected.dim() == 3 else ...
        found[name] = (theirs.logits[name][real] - expected[real]).abs().max().item()
    return found


BATCHES: dict[str, list[Any]] = {
    "one": TEXTS[:1],
    "three": TEXTS,
    "seven": [*TEXTS, *TEXTS, "a"],
    "long": [" ".join(TEXTS * 4), "a"],
    "joined": [(TEXTS[0], TEXTS[2]), (TEXTS[2], TEXTS[1])],
}


@pytest.mark.parametrize("batch", BATCHES)
def test_the_graph_computes_what_the_model_does_for_any_batch_and_length(exported: Exported, batch: str):
    model, tokenizer, folder = exported
    found = differences(model, tokenizer, GraphModel.from_pretrained(folder), BATCHES[batch])
    assert set(found) == {"embedding", *model.config.tasks}
    assert max(found.values()) <= 1e-4, found


def without_numbers(answer: Any) -> Any:
    """An answer with its labels and offsets, in order, without scores and vectors."""
    if isinstance(answer, dict):
        kept = {key: value for key, value in answer.items() if key not in ("score", "scores", "sentence_embedding")}
        return {key: without_numbers(value) for key, value in kept.items()}
    return [without_numbers(part) for part in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("batch_size", [1, 4])
def test_predict_and_encode_answer_as_the_model_does(exported: Exported, batch_size: int):
    model, _, folder = exported
    graph, tokenizer = GraphModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, LONG, (TEXTS[0], TEXTS[2]), ("a", LONG)]
    tasks = [name for name in model.config.tasks if name != "anchor"]
    ours = model.predict(texts, tokenizer, tasks=tasks, batch_size=batch_size, bf16=False)
    theirs = graph.predict(texts, tokenizer, tasks=tasks, batch_size=batch_size)
    assert {"joint", "similarity"} <= theirs[-1].keys() and theirs[0]["ner"], "premise"
    assert [without_numbers(answer) for answer in theirs] == [without_numbers(answer) for answer in ours]
    for expected, found in zip(ours, theirs, strict=True):
        assert_allclose(found["sentence_embedding"], expected["sentence_embedding"], atol=1e-4)
        for name in expected.keys() & {"topic", "rating", "similarity", "joint"}:
            assert found[name]["score"] == pytest.approx(expected[name]["score"], abs=1e-4), name
    encoded = graph.encode([*TEXTS, LONG], tokenizer, batch_size=batch_size)
    assert_allclose(encoded, model.encode([*TEXTS, LONG], tokenizer), atol=1e-4)
    assert_allclose(
        graph.predict(["a"], tokenizer)[0]["anchor"],
        model.predict(["a"], tokenizer, bf16=False)[0]["anchor"],
        atol=1e-4,
    )


def test_openvino_is_imported_without_its_telemetry(exported: Exported):
    GraphModel.from_pretrained(exported[2])
    if "openvino" in sys.modules:
        assert sys.modules["openvino_telemetry"] is None
        assert sys.modules["openvino.tools.ovc"].telemetry.__class__.__module__ == "openvino.tools.ovc.telemetry_stub"


def test_a_graph_cannot_undo_its_normalisation(exported: Exported):
    _, tokenizer, folder = exported
    with pytest.raises(ValueError, match="The graph normalises its embeddings"):
        GraphModel.from_pretrained(folder).encode(TEXTS, tokenizer, normalize=False)


def test_the_folder_is_complete_and_says_where_texts_are_cut(exported: Exported):
    model, tokenizer, folder = exported
    config = json.loads((folder / "config.json").read_text())
    assert model.config.max_seq_length is None, "premise: the limit is that of the positions"
    assert config["max_seq_length"] == GraphModel.from_pretrained(folder).max_length(tokenizer) == MAX_LENGTH
    assert config["tasks"] == model.config.tasks
    assert {"tokenizer.json", "tokenizer_config.json", "export.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.safetensors"))
    for path in folder.glob("*.json"):
        assert str(folder) not in path.read_text()
    assert GraphModel.from_pretrained(folder).inputs == ("input_ids", "attention_mask", "token_type_ids")


@pytest.mark.parametrize(("family", "joint", "expected"), [("bert", True, 3), ("bert", False, 2), ("roberta", True, 2)])
def test_token_types_are_an_input_only_where_something_reads_them(family: str, joint: bool, expected: int):
    model, _ = build(family)
    model.config.tasks["joint"]["text_pair"] = joint
    assert len(graph_inputs(model)) == expected


def test_what_cannot_be_exported_is_refused(tmp_path: Path):
    model, tokenizer = build("bert")
    for graph_format, precision in (("onnx", "bf16"), ("openvino", "int8")):
        with pytest.raises(ValueError, match=f"The precision of {graph_format} is one of fp32"):
            export_graph(model, tokenizer, tmp_path, graph_format, precision)
    model.config.tasks["input_ids"] = model.config.tasks["topic"]
    with pytest.raises(ValueError, match=r"tasks are called \['input_ids'\]"):
        export_graph(model, tokenizer, tmp_path, "onnx", "fp32")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"model\.onnx or openvino_model\.xml; .* neither"):
        GraphModel.from_pretrained(tmp_path)


def test_a_graph_of_another_model_is_found_out(exported: Exported):
    model, tokenizer, folder = exported
    inputs = sample_inputs(model, tokenizer)
    check_graph(GraphForward(model), inputs, folder, "fp32")
    other = GraphForward(model)
    nn.init.normal_(other.model.heads["upos"].out.weight, std=0.5)
    with pytest.raises(ValueError, match="the cosine of both for 'upos' is"):
        check_graph(other, inputs, folder, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("graph_format", list(PRECISIONS))
def test_every_family_has_a_graph(family: str, graph_format: str, tmp_path: Path):
    model, tokenizer, folder = write(family, graph_format, "fp32", tmp_path)
    graph = GraphModel.from_pretrained(folder)
    for texts in BATCHES.values():
        found = differences(model, tokenizer, graph, texts)
        assert max(found.values()) <= 1e-4, found


@pytest.mark.slow
@pytest.mark.parametrize(("graph_format", "precision"), [("onnx", "int8"), ("openvino", "bf16")])
def test_a_lower_precision_is_near_and_its_file_smaller(
    graph_format: str, precision: str, tmp_path: Path, exported_size: Callable[[str], int]
):
    model, tokenizer, folder = write("bert", graph_format, precision, tmp_path)
    graph = GraphModel.from_pretrained(folder)
    found = differences(model, tokenizer, graph, TEXTS)
    assert found["embedding"] < 0.02
    assert max(found.values()) > 1e-4, "premise: it is another precision (of hardware that has it)"
    assert weight_bytes(folder) < 0.7 * exported_size(graph_format)


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights beside a graph."""
    return sum(path.stat().st_size for path in [*folder.glob("*.onnx.data"), *folder.glob("*.bin")])


@pytest.fixture
def exported_size(tmp_path: Path) -> Callable[[str], int]:
    """A function from a format to the bytes of the tiny BERT's weights in float32."""
    return lambda graph_format: weight_bytes(write("bert", graph_format, "fp32", tmp_path / "fp32")[2])
