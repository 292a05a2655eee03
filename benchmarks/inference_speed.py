"""Measure how fast a model answers: all tasks in one pass against a pipeline a task, and `encode` against the original.

    python benchmarks/inference_speed.py --data_root DATA --graphs       # MiniLM; --device cuda (no graphs) on a GPU

Real sentences of mixed length (AG News, SST-2, CoNLL-2003, STS-B, as many of each), each system reading all of them a
repeat, in an order that rotates. In float32 and in bfloat16, the same for all:

- predict: topic, sentiment, entities and the embedding from `model.predict`.
- separate: three stock single-task pipelines on native heads, then `SentenceTransformer.encode`, four encoders in all.
- encode, sentence_transformer: the embedding alone.

With `--graphs`, torch and each exported graph (extras `onnx`, `openvino`) in every precision: `predict` with all that
it does around a model, and the forward pass alone.

Then the latency of one sentence, of `predict` in the precision it chooses itself: one head against eight of the kinds
above. Heads are random, entity heads biased towards no entity, as trained ones are; they cost what trained ones cost.
Loading and the first batch (warm-up) are outside of all times.
"""

import copy
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_dataset
from recipe_results import ROOT, hardware, without_paths
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
    set_seed,
)

from command_help import CommandParser
from encoder_source import find_encoder
from graph_export import PRECISIONS, export_graph
from graph_model import GraphModel
from modeling_multitask import MultiTaskModel
from pipeline_multitask import batches_by_length, computes_bfloat16
from task_data import join_words

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SEED = 42
TAGS = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")]
TASKS: dict[str, Any] = {
    "topic": {"kind": "text-classification", "labels": ["World", "Sports", "Business", "Sci/Tech"]},
    "sentiment": {"kind": "text-classification", "labels": ["negative", "positive"]},
    "ner": {"kind": "token-classification", "labels": TAGS},
}
SOURCES = {  # file of DATA: how a row becomes a sentence
    "ag_news/test": lambda row: row["text"],
    "sst2/validation": lambda row: row["sentence"],
    "conll2003/test": lambda row: join_words(row["tokens"])[0],
    "stsb/test": lambda row: row["sentence1"],
}

EQUALS = {
    "openvino fp32": "torch fp32",
    "onnx fp32": "torch fp32",
    "onnx int8": "torch fp32",
    "openvino bf16": "torch bf16",
}
"""A graph -> what it is compared with."""

System = Callable[[list[str]], Any]


