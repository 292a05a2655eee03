"""Command: train one encoder with many heads from a recipe, evaluate it, save it.

    python train_hf.py recipes/quickstart.yaml --output_dir outputs/quickstart
    python train_hf.py RECIPE --init_from outputs/quickstart --freeze encoder,heads --output_dir outputs/one_more_task
    accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml train_hf.py RECIPE --use_cpu --output_dir X

The folder it writes opens with `AutoModel.from_pretrained(folder, trust_remote_code=True)`. Results stand beside the
weights (`all_results.json`, `test_results.json`, PNGs). `--dry_run` stops after printing the plan; `--help` lists all.
Nothing imports this module: what it calls can be called without it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, set_seed

from arguments_multitask import DataArguments, ModelArguments, MultiTaskTrainingArguments, parse_arguments
from cased_vocabulary import cased_tokenizer
from configuration_multitask import FEATURE_EXTRACTION
from cpu_training import use_bfloat16_states, use_fast_dropout
from data_collator import MultiTaskDataCollator
from encoder_cache import EncoderCache
from encoder_source import check_vocabulary, find_encoder
from head_drift import HeadDrift
from input_errors import explain_loading, one_line_errors
from lora_adapters import add_adapters, describe_adapters, has_adapters, merge_adapters
from model_card import describe_run_facts, write_facts
from modeling_multitask import MultiTaskModel
from run_checkpoints import check_recipe, describe_run, find_checkpoint
from task_data import LoadedTask, load_tasks, require_split
from task_features import TaskFeatures, build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics
from task_plots import plot_curves
from task_report import evaluate_tasks, format_answers, format_scores, protocol
from task_sampler import TaskSamplingDataset, check_sampling
from trained_start import extend_trained, refuse_frozen
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


def build_model(
    arguments: ModelArguments, loaded: dict[str, LoadedTask], offline: bool, freeze: Iterable[str] = ()
) -> tuple[MultiTaskModel, Any]:
    """The model with a head for each loaded task, parts of it frozen, and its tokenizer.

    Raises:
        ValueError: for a folder that cannot be opened, an unknown part, or a task whose every part is frozen.
    """
    if arguments.init_from:
        specs = {name: task.spec for name, task in loaded.items()}
        model, tokenizer = extend_trained(arguments, specs, offline, freeze)
    else:
        model, tokenizer = extend_encoder(arguments, loaded, offline)
        model.freeze(freeze)
    if arguments.lora is not None:
        if "encoder" in freeze:
            raise ValueError(
                "lora trains adapters in the encoder, and freeze names the encoder: leave out one of both."
            )
        add_adapters(model, arguments.lora)
    for name, task in loaded.items():
        refuse_frozen(name, task.spec, model)
    return model, tokenizer


def extend_encoder(
    arguments: ModelArguments, loaded: dict[str, LoadedTask], offline: bool
) -> tuple[MultiTaskModel, Any]:
    """The pretrained encoder with a new head for each loaded task, and its tokenizer."""
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


def load_drift_data(
    kept: list[str], model: MultiTaskModel, tokenizer: Any, data: DataArguments, limit: float | None
) -> dict[str, Dataset]:
    """Kept task -> its validation features, for those that the recipe of `drift_data` names; the seed is the recipe's.

    Raises:
        ValueError: if it names none, or there is a limit and no kept task to measure.
    """
    own: dict[str, Dataset] = {}
    if data.drift_data:
        _, old, args = parse_arguments([data.drift_data, *(["--nano"] if data.nano else [])])
        specs = {name: model.config.tasks[name] for name in kept}
        labels = {name: spec.get("labels", []) for name, spec in specs.items() if spec["kind"] != FEATURE_EXTRACTION}
        tasks = {name: task for name, task in old.tasks.items() if name in labels}
        root = data.data_root or old.data_root
        loaded = load_tasks(tasks, root, args.seed, data.offline, known_labels=labels, splits=("validation",))
        own = build_features(loaded, tokenizer, model.max_length(tokenizer), splits=("validation",)).validation
        if not own:
            raise ValueError(
                f"drift_data is a recipe with validation rows of tasks that are not trained here "
                f"({', '.join(labels) or 'there are none'}); {data.drift_data} has {', '.join(old.tasks)}."
            )
    if limit is not None and not own and not any(name in model.heads for name in kept):
        raise ValueError("max_head_drift limits tasks that are not trained; here is none to measure. Leave it away.")
    return own


def use_cheaper_steps(model: MultiTaskModel, args: MultiTaskTrainingArguments) -> None:
    """On a CPU, make steps cheaper."""
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


def plan_cache(
    model: MultiTaskModel, features: TaskFeatures, data: DataArguments, args: MultiTaskTrainingArguments
) -> EncoderCache:
    """Where the frozen encoder's outputs are stored, said in `data.notes`; nothing is computed yet.

    Raises:
        ValueError: if the encoder is not frozen as a whole, or the disk has no room.
    """
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    splits = {"train": features.train, "validation": features.validation}
    cache = EncoderCache(data.encoder_cache_dir, model, splits, autocast, args.device)
    cache.check_disk()
    data.notes.append(str(cache))
    return cache


def read_from_cache(run: "PreparedRun", cache: EncoderCache) -> None:
    """Let training read the encoder's outputs, in the same order; one process computes what is missing."""
    with run.args.main_process_first(desc="computing the encoder's outputs"):
        cache.compute(run.model, MultiTaskDataCollator(run.tokenizer, run.model.config.tasks))
    run.sampling.read_from(cache.rows("train"))


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
    print(format_scores(trainer.model.config.tasks, scores, split))
    trainer.create_model_card()
    if sample_texts:
        print(format_answers(sample_texts, trainer.model.predict(sample_texts, trainer.processing_class)))
    print(f"\nSaved to {trainer.args.output_dir}")


