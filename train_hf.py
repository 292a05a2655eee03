"""Command: train one encoder with many heads from a recipe, evaluate it, save it.

    python train_hf.py recipes/quickstart.yaml --output_dir outputs/quickstart
    accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml train_hf.py RECIPE --use_cpu --output_dir X

The folder it writes opens with `AutoModel.from_pretrained(folder, trust_remote_code=True)`. Results stand beside the
weights (`all_results.json`, `test_results.json`, PNGs). `--dry_run` stops after printing the plan; `--help` lists all.
Nothing imports this module: what it calls can be called without it.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from datasets import disable_progress_bars
from transformers import AutoTokenizer, set_seed

from arguments_multitask import DataArguments, ModelArguments, MultiTaskTrainingArguments, parse_arguments
from cased_vocabulary import cased_tokenizer
from cpu_training import use_bfloat16_states, use_fast_dropout
from data_collator import MultiTaskDataCollator
from encoder_source import check_vocabulary, find_encoder
from input_errors import explain_loading, one_line_errors
from model_card import describe_run_facts, write_facts
from modeling_multitask import MultiTaskModel
from run_checkpoints import check_recipe, describe_run, find_checkpoint
from task_data import LoadedTask, load_tasks, require_split
from task_features import TaskFeatures, build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics
from task_plots import plot_curves
from task_report import evaluate_tasks, format_answers, format_scores, protocol
from task_sampler import TaskSamplingDataset, check_sampling
from trainer_multitask import MultiTaskTrainer, SamplingGuard, TaskEarlyStopping

logger = logging.getLogger("train_hf")


def configure_logging(args: MultiTaskTrainingArguments) -> None:
    """Log to standard error: this project from INFO on, or at `--log_level`; on other processes warnings only."""
    level = args.get_process_log_level()
    if args.log_level == "passive" and args.process_index == 0:
        level = logging.INFO
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in (
        "train_hf",
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


def build_model(arguments: ModelArguments, loaded: dict[str, LoadedTask], offline: bool) -> tuple[MultiTaskModel, Any]:
    """The model on its pretrained encoder, heads for the loaded tasks, and the encoder's tokenizer."""
    source = find_encoder(arguments.encoder, offline=offline)
    with explain_loading(f"The encoder {arguments.encoder!r}"):
        model = MultiTaskModel.from_backbone(
            source.path,
            tasks={name: task.spec for name, task in loaded.items()},
            pooling=arguments.pooling,
            projection_dim=arguments.projection_dim,
            normalize_embeddings=arguments.normalize_embeddings,
            head_dropout=arguments.head_dropout,
            max_seq_length=arguments.max_seq_length,
            task_name=arguments.task_name,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    check_vocabulary(arguments.encoder, tokenizer, model.get_input_embeddings())
    model.config.max_seq_length = model.max_length(tokenizer)  # so that other clients cut texts there, too
    if arguments.read_case:
        tokenizer, bases, cases = cased_tokenizer(tokenizer)
        model.read_case(bases, cases)
    return model, tokenizer


def prepare_training(model: MultiTaskModel, args: MultiTaskTrainingArguments) -> None:
    """Freeze what shall stay as it is; on a CPU, make steps cheaper."""
    if args.freeze_embeddings:
        model.freeze_embeddings()
    if args.device.type == "cpu":
        use_fast_dropout(model)
        if args.bf16:
            use_bfloat16_states(model)


def build_sampling(
    features: TaskFeatures, data: DataArguments, args: MultiTaskTrainingArguments
) -> TaskSamplingDataset:
    """The training order of the recipe, for this number of processes."""
    return TaskSamplingDataset(
        features.train,
        strategy=data.sampling_strategy,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        rows_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        num_epochs=max(1, round(args.num_train_epochs)),
        grouping=data.grouping,
        temperature=data.sampling_temperature,
        cap=data.sampling_cap,
        shares=data.sampling_shares,
    )


def resume_point(args: MultiTaskTrainingArguments) -> Path | None:
    """The checkpoint to go on from, if any: the one that is named, or the last complete one in `--output_dir`.

    Raises:
        ValueError: if there is no such checkpoint, it is incomplete, or training would replace a trained model that
            nobody said could go.
    """
    if args.resume_from_checkpoint:
        return find_checkpoint(args.resume_from_checkpoint, args.output_dir, args.world_size)
    if (Path(args.output_dir) / "model.safetensors").exists() and not args.overwrite_output:
        raise ValueError(
            f"{args.output_dir} holds a trained model already. Choose another --output_dir, go on from its last "
            "checkpoint with --resume_from_checkpoint last, or replace it with --overwrite_output."
        )
    return None


def describe_recipe(
    arguments: tuple[ModelArguments, DataArguments, MultiTaskTrainingArguments],
    model: MultiTaskModel,
    sampling: TaskSamplingDataset,
) -> dict[str, Any]:
    """What decides where this run ends: its arguments, and the labels and the order of rows that they came to."""
    args = arguments[2]
    plan = sampling.plan(args.per_device_train_batch_size)
    facts = {
        "rows": {task.name: task.rows for task in plan.tasks},
        "rows_per_step": plan.rows_per_step,
        "steps_per_epoch": plan.steps_per_epoch,
        "num_epochs": plan.num_epochs,
        "order_of_first_epoch": plan.order_hash,
        "labels": {name: spec.get("labels") for name, spec in model.config.tasks.items()},
    }
    return describe_run(arguments, args.world_size, facts)


def print_plan(notes: list[str], sampling: TaskSamplingDataset, args: MultiTaskTrainingArguments) -> None:
    """What was decided and inferred, and what training will see."""
    print("\nPlan")
    for note in notes:
        print(f"- {note}")
    print(sampling.plan(args.per_device_train_batch_size), end="\n\n", flush=True)


def report_run(trainer: MultiTaskTrainer, scores: dict[str, float], split: str, sample_texts: list[str] | None) -> None:
    """Print the scores of a split and the answers to sample texts; write curves and model card."""
    plot_curves(trainer.state.log_history, Path(trainer.args.output_dir) / "curves.png")
    print(format_scores(trainer.model.config.tasks, scores, split))
    trainer.create_model_card()
    if sample_texts:
        print(format_answers(sample_texts, trainer.model.predict(sample_texts, trainer.processing_class)))
    print(f"\nSaved to {trainer.args.output_dir}")


def main(argv: list[str] | None = None) -> MultiTaskTrainer | None:
    """Parse, load, train, evaluate, save; return the trainer as it is at the end (None after a dry run)."""
    model_args, data_args, args = parse_arguments(argv)
    configure_logging(args)
    set_seed(args.seed)
    is_main = args.process_index == 0

    with one_line_errors("train_hf.py"):
        check_sampling(
            data_args.sampling_strategy, data_args.grouping, data_args.sampling_temperature, data_args.sampling_cap
        )
        resume = resume_point(args)
        with args.main_process_first(desc="reading data"):
            loaded = load_tasks(data_args.tasks, data_args.data_root, args.seed, data_args.offline)
        require_split(loaded, "validation")
        model, tokenizer = build_model(model_args, loaded, data_args.offline)
        with args.main_process_first(desc="tokenising"):
            features = build_features(
                loaded, tokenizer, model.max_length(tokenizer), embed=partial(model.encode, tokenizer=tokenizer)
            )
        sampling = build_sampling(features, data_args, args)
        guard = SamplingGuard(sampling)
        guard.check(args)
        recipe = describe_recipe((model_args, data_args, args), model, sampling)
        if resume is not None:
            check_recipe(resume, recipe, args.resume_changed_recipe)
    if is_main:
        print_plan([*data_args.notes, *args.notes, *features.notes], sampling, args)
    if data_args.dry_run:
        return None

    if is_main:
        plan = sampling.plan(args.per_device_train_batch_size)
        facts = describe_run_facts(args, model_args.encoder, loaded, plan, features.notes, data_args.sample_texts)
        write_facts(Path(args.output_dir), facts)
    prepare_training(model, args)
    patience = args.early_stopping_patience
    trainer = MultiTaskTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        data_collator=MultiTaskDataCollator(tokenizer, model.config.tasks),
        train_dataset=sampling,
        recipe=recipe,
        eval_dataset=features.validation,
        compute_metrics=MultiTaskMetrics(model.config.tasks),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        callbacks=[guard, *([TaskEarlyStopping(patience)] if patience else [])],
    )
    trainer.save_metrics("train", trainer.train(resume and str(resume)).metrics)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())
    split, datasets = ("test", features.test) if features.test else ("validation", features.validation)
    scores = evaluate_tasks(trainer, datasets, args.output_dir, split)
    described = protocol({name: loaded[name] for name in datasets}, datasets, features.notes)
    trainer.save_metrics(split, scores | {f"{split}_protocol": described})

    if is_main:
        report_run(trainer, scores, split, data_args.sample_texts)
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
