"""Measure `predict_hf.py` on a long table: rows a second, and memory from the first tenth to the last.

    python benchmarks/long_table.py --rows 1000000

A two-layer encoder (hidden size 128, random weights, MiniLM's tokenizer) with a topic and an entity head answers a CSV
file of generated sentences. Memory is what the process holds for itself (resident, without mapped files), read twice a
second; each tenth of the rows is given by its highest. The file that comes out is read once more: as many rows, in the
order of their ids. Results, with the hardware: benchmarks/results/long_table.json.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recipe_results import ROOT, hardware
from transformers import AutoTokenizer, BertConfig, BertModel

from command_help import CommandParser
from configuration_multitask import MultiTaskConfig
from encoder_source import find_encoder
from example_data import generate
from modeling_multitask import MultiTaskModel

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
TASKS = {
    "topic": {"kind": "text-classification", "labels": ["World", "Sports", "Business", "Sci/Tech"]},
    "ner": {"kind": "token-classification", "labels": ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]},
}
TENTHS = 10


def write_model(folder: Path) -> None:
    """The two-layer model and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(find_encoder(ENCODER, offline=True).path)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False)
    MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=TASKS), encoder=encoder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_table(path: Path, rows: int) -> None:
    """Generated sentences with an id, again and again."""
    texts = dict(generate("topic"))["train"]["text"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([index, texts[index % len(texts)]] for index in range(rows))


def own_memory(pid: int) -> float:
    """Anonymous resident memory of a process in MiB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def measure(folder: Path, rows: int, window: int) -> dict[str, Any]:
    """Run the command; its seconds, and its highest memory in each tenth of the windows."""
    command = ["predict_hf.py", "model", "in.csv", "out.csv", "--window", str(window)]
    words = [sys.executable, str(ROOT / command[0]), *(str(folder / name) for name in command[1:4]), *command[4:]]
    highest = [0.0] * TENTHS
    windows = -(-rows // window)
    start = time.perf_counter()
    running = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        done = sum(1 for _ in (folder / "out.csv.parts").glob("*.csv")) if (folder / "out.csv.parts").is_dir() else 0
        tenth = min(TENTHS - 1, done * TENTHS // windows)
        highest[tenth] = max(highest[tenth], own_memory(running.pid))
        time.sleep(0.5)
    seconds = time.perf_counter() - start
    assert running.returncode == 0, f"{words} ended with {running.returncode}"
    return {
        "command": " ".join(["python", *command]),
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "memory_mib_by_tenth": [round(value, 1) for value in highest],
    }


def check(path: Path, rows: int) -> None:
    """Every row is there once, in order."""
    with path.open(newline="", encoding="utf-8") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [str(index) for index in range(rows)], "rows are missing, doubled or in another order"


def main() -> None:
    """Parse, build, measure, check, write."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="Rows of the table.")
    parser.add_argument("--window", type=int, default=4096, help="Rows held at a time.")
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks" / "results" / "long_table.json"), help="Results file."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_table(folder / "in.csv", given.rows)
        found = measure(folder, given.rows, given.window)
        check(folder / "out.csv", given.rows)
    Path(given.output).write_text(json.dumps({"hardware": hardware(), **found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