def sentences(root: Path, number: int) -> list[str]:
    """As many sentences of each source, shuffled."""
    texts = []
    for source, sentence in SOURCES.items():
        rows = load_dataset("parquet", data_files=str(root / f"{source}.parquet"), split="train")
        texts += [sentence(row) for row in rows.shuffle(seed=SEED).select(range(number // len(SOURCES)))]
    random.Random(SEED).shuffle(texts)
    return texts


def prefer_no_entity(layer: Any) -> None:
    """Make the first class, O, the usual answer of a random tag head, a linear layer."""
    with torch.no_grad():
        layer.bias[0] += 1.0


def our_model(encoder: str, tasks: dict[str, Any], device: str) -> MultiTaskModel:
    """The encoder with a random head a task."""
    set_seed(SEED)
    model = MultiTaskModel.from_backbone(encoder, tasks=copy.deepcopy(tasks))
    for name, spec in tasks.items():
        if spec["kind"] == "token-classification":
            prefer_no_entity(model.heads[name].out)
    return model.to(device)


def stock_pipelines(encoder: str, dtype: torch.dtype, device: str) -> list[Any]:
    """A native single-task model and its stock pipeline for every task."""
    pipelines = []
    for spec in TASKS.values():
        is_tags = spec["kind"] == "token-classification"
        set_seed(SEED)
        auto = AutoModelForTokenClassification if is_tags else AutoModelForSequenceClassification
        model = auto.from_pretrained(encoder, num_labels=len(spec["labels"]), dtype=dtype)
        model.config.id2label = dict(enumerate(spec["labels"]))
        if is_tags:
            prefer_no_entity(model.classifier)
        options = {"aggregation_strategy": "first"} if is_tags else {"truncation": True, "top_k": None}
        tokenizer = AutoTokenizer.from_pretrained(encoder, model_max_length=256)
        pipelines.append(pipeline(spec["kind"], model=model, tokenizer=tokenizer, device=device, **options))
    return pipelines


def systems_of(encoder: str, dtype: torch.dtype, batch_size: int, device: str) -> dict[str, System]:
    """What is compared, in one precision; each takes the texts and returns when their answers are on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    answering, embedding = our_model(encoder, TASKS, device), our_model(encoder, TASKS, device).to(dtype)
    original = SentenceTransformer(encoder, device=device, model_kwargs={"dtype": dtype})
    pipelines = stock_pipelines(encoder, dtype, device)
    in_bf16 = dtype == torch.bfloat16

    def separate(texts: list[str]) -> None:
        for stock in pipelines:
            stock(texts, batch_size=batch_size)
        original.encode(texts, batch_size=batch_size)

    return {
        "predict": lambda texts: answering.predict(texts, tokenizer, batch_size=batch_size, bf16=in_bf16),
        "separate": separate,
        "encode": lambda texts: embedding.encode(texts, tokenizer, batch_size=batch_size),
        "sentence_transformer": lambda texts: original.encode(texts, batch_size=batch_size),
    }


def forward_of(model: Any, tokenizer: Any, batch_size: int, in_bf16: bool) -> System:
    """From tensors to tensors: the forward pass over texts that were tokenised the first time they came."""
    batches: dict[int, list[Any]] = {}

    @torch.no_grad()
    def system(texts: list[str]) -> None:
        if id(texts) not in batches:
            order = batches_by_length(tokenizer, texts, batch_size)
            parts = [[texts[place] for place in places] for places in order]
            options = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}
            batches[id(texts)] = [tokenizer(part, **options) for part in parts]
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            for batch in batches[id(texts)]:
                model(batch["input_ids"], batch["attention_mask"])

    return system


def graph_systems(encoder: str, batch_size: int, folder: Path) -> dict[str, dict[str, System]]:
    """`predict` and the forward pass of one model, from torch and from its graphs, which are written to a folder."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), our_model(encoder, TASKS, "cpu").eval()
    options: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch_size}
    predict: dict[str, System] = {}
    forward: dict[str, System] = {}
    for name in ("fp32", "bf16"):
        predict[f"torch {name}"] = partial(model.predict, bf16=name == "bf16", **options)
        forward[f"torch {name}"] = forward_of(model, tokenizer, batch_size, name == "bf16")
    for form, precisions in PRECISIONS.items():
        for precision in precisions:
            own = folder / f"{form}-{precision}"
            export_graph(model, tokenizer, own, form, precision)
            graph = GraphModel.from_pretrained(own)
            predict[f"{form} {precision}"] = partial(graph.predict, **options)
            forward[f"{form} {precision}"] = forward_of(graph, tokenizer, batch_size, False)
    return {"graphs": predict, "graphs, forward": forward}


def seconds_of(system: System, texts: list[str]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    system(texts)
    return time.perf_counter() - start


def throughput(systems: dict[str, System], texts: list[str], repeats: int) -> dict[str, list[float]]:
    """Texts a second of each system in each repeat."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for system in systems.values():
        system(texts[:32])
    names = list(systems)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            rates[name].append(len(texts) / seconds_of(systems[name], texts))
            print(json.dumps({"system": name, "texts_per_second": round(rates[name][-1], 1)}), flush=True)
    return rates


def latencies(encoder: str, texts: list[str], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds for one sentence, in the precision that `predict` chooses: median and 95th percentile over all."""
    eight = {f"{name}_{copy_}": spec for name, spec in TASKS.items() for copy_ in range(3)}
    del eight["ner_2"]  # three topics, three sentiments, two entities
    models = {
        "1 head": our_model(encoder, {"topic": TASKS["topic"]}, device),
        "8 heads": our_model(encoder, eight, device),
    }
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.predict(texts[:8], tokenizer)
    for _ in range(repeats):
        for text in texts:
            for name, model in models.items():
                times[name].append(1000 * seconds_of(partial(model.predict, tokenizer=tokenizer), [text]))
    return {
        name: {"p50": statistics.median(own), "p95": statistics.quantiles(own, n=20)[-1]} for name, own in times.items()
    }


def compared(rates: dict[str, list[float]], other: str, name: str) -> float:
    """How many times as fast `name` is as `other`: the median over the repeats."""
    return statistics.median(ours / theirs for ours, theirs in zip(rates[name], rates[other], strict=True))


def main() -> None:
    """Parse, measure, write the file."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--data_root", required=True, type=Path, help="Folder of the data sets.")
    parser.add_argument("--encoder", default=ENCODER, help="Folder or Hub id.")
    parser.add_argument("--texts", type=int, default=512, help="Sentences, a multiple of four.")
    parser.add_argument("--batch_size", type=int, default=32, help="Texts a batch.")
    parser.add_argument("--repeats", type=int, default=5, help="Rounds in which everything is measured once.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Where models run.")
    parser.add_argument("--graphs", action="store_true", help="Also measure the exported graphs, on the CPU.")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "inference_speed.json", help="Results file."
    )
    given = parser.parse_args()
    disable_progress_bars()
    encoder = find_encoder(given.encoder).path
    texts = sentences(given.data_root, given.texts)
    rates, ratios = {}, {}
    for dtype in ("float32", "bfloat16"):
        systems = systems_of(encoder, getattr(torch, dtype), given.batch_size, given.device)
        rates[dtype] = throughput(systems, texts, given.repeats)
        ratios[f"{dtype} predict / separate"] = compared(rates[dtype], "separate", "predict")
        ratios[f"{dtype} encode / sentence_transformer"] = compared(rates[dtype], "sentence_transformer", "encode")
    if given.graphs:
        with tempfile.TemporaryDirectory() as folder:
            for kind, systems in graph_systems(encoder, given.batch_size, Path(folder)).items():
                rates[kind] = throughput(systems, texts, given.repeats)
                for name, other in EQUALS.items():
                    part = ", forward" if "forward" in kind else ", predict"
                    ratios[f"{name} / {other}{part}"] = compared(rates[kind], other, name)
    fast = "bfloat16" if computes_bfloat16(torch.device(given.device)) else "float32"
    ratios["default / float32 predict"] = statistics.median(rates[fast]["predict"]) / statistics.median(
        rates["float32"]["predict"]
    )
    milliseconds = latencies(encoder, texts[:100], given.repeats, given.device)
    ratios["8 heads / 1 head, p50 latency"] = milliseconds["8 heads"]["p50"] / milliseconds["1 head"]["p50"]
    report = {
        "command": " ".join(["python", "benchmarks/inference_speed.py", *without_paths(sys.argv[1:])]),
        "hardware": hardware(),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "settings": {"encoder": given.encoder, "texts": len(texts), "batch_size": given.batch_size, "default": fast},
        "texts_per_second": {
            dtype: {name: statistics.median(own) for name, own in of.items()} for dtype, of in rates.items()
        },
        "repeats": rates,
        "milliseconds_per_sentence": milliseconds,
        "ratios": ratios,
    }
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(
        json.dumps(
            {name: report[name] for name in ("texts_per_second", "milliseconds_per_sentence", "ratios")}, indent=2
        )
    )


if __name__ == "__main__":
    main()
