"""What a run can set: four checked dataclasses; `recipe_arguments` fills them from a recipe and a command line.

`TaskArguments` is one entry under `tasks:`, `ModelArguments` what the model is, `DataArguments` what it reads and in
which order, `MultiTaskTrainingArguments` how it trains. Nothing here opens a dataset or a model: a run can be checked,
and its `--help` printed, without either. What a saved model *is* stands in `configuration_multitask`.

    ModelArguments(read_case=True), DataArguments(tasks={"topic": {"dataset": "builtin:topic"}})
"""

import copy
import dataclasses
import os
import types
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from configuration_multitask import (
    HEAD_ACTIVATIONS,
    HEADS,
    LOSS_FIELDS,
    POOLINGS,
    PROBLEM_TYPES,
    SPEC_FIELDS,
    TASK_KINDS,
    TEACHER_LOSS_FIELDS,
    MultiTaskConfig,
    check_choice,
    check_number,
    check_task_name,
    nearest_name,
    refuse_unknown_fields,
)

SPLITS = ("train", "validation", "test")
ROLES = ("text", "text_pair", "tokens", "label")
FORMATS = ("csv", "tsv", "json", "parquet", "conll")
LOSS_BALANCINGS = ("none", "uncertainty", "dwa")
NANO_ROWS = {"train": 128, "validation": 64, "test": 64}
"""Rows of every task that `--nano` leaves in each split."""

TASK_CHOICES = {
    "kind": TASK_KINDS,
    "problem_type": PROBLEM_TYPES,
    "pooling": POOLINGS,
    "head": HEADS,
    "head_activation": HEAD_ACTIVATIONS,
    "format": FORMATS,
}
MAPPING_ARGUMENTS = ("tasks", "sampling_shares", "lora", "search", "stages")
"""Arguments that are mappings; the command line reaches into them with dots (`--tasks.ner.loss.weight 0.5`)."""
LIST_ARGUMENTS = ("stages",)
"""Those of them that are lists; the command line gives them as a whole (`--stages "[{epochs: 1}, ...]"`)."""
DEFAULT_EPOCHS = 3.0
STAGE_FIELDS = frozenset({"epochs", "freeze"})


