"""What a multi-task model *is*: its encoder, its pooling, its tasks and their heads.

`MultiTaskConfig` is saved as `config.json` beside the weights; this file travels with it (`trust_remote_code=True`). It
knows no tensors, no data and no training run: those are `modeling_multitask`, `task_data` and `arguments_multitask`.
Facts that several modules need (task kinds, problem types, label padding) live here and nowhere else.

    config = MultiTaskConfig(tasks={"topic": {"kind": "text-classification", "labels": ["World", "Sports"]}})
"""

import difflib
import keyword
import math
from typing import Any

from transformers import AutoConfig, PretrainedConfig

TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"
SENTENCE_SIMILARITY = "sentence-similarity"
FEATURE_EXTRACTION = "feature-extraction"
TASK_KINDS = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, SENTENCE_SIMILARITY, FEATURE_EXTRACTION)

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last_token")
HEADS = ("linear", "mlp")
HEAD_ACTIVATIONS = ("tanh", "gelu", "relu")
SIMILARITY_LOSSES = ("mse", "cosent")

LABEL_PADDING = -100
"""An integer label that is not there (padding, special tokens, items of other tasks); floats use NaN."""

SPEC_FIELDS = {
    TEXT_CLASSIFICATION: frozenset(
        {"kind", "labels", "problem_type", "text_pair", "pooling", "head", "head_activation", "dropout", "temperature"}
    ),
    TOKEN_CLASSIFICATION: frozenset({"kind", "labels", "dropout", "temperature"}),
    SENTENCE_SIMILARITY: frozenset({"kind", "pooling"}),
    FEATURE_EXTRACTION: frozenset({"kind", "pooling"}),
}
LOSS_FIELDS = {
    TEXT_CLASSIFICATION: frozenset(
        {"weight", "class_weights", "label_smoothing", "r_drop", "label_share", "distillation_temperature"}
    ),
    TOKEN_CLASSIFICATION: frozenset(
        {"weight", "class_weights", "label_smoothing", "r_drop", "label_share", "distillation_temperature"}
    ),
    SENTENCE_SIMILARITY: frozenset({"weight", "name", "scale", "label_share"}),
    FEATURE_EXTRACTION: frozenset({"weight"}),
}
TEACHER_LOSS_FIELDS = frozenset({"label_share", "distillation_temperature"})
"""Options of the loss that say how a task learns from a teacher (`distill_from` in a recipe)."""
LONGEST_TASK_NAME = 60
"""Characters: 240 bytes at most, so that `confusion_<task>.png` fits into the 255 of a file name."""

MODEL_PARTS = ("encoder", "embeddings", "heads", "projection", "all")
"""Parts of a model that are frozen by name; so is every task, whose name stands for its head."""
LOWER_LAYERS = "layers"
"""`layers:K` is a part, too: the embedding layer and the first K layers of the encoder."""

RESERVED_TASK_NAMES = frozenset({"mean", "train", "eval", "test", "sentence_embedding"})
# nn.ModuleDict refuses a key that is already one of its attributes; this file imports no torch, so they are named here.
MODULE_ATTRIBUTES = frozenset(
    "add_module apply bfloat16 buffers children clear compile cpu cuda double eval extra_repr float forward "
    "get_buffer get_extra_state get_parameter get_submodule half ipu items keys load_state_dict modules mtia "
    "named_buffers named_children named_modules named_parameters parameters pop register_backward_hook "
    "register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook "
    "register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook "
    "register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ "
    "set_extra_state set_submodule share_memory state_dict to to_empty train training type update values xpu "
    "zero_grad call_super_init dump_patches T_destination "
    "smart_apply".split()  # the last one is added by transformers
)


