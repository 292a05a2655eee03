"""Measure how fast training is: against other ways to train, as it grows, and on a GPU.

    python benchmarks/train_throughput.py compare --data_root DATA     # AG News + CoNLL-2003 with MiniLM
    python benchmarks/train_throughput.py growth                       # tasks, text length, batch: time and memory
    python benchmarks/train_throughput.py gpu --data_root DATA         # --device cpu --sizes tiny tries the command

`compare` trains on the same rows (half of each data set, texts cut at 128 tokens), with the same rows an optimizer step
and the encoder's own dropout:

- classic_loop: float32, every text padded to 128 tokens, a batch of each task a step, two passes of the encoder.
- two_trainers: two stock Trainers, one a task, with their defaults (float32, random order, padded to the longest).
- two_tuned_trainers: the same in bf16, with batches of like length.
- ours: what `train_hf.py` does, on both tasks at once; once more with `--freeze embeddings`.

The rows are cut into a chunk a repeat; in a repeat every system trains a new model on that chunk, in an order that
rotates. Before it, each trains a model on other rows (`--warm_steps`), which does not count: leaving out the first
steps of the chunk would leave out the longest texts of length-grouped batches. Time runs from the first batch's reading
to the end of the last step; building, tokenising, sorting and logging are outside. `matrix_rate_share` is 6 N floating
point operations a real token (N: parameters of the encoder without embeddings) over the bf16 rate of a large matrix
product, measured before each repeat; `mfu` adds attention, 12 layers x hidden x tokens^2 a row.

`growth` runs each point of `ours` on synthetic token ids in bursts, each in a process of its own, so that its peak of
memory is its own. `gpu` is `compare` on random encoders of two sizes against a Trainer of one task (from which data set
is this text?) on the same rows. What follows `--` goes to `ours`, as to `train_hf.py`.
"""

import argparse
import gc
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from recipe_results import ROOT, hardware, without_paths
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from arguments_multitask import DataArguments, ModelArguments, MultiTaskTrainingArguments
from command_help import CommandParser
from configuration_multitask import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from data_collator import MultiTaskDataCollator
from encoder_source import find_encoder
from recipe_arguments import parse_arguments
from task_data import LoadedTask, load_tasks
from task_features import TaskFeatures, build_features
from task_plots import TASK_COLORS, has_matplotlib, save, style_axes
from trainer_multitask import MultiTaskTrainer, SamplingGuard
from training_run import build_model, build_sampling, use_cheaper_steps

ENCODER = "all-MiniLM-L6-v2"
MAX_LENGTH = 128
SEED = 42
LEARNING_RATE = 5e-5
MIB = 2**20
TASKS: dict[str, Any] = {
    "topic": {"dataset": "fancyzhx/ag_news", "columns": {"text": "text", "label": "label"}},
    "ner": {"dataset": "lhoestq/conll2003", "columns": {"tokens": "tokens", "label": "ner_tags"}},
}
SIZES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
}
"""Random encoders of `gpu`; `tiny` is there to try the command."""
POINT = {"tasks": 2, "tokens": 32, "batch": 32}
"""The point of `growth` through which its three axes run."""

Rows = dict[str, Any]
"""Task -> features, as `task_features` makes them."""


class Meter(TrainerCallback):
    """Seconds, rows, token places and losses of one training: a callback of Trainers, called by hand in a loop."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = 0.0
        self.rows = self.places = 0
        self.losses: list[torch.Tensor] = []

    def watch(self, model: Any) -> None:
        """Count what the model reads, and keep its losses, from now on."""
        model.register_forward_hook(self._read, with_kwargs=True)

    def _read(self, model: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        self.rows += inputs["input_ids"].shape[0]
        self.places += inputs["input_ids"].numel()
        self.losses.append(output["loss"].detach())

    def start(self) -> None:
        """Start the clock, when the device has done what it was given before."""
        synchronize(self.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock, when the device has done all its work."""
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Everything is built: batches are read next."""
        self.start()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """The last step is done (there is one epoch)."""
        self.stop()

    def check(self, system: str, rows: int) -> None:
        """Raise RuntimeError unless all rows were read once, and every loss was finite."""
        finite = bool(torch.stack(self.losses).isfinite().all())
        if self.rows != rows or not finite:
            raise RuntimeError(
                f"A system must train on each of {rows} rows, with finite losses, or its time means nothing; {system} "
                f"read {self.rows}, and its losses were {'finite' if finite else 'not finite'}. Train it by itself."
            )


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Bench:
    """What all systems share: the arguments, as `train_hf.py` parses them, and the tasks.

    Attributes:
        model (ModelArguments): Names the encoder's folder.
        data (DataArguments): The order of rows of `ours`.
        args (MultiTaskTrainingArguments): Batch size, device and seed of every system, all the rest of `ours`.
        loaded (dict): Task -> its specification (and rows, which are not read here).
    """

    model: ModelArguments
    data: DataArguments
    args: MultiTaskTrainingArguments
    loaded: dict[str, LoadedTask]


def train(trainer: Any, meter: Meter) -> None:
    """Run a Trainer under the meter, silently."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(meter)
    meter.watch(trainer.model)
    trainer.train()


