"""A training run from its arguments to the trained model: what `train_hf.py` and `search_hf.py` have in common.

`prepare_run` reads, builds and checks everything before anything is written or trained, `build_trainer` makes the
trainer (and computes what a frozen encoder's cache lacks), `train_model` trains. It parses no command line, prints,
scores and saves nothing.

    run = prepare_run(*parse_arguments(["recipes/quickstart.yaml"]))
    trainer = build_trainer(run)
    train_model(run, trainer)
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.trainer_utils import TrainOutput

from arguments_multitask import DataArguments, ModelArguments, MultiTaskTrainingArguments
from cased_vocabulary import cased_tokenizer
from configuration_multitask import FEATURE_EXTRACTION
from cpu_training import use_bfloat16_states, use_fast_dropout
from data_collator import MultiTaskDataCollator
from distillation_multitask import TeacherAnnealing, add_teachers, embedding_teachers
from encoder_cache import EncoderCache
from encoder_source import check_vocabulary, find_encoder
from input_errors import explain_loading
from lora_adapters import add_adapters, describe_adapters
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from run_checkpoints import check_recipe, describe_run, find_checkpoint
from task_data import LoadedTask, load_tasks, require_split
from task_features import TaskFeatures, aligned_groups, build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics
from task_sampler import TaskSamplingDataset, check_sampling
from trained_start import extend_trained, refuse_frozen
from trainer_multitask import MultiTaskTrainer, SamplingGuard, TaskEarlyStopping
from training_stages import TrainingStages, describe_training, train_in_stages


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
        if "train" in task.splits:
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


def shares_of_groups(loaded: dict[str, LoadedTask], shares: Mapping[str, float]) -> dict[str, float]:
    """The share of each group of tasks that read the same rows: what its tasks have in sum.

    Raises:
        ValueError: for a group without a share, a share that is not positive, or one of a task without training rows.
    """
    groups = [names for names in aligned_groups(loaded) if "train" in loaded[names[0]].splits]
    found = {"+".join(names): sum(shares.get(name, 0.0) for name in names) for names in groups}
    without = [" or ".join(names) for names in groups if not found["+".join(names)]]
    wrong = [name for name, share in shares.items() if not 0 < share < math.inf]
    unread = sorted(shares.keys() - {name for names in groups for name in names})
    if without or wrong or unread:
        found_out = {"Without one": without, "not positive": wrong, "without training rows": unread}
        raise ValueError(
            "sampling_shares has a positive number for each task with training rows, and for no other; one of several "
            f"tasks that read the same rows is enough. It has {dict(shares)}. "
            + "; ".join(f"{what}: {', '.join(names)}" for what, names in found_out.items() if names)
            + "."
        )
    return found


def build_sampling(
    features: TaskFeatures, data: DataArguments, args: MultiTaskTrainingArguments, shares: dict[str, float] | None
) -> TaskSamplingDataset:
    """The training order of the recipe, for this number of processes."""
    return TaskSamplingDataset(
        features.train,
        strategy=data.sampling_strategy,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        rows_per_step=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        num_epochs=max(1, round(args.num_train_epochs or 1)),
        grouping=data.grouping,
        temperature=data.sampling_temperature,
        cap=data.sampling_cap,
        shares=shares,
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
    teachers: dict[str, str],
) -> dict[str, Any]:
    """What decides where this run ends: its arguments, and the labels, order of rows and teachers they came to."""
    args = arguments[2]
    plan = sampling.plan(args.per_device_train_batch_size)
    facts = {
        "rows": {task.name: task.rows for task in plan.tasks},
        "rows_per_step": plan.rows_per_step,
        "steps_per_epoch": plan.steps_per_epoch,
        "num_epochs": plan.num_epochs,
        "order_of_first_epoch": plan.order_hash,
        "labels": {name: spec.get("labels") for name, spec in model.config.tasks.items()},
        "teachers": teachers,
    }
    return describe_run(arguments, args.world_size, facts)


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
        stages (TrainingStages): The stages, if it has any.
        trained (list): Which parameters are trained at which rate, for print.
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
    stages: TrainingStages | None
    trained: list[str]


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
    shares = None
    if data_args.sampling_strategy == "shares":
        shares = shares_of_groups(loaded, data_args.sampling_shares or {})
    model, tokenizer = build_model(model_args, loaded, data_args.offline, args.freeze)
    model.learn_loss_weights(args.loss_balancing == "uncertainty")
    kept = [name for name in model.config.tasks if name not in loaded]
    with args.main_process_first(desc="tokenising"):
        sources = {name: task.distill_from for name, task in data_args.tasks.items() if task.distill_from}
        where = {"offline": data_args.offline, "device": args.device, "bf16": bool(args.bf16)}
        embedders = embedding_teachers(loaded, sources, model, tokenizer, **where)
        features = build_features(loaded, tokenizer, model.max_length(tokenizer), teachers=embedders)
        teachers = {name: one.digest for name, one in embedders.items() if one.digest}
        teachers |= add_teachers(
            features,
            loaded,
            {name: source for name, source in sources.items() if name not in embedders},
            tokenizer,
            model.max_length(tokenizer),
            **where,
        )
        kept_features = load_drift_data(kept, model, tokenizer, data_args, args.max_head_drift)
    if model_args.lora is not None:
        data_args.notes.append(describe_adapters(model))
    sampling = build_sampling(features, data_args, args, shares)
    guard = SamplingGuard(sampling)
    guard.check(args)
    recipe = describe_recipe((model_args, data_args, args), model, sampling, teachers)
    if resume is not None:
        check_recipe(resume, recipe, args.resume_changed_recipe)
    cache = plan_cache(model, features, data_args, args) if data_args.cache_encoder else None
    stages = TrainingStages(model, args.stages, sampling.steps_per_epoch) if args.stages else None
    specs = {name: task.spec for name, task in loaded.items() if "train" in task.splits}
    trained = describe_training(model, args, stages, specs)
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
        stages,
        trained,
    )


def build_trainer(run: PreparedRun) -> MultiTaskTrainer:
    """The trainer of a run, its steps as cheap as they can be."""
    use_cheaper_steps(run.model, run.args)
    if run.cache is not None:
        read_from_cache(run, run.cache)
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
        callbacks=[run.guard, TeacherAnnealing(), *([TaskEarlyStopping(patience)] if patience else [])],
    )


def train_model(run: PreparedRun, trainer: MultiTaskTrainer) -> TrainOutput:
    """Train, in stages if there are any, from the start or from the checkpoint of the run."""
    checkpoint = str(run.resume) if run.resume else None
    return trainer.train(checkpoint) if run.stages is None else train_in_stages(trainer, run.stages, checkpoint)