def nearest_name(name: str, known: Any) -> str:
    """Return `" Did you mean 'x'?"` for the known name closest to `name`, or an empty string where none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def has_entities(labels: list[str]) -> bool:
    """Whether tag names are in BIO form, so that they spell entities (spans) rather than one tag a word."""
    return "O" in labels and all(label == "O" or label[:2] in ("B-", "I-") for label in labels)


def entity_types(labels: list[str]) -> list[str]:
    """The sorted entity types of BIO tag names: `["O", "B-PER", "I-PER"]` -> `["PER"]`."""
    return sorted({label[2:] for label in labels if label != "O"})


def num_outputs(spec: dict[str, Any]) -> int:
    """How many numbers the head of a task puts out for an item (or a token); 0 where the kind has no head."""
    if spec["kind"] in (SENTENCE_SIMILARITY, FEATURE_EXTRACTION):
        return 0
    return len(spec["labels"])


def check_choice(task_name: str, field: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(
            f"Task {task_name!r}: {field} must be one of {', '.join(choices)}; got {value!r}."
            f"{nearest_name(value, choices)}"
        )


def check_task_name(name: Any) -> None:
    """Raise ValueError unless `name` can be a module name, a metric prefix and a key of `config.json`."""
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"A task name becomes a module name, so it must be letters, digits, '_' or '-', not starting with a digit "
            f"and no Python keyword; got {name!r}. Rename the task."
        )
    if len(name) > LONGEST_TASK_NAME:
        raise ValueError(
            f"A task name becomes part of file names, so it has at most {LONGEST_TASK_NAME} characters; "
            f"{name[:20]!r}... has {len(name)}. Rename the task."
        )
    if name in RESERVED_TASK_NAMES or name in MODULE_ATTRIBUTES:
        raise ValueError(
            f"The task name {name!r} is reserved (metric keys and module attributes use it). Rename the task, "
            f"for example to '{name}_task'."
        )


def check_number(task_name: str, field: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        bound = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
        raise ValueError(f"Task {task_name!r}: {field} must be a finite number {bound}; got {value!r}.")


def check_labels(name: str, spec: dict[str, Any]) -> list[str]:
    """Return the label names of a task with a head, checked: a non-empty list of distinct strings."""
    labels = spec.get("labels")
    if spec.get("problem_type") == REGRESSION:
        labels = labels or ["score"]
        if len(labels) != 1:
            raise ValueError(f"Task {name!r}: a regression task predicts one number, so one label name; got {labels}.")
    if not isinstance(labels, list | tuple) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"Task {name!r}: labels must be a list of label names (strings, the class index is the position); "
            f"got {labels!r}. Quote names that YAML reads as numbers or booleans."
        )
    if len(set(labels)) != len(labels):
        doubled = sorted({label for label in labels if list(labels).count(label) > 1})
        raise ValueError(f"Task {name!r}: labels must be distinct; {doubled} stand more than once.")
    return list(labels)


def check_loss(name: str, spec: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """Return the loss options of a task, checked, with `weight` filled in (1.0)."""
    loss = {"weight": 1.0, **(spec.get("loss") or {})}
    refuse_unknown_fields(f"Task {name!r}: loss", loss, LOSS_FIELDS[spec["kind"]])
    check_number(name, "loss.weight", loss["weight"], 0.0)
    if "label_smoothing" in loss:
        check_number(name, "loss.label_smoothing", loss["label_smoothing"], 0.0, 1.0)
        if spec.get("problem_type") in (MULTI_LABEL, REGRESSION):
            raise ValueError(f"Task {name!r}: label_smoothing is for single-label and tag losses; remove it.")
    if "r_drop" in loss:
        check_number(name, "loss.r_drop", loss["r_drop"], 0.0)
        if spec.get("problem_type") in (MULTI_LABEL, REGRESSION):
            raise ValueError(f"Task {name!r}: r_drop compares distributions over classes; remove it.")
    if loss.get("class_weights") is not None:
        weights = loss["class_weights"]
        if spec.get("problem_type") == REGRESSION:
            raise ValueError(f"Task {name!r}: class_weights is for classes; a regression task has none. Remove it.")
        if not isinstance(weights, list) or len(weights) != len(labels):
            raise ValueError(
                f"Task {name!r}: loss.class_weights needs one number for each of the {len(labels)} labels, in their "
                f"order ({', '.join(labels)}); got {weights!r}."
            )
        for weight in weights:
            check_number(name, "loss.class_weights", weight, 0.0)
    if "label_share" in loss:
        shares = loss["label_share"]
        if not isinstance(shares, list | tuple) or len(shares) != 2:
            raise ValueError(
                f"Task {name!r}: loss.label_share is the weight of the labels beside a teacher at the first and the "
                f"last step, two numbers: [0, 1] goes from teacher to labels, [0.5, 0.5] keeps halves; got {shares!r}."
            )
        for share in shares:
            check_number(name, "loss.label_share", share, 0.0, 1.0)
        loss["label_share"] = list(shares)
    if "distillation_temperature" in loss:
        check_number(name, "loss.distillation_temperature", loss["distillation_temperature"], 1e-3)
        if spec.get("problem_type") == REGRESSION:
            raise ValueError(f"Task {name!r}: distillation_temperature softens distributions over classes; remove it.")
    if "name" in loss:
        check_choice(name, "loss.name", loss["name"], SIMILARITY_LOSSES)
    if "scale" in loss:
        check_number(name, "loss.scale", loss["scale"], 1e-6)
    return loss


def refuse_unknown_fields(where: str, given: Any, known: frozenset[str]) -> None:
    """Raise ValueError naming the nearest known field for a key of `given` that is not known."""
    for field in given:
        if field not in known:
            raise ValueError(
                f"{where} has no field {field!r}; its fields are {', '.join(sorted(known))}."
                f"{nearest_name(field, known)}"
            )


def check_task(name: str, spec: Any) -> dict[str, Any]:
    """Return the checked, complete specification of one task: plain JSON types, its own copy.

    Raises:
        ValueError: for an unknown kind, field or choice, or labels that are missing or doubled; the message names the
            task, what came and the way out.
    """
    check_task_name(name)
    if not isinstance(spec, dict):
        raise ValueError(f"Task {name!r} must be described by a mapping with a 'kind'; got {spec!r}.")
    check_choice(name, "kind", spec.get("kind"), TASK_KINDS)
    kind = spec["kind"]
    refuse_unknown_fields(f"Task {name!r} ({kind})", spec, SPEC_FIELDS[kind] | {"loss"})
    spec = {field: value for field, value in spec.items() if value is not None}
    checked: dict[str, Any] = {"kind": kind}
    if kind == TEXT_CLASSIFICATION:
        spec.setdefault("problem_type", SINGLE_LABEL)
        check_choice(name, "problem_type", spec["problem_type"], PROBLEM_TYPES)
        checked["problem_type"] = spec["problem_type"]
        checked["text_pair"] = bool(spec.get("text_pair", False))
        checked["head"] = spec.get("head", "linear")
        check_choice(name, "head", checked["head"], HEADS)
        if checked["head"] == "mlp":
            checked["head_activation"] = spec.get("head_activation", "tanh")
            check_choice(name, "head_activation", checked["head_activation"], HEAD_ACTIVATIONS)
    if kind in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        checked["labels"] = check_labels(name, spec)
    if "pooling" in spec:
        check_choice(name, "pooling", spec["pooling"], POOLINGS)
        checked["pooling"] = spec["pooling"]
    if "dropout" in spec:
        check_number(name, "dropout", spec["dropout"], 0.0, 1.0)
        checked["dropout"] = spec["dropout"]
    if "temperature" in spec:
        check_number(name, "temperature", spec["temperature"], 1e-6)
        if checked.get("problem_type") == REGRESSION:
            raise ValueError(f"Task {name!r}: temperature is of probabilities; a regression task has none. Remove it.")
        checked["temperature"] = spec["temperature"]
    checked["loss"] = check_loss(name, spec, checked.get("labels", []))
    return checked


class MultiTaskConfig(PretrainedConfig):
    """Configuration of a shared encoder with a sentence embedding and one head a task.

    Args:
        encoder_config (PretrainedConfig or dict): The encoder's own configuration, any that `AutoModel` opens. Default:
            a small BERT (4 layers, hidden size 256), so that `MultiTaskConfig()` is valid.
        tasks (dict): Task name -> specification: `kind` (one of `TASK_KINDS`), `labels` (names, position = index),
            `problem_type` and `text_pair` (text-classification only: the latter says that it reads two texts jointly),
            `pooling` (default: the model's), `head` (`linear` or `mlp`),
            `head_activation`, `dropout` (default: `head_dropout`), `temperature` (what the logits are divided by; see
            `calibration`; default: 1) and `loss` (`weight`, `class_weights`, `label_smoothing`, `r_drop`,
            `label_share`, `distillation_temperature`; `name` and `scale` for similarity). Kept sorted by name:
            `config.json` is written sorted, and a head that changed places on reload would meet another head's
            optimizer state.
            Empty: a plain sentence encoder.
        task_name (str): The head that the one-head views and the stock pipelines answer with. Default: the first, by
            name, of the kind that is asked for.
        pooling (str): How token states become one vector, one of `POOLINGS`.
        projection_dim (int): Size of a linear map after pooling; heads and embedding read its output. Default: none.
        normalize_embeddings (bool): Whether `sentence_embedding` has L2 norm 1. Heads read the vector before that.
        head_dropout (float): Dropout (0-1) in front of every head.
        max_seq_length (int): Tokens a text is cut to, special tokens included. Default: the encoder's own limit.
        cased_vocab_size (int): Tokens of a vocabulary with case variants (see `cased_vocabulary`), where the tokenizer
            has one. Default: none, the tokenizer is the encoder's own.
        learned_loss_weights (bool): Whether every task has a log variance that weighs its loss in training (see
            `losses_multitask.LogVariance`); a state of training, which stands in its checkpoints.

    Raises:
        ValueError: for a task, pooling or size that is not valid; see `check_task`.
    """

    model_type = "multitask"
    sub_configs = {"encoder_config": AutoConfig}  # without it dtype and attn_implementation stop at the wrapper
    keys_to_ignore_at_inference = [
        "last_hidden_state",
        "sentence_embedding",
        "task_losses",
        "task_items",
        "item_losses",
        "hidden_states",
        "attentions",
    ]

    def __init__(
        self,
        encoder_config: Any = None,
        tasks: dict[str, dict[str, Any]] | None = None,
        task_name: str | None = None,
        pooling: str = "mean",
        projection_dim: int | None = None,
        normalize_embeddings: bool = False,
        head_dropout: float = 0.1,
        max_seq_length: int | None = None,
        cased_vocab_size: int | None = None,
        learned_loss_weights: bool = False,
        **kwargs: Any,
    ):
        if encoder_config is None:
            encoder_config = {
                "model_type": "bert",
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
            }
        if isinstance(encoder_config, dict):
            encoder_config = dict(encoder_config)
            encoder_config = AutoConfig.for_model(encoder_config.pop("model_type"), **encoder_config)
        self.encoder_config = encoder_config
        self.tasks = {name: check_task(name, spec) for name, spec in sorted((tasks or {}).items())}
        self.task_name = task_name
        self.pooling = pooling
        self.projection_dim = projection_dim
        self.normalize_embeddings = normalize_embeddings
        self.head_dropout = head_dropout
        self.max_seq_length = max_seq_length
        self.cased_vocab_size = cased_vocab_size
        self.learned_loss_weights = learned_loss_weights
        self._check_own_fields()
        # super() sets it on the encoder's config too: None there, and a live encoder would ignore its attention mask
        kwargs.setdefault("attn_implementation", encoder_config._attn_implementation)
        super().__init__(**kwargs)

    def _check_own_fields(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}."
                f"{nearest_name(self.pooling, POOLINGS)}"
            )
        for field in ("projection_dim", "max_seq_length", "cased_vocab_size"):
            value = getattr(self, field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a positive whole number or None; got {value!r}.")
        if self.task_name is not None and self.task_name not in self.tasks:
            known = ", ".join(self.tasks) or "none"
            raise ValueError(f"task_name is {self.task_name!r}; this model's tasks are: {known}.")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The encoder's configuration: where `resize_token_embeddings` keeps the vocabulary size."""
        return self.encoder_config

    @property
    def hidden_size(self) -> int:
        """Features of a token state."""
        return self.encoder_config.hidden_size

    @property
    def embedding_size(self) -> int:
        """Features of the sentence embedding."""
        return self.projection_dim or self.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """Positions the encoder has; sentence-transformers caps its tokenizer with it."""
        return self.encoder_config.max_position_embeddings

    def first_task_of(self, kinds: tuple[str, ...]) -> str:
        """`task_name` where it is set, else the first task, by name, of one of the `kinds`.

        Raises:
            ValueError: if no task is of these kinds, or `task_name` is of another; the message lists those that are.
        """
        fitting = [name for name, spec in self.tasks.items() if spec["kind"] in kinds]
        name = self.task_name or (fitting[0] if fitting else None)
        if name not in fitting:
            raise ValueError(
                f"This model class answers {' or '.join(kinds)}; the tasks of that kind here are: "
                f"{', '.join(fitting) or 'none'}, but task_name is {self.task_name!r}. Pass task_name=... "
                f"(in a pipeline: model_kwargs={{'task_name': ...}}) or open the folder with AutoModel."
            )
        return name

    def use_task(self, name: str) -> None:
        """Point the flat fields that stock pipelines read (`id2label`, `problem_type`) at one task."""
        spec = self.tasks[name]
        self.id2label = dict(enumerate(spec["labels"]))
        self.label2id = {label: index for index, label in self.id2label.items()}
        self.problem_type = spec.get("problem_type")

    def forget_task(self, name: str, labels: list[str] | None) -> None:
        """Clear `task_name` and the flat fields where they are those of a task that was removed."""
        if self.task_name == name:
            self.task_name = None
        if list(self.id2label.values()) == labels:
            self.problem_type = None
            self.id2label = {0: "LABEL_0", 1: "LABEL_1"}  # transformers' default
            self.label2id = {"LABEL_0": 0, "LABEL_1": 1}


MultiTaskConfig.register_for_auto_class()
