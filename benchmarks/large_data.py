"""Measure a task of millions of rows, and many tasks on one model.

    python benchmarks/large_data.py                                   # 2,000,000 rows, then 1 2 6 20 50 tasks
    python benchmarks/large_data.py --rows 200000 --tasks --output outputs/large_data.json

A generated Parquet file (short texts, four classes) goes through what `train_hf.py` does before training, each stage in
a process of its own: `load` opens and checks the rows and cuts a validation split, `tokenise` makes the features and
counts duplicates, `start_again` does both from the cache, `plan` makes the order, prints the plan and collates the
first batch. Written for each: wall and CPU seconds, and how far memory grew at its peak, anonymous memory (what the
process really holds) apart from file pages (the memory-mapped Arrow files, which the system may drop), and how much
anonymous memory is still held after the stage.

`--tasks` measures one training step of the encoder with N classification heads on batches that mix all tasks: CPU
milliseconds of reading the rows, collating, forward with loss, backward, optimizer. The encoder is all-MiniLM-L6-v2
where its package is installed (extra `encoder`). Results go to `benchmarks/results/large_data.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from recipe_results import ROOT, hardware
from transformers import AutoTokenizer

from arguments_multitask import TaskArguments
from command_help import CommandParser
from data_collator import MultiTaskDataCollator
from encoder_source import find_encoder
from modeling_multitask import MultiTaskModel
from task_data import load_tasks
from task_features import build_features
from task_sampler import TaskSamplingDataset

ENCODER = "all-MiniLM-L6-v2"
MAX_LENGTH = 128
BATCH = 32
SEED = 42
LABELS = ("business", "science", "sport", "world")
WORDS = (
    "rain sun team game phone market share price train river city people old new cold fast light house music road "
    "early late price report week plan vote law bank test star ocean engine field paper doctor winter garden"
).split()
STAGES = ("load", "tokenise", "start_again", "plan")
MIB = 2**20


def write_rows(path: Path, rows: int, chunk: int = 50_000) -> None:
    """Write `rows` short texts (6 to 20 words and their number) with a class name each, a row group at a time."""
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    generator = np.random.default_rng(SEED)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, chunk):
            count = min(chunk, rows - start)
            chosen = generator.integers(len(WORDS), size=(count, 20)).tolist()
            lengths = generator.integers(6, 21, size=count).tolist()
            texts = [
                f"{' '.join(WORDS[word] for word in words[:length])} {start + number}"
                for number, (words, length) in enumerate(zip(chosen, lengths, strict=True))
            ]
            labels = generator.choice(LABELS, size=count).tolist()
            writer.write_table(pa.table({"text": texts, "label": labels}, schema))


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB: anonymous, and pages of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(fields[name].split()[0]) / 1024 for kind, name in (("anonymous", "RssAnon"), ("file", "RssFile"))}


@contextmanager
def measured(rows: int) -> Iterator[dict[str, Any]]:
    """Fill the dict with seconds, and the peak growth of memory per million rows, of what runs inside."""
    before, peak, done = memory(), memory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            now = memory()
            peak.update({kind: max(peak[kind], now[kind]) for kind in now})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    figures: dict[str, Any] = {}
    yield figures
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    figures |= {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}
    figures["cpu_seconds_per_million_rows"] = round(cpu / rows * 1e6, 1)
    figures["anonymous_mib_after"] = round(memory()["anonymous"] - before["anonymous"], 1)
    for kind, most in peak.items():
        figures[f"{kind}_mib"] = round(most - before[kind], 1)
        figures[f"{kind}_mib_per_million_rows"] = round((most - before[kind]) / rows * 1e6, 1)


def run_stage(stage: str, path: Path, rows: int) -> dict[str, Any]:
    """One stage, measured; what comes before it is read from the cache first."""
    tokenizer = AutoTokenizer.from_pretrained(find_encoder(ENCODER).path)
    tokenizer(["to start with"], return_offsets_mapping=True)
    tasks = {"topic": TaskArguments(dataset=str(path))}
    load = partial(load_tasks, tasks, seed=SEED)
    build = partial(build_features, tokenizer=tokenizer, max_length=MAX_LENGTH)
    if stage == "load":
        with measured(rows) as figures:
            load()
    elif stage == "tokenise":
        loaded = load()
        with measured(rows) as figures:
            build(loaded)
    elif stage == "start_again":
        with measured(rows) as figures:
            build(load())
    else:
        loaded = load()
        features = build(loaded)
        collator = MultiTaskDataCollator(tokenizer, {name: task.spec for name, task in loaded.items()})
        with measured(rows) as figures:
            sampling = TaskSamplingDataset(features.train, rows_per_step=BATCH, num_epochs=3, cap=None)
            print(sampling.plan(BATCH), file=sys.stderr)
            collator([sampling[place] for place in range(BATCH)])
    return figures


def run_stages(rows: int, work: str | None) -> dict[str, Any]:
    """Every stage in a fresh process that shares a cache with the one before it."""
    with tempfile.TemporaryDirectory(dir=work, prefix="large-data-") as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, rows)
        found: dict[str, Any] = {"rows": rows, "parquet_mib": round(path.stat().st_size / MIB, 1)}
        for stage in STAGES:
            words = [sys.executable, __file__, "--rows", str(rows), "--stage", stage, str(path)]
            environment = os.environ | {"HF_DATASETS_CACHE": str(Path(folder) / "cache")}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            print(stage, json.dumps(found[stage]), flush=True)
        cache = sum(file.stat().st_size for file in Path(folder, "cache").rglob("*.arrow"))
        return found | {"arrow_mib": round(cache / MIB, 1)}


def measure_step(tasks: int, steps: int) -> dict[str, Any]:
    """CPU milliseconds of one training step with that many heads; the median of `steps`, after two to warm up."""
    source = find_encoder(ENCODER).path
    tokenizer = AutoTokenizer.from_pretrained(source)
    names = [f"task{number:02}" for number in range(tasks)]
    spec = {"kind": "text-classification", "labels": list(LABELS)}
    torch.manual_seed(SEED)
    model: Any = MultiTaskModel.from_backbone(source, tasks=dict.fromkeys(names, spec))
    generator = np.random.default_rng(SEED)
    texts = [" ".join(generator.choice(WORDS, size=16)) for _ in range(64)]
    ids = tokenizer(texts)["input_ids"]
    rows = {name: [{"input_ids": one, "labels": {name: i % 4}} for i, one in enumerate(ids)] for name in names}
    sampling = TaskSamplingDataset(rows, strategy="uniform", rows_per_step=BATCH, grouping="none")
    collator = MultiTaskDataCollator(tokenizer, model.config.tasks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    parts: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        parts.setdefault(part, []).append((time.process_time() - start) * 1e3)
        return result

    model.train()
    for step in range(steps + 2):
        places = [(step * BATCH + place) % len(sampling) for place in range(BATCH)]
        items = timed("read", partial(list, map(sampling.__getitem__, places)))
        batch = timed("collate", partial(collator, items))
        output = timed("forward", partial(model, **batch))
        timed("backward", output.loss.backward)
        timed("optimizer", optimizer.step)
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        for _ in range(steps + 2):
            timed("inference", partial(model, batch["input_ids"], batch["attention_mask"]))
    medians = {part: statistics.median(values[2:]) for part, values in parts.items()}
    inference = medians.pop("inference")
    return {
        "tasks": tasks,
        "items": BATCH,
        "tokens_an_item": len(ids[0]),
        "step_ms": round(sum(medians.values()), 1),
        "ms_per_item": round(sum(medians.values()) / BATCH, 2),
        "parts_ms": {part: round(value, 2) for part, value in medians.items()},
        "all_heads_forward_ms": round(inference, 1),
    }


def main() -> None:
    """Parse, measure, write the file."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="Rows of the generated task; 0 to leave it out.")
    parser.add_argument("--tasks", type=int, nargs="*", default=[1, 2, 6, 20, 50], help="Numbers of heads.")
    parser.add_argument("--steps", type=int, default=10, help="Training steps measured for each number of heads.")
    parser.add_argument("--work", help="Folder for the generated data (default: the system's temporary one).")
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks" / "results" / "large_data.json"), help="Results file."
    )
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(run_stage(given.stage[0], Path(given.stage[1]), given.rows)))
        return
    output = Path(given.output)
    report = json.loads(output.read_text()) if output.exists() else {}
    report |= {"hardware": hardware(), "encoder_and_tokenizer": ENCODER, "command": command(sys.argv[1:])}
    if given.rows:
        report["large_task"] = run_stages(given.rows, given.work)
    if given.tasks:
        report["many_tasks"] = []
    for tasks in given.tasks:
        report["many_tasks"].append(measure_step(tasks, given.steps))
        print(json.dumps(report["many_tasks"][-1]), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {output}")


def command(words: list[str]) -> str:
    """The command line, without folders of this machine."""
    shown = list(words)
    for flag in ("--work", "--output"):
        if flag in shown:
            shown[shown.index(flag) + 1] = "..."
    return " ".join(["python", "benchmarks/large_data.py", *shown])


if __name__ == "__main__":
    main()