def ours(bench: Bench, rows: Rows, meter: Meter, freeze_embeddings: bool = False) -> None:
    """One model for all tasks, put together as in `train_hf.py`."""
    model, tokenizer = build_model(bench.model, bench.loaded, offline=True)
    sampling = build_sampling(TaskFeatures(train=rows), bench.data, bench.args, bench.data.sampling_shares)
    if freeze_embeddings:
        model.freeze("embeddings")
    use_cheaper_steps(model, bench.args)
    trainer = MultiTaskTrainer(
        model=model,
        args=bench.args,
        processing_class=tokenizer,
        data_collator=MultiTaskDataCollator(tokenizer, model.config.tasks),
        train_dataset=sampling,
        callbacks=[SamplingGuard(sampling)],
    )
    train(trainer, meter)


def classic_loop(bench: Bench, rows: Rows, meter: Meter) -> None:
    """Plain PyTorch: a batch of each task a step, all texts padded to one length, the encoder run once a task."""
    model, tokenizer = build_model(bench.model, bench.loaded, offline=True)
    model.to(bench.args.device).train()
    meter.watch(model)
    collator = MultiTaskDataCollator(tokenizer, model.config.tasks, pad_to_multiple_of=MAX_LENGTH)
    size = bench.args.per_device_train_batch_size // len(rows)
    loaders = [DataLoader(one, batch_size=size, shuffle=True, collate_fn=collator) for one in rows.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    meter.start()
    for batches in zip(*loaders, strict=True):
        losses = [model(**move(batch, bench.args.device)).loss for batch in batches]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    meter.stop()


def move(batch: Any, device: torch.device) -> Any:
    """A batch's tensors, and those in its mapping of labels, on a device."""
    return {key: move(value, device) for key, value in batch.items()} if isinstance(batch, dict) else batch.to(device)


def group_by_length(rows: Dataset, batch_size: int) -> Dataset:
    """The order of Trainer's `group_by_length`, in the windows of 50 batches that it has in a full run.

    It makes them smaller for fewer than 200 batches (twelve for a chunk of 50 batches: 12 % padding in place of 3 %),
    and would be slower in this benchmark than where it is used.
    """
    return rows.select(get_length_grouped_indices(list(rows["length"]), batch_size, mega_batch_mult=50))


def stock_trainer(
    bench: Bench, rows: Dataset, kind: str, num_labels: int, meter: Meter, bf16: bool, grouped: bool
) -> None:
    """The stock Trainer on one task. `rows` has `input_ids`, `labels` and `length`."""
    classes = {
        TEXT_CLASSIFICATION: (AutoModelForSequenceClassification, DataCollatorWithPadding),
        TOKEN_CLASSIFICATION: (AutoModelForTokenClassification, DataCollatorForTokenClassification),
    }
    model_class, collator_class = classes[kind]
    tokenizer = AutoTokenizer.from_pretrained(bench.model.encoder)
    batch_size = bench.args.per_device_train_batch_size
    args = TrainingArguments(
        output_dir=bench.args.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential" if grouped else "random",
        bf16=bf16,
        dataloader_num_workers=bench.args.dataloader_num_workers,
        use_cpu=bench.args.use_cpu,
        seed=bench.args.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model_class.from_pretrained(bench.model.encoder, num_labels=num_labels),
        args=args,
        processing_class=tokenizer,
        data_collator=collator_class(tokenizer),
        train_dataset=group_by_length(rows, batch_size) if grouped else rows,
    )
    train(trainer, meter)


def two_trainers(bench: Bench, rows: Rows, meter: Meter, bf16: bool = False, grouped: bool = False) -> None:
    """A stock Trainer for each task, one after the other; the meter adds their seconds."""
    for name, features in rows.items():
        spec = bench.loaded[name].spec
        own = features.flatten().rename_column(f"labels.{name}", "labels")
        stock_trainer(bench, own, spec["kind"], len(spec["labels"]), meter, bf16, grouped)


def one_trainer(bench: Bench, rows: Rows, meter: Meter, bf16: bool = False, grouped: bool = False) -> None:
    """One stock Trainer for the texts of all tasks; the label is the data set that a text is of."""
    parts = [
        features.select_columns(["input_ids", "length"]).add_column("labels", [label] * len(features))
        for label, features in enumerate(rows.values())
    ]
    stock_trainer(bench, concatenate_datasets(parts), TEXT_CLASSIFICATION, len(parts), meter, bf16, grouped)


System = Callable[[Bench, Rows, Meter], None]
SYSTEMS: dict[str, System] = {
    "classic_loop": classic_loop,
    "two_trainers": two_trainers,
    "two_tuned_trainers": partial(two_trainers, bf16=True, grouped=True),
    "ours": ours,
    "ours_frozen_embeddings": partial(ours, freeze_embeddings=True),
}
GPU_SYSTEMS: dict[str, System] = {
    "one_trainer": partial(one_trainer, bf16=True),
    "one_tuned_trainer": partial(one_trainer, bf16=True, grouped=True),
    "ours": ours,
}


def our_arguments(
    encoder: str, tasks: dict[str, Any], batch_size: int, device: str, folder: str, further: list[str]
) -> tuple[ModelArguments, DataArguments, MultiTaskTrainingArguments]:
    """The arguments of `ours`: the defaults of `train_hf.py`, one epoch, nothing evaluated, saved or logged."""
    options = {
        "tasks": json.dumps(tasks),
        "encoder": encoder,
        "max_seq_length": MAX_LENGTH,
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "output_dir": folder,
    }
    return parse_arguments([*(word for key, value in options.items() for word in (f"--{key}", str(value))), *further])


def cut_chunks(train: Rows, sizes: list[int]) -> list[Rows]:
    """Consecutive chunks with so many rows of each task, shuffled before.

    Raises:
        ValueError: if a task has too few rows.
    """
    short = {name: len(features) for name, features in train.items() if len(features) < sum(sizes)}
    if short:
        raise ValueError(
            f"Every row is read once, so these steps need {sum(sizes)} training rows of each task; there are {short}. "
            "Lower --steps, --warm_steps or --batch_size."
        )
    shuffled = {name: features.shuffle(seed=SEED) for name, features in train.items()}
    ends = np.cumsum([0, *sizes]).tolist()
    return [
        {name: features.select(range(start, end)) for name, features in shuffled.items()}
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]


def prepare(given: argparse.Namespace, encoder: str, folder: str) -> tuple[Bench, list[Rows]]:
    """What the systems share, and the chunks of rows: the first to warm up, then one a repeat.

    Raises:
        ValueError: if steps or batches cannot be divided as promised, or there are too few rows.
    """
    if given.steps % (2 * given.repeats) or given.batch_size % 2:
        raise ValueError(
            "A step has half its rows of each task, and a repeat as many steps of each: --steps must be a multiple of "
            f"2 x --repeats and --batch_size even; got {given.steps}, {given.repeats} and {given.batch_size}."
        )
    half = given.batch_size // 2
    sizes = [given.warm_steps * half] + [given.steps // given.repeats * half] * given.repeats
    further = ["--data_root", str(given.data_root), "--dataloader_num_workers", str(given.workers), *given.further]
    model, data, args = our_arguments(encoder, TASKS, given.batch_size, given.device, folder, further)
    loaded = load_tasks(data.tasks, data.data_root, SEED, splits=("train",))
    features = build_features(loaded, AutoTokenizer.from_pretrained(encoder), MAX_LENGTH, splits=("train",))
    return Bench(model, data, args, loaded), cut_chunks(features.train, sizes)


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second of a square product, the best of several runs of 0.3 seconds together."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    begun, best = time.perf_counter(), 0.0
    for run in range(100):
        synchronize(left.device)
        start = time.perf_counter()
        torch.matmul(left, right)
        synchronize(left.device)
        end = time.perf_counter()
        best = max(best, 2 * size**3 / (end - start)) if run else best  # the first one warms up
        if run and end - begun > 0.3:
            break
    return best


def encoder_facts(folder: str) -> dict[str, Any]:
    """Parameters of an encoder without embeddings (and pooler), its layers, width and dropout."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        parameters = AutoModel.from_config(config).named_parameters()
    counted = sum(value.numel() for name, value in parameters if not name.startswith(("embeddings.", "pooler.")))
    dropouts = {"hidden_dropout": config.hidden_dropout_prob, "attention_dropout": config.attention_probs_dropout_prob}
    return {"parameters": counted, "layers": config.num_hidden_layers, "hidden": config.hidden_size, **dropouts}


def ratios(rates: dict[str, list[float]], of: str) -> dict[str, float]:
    """How many times faster than each system `of` is: the median over repeats of the ratio within a repeat."""
    pairs = {name: zip(rates[of], values, strict=True) for name, values in rates.items()}
    return {name: statistics.median(one / other for one, other in pair) for name, pair in pairs.items()}


def measure(given: argparse.Namespace, encoder: str, systems: dict[str, System]) -> dict[str, Any]:
    """Train with every system in every repeat; the report of `compare`, and of one size of `gpu`."""
    with tempfile.TemporaryDirectory(prefix="train-throughput-") as folder:
        bench, (warm, *chunks) = prepare(given, encoder, folder)
        facts = encoder_facts(encoder)
        lengths = [np.concatenate([np.asarray(part["length"]) for part in chunk.values()]) for chunk in chunks]
        meters: dict[str, list[Meter]] = {name: [] for name in systems}
        dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
        products: dict[str, list[float]] = {name: [] for name in dtypes}
        for repeat, chunk in enumerate(chunks):
            for name, dtype in dtypes.items():
                products[name].append(matrix_rate(given.device, dtype, given.matrix_size))
            turn = repeat % len(systems)
            for name in [*systems][turn:] + [*systems][:turn]:
                for part in (warm, chunk):
                    gc.collect()
                    set_seed(SEED + repeat)
                    meter = Meter(bench.args.device)
                    systems[name](bench, part, meter)
                    meter.check(name, sum(map(len, part.values())))
                meters[name].append(meter)
                print(f"repeat {repeat + 1}: {name} {meter.rows / meter.seconds:.1f} rows/s", flush=True)
    rates = {name: [meter.rows / meter.seconds for meter in own] for name, own in meters.items()}
    peak = statistics.median(products["bf16"])
    report = {}
    for name, own in meters.items():
        tokens = [int(of.sum()) / meter.seconds for of, meter in zip(lengths, own, strict=True)]
        attention = 12 * facts["layers"] * facts["hidden"]
        squares = [attention * int((of**2).sum()) / meter.seconds for of, meter in zip(lengths, own, strict=True)]
        flops = [6 * facts["parameters"] * one for one in tokens]
        report[name] = {
            "rows_per_second": [round(rate, 2) for rate in rates[name]],
            "median": round(statistics.median(rates[name]), 2),
            "times_faster": {one: round(ratios(rates, of=one)[name], 3) for one in rates if one.startswith("ours")},
            "tokens_per_second": round(statistics.median(tokens)),
            "padding": round(1 - sum(int(of.sum()) for of in lengths) / sum(meter.places for meter in own), 4),
            "matrix_rate_share": round(statistics.median(flops) / peak, 5),
            "mfu": round(statistics.median(map(sum, zip(flops, squares, strict=True))) / peak, 5),
            "last_loss": round(float(own[-1].losses[-1]), 4),
        }
        print(name, json.dumps(report[name]), flush=True)
    return {
        "encoder": facts,
        "matrix_gflops": {name: round(statistics.median(values) / 1e9, 1) for name, values in products.items()},
        "rows_a_repeat": len(lengths[0]),
        "tokens_a_row": round(float(np.concatenate(lengths).mean()), 1),
        "bf16_of_ours": bench.args.bf16,
        "systems": report,
    }


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """The report of `compare`."""
    chosen = [name for name in SYSTEMS if name in [*given.systems, "ours"]]
    return measure(given, find_encoder(given.encoder).path, {name: SYSTEMS[name] for name in chosen})


def gpu(given: argparse.Namespace) -> dict[str, Any]:
    """The report of `gpu`: for each size what `measure` finds with a random encoder of it."""
    report: dict[str, Any] = {}
    tokenizer = AutoTokenizer.from_pretrained(find_encoder(given.encoder).path)
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="train-throughput-") as folder:
            set_seed(SEED)
            config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES[size])
            AutoModel.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            report[size] = measure(given, folder, GPU_SYSTEMS)
    return {"sizes": report}


def synthetic_rows(tasks: int, tokens: int, rows: int, vocabulary: int) -> Rows:
    """Random token ids of one length, dealt out to classification tasks with four classes."""
    generator = np.random.default_rng(SEED)
    ids = generator.integers(vocabulary // 20, vocabulary, size=(rows, tokens)).tolist()
    names = [f"task{number:02}" for number in range(tasks)]
    return {
        name: [{"input_ids": one, "labels": {name: index % 4}} for index, one in enumerate(ids[place::tasks])]
        for place, name in enumerate(names)
    }


def burst(encoder: str, device: str, steps: int, point: dict[str, int], further: list[str]) -> dict[str, Any]:
    """A short training of `ours` at one point: rows a second, and this process's peak of memory in MiB."""
    before = rss()
    vocabulary = AutoConfig.from_pretrained(encoder).vocab_size
    with tempfile.TemporaryDirectory(prefix="train-throughput-") as folder:
        rows = synthetic_rows(point["tasks"], point["tokens"], steps * point["batch"], vocabulary)
        warm = {name: features[: -(-2 * point["batch"] // len(rows))] for name, features in rows.items()}
        spec = {"kind": TEXT_CLASSIFICATION, "labels": list("abcd")}
        loaded = {name: LoadedTask(name, spec, {}, [], {}, name) for name in rows}
        datasets = dict.fromkeys(rows, {"dataset": "synthetic"})
        arguments = our_arguments(encoder, datasets, point["batch"], device, folder, further)
        for part in (warm, rows):
            meter = Meter(arguments[2].device)
            ours(Bench(*arguments, loaded), part, meter)
        meter.check(str(point), steps * point["batch"])
    on_gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else rss()
    return {"rows_per_second": meter.rows / meter.seconds, "peak_mib": peak, "start_mib": 0.0 if on_gpu else before}


def rss() -> float:
    """This process's peak of resident memory in MiB (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth(given: argparse.Namespace) -> dict[str, Any]:
    """The report of `growth`: each point's bursts, all points in every repeat, each burst in a process of its own."""
    axes = {name: [POINT | {name: value} for value in getattr(given, name)] for name in POINT if getattr(given, name)}
    points = [dict(point) for point in dict.fromkeys(tuple(p.items()) for axis in axes.values() for p in axis)]
    found: list[list[dict[str, Any]]] = [[] for _ in points]
    words = ["--encoder", given.encoder, "--device", given.device, "--steps", str(given.steps)]
    for _ in range(given.repeats):
        for place, point in enumerate(points):
            at = ["--point", *map(str, point.values())]
            process = [sys.executable, __file__, "growth", *words, *at, "--", *given.further]
            done = subprocess.run(process, stdout=subprocess.PIPE, text=True, check=True)
            found[place].append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(point | found[place][-1]), flush=True)
    found_at = [summary(point, bursts) for point, bursts in zip(points, found, strict=True)]
    return {"axes": {name: [found_at[points.index(point)] for point in axis] for name, axis in axes.items()}}


def summary(point: dict[str, int], bursts: list[dict[str, Any]]) -> dict[str, Any]:
    """A point with the median of each figure over its bursts, and all its rates."""
    rates = [round(one["rows_per_second"], 2) for one in bursts]
    medians = {key: round(statistics.median(one[key] for one in bursts), 2) for key in bursts[0]}
    return point | medians | {"rates": rates}


def plot_growth(axes: dict[str, list[dict[str, Any]]], path: Path) -> Path | None:
    """Draw rows/s and peak memory over tasks, text length and batch, six panels; None without matplotlib."""
    if not has_matplotlib():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), dpi=150, layout="constrained")
    names = {"tasks": "tasks", "tokens": "tokens a text", "batch": "rows a batch"}
    panels = figure.subplots(2, len(axes), squeeze=False)
    for row, (key, title) in enumerate((("rows_per_second", "Training rows/s"), ("peak_mib", "Peak memory (MiB)"))):
        for axis, (name, points) in zip(panels[row], axes.items(), strict=True):
            values = [point[name] for point in points]
            color = TASK_COLORS[row]
            heights = [point[key] for point in points]
            axis.plot(values, heights, color=color, marker="o", markersize=5, linewidth=1.6)
            fixed = ", ".join(f"{value} {names[other]}" for other, value in POINT.items() if other != name)
            style_axes(axis, title)
            axis.set_xlabel(f"{names[name]} ({fixed})")
            axis.set_xscale("log")
            axis.set_xlim(values[0] / 1.2, values[-1] * 1.2)
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.set_ylim(0, 1.1 * max(heights))
    return save(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
    parser = CommandParser(doc=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = {"compare": ("cpu", 32, 300, 3), "gpu": ("cuda", 256, 90, 10)}
    for name, (device, batch_size, steps, warm_steps) in defaults.items():
        command = commands.add_parser(name).add_argument_group("steps that are timed")
        command.add_argument("--data_root", required=True, help="Folder with ag_news and conll2003.")
        command.add_argument("--batch_size", type=int, default=batch_size, help="Rows an optimizer step.")
        command.add_argument("--steps", type=int, default=steps, help="Timed steps of a system, over all repeats.")
        command.add_argument("--warm_steps", type=int, default=warm_steps, help="Steps before each timing.")
        command.add_argument("--workers", type=int, default=0, help="Processes that read batches, of every Trainer.")
        command.add_argument(
            "--matrix_size",
            type=int,
            default=8192 if name == "gpu" else 4096,
            help="Rows and columns of the large product.",
        )
        command.add_argument("--device", choices=["cpu", "cuda"], default=device, help="Where models train.")
    commands.choices["compare"].add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="Which to time; ours always is."
    )
    commands.choices["gpu"].add_argument(
        "--sizes", nargs="+", choices=SIZES, default=["base", "minilm"], help="Encoders to train."
    )
    command = commands.add_parser("growth").add_argument_group("steps that are timed")
    command.add_argument("--tasks", type=int, nargs="*", default=[1, 2, 6, 20], help="Numbers of tasks.")
    command.add_argument(
        "--tokens", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512], help="Lengths of texts, in tokens."
    )
    command.add_argument("--batch", type=int, nargs="*", default=[8, 16, 32, 64, 128], help="Rows a batch.")
    command.add_argument("--steps", type=int, default=12, help="Timed steps of a burst.")
    command.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="Where models train.")
    for each in commands.choices.values():
        command = each.add_argument_group("measurement")
        command.add_argument("--encoder", default=ENCODER, help="Folder or Hub id (for gpu: of the tokenizer).")
        command.add_argument("--repeats", type=int, default=3, help="Rounds in which everything is measured once.")
        command.add_argument("--output", help="Results file (default: benchmarks/results/...).")
    return parser


def main(words: list[str] | None = None) -> None:
    """Parse, measure, write the file."""
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    given = make_parser().parse_args(words[:cut])
    given.further = words[cut + 1 :]
    transformers.utils.logging.set_verbosity_error()  # heads start at random: that is meant
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    logging.getLogger("modeling_multitask").setLevel(logging.ERROR)  # what it takes over, for each new model
    if given.command == "growth" and given.point:
        point = dict(zip(POINT, given.point, strict=True))
        print(json.dumps(burst(find_encoder(given.encoder).path, given.device, given.steps, point, given.further)))
        return
    name = {"compare": "train_throughput", "growth": "train_growth", "gpu": "train_gpu"}[given.command]
    output = Path(given.output or ROOT / "benchmarks" / "results" / f"{name}.json")
    hidden = ("command", "data_root", "output", "point")
    settings = {key: value for key, value in vars(given).items() if key not in hidden}
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    report = {
        "command": command_line(words),
        "hardware": hardware() | {"device": device},
        "settings": settings | {"encoder": Path(given.encoder).name, "max_length": MAX_LENGTH, "seed": SEED},
        **{"compare": compare, "growth": growth, "gpu": gpu}[given.command](given),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {output}")
    if given.command == "growth":
        print(f"plot: {plot_growth(report['axes'], output.with_suffix('.png'))}")


def command_line(words: list[str]) -> str:
    """The command, without folders of this machine."""
    shown = without_paths(words)
    for flag in ("--encoder", "--output"):
        if flag in shown:
            shown[shown.index(flag) + 1] = Path(shown[shown.index(flag) + 1]).name
    return " ".join(["python", "benchmarks/train_throughput.py", *shown])


if __name__ == "__main__":
    main()
