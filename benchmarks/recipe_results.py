"""Train a recipe once a seed through the real command and write down what came out.

    python benchmarks/recipe_results.py recipes/news_entities.yaml --data_root DATA --seeds 1 2 3
    python benchmarks/recipe_results.py recipes/six_tasks.yaml --data_root DATA --seeds 1 -- --learning_rate 5e-5

Every seed is a `train_hf.py` in a process of its own. `benchmarks/results/<recipe>.json` gets
the scores of each seed, their mean and range, the seconds of training, the protocol, the hardware and the commands.
Tasks with entities are also scored through the stock `token-classification` pipeline on the raw joined text of the test
split, in exact character spans. What follows `--` goes to `train_hf.py`. Seeds that the file holds already stay in it,
unless they are run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import pipeline

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from command_help import CommandParser  # noqa: E402
from configuration_multitask import TOKEN_CLASSIFICATION, has_entities  # noqa: E402
from recipe_arguments import parse_arguments  # noqa: E402
from recipe_runs import hardware, read_result, train_apart, without_paths  # noqa: E402
from task_data import join_words, load_tasks  # noqa: E402

Span = tuple[str, int, int]


def parse_with_further(parser: CommandParser) -> tuple[argparse.Namespace, list[str]]:
    """A benchmark's arguments, and what stands behind `--`, which goes to `train_hf.py`."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]


def between_marks(text: str, begin: str, end: str, content: str) -> str:
    """A guide's text with `content` between two marks, in place of what stood there."""
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def gold_spans(tags: list[str], offsets: list[tuple[int, int]]) -> set[Span]:
    """Entities of BIO word tags as (type, first character, character after the last)."""
    spans: list[list[Any]] = []
    previous = "O"
    for tag, (start, end) in zip(tags, offsets, strict=True):
        if tag != "O":
            if previous != "O" and tag.startswith("I-") and tag[2:] == previous[2:]:
                spans[-1][2] = end
            else:
                spans.append([tag[2:], start, end])
        previous = tag
    return {(kind, start, end) for kind, start, end in spans}


def pipeline_f1(folder: str, task_name: str, rows: Any, labels: list[str], strategy: str) -> float:
    """Micro-F1 of exact character spans, by the stock pipeline on the joined words.

    `simple` is how a hosted widget calls it: each sub-word by itself. `first` gives a word its first sub-word's tag, as
    the evaluation of a run does.
    """
    stock = pipeline(
        "token-classification",
        model=folder,
        trust_remote_code=True,
        aggregation_strategy=strategy,
        model_kwargs={"task_name": task_name},
    )
    found = right = gold = 0
    for row in rows:
        text, offsets = join_words(row["tokens"])
        expected = gold_spans([labels[tag] for tag in row["label"]], offsets)
        answers = {(span["entity_group"], span["start"], span["end"]) for span in stock(text)}
        found, gold, right = found + len(answers), gold + len(expected), right + len(answers & expected)
    return 2 * right / (found + gold)


def train(recipe: str, seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run the command for one seed; returns its test scores, seconds and command."""
    words = ["train_hf.py", recipe, "--seed", str(seed), "--output_dir", str(folder), "--overwrite_output", *options]
    start = time.perf_counter()
    train_apart(words)
    result = read_result(folder)
    return {
        "seed": seed,
        "command": " ".join(["python", *without_paths(words)]),
        "train_seconds": result["train_seconds"],
        "command_seconds": round(time.perf_counter() - start, 1),
        "scores": result["scores"],
        "protocol": result["protocol"],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, lowest and highest of every score over the seeds."""
    keys = runs[0]["scores"]
    values = {key: [run["scores"][key] for run in runs] for key in keys}
    return {key: {"mean": sum(v) / len(v), "low": min(v), "high": max(v)} for key, v in values.items()}


def read_runs(output: Path) -> list[dict[str, Any]]:
    """The runs that a results file holds already, so that seeds can be added one by one."""
    return json.loads(output.read_text())["runs"] if output.exists() else []


def main() -> None:
    """Parse, train each seed, write the file."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("recipe", help="Recipe to train.")
    parser.add_argument("--data_root", required=True, help="Folder of the data sets.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="Seeds to train with.")
    parser.add_argument("--work", default="outputs/recipe_results", help="Folder for the models.")
    parser.add_argument("--output", help="Results file (default: benchmarks/results/<recipe>.json).")
    given, further = parse_with_further(parser)
    name = Path(given.recipe).stem
    options = ["--data_root", str(Path(given.data_root).resolve()), *further]
    output = Path(given.output or ROOT / "benchmarks" / "results" / f"{name}.json")
    runs = [run for run in read_runs(output) if run["seed"] not in given.seeds]
    for seed in given.seeds:
        folder = Path(given.work).resolve() / f"{name}-seed{seed}"
        run = train(given.recipe, seed, folder, options)
        _, data_args, _ = parse_arguments([given.recipe, *options])
        for task, loaded in load_tasks(data_args.tasks, data_args.data_root, seed, splits=("test",)).items():
            if loaded.spec["kind"] == TOKEN_CLASSIFICATION and has_entities(loaded.spec["labels"]):
                for strategy in ("simple", "first"):
                    score = pipeline_f1(str(folder), task, loaded.splits["test"], loaded.spec["labels"], strategy)
                    run["scores"][f"test_{task}_stock_pipeline_{strategy}_f1"] = score
        runs = sorted([*runs, run], key=lambda one: one["seed"])
        report = {"recipe": given.recipe, "hardware": hardware(), "summary": summary(runs), "runs": runs}
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(run["scores"], indent=2), f"written to {output}", sep="\n", flush=True)


if __name__ == "__main__":
    main()
