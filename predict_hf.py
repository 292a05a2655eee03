"""Command: every task's answers for every row of a table.

    python predict_hf.py outputs/news articles.csv answers.csv
    python predict_hf.py outputs/news articles.jsonl answers.jsonl --text body --tasks topic ner --prefix predicted_
    python predict_hf.py outputs/news fancyzhx/ag_news answers.parquet --split test --embeddings
    accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml predict_hf.py outputs/news in.csv out.csv

The same rows come out in the same order with columns added: `topic` and `topic_score`, `ner` with a list of entities
(as JSON in CSV), and `prediction_error`, which says why a row has no answers. The model is a folder of `train_hf.py`,
one of `export_hf.py --format onnx|openvino`, or a Hub id. A run that was killed goes on where it was when it is asked
again; several processes share the rows, and the file is the same. Memory holds a window of rows, not the table.
"""

import argparse
import logging
from pathlib import Path

import torch
from accelerate import PartialState

from batch_prediction import BatchPrediction, Options, fingerprint
from command_help import CommandParser
from input_errors import one_line_errors, positive
from pipeline_multitask import AGGREGATION_STRATEGIES
from prediction_engine import open_engine
from table_files import open_table


def parse_prediction(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model or an exported graph, or a Hub id.")
    parser.add_argument("input", help="CSV, TSV, JSONL or Parquet file, or the Hub id of a data set.")
    parser.add_argument("output", help="File to write: .csv, .tsv, .jsonl or .parquet.")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--text", default="text", help="Column with the text (default: text).")
    rows.add_argument("--text_pair", help="Column with the second text, for tasks of pairs (default: none).")
    rows.add_argument("--config", help="Configuration of a data set on the Hub (default: its only one).")
    rows.add_argument("--split", help="Split of a data set on the Hub; unset for a file.")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--tasks", nargs="+", help="Tasks to answer (default: all that can be).")
    answers.add_argument("--embeddings", action="store_true", help="Also write the sentence embedding.")
    answers.add_argument("--prefix", default="", help="In front of every added column (default: nothing).")
    answers.add_argument(
        "--aggregation_strategy",
        default="first",
        choices=AGGREGATION_STRATEGIES,
        help="How sub-words make entities (default: first).",
    )
    work = parser.add_argument_group("work")
    work.add_argument("--batch_size", type=positive, default=32, help="Texts a pass of the model (default: 32).")
    work.add_argument("--window", type=positive, default=4096, help="Rows held and sorted by length (default: 4096).")
    work.add_argument("--bf16", choices=["true", "false"], help="Multiply in bfloat16 (default: where there is any).")
    work.add_argument("--overwrite_output", action="store_true", help="Replace the file, and begin anew.")
    work.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    return parser.parse_args(argv)


def prepare(given: argparse.Namespace, device: torch.device) -> BatchPrediction:
    """Open model and table and check that they fit.

    Raises:
        ValueError: for what cannot be opened, or does not fit.
    """
    model, tokenizer = open_engine(given.model, given.offline)
    folder = Path(given.model).expanduser()
    identity = fingerprint(folder) if folder.is_dir() else {given.model: str(model.config._commit_hash)}
    options = Options(
        text=given.text,
        text_pair=given.text_pair,
        tasks=given.tasks,
        prefix=given.prefix,
        embeddings=given.embeddings,
        batch_size=given.batch_size,
        window=given.window,
        aggregation_strategy=given.aggregation_strategy,
        bf16=None if given.bf16 is None else given.bf16 == "true",
    )
    table = open_table(given.input, given.config, given.split, given.offline)
    target = Path(given.output).expanduser()
    return BatchPrediction(model.to(device), tokenizer, table, target, options, identity, given.overwrite_output)


def main(argv: list[str] | None = None) -> None:
    """Parse, open, predict, join."""
    given = parse_prediction(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    state = PartialState(cpu=not torch.accelerator.is_available())
    with one_line_errors("predict_hf.py"), state.main_process_first():
        run = prepare(given, state.device)
    run.predict(state.process_index, state.num_processes, show=state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        bad_rows = run.join()
        reasons = f" (column {run.schema.names[-1]} says why)" if bad_rows else ""
        print(f"{run.table.rows:,} rows written to {given.output}; {bad_rows:,} without answers{reasons}.")


if __name__ == "__main__":
    main()