@dataclass
class PreparedRun:
    """All that was read and checked before a run writes or trains anything.

    Attributes:
        model_args, data_args, args: The three groups of arguments.
        loaded (dict): Task -> its rows, for the tasks that are trained.
        model, tokenizer: With a head for each of them.
        kept (list): The model's other tasks, where it started from a trained one.
        features (TaskFeatures): The rows as the model reads them.
        kept_features (dict): Kept task -> its validation features, where `drift_data` has them.
        sampling (TaskSamplingDataset): The order of training.
        guard (SamplingGuard): What keeps Trainer to that order.
        recipe (dict): What decides where the run ends; each checkpoint holds it.
        resume (Path): The checkpoint to go on from, if any.
        cache (EncoderCache): The frozen encoder's outputs, where training reads them.
    """

    model_args: ModelArguments
    data_args: DataArguments
    args: MultiTaskTrainingArguments
    loaded: dict[str, LoadedTask]
    model: MultiTaskModel
    tokenizer: Any
    kept: list[str]
    features: TaskFeatures
    kept_features: dict[str, Dataset]
    sampling: TaskSamplingDataset
    guard: SamplingGuard
    recipe: dict[str, Any]
    resume: Path | None
    cache: EncoderCache | None


def prepare_run(model_args: ModelArguments, data_args: DataArguments, args: MultiTaskTrainingArguments) -> PreparedRun:
    """Read, build and check everything; the first process reads first, the others from its cache.

    Raises:
        ValueError: for input that cannot be trained on, or a checkpoint of another recipe.
    """
    check_sampling(
        data_args.sampling_strategy, data_args.grouping, data_args.sampling_temperature, data_args.sampling_cap
    )
    resume = resume_point(args)
    with args.main_process_first(desc="reading data"):
        loaded = load_tasks(data_args.tasks, data_args.data_root, args.seed, data_args.offline)
    require_split(loaded, "validation")
    model, tokenizer = build_model(model_args, loaded, data_args.offline, args.freeze)
    kept = [name for name in model.config.tasks if name not in loaded]
    with args.main_process_first(desc="tokenising"):
        features = build_features(
            loaded, tokenizer, model.max_length(tokenizer), embed=partial(model.encode, tokenizer=tokenizer)
        )
        kept_features = load_drift_data(kept, model, tokenizer, data_args, args.max_head_drift)
    if model_args.lora is not None:
        data_args.notes.append(describe_adapters(model))
    sampling = build_sampling(features, data_args, args)
    guard = SamplingGuard(sampling)
    guard.check(args)
    recipe = describe_recipe((model_args, data_args, args), model, sampling)
    if resume is not None:
        check_recipe(resume, recipe, args.resume_changed_recipe)
    cache = plan_cache(model, features, data_args, args) if data_args.cache_encoder else None
    return PreparedRun(
        model_args,
        data_args,
        args,
        loaded,
        model,
        tokenizer,
        kept,
        features,
        kept_features,
        sampling,
        guard,
        recipe,
        resume,
        cache,
    )


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
    print(run.sampling.plan(run.args.per_device_train_batch_size), end="\n\n", flush=True)


def write_run_facts(run: PreparedRun) -> None:
    """Write what the model card will say of this run."""
    plan = run.sampling.plan(run.args.per_device_train_batch_size)
    start = run.model_args.init_from or run.model_args.encoder
    facts = describe_run_facts(run.args, start, run.loaded, plan, run.features.notes, run.data_args.sample_texts)
    write_facts(Path(run.args.output_dir), facts)


def build_trainer(run: PreparedRun) -> MultiTaskTrainer:
    """The trainer of a run."""
    patience = run.args.early_stopping_patience
    return MultiTaskTrainer(
        model=run.model,
        args=run.args,
        processing_class=run.tokenizer,
        data_collator=MultiTaskDataCollator(run.tokenizer, run.model.config.tasks),
        train_dataset=run.sampling,
        recipe=run.recipe,
        eval_dataset=run.cache.rows("validation") if run.cache else run.features.validation,
        compute_metrics=MultiTaskMetrics(run.model.config.tasks),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        callbacks=[run.guard, *([TaskEarlyStopping(patience)] if patience else [])],
    )


def train(run: PreparedRun, trainer: MultiTaskTrainer) -> None:
    """Train and save; refused in one line where the tasks that were not trained changed more than they may."""
    drift = None
    if run.kept:
        drift = HeadDrift(run.model, trainer.data_collator, run.kept, run.features.validation, run.kept_features)
    trainer.save_metrics("train", trainer.train(run.resume and str(run.resume)).metrics)
    if drift is not None:
        with one_line_errors("train_hf.py"):
            report_drift(drift, trainer, run.args.max_head_drift)
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
    use_cheaper_steps(run.model, args)
    if run.cache is not None:
        read_from_cache(run, run.cache)
    trainer = build_trainer(run)
    train(run, trainer)
    evaluate(run, trainer)
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
