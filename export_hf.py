"""Command: write a saved model in a form that opens without code of ours.

    python export_hf.py outputs/news --task ner --format native --output outputs/news-ner   # BertForTokenClassification
    python export_hf.py outputs/news --format native --output outputs/news-embedding        # SentenceTransformer(...)
    python export_hf.py outputs/news --format onnx --precision int8 --output outputs/news-int8 --data RECIPE.yaml

`native` is one task (without `--task`: the embedding) as the encoder's own class, for hosted widgets and TEI; it is
refused where that class computes something else than the head. `onnx` and `openvino` are one graph with the embedding
and every task, which `graph_model.GraphModel` runs (extras `onnx`, `openvino`). With `--data` each task is scored with
the model and with its graph, and `export_results.json` beside the graph says what the precision costs.
"""

import argparse
import json
import logging
from pathlib import Path

from arguments_multitask import SPLITS
from command_help import CommandParser
from export_scores import compare, read_rows, score
from graph_export import PRECISIONS, export_graph
from graph_model import GraphModel
from input_errors import one_line_errors
from native_export import write_native
from saved_model import open_model

NATIVE = "native"
RESULTS_FILE = "export_results.json"


def parse_export(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model, or a Hub id.")
    form = parser.add_argument_group("form")
    form.add_argument("--output", required=True, metavar="OUT", help="Folder to write.")
    form.add_argument("--format", required=True, choices=(NATIVE, *PRECISIONS), help="What to write.")
    form.add_argument("--task", metavar="NAME", help="The one task of a native folder (default: the embedding).")
    form.add_argument("--precision", help="Of a graph: fp32 (default), onnx also int8, openvino also bf16.")
    form.add_argument("--overwrite_output", action="store_true", help="Write into a folder that holds files already.")
    form.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    scores = parser.add_argument_group("scores of a graph beside those of the model")
    scores.add_argument("--data", metavar="RECIPE.yaml", help="Recipe with the rows (default: nothing is scored).")
    scores.add_argument("--data_root", help="Folder whose DIR/<name> is read in place of the Hub (default: none).")
    scores.add_argument("--split", default="test", choices=SPLITS, help="Split to score (default: test).")
    scores.add_argument("--nano", action="store_true", help="Score at most 64 rows a task.")
    return parser.parse_args(argv)


def check_request(given: argparse.Namespace) -> None:
    """Raise ValueError for options of another format, or a folder that nobody said could be written over."""
    if given.format == NATIVE and (given.precision or given.data):
        raise ValueError("--precision and --data are of graphs; a native folder has the model's numbers. Remove them.")
    if given.format != NATIVE and given.task:
        raise ValueError("A graph answers every task; --task is of --format native. Remove it.")
    folder = Path(given.output)
    if folder.resolve() == Path(given.model).resolve():
        raise ValueError(f"An export stands beside the model, not in its place; both are {folder}. Choose another.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output is a folder to write; {folder} is a file. Choose another.")
    if folder.exists() and any(folder.iterdir()) and not given.overwrite_output:
        raise ValueError(
            f"An export is written into an empty folder; {folder} holds files. Choose another --output, or write over "
            "them with --overwrite_output."
        )


def main(argv: list[str] | None = None) -> None:
    """Parse, load, write; with data, score before and after."""
    given = parse_export(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    folder = Path(given.output)
    with one_line_errors("export_hf.py"):
        check_request(given)
        model, tokenizer = open_model(given.model, given.offline)
        if given.format == NATIVE:
            write_native(model, tokenizer, folder, given.task)
            print(f"Written to {folder}")
            return
        precision = given.precision or PRECISIONS[given.format][0]
        options = (given.split, given.data_root, given.offline, given.nano)
        datasets = read_rows(model, tokenizer, given.data, *options) if given.data else {}
        export_graph(model, tokenizer, folder, given.format, precision)
    print(f"Written to {folder}")
    if datasets:
        graph = GraphModel.from_pretrained(folder)
        tasks = compare(score(model, tokenizer, datasets), score(graph, tokenizer, datasets))
        results = {"format": given.format, "precision": precision, "split": given.split, "tasks": tasks}
        (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for name, row in tasks.items():
            print(f"{name:<16} {row['metric']} {row['before']:.4f} -> {row['after']:.4f} ({row['change']:+.4f})")
        print(f"Results in {folder / RESULTS_FILE}")


if __name__ == "__main__":
    main()