def _option(help: str, default: Any = None) -> Any:
    """A dataclass field with its help text; lists and mappings are copied for each instance."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _switch(help: str) -> Any:
    """A three-valued switch: unset (None: decided by the program), `--switch` or `--switch true`, `--switch false`."""
    return field(default=None, metadata={"help": help, "nargs": "?", "const": True})


@dataclass
class TaskArguments:
    """One entry under `tasks:` in a recipe: where the rows of a task are, how they are read, which head learns them.

    `dataset` is the only field that must be given; the rest is inferred from the dataset's features where that is
    unambiguous, and the plan of a run says what was. `metadata["help"]` of each field describes it.
    """

    dataset: str | dict[str, str] = field(
        metadata={
            "help": "Hub id, local folder, local file, 'builtin:NAME' (example data), or a mapping from split to file "
            "(required)."
        }
    )
    kind: str | None = _option(f"One of {', '.join(TASK_KINDS)} (default: inferred from the features).")
    config: str | None = _option("Configuration (subset) of a Hub dataset (default: its only one).")
    revision: str | None = _option("Branch, tag or commit of a Hub dataset (default: its main branch).")
    license: str | None = _option("Licence of the data, for the model card (default: what its card on the Hub says).")
    language: str | list[str] | None = _option(
        "Language of the texts (en, de, ...), or a list of them, for the model card (default: what its card on the Hub "
        "says)."
    )
    name: str | None = _option("Folder looked for under --data_root (default: the last part of `dataset`).")
    format: str | None = _option(f"Format of local files: {', '.join(FORMATS)} (default: by file extension).")
    column_names: list[str] | None = _option(
        "Names of the columns of CoNLL and header-less files, from left to right (default: from the file)."
    )
    columns: dict[str, str | list[str]] = _option(
        f"Column that plays each role ({', '.join(ROLES)}), or a list of alternatives of which the first present "
        "one is taken (default: well-known names).",
        {},
    )
    splits: dict[str, str | None] = _option(
        "Source split read as our train, validation and test; null reads none (default: the splits of the same name).",
        {},
    )
    labels: list[str] | None = _option(
        "Label names, position = class index (default: those of the features, else the sorted names in train)."
    )
    problem_type: str | None = _option(
        f"For text-classification: one of {', '.join(PROBLEM_TYPES)} (default: inferred from the labels)."
    )
    max_rows: int | dict[str, int] | None = _option(
        "Rows kept of train (a number) or of each split (a mapping), a seeded random sample (default: all)."
    )
    validation_fraction: float = _option(
        "Share of the train rows (0-1) cut off for validation where there is no validation split.", 0.1
    )
    score_range: list[float] | None = _option(
        "[lowest, highest] score of the source, rescaled to 0..1 (default: scores are taken as they are)."
    )
    pooling: str | None = _option(f"Pooling of this task alone: {', '.join(POOLINGS)} (default: the model's).")
    head: str | None = _option(f"Head of a text-classification: {', '.join(HEADS)} (default: linear).")
    head_activation: str | None = _option(f"Activation of an mlp head: {', '.join(HEAD_ACTIVATIONS)} (default: tanh).")
    dropout: float | None = _option("Dropout probability (0-1) in front of the head (default: --head_dropout).")
    loss: dict[str, Any] | None = _option(
        "Options of the loss: weight (factor, default: 1.0), class_weights, label_smoothing (0-1), r_drop (weight of "
        "the divergence between two passes with other dropout: better with few rows, twice the work); for "
        "similarity name and scale; with distill_from label_share ([first, last] weight of the labels, 0-1, default: "
        "[0, 1], the teacher's being what is left) and distillation_temperature (default: 1.0)."
    )
    distill_from: str | None = _option(
        "Teacher that the task learns from beside its labels (a folder or Hub id): a model of ours with this task, or "
        "any classifier of transformers with the same label names. For feature-extraction the model whose sentence "
        "embedding is learnt (default: the encoder itself, as it is before training)."
    )


@dataclass
class LoraArguments:
    """`lora:` in a recipe: adapters that are trained in place of the encoder's weights, named as `peft.LoraConfig` is.

    Raises:
        ValueError: for a value of the wrong type or out of its range.
    """

    r: int = _option("Rank of an adapter.", 8)
    lora_alpha: int = _option("An adapter's part counts lora_alpha / r times.", 16)
    lora_dropout: float = _option("Dropout probability (0-1) in front of an adapter.", 0.0)
    target_modules: str | list[str] = _option(
        "Layers that are adapted: ends of their names, a regular expression of whole names, or all-linear.",
        "all-linear",
    )
    exclude_modules: str | list[str] | None = _option("Layers among them that are not, in the same form (none).")
    use_rslora: bool = _option("Whether it counts lora_alpha / sqrt(r) times (rank-stabilised).", False)
    use_dora: bool = _option("Whether length and direction of weights are adapted apart (DoRA).", False)

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for name, hint in get_type_hints(LoraArguments).items():
            check_type(f"lora: {name}", getattr(self, name), hint)
        for name in ("r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"lora: {name} must be at least 1; got {getattr(self, name)!r}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora: lora_dropout is a probability below 1; got {self.lora_dropout!r}.")


LORA_FIELDS = {one.name: one for one in dataclasses.fields(LoraArguments)}


@dataclass
class ModelArguments:
    """What the model is: its encoder and what stands between encoder and heads; the heads follow from the tasks."""

    encoder: str = _option(
        "Pretrained encoder: a local folder or a Hub id.",
        "sentence-transformers/all-MiniLM-L6-v2",
    )
    init_from: str | None = _option(
        "Trained model of ours (folder or Hub id) to start from in place of an encoder: its tasks stay, those of the "
        "recipe that it lacks get new heads, those that it has go on learning. Unset, training starts from `encoder`."
    )
    pooling: str | None = _option(
        f"How token states become one vector: {', '.join(POOLINGS)}; unset, what the encoder's folder says, else mean."
    )
    projection_dim: int | None = _option(
        "Features of a linear map after pooling, which heads and embedding read; unset, there is none."
    )
    normalize_embeddings: bool | None = _switch(
        "Whether sentence embeddings have L2 norm 1; unset, what the encoder's folder says, else not."
    )
    head_dropout: float = _option("Dropout probability (0-1) in front of every head.", 0.1)
    max_seq_length: int | None = _option(
        "Tokens a text is cut to, special tokens included; unset, what the encoder's folder says."
    )
    read_case: bool = _option(
        "Whether an uncased WordPiece encoder (BERT, MiniLM, MPNet) reads upper and lower case: names are told apart "
        "better, texts get no longer.",
        False,
    )
    lora: dict[str, Any] | None = _option(
        "Train low-rank adapters (LoRA, extra lora) in place of the encoder's weights: a mapping with any of "
        f"{', '.join(LORA_FIELDS)}, as peft has them (--lora.r 8 alone will do); unset, there are none."
    )
    task_name: str | None = _option(
        "Task that the one-head views and stock pipelines answer with; unset, the first by name of the fitting kind."
    )

    def __post_init__(self) -> None:
        """Raise ValueError for values that `MultiTaskConfig` would refuse, before any data is read."""
        MultiTaskConfig(
            pooling=self.pooling or "mean", projection_dim=self.projection_dim, max_seq_length=self.max_seq_length
        )
        if not 0 <= self.head_dropout <= 1:
            raise ValueError(f"head_dropout is a probability between 0 and 1; got {self.head_dropout!r}.")
        if self.lora is not None:
            check_type("lora", self.lora, dict[str, Any])
            refuse_unknown_fields("lora", self.lora, frozenset(LORA_FIELDS))
            self.lora = dataclasses.asdict(LoraArguments(**self.lora))


@dataclass
class DataArguments:
    """What a run reads, in which order, and what it prints at the end.

    Attributes:
        notes (list[str]): What was decided for the user, one sentence each; printed with the plan.

    Raises:
        ValueError: for no tasks at all, an unknown field of a task, or a value of the wrong type; the message names
            the task, the nearest known field and the way out.
    """

    tasks: dict[str, TaskArguments] = _option(
        "The tasks, name -> fields (see below): set by the recipe, single fields by --tasks.TASK.FIELD VALUE. Unset, "
        "there is nothing to train.",
        {},
    )
    data_root: str | None = _option(
        "Folder whose DIR/<name> is read in place of the Hub where it is there; unset, none."
    )
    sampling_strategy: str = _option(
        "How tasks are mixed: proportional, uniform, temperature, annealed, shares or alternating.", "temperature"
    )
    sampling_temperature: float = _option(
        "T of the temperature strategy: a task's share goes with rows^(1/T); 1 is proportional.", 2.0
    )
    sampling_cap: int = _option("Rows above which a task counts as no larger, for its share.", 262144)
    sampling_shares: dict[str, float] | None = _option(
        "Share of each task's rows in training, name -> number (any sum); needed by the strategy shares, else unset. "
        "Of tasks that read the same rows one is enough; several add up."
    )
    search: dict[str, Any] | None = _option(
        "For search_hf.py, not read in training: argument (tasks.TASK.FIELD for a field of a task) -> a list of "
        "values, or {low, high, log, step}. Unset in most recipes."
    )
    drift_data: str | None = _option(
        "With --init_from: recipe with the data of tasks that are not trained; they are scored on its validation rows "
        "before and after training. Unset, only the share of changed answers is known."
    )
    grouping: str = _option("How rows are put into batches: length (similar lengths, less padding) or none.", "length")
    cache_encoder: bool = _option(
        "With the whole encoder frozen (freeze: [encoder]): compute its outputs once, and train from the store.", False
    )
    encoder_cache_dir: str | None = _option(
        "Folder of the stores of cache_encoder; unset, multitask_encoder_cache beside the cache of the Hub (HF_HOME)."
    )
    offline: bool = _option("Never ask the Hub, not even for what is not in the cache.", False)
    nano: bool = _option(
        f"Try the run in about a minute: {NANO_ROWS['train']} train, {NANO_ROWS['validation']} validation and "
        f"{NANO_ROWS['test']} test rows a task, 1 epoch.",
        False,
    )
    dry_run: bool = _option("Stop after printing the plan.", False)
    sample_texts: list[str] = _option(
        "Texts that the trained model answers at the end, every task of it; unset, none.", []
    )
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Turn the mappings under `tasks` into checked `TaskArguments`."""
        if not isinstance(self.tasks, dict) or not self.tasks:
            raise ValueError(
                f"A run needs at least one task: a mapping from task name to its fields, under `tasks:` in a recipe. "
                f"Got {self.tasks!r}. Give the recipe as the first argument (recipes/quickstart.yaml is one)."
            )
        self.tasks = {name: read_task(name, entry) for name, entry in self.tasks.items()}
        check_type("sampling_shares", self.sampling_shares, dict[str, float] | None)
        refuse_unknown_fields("sampling_shares", self.sampling_shares or {}, frozenset(self.tasks))
        if self.sampling_shares and self.sampling_strategy != "shares":
            raise ValueError(
                f"sampling_shares are given, but sampling_strategy is {self.sampling_strategy!r}. Set it to 'shares', "
                "or take the shares away (--sampling_shares {} on the command line)."
            )


