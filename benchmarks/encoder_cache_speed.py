"""Measure what the stored outputs of a frozen encoder save: seconds of an epoch with and without `cache_encoder`.

    python benchmarks/encoder_cache_speed.py --data_root DATA                # recipes/six_tasks.yaml, 640 rows a task
    python benchmarks/encoder_cache_speed.py --recipe recipes/quickstart.yaml --rows 64 --output outputs/cache.json

The recipe is trained with `freeze: [encoder]` and a projection (else a similarity has nothing to train), put together
as `train_hf.py` does, nothing evaluated or saved: in turn without the store and with it, `--repeats` times, `--epochs`
epochs each, always in a new model; the store is computed anew for each repeat. Seconds of an epoch run from its first
batch's reading to the end of its last step, by the wall clock and of the processor (all threads; what other programs
take from a shared machine is not in these). The first epoch is left out on both sides; `times_faster` is, in a repeat,
the median of the others without the store over the median with it, and over repeats the median of these.
`seconds_of_computing` is what the store cost. What follows `--` goes to the run, as to `train_hf.py`. Results go to
`benchmarks/results/encoder_cache_speed.json`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import disable_progress_bars
from recipe_results import ROOT, hardware, without_paths
from transformers import PrinterCallback, TrainerCallback, set_seed

from command_help import CommandParser
from recipe_arguments import parse_arguments
from training_run import build_trainer, prepare_run

CLOCKS = ("wall", "processor")


class EpochClock(TrainerCallback):
    """Seconds of every epoch, by the wall clock and of the processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {clock: [] for clock in CLOCKS}

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first batch is read next."""
        self.started = self._now()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """The last step is done."""
        for clock, now in self._now().items():
            self.seconds[clock].append(now - self.started[clock])

    def _now(self) -> dict[str, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {"wall": time.perf_counter(), "processor": time.process_time()}


def train(given: argparse.Namespace, cached: bool, folder: str) -> dict[str, Any]:
    """One training: the seconds of its epochs and of computing the store, and what was trained on."""
    words = [given.recipe, "--freeze", "encoder", "--projection_dim", 384]
    words += ["--cache_encoder", cached, "--encoder_cache_dir", folder]
    words += ["--num_train_epochs", given.epochs, "--eval_strategy", "no", "--save_strategy", "no"]
    words += ["--load_best_model_at_end", "false", "--report_to", "none", "--disable_tqdm", "true"]
    words += ["--output_dir", str(Path(folder) / "output"), *given.further]
    words += ["--data_root", str(given.data_root)] if given.data_root else []
    tasks = parse_arguments([str(word) for word in words])[1].tasks
    for name in tasks:
        words += [f"--tasks.{name}.max_rows", json.dumps({"train": given.rows, "validation": 16, "test": 16})]
    model_args, data_args, args = parse_arguments([str(word) for word in words])
    set_seed(args.seed)
    run = prepare_run(model_args, data_args, args)
    started = time.perf_counter()
    trainer, clock = build_trainer(run), EpochClock()
    computing = time.perf_counter() - started
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return {
        "epochs": clock.seconds,
        "seconds_of_computing": computing,
        "precision": "bf16" if args.bf16 else "fp32",
        "rows_a_step": args.per_device_train_batch_size,
        "store_mib": run.cache.num_bytes / 2**20 if run.cache else 0,
        "tasks": list(run.loaded),
        "rows_an_epoch": len(run.sampling),
        "padding": run.sampling.plan(args.per_device_train_batch_size).padding,
        "loss": trainer.state.log_history[-1].get("train_loss"),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both ways in every repeat; the report."""
    runs: dict[str, list[dict[str, Any]]] = {"encoder": [], "store": []}
    for repeat in range(given.repeats):
        for name in ("encoder", "store") if repeat % 2 == 0 else ("store", "encoder"):
            with tempfile.TemporaryDirectory(prefix="encoder-cache-") as folder:
                runs[name].append(train(given, name == "store", folder))
            print(f"repeat {repeat}, {name}: {runs[name][-1]['epochs']}", file=sys.stderr, flush=True)
    later = {
        name: {clock: [statistics.median(run["epochs"][clock][1:]) for run in of_name] for clock in CLOCKS}
        for name, of_name in runs.items()
    }
    ratios = {
        clock: [slow / fast for slow, fast in zip(later["encoder"][clock], later["store"][clock], strict=True)]
        for clock in CLOCKS
    }
    first = runs["store"][0]
    return {
        "recipe": Path(given.recipe).name,
        "settings": {
            name: first[name] for name in ("precision", "rows_a_step", "tasks", "rows_an_epoch", "padding", "store_mib")
        },
        "seconds_of_an_epoch": {name: [run["epochs"] for run in of_name] for name, of_name in runs.items()},
        "median_of_later_epochs": later,
        "seconds_of_computing": [run["seconds_of_computing"] for run in runs["store"]],
        "mean_loss": {name: [run["loss"] for run in of_name] for name, of_name in runs.items()},
        "times_faster": {clock: statistics.median(of_clock) for clock, of_clock in ratios.items()},
        "times_faster_in_each_repeat": ratios,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--recipe", default=str(ROOT / "recipes" / "six_tasks.yaml"), help="Recipe to train.")
    parser.add_argument("--data_root", type=Path, help="Folder of the data sets; unset, the Hub.")
    parser.add_argument("--rows", type=int, default=640, help="Training rows of every task.")
    parser.add_argument("--epochs", type=int, default=4, help="Epochs of a run, the first of which does not count.")
    parser.add_argument("--repeats", type=int, default=3, help="Rounds in which both are measured once.")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "encoder_cache_speed.json",
        help="Results file.",
    )
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:split])
    given.further = words[split + 1 :]
    if given.epochs < 2:
        parser.error("the first epoch does not count: --epochs must be at least 2")
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()
    command = " ".join(["python benchmarks/encoder_cache_speed.py", *without_paths(words)])
    report = {"command": command, "hardware": hardware(), **measure(given)}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
