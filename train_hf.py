"""Command: train one encoder with many heads from a recipe, evaluate it, save it.

    python train_hf.py recipes/quickstart.yaml --output_dir outputs/quickstart
    python train_hf.py RECIPE --init_from outputs/quickstart --freeze encoder,heads --output_dir outputs/one_more_task
    accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml train_hf.py RECIPE --use_cpu --output_dir X

The folder it writes opens with `AutoModel.from_pretrained(folder, trust_remote_code=True)`. Results stand beside the
weights (`all_results.json`, `test_results.json`, PNGs). `--dry_run` stops after printing the plan; `--help` lists all.
Nothing imports this module: what it calls can be called without it.
"""

import logging
from pathlib import Path

import transformers
from datasets import disable_progress_bars
from transformers import set_seed

from arguments_multitask import MultiTaskTrainingArguments
from calibration import calibrate
from gradient_cosines import GradientCosines, write_cosines
from head_drift import HeadDrift
from input_errors import one_line_errors
from lora_adapters import has_adapters, merge_adapters
from model_card import describe_run_facts, write_facts
from recipe_arguments import parse_arguments
from task_plots import plot_curves
from task_report import evaluate_tasks, format_answers, format_scores, protocol
from trainer_multitask import MultiTaskTrainer
from training_run import PreparedRun, build_trainer, prepare_run, train_model

logger = logging.getLogger("train_hf")


def configure_logging(args: MultiTaskTrainingArguments) -> None:
    """Log to standard error: this project from INFO on, or at `--log_level`; on other processes warnings only."""
    level = args.get_process_log_level()
    if args.log_level == "passive" and args.process_index == 0:
        level = logging.INFO
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in (
        "train_hf",
        "encoder_cache",
        "encoder_source",
        "modeling_multitask",
        "run_checkpoints",
        "task_plots",
        "trainer_multitask",
    ):
        logging.getLogger(name).setLevel(level)
    transformers.utils.logging.disable_progress_bar()  # of loading weights; training has its own
    if args.local_process_index:
        disable_progress_bars()  # of reading and tokenising: one process shows them


def report_drift(drift: HeadDrift, trainer: MultiTaskTrainer, limit: float | None) -> None:
    """Print and write down what became of the tasks that were not trained.

    Raises:
        ValueError: if it is more than `limit`.
    """
    report = drift.compare()
    trainer.save_metrics("drift", report.metrics())
    if trainer.is_world_process_zero():
        print(f"\n{report}\n", flush=True)
    if limit is not None:
        report.refuse_beyond(limit, trainer.args.output_dir)


def report_run(trainer: MultiTaskTrainer, scores: dict[str, float], split: str, sample_texts: list[str] | None) -> None:
    """Print the scores of a split and the answers to sample texts; write curves and model card."""
    plot_curves(trainer.state.log_history, Path(trainer.args.output_dir) / "curves.png")
    write_cosines(trainer.state.log_history, trainer.model.config.tasks, Path(trainer.args.output_dir))
    print(format_scores(trainer.model.config.tasks, scores, split))
    trainer.create_model_card()
    if sample_texts:
        print(format_answers(sample_texts, trainer.model.predict(sample_texts, trainer.processing_class)))
    print(f"\nSaved to {trainer.args.output_dir}")


def print_plan(run: PreparedRun) -> None:
    """What was decided and inferred, and what training will see."""
    print("\nPlan")
    start = []
    if run.model_args.init_from:
        start.append(
            f"Starts from {run.model_args.init_from}; its tasks that are not trained: {', '.join(run.kept) or 'none'}; "
            f"frozen besides: {', '.join(run.args.freeze) or 'nothing'}."
        )
    for note in [*run.data_args.notes, *start, *run.args.notes, *run.features.notes]:
        print(f"- {note}")
    print(run.sampling.plan(run.args.per_device_train_batch_size))
    print("", *run.trained, sep="\n", end="\n\n", flush=True)


def write_run_facts(run: PreparedRun) -> None:
    """Write what the model card will say of this run."""
    plan = run.sampling.plan(run.args.per_device_train_batch_size)
    start = run.model_args.init_from or run.model_args.encoder
    facts = describe_run_facts(run.args, start, run.loaded, plan, run.features.notes, run.data_args.sample_texts)
    write_facts(Path(run.args.output_dir), facts)


def train(run: PreparedRun, trainer: MultiTaskTrainer) -> None:
    """Train and save; refused in one line where the tasks that were not trained changed more than they may."""
    drift = None
    if run.kept:
        drift = HeadDrift(run.model, trainer.data_collator, run.kept, run.features.validation, run.kept_features)
    if run.args.gradient_cosines is not None:
        with one_line_errors("train_hf.py"):
            trainer.add_callback(GradientCosines(trainer, run.features.train, run.args.gradient_cosines))
    trainer.save_metrics("train", train_model(run, trainer).metrics)
    if drift is not None:
        with one_line_errors("train_hf.py"):
            report_drift(drift, trainer, run.args.max_head_drift)
    if run.args.calibrate:
        report = calibrate(trainer, run.features.validation)
        trainer.save_metrics("calibration", report)
        if trainer.is_world_process_zero():
            print("\nCalibration", *report["calibration_notes"], sep="\n- ", end="\n\n", flush=True)
    run.model.learn_loss_weights(False)  # a state of training, which stands in its checkpoints
    trainer.save_model()
    trainer.save_state()
    if has_adapters(run.model):
        merge_adapters(run.model)  # so that what is scored next is what was saved, to the last bit


def evaluate(run: PreparedRun, trainer: MultiTaskTrainer) -> None:
    """Score the test split, or where there is none validation; print and write what came of the run."""
    trainer.save_metrics("eval", trainer.evaluate())
    features = run.features
    split, datasets = ("test", features.test) if features.test else ("validation", features.validation)
    scores = evaluate_tasks(trainer, datasets, run.args.output_dir, split)
    described = protocol({name: run.loaded[name] for name in datasets}, datasets, features.notes)
    trainer.save_metrics(split, scores | {f"{split}_protocol": described})
    if trainer.is_world_process_zero():
        report_run(trainer, scores, split, run.data_args.sample_texts)


def main(argv: list[str] | None = None) -> MultiTaskTrainer | None:
    """Parse, load, train, evaluate, save; return the trainer as it is at the end (None after a dry run)."""
    model_args, data_args, args = parse_arguments(argv)
    configure_logging(args)
    set_seed(args.seed)
    with one_line_errors("train_hf.py"):
        run = prepare_run(model_args, data_args, args)
    if args.process_index == 0:
        print_plan(run)
    if data_args.dry_run:
        return None
    if args.process_index == 0:
        write_run_facts(run)
    trainer = build_trainer(run)
    train(run, trainer)
    evaluate(run, trainer)
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