def _default_report_to() -> str:
    """`tensorboard` where it is installed."""
    return "tensorboard" if is_tensorboard_available() else "none"


@dataclass(repr=False)  # TrainingArguments' own repr hides the Hub token, a generated one would print it
class MultiTaskTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with other defaults and arguments of its own.

    Defaults that differ from `TrainingArguments`:

    - Order of rows: `train_sampling_strategy="sequential"` (the task-sampling dataset is shuffled already).
    - Batches: `per_device_train_batch_size=32`, `per_device_eval_batch_size=64`, `label_names=["labels"]`.
    - Optimisation: `learning_rate=1e-4`, `weight_decay=0.01`, `warmup_steps=0.06` (below 1: a share of all steps).
    - Evaluation: `eval_strategy` and `save_strategy` `"epoch"`, `load_best_model_at_end=True`,
      `metric_for_best_model="eval_mean_score"`, `save_total_limit=2`; `greater_is_better` is derived from the metric's
      name (False for `...loss` and `...mse`).
    - Logs: `logging_steps=20`, `logging_nan_inf_filter=False` (a loss that is not finite is not hidden by an average),
      `report_to="tensorboard"` where it is installed.
    - Hardware: `bf16` is decided: on where a GPU computes in it, or a CPU with AMX or avx512_bf16. `use_cpu` is set
      where there is no accelerator. `ddp_find_unused_parameters=False`.

    Attributes:
        notes (list[str]): What was decided for the user (bf16), one sentence each; printed with the plan.

    Raises:
        ValueError: for a value out of its range, besides all that `TrainingArguments` refuses.
    """

    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "How Trainer reads the task-sampling dataset, whose own order is the plan: keep sequential.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    per_device_train_batch_size: int = _option("Items (labelled rows) of a training batch on one device.", 32)
    per_device_eval_batch_size: int = _option("Items (labelled rows) of an evaluation batch on one device.", 64)
    learning_rate: float = _option("Highest learning rate, reached after warm-up.", 1e-4)
    weight_decay: float = _option("Weight decay of AdamW; biases and norms have none.", 0.01)
    warmup_steps: float = _option("Steps of linear warm-up; below 1, a share of all steps.", 0.06)
    num_train_epochs: float | None = _option(  # None until decided; a float after __post_init__
        f"Epochs: passes over the plan; unset, {DEFAULT_EPOCHS:g}, or as many as the stages have."
    )
    logging_steps: float = _option("Steps between two log lines; below 1, a share of all steps.", 20)
    logging_nan_inf_filter: bool = _option("Whether a loss that is not finite is left out of the logged mean.", False)
    eval_strategy: str = _option("When to evaluate on validation rows: no, steps or epoch.", "epoch")
    save_strategy: str = _option("When to save a checkpoint: no, steps, epoch or best.", "epoch")
    save_total_limit: int | None = _option("Checkpoints kept, the best among them; null in a recipe keeps all.", 2)
    load_best_model_at_end: bool = _option("Whether the best checkpoint is loaded after training.", True)
    metric_for_best_model: str | None = _option(
        "Metric of the best checkpoint: eval_mean_score, eval_loss or eval_<task>_<metric>.", "eval_mean_score"
    )
    greater_is_better: bool | None = _switch(
        "Whether a higher metric_for_best_model is better; unset, decided by its name (a loss or mse is not)."
    )
    report_to: None | str | list[str] = field(
        default_factory=_default_report_to,
        metadata={"help": "Where logs go: tensorboard, wandb, trackio, ..., all or none."},
    )
    label_names: list[str] | None = _option("Inputs of the model that are labels; keep it.", ["labels"])
    bf16: bool | None = _switch(  # None until decided; a bool after __post_init__
        "Train in bfloat16 mixed precision; unset, where the hardware computes in it (GPU, or CPU with AMX or "
        "avx512_bf16)."
    )
    ddp_find_unused_parameters: bool | None = _option(
        "Whether DDP looks for parameters without gradient; the model has none, so keep it.", False
    )
    early_stopping_patience: int | None = _option(
        "Evaluations without a better metric_for_best_model after which training stops; unset, never."
    )
    head_learning_rate: float | None = _option(
        "Learning rate of everything outside the encoder; unset, --learning_rate."
    )
    loss_balancing: str = _option(
        f"How tasks are weighed beside loss.weight, one of {', '.join(LOSS_BALANCINGS)}: none is the plain sum; "
        "uncertainty learns a log variance a task; dwa (dynamic weight averaging) weighs up, from the third epoch on, "
        "tasks whose mean loss fell less.",
        "none",
    )
    balancing_learning_rate: float = _option(
        "With loss_balancing uncertainty: learning rate of the log variances, which have no weight decay.", 0.01
    )
    layer_decay: float | None = _option(
        "Factor (0-1) from the learning rate of a layer of the encoder to that of the layer below: the highest has "
        "--learning_rate, the embeddings have the lowest; unset, all have --learning_rate."
    )
    freeze: list[str] = _option(
        "Parts that stay as they are: encoder; embeddings (a little faster, 4 percent with MiniLM on a CPU, and words "
        "that training never saw stay beside those it saw); layers:K (the embeddings and the first K layers of the "
        "encoder); heads (with --init_from those that were there); projection; or a task, for its head. Unset, all "
        "learns.",
        [],
    )
    stages: list[dict[str, Any]] | None = _option(
        "Gradual unfreezing: a list of stages, each {epochs: N, freeze: [parts]}; what is frozen in a stage, besides "
        "--freeze, is what it lists (heads are all heads). Unset, one stage."
    )
    max_head_drift: float | None = _option(
        "With --init_from: share of texts (0-1) on which a task that is not trained may answer otherwise than before; "
        "beyond it the model is not saved. Unset, any share."
    )
    calibrate: bool = _option(
        "Whether a temperature is fitted to each head with classes after training, on validation rows: scores then say "
        "how often an answer is right; no answer changes.",
        False,
    )
    gradient_cosines: float | None = _option(
        "Optimizer steps between two measurements of how far the tasks' gradients agree (cosines over the encoder); "
        "below 1, a share of all steps; unset, never. Changes no weight."
    )
    overwrite_output: bool = _option("Whether a trained model in --output_dir may be replaced.", False)
    resume_changed_recipe: bool = _option(
        "Whether to go on from a checkpoint of another recipe; the run then ends elsewhere than the unbroken one.",
        False,
    )
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Decide precision and device, derive `greater_is_better`, then check all as `TrainingArguments` does."""
        positive = ("early_stopping_patience", "gradient_cosines", "head_learning_rate", "balancing_learning_rate")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be greater than 0, or unset; got {value!r}.")
        if self.loss_balancing not in LOSS_BALANCINGS:
            raise ValueError(
                f"loss_balancing must be one of {', '.join(LOSS_BALANCINGS)}; got {self.loss_balancing!r}."
                f"{nearest_name(self.loss_balancing, LOSS_BALANCINGS)}"
            )
        if self.max_head_drift is not None and not 0 <= self.max_head_drift <= 1:
            raise ValueError(f"max_head_drift is a share between 0 and 1, or unset; got {self.max_head_drift!r}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is a factor above 0, at most 1, or unset; got {self.layer_decay!r}.")
        self.freeze = read_parts("freeze", self.freeze)
        if self.stages is not None:
            self.stages = read_stages(self.stages)
            self._check_stages()
        if self.num_train_epochs is None:
            self.num_train_epochs = float(sum(stage["epochs"] for stage in self.stages or ()) or DEFAULT_EPOCHS)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", "mse"))
        if not torch.accelerator.is_available() and not is_torch_xla_available():
            self.use_cpu = True  # with bf16, and with several processes, Trainer asks for it in so many words
        if self.bf16 is None:
            self.bf16 = self._decide_bf16()
        super().__post_init__()

    def _check_stages(self) -> None:
        """Refuse what contradicts stages: each begins from the checkpoint at the end of the one before."""
        epochs = sum(stage["epochs"] for stage in self.stages or ())
        refused = {
            f"num_train_epochs ({self.num_train_epochs}) is the sum of their epochs ({epochs}); leave it away.": (
                self.num_train_epochs not in (None, epochs)
            ),
            "max_steps would end them elsewhere than at an epoch's end; leave it away.": self.max_steps > 0,
            "early_stopping_patience would count evaluations across stages, and a stage that stands still is where the "
            "next one begins; leave it away (the best checkpoint of all stages is kept).": (
                self.early_stopping_patience is not None
            ),
            "save_strategy best may write no checkpoint at a stage's end; set epoch, steps or no.": (
                self.save_strategy == "best"
            ),
            "save_only_model leaves out the optimizer's state, with which the next stage goes on; leave it away.": (
                self.save_only_model
            ),
            f"lr_scheduler_type {self.lr_scheduler_type} is no function of the step, so that it cannot go on over the "
            "stages; set linear, say.": (self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")),
        }
        for problem, is_so in refused.items():
            if is_so:
                raise ValueError(f"With stages, {problem}")

    def _decide_bf16(self) -> bool:
        """Whether to train in bf16, saying so in `notes`; an fp16 that was asked for stands."""
        if self.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
            return False
        has_bf16, hardware = find_bf16(self.use_cpu)
        switch = "--bf16 false switches it off" if has_bf16 else "--bf16 true asks for it all the same"
        self.notes.append(f"Mixed precision: bf16 is {'on' if has_bf16 else 'off'} ({hardware}); {switch}.")
        return has_bf16


def read_parts(where: str, words: list[str]) -> list[str]:
    """Parts to freeze, `encoder,heads` being two.

    Raises:
        ValueError: for `all`: then nothing is trained. (Whether a part exists is the model's to say.)
    """
    parts = [part for word in words for part in word.split(",") if part]
    if "all" in parts:
        raise ValueError(
            f"{where}: all is for evaluation only, since nothing is left to train. Freeze less (encoder: the heads are "
            "trained), or score a model without training it: evaluate_hf.py."
        )
    return parts


def read_stages(stages: list[Any]) -> list[dict[str, Any]]:
    """Return the entries of `stages` checked and complete: `{"epochs": N, "freeze": [parts]}`.

    Raises:
        ValueError: naming the stage, for no stage at all, an unknown field, a number of epochs that is not whole and at
            least 1, or parts that are no list of words.
    """
    check_type("stages", stages, list[dict[str, Any]])
    if not stages:
        raise ValueError("stages is a list of {epochs: N, freeze: [parts]}, at least one, or unset; got [].")
    checked = []
    for number, stage in enumerate(stages, 1):
        where = f"Stage {number} of {len(stages)}"
        refuse_unknown_fields(where, stage, STAGE_FIELDS)
        epochs, parts = stage.get("epochs"), stage.get("freeze") or []
        if not fits(epochs, int) or epochs < 1:
            raise ValueError(f"{where}: epochs must be a whole number of at least 1; got {epochs!r}.")
        check_type(f"{where}: freeze", parts, list[str])
        checked.append({"epochs": epochs, "freeze": read_parts(f"{where}: freeze", parts)})
    return checked


def find_bf16(use_cpu: bool) -> tuple[bool, str]:
    """Whether the hardware computes in bfloat16 (an emulated bf16 is slower than float32), and which hardware it is."""
    if use_cpu:
        capabilities = torch.cpu.get_capabilities()
        found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
        return bool(found), f"CPU with {' and '.join(found)}" if found else "CPU without AMX and avx512_bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name()
    return is_torch_bf16_gpu_available() and not torch.backends.mps.is_available(), "accelerator"


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` has the annotated type; a whole number is a float, a boolean is no number."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint in (bool, Any)
    if hint is float:
        return isinstance(value, int | float)
    return hint is Any or isinstance(value, hint)


def check_type(where: str, value: Any, hint: Any) -> None:
    """Raise ValueError naming the expected type unless `value` fits `hint`."""
    if fits(value, hint):
        return
    expected = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    quote = " Quote text that YAML reads as a number or a boolean." if "str" in expected else ""
    raise ValueError(f"{where} must be {expected.replace('typing.', '')}; got {value!r}.{quote}")


def read_task(name: Any, entry: Any) -> TaskArguments:
    """Return one entry under `tasks:` as checked `TaskArguments`.

    Args:
        name (str): Name of the task.
        entry (dict or TaskArguments): Its fields.

    Raises:
        ValueError: for a task name that cannot be a module name, an unknown field (with the nearest known one), a
            missing `dataset`, a value of the wrong type or a choice that does not exist.
    """
    check_task_name(name)
    if isinstance(entry, dict):
        refuse_unknown_fields(f"Task {name!r}", entry, frozenset(TASK_HINTS))
        if not entry.get("dataset"):
            raise ValueError(
                f"Task {name!r} needs a `dataset`: a Hub id, a local folder or file, or builtin:NAME. Got {entry!r}."
            )
        entry = TaskArguments(**{key: value for key, value in entry.items() if value is not None})
    if not isinstance(entry, TaskArguments):
        raise ValueError(f"Task {name!r} must be a mapping from field to value; got {entry!r}.")
    check_task_arguments(name, entry)
    return entry


def check_task_arguments(name: str, task: TaskArguments) -> None:
    """Raise ValueError, naming the task and the field, for what can be refused before the data is opened."""
    for key, hint in TASK_HINTS.items():
        check_type(f"Task {name!r}: {key}", getattr(task, key), hint)
    for key, choices in TASK_CHOICES.items():
        if getattr(task, key) is not None:
            check_choice(name, key, getattr(task, key), choices)
    refuse_unknown_fields(f"Task {name!r}: columns", task.columns, frozenset(ROLES))
    refuse_unknown_fields(f"Task {name!r}: splits", task.splits, frozenset(SPLITS))
    _check_rows(name, task)
    _check_head(name, task)


def _check_rows(name: str, task: TaskArguments) -> None:
    """Refuse split names, caps, shares and score ranges that cannot be met."""
    if isinstance(task.dataset, dict):
        refuse_unknown_fields(f"Task {name!r}: dataset", task.dataset, frozenset(SPLITS))
    refuse_unknown_fields(f"Task {name!r}: max_rows", rows_by_split(task.max_rows), frozenset(SPLITS))
    for split, rows in rows_by_split(task.max_rows).items():
        check_number(name, f"max_rows of {split}", rows, 1)
    check_number(name, "validation_fraction", task.validation_fraction, 0.0, 0.9)
    if task.score_range is not None and (len(task.score_range) != 2 or task.score_range[0] >= task.score_range[1]):
        raise ValueError(f"Task {name!r}: score_range must be [lowest, highest]; got {task.score_range}.")


def _check_head(name: str, task: TaskArguments) -> None:
    """Refuse head and loss fields that no kind, or not this kind, has."""
    if task.dropout is not None:
        check_number(name, "dropout", task.dropout, 0.0, 1.0)
    if task.kind is None:
        loss_fields = frozenset[str]().union(*LOSS_FIELDS.values())
    else:
        loss_fields = LOSS_FIELDS[task.kind]
        given = [key for key in HEAD_FIELDS if getattr(task, key) is not None]
        refuse_unknown_fields(f"Task {name!r} ({task.kind})", given, SPEC_FIELDS[task.kind])
    refuse_unknown_fields(f"Task {name!r}: loss", task.loss or {}, loss_fields)
    needless = sorted(TEACHER_LOSS_FIELDS & (task.loss or {}).keys()) if task.distill_from is None else []
    if needless:
        raise ValueError(
            f"Task {name!r}: loss.{needless[0]} says how it learns from a teacher; name one "
            "(distill_from), or remove it."
        )


def rows_by_split(max_rows: int | dict[str, int] | None) -> dict[str, int]:
    """`max_rows` with a bare number (the cap of train) spelled out: split -> rows."""
    return {"train": max_rows} if isinstance(max_rows, int) else dict(max_rows or {})


TASK_HINTS: dict[str, Any] = get_type_hints(TaskArguments)
HEAD_FIELDS = sorted(frozenset[str]().union(*SPEC_FIELDS.values()) & TASK_HINTS.keys())
"""Fields of `TaskArguments` that describe the head; which of them a task may have depends on its kind."""
ARGUMENT_CLASSES: Any = (ModelArguments, DataArguments, MultiTaskTrainingArguments)
ARGUMENT_FIELDS: dict[str, dataclasses.Field] = {
    one.name: one for arguments in ARGUMENT_CLASSES for one in dataclasses.fields(arguments) if one.init
}
"""Every argument of a run by name: the keys of a recipe and, behind `--`, of the command line."""
ARGUMENT_HINTS: dict[str, Any] = {name: hint for one in ARGUMENT_CLASSES for name, hint in get_type_hints(one).items()}
