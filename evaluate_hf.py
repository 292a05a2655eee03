"""Command: score a saved model on the data of a recipe.

    python evaluate_hf.py outputs/news --data recipes/news_entities.yaml --data_root DATA
    python evaluate_hf.py outputs/news --data recipes/news_entities.yaml --split validation --tasks ner --batch_size 128

Prints the table that training ends with, and writes `<split>_results.json` (scores and protocol), predictions by row
and confusion matrices to `--output_dir` (default: `<model>/evaluation`). Labels are matched by name to those of the
model. Tasks that learnt a teacher's embedding are left out, and named. Several processes (`accelerate launch ...
evaluate_hf.py ...`) find the scores of one.
"""

import argparse
import logging

import torch
from transformers import TrainingArguments

from arguments_multitask import SPLITS, TaskArguments
from command_help import CommandParser
from configuration_multitask import FEATURE_EXTRACTION
from data_collator import MultiTaskDataCollator
from input_errors import one_line_errors, positive
from recipe_arguments import parse_arguments
from saved_model import open_model
from task_data import load_tasks, require_split
from task_features import build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics
from task_report import evaluate_tasks, format_scores, protocol
from trainer_multitask import MultiTaskTrainer


def parse_evaluation(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model, or a Hub id.")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--data", required=True, metavar="RECIPE.yaml", help="Recipe whose tasks name the data.")
    rows.add_argument("--data_root", help="Folder whose DIR/<name> is read in place of the Hub (default: none).")
    rows.add_argument("--split", default="test", choices=SPLITS, help="Split to score (default: test).")
    rows.add_argument("--tasks", nargs="+", help="Tasks to score (default: those of the model that have the split).")
    rows.add_argument("--nano", action="store_true", help="At most 64 rows a task.")
    rows.add_argument("--seed", type=int, default=42, help="Seed of a validation split cut from train (default: 42).")
    work = parser.add_argument_group("work")
    work.add_argument("--batch_size", type=positive, default=64, help="Items a batch on one device (default: 64).")
    work.add_argument("--bf16", action="store_true", help="Compute in bf16 mixed precision (default: float32).")
    work.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    work.add_argument("--output_dir", help="Where results are written (default: <model>/evaluation).")
    return parser.parse_args(argv)


def needs_teacher(task: TaskArguments) -> bool:
    """Whether a task's labels are embeddings that its data does not hold."""
    return task.kind == FEATURE_EXTRACTION and "label" not in task.columns


def main(argv: list[str] | None = None) -> None:
    """Parse, load, score, report."""
    given = parse_evaluation(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    output_dir = given.output_dir or f"{given.model}/evaluation"
    recipe = [given.data, "--output_dir", output_dir, *(["--nano"] if given.nano else [])]
    _, data_args, _ = parse_arguments(recipe)
    args = TrainingArguments(
        output_dir=output_dir,
        per_device_eval_batch_size=given.batch_size,
        bf16=given.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else bf16 and pinned memory are taken for a GPU's
        label_names=["labels"],
        report_to="none",
    )
    with one_line_errors("evaluate_hf.py"):
        model, tokenizer = open_model(given.model, given.offline)
        names = given.tasks or [name for name in data_args.tasks if name in model.config.tasks]
        untaught = [] if given.tasks else [name for name in names if needs_teacher(data_args.tasks[name])]
        names = [name for name in names if name not in untaught]
        unknown = [name for name in names if name not in data_args.tasks or name not in model.config.tasks]
        if unknown or not names:
            raise ValueError(
                f"Tasks {unknown or names} cannot be scored: the model has {', '.join(model.config.tasks)}; the recipe "
                f"has {', '.join(data_args.tasks)}."
            )
        known_labels = {name: model.config.tasks[name].get("labels", []) for name in names}
        tasks = {name: data_args.tasks[name] for name in names}
        with args.main_process_first(desc="reading and tokenising data"):
            loaded = load_tasks(tasks, given.data_root, given.seed, given.offline, known_labels=known_labels)
            require_split(loaded, given.split)
            features = build_features(loaded, tokenizer, model.max_length(tokenizer), splits=(given.split,))
    trainer = MultiTaskTrainer(
        model=model,
        args=args,
        data_collator=MultiTaskDataCollator(tokenizer, model.config.tasks),
        compute_metrics=MultiTaskMetrics(model.config.tasks),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    datasets = getattr(features, given.split)
    metrics = evaluate_tasks(trainer, datasets, output_dir, given.split)
    described = protocol({name: loaded[name] for name in datasets}, datasets, features.notes)
    trainer.save_metrics(given.split, metrics | {f"{given.split}_protocol": described}, combined=False)
    if trainer.is_world_process_zero():
        print(format_scores(model.config.tasks, metrics, given.split))
        if untaught:
            print(f"Not scored: {', '.join(untaught)}. They learnt a teacher's embedding, which is not here.")
        print(f"Results in {output_dir}")


if __name__ == "__main__":
    main()
