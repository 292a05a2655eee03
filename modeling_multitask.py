"""The model: one shared encoder, a sentence embedding, a head for every task. Tensors in; embeddings, logits, loss out.

Decoding of logits into labels and spans is `pipeline_multitask`; what a model is made of is `configuration_multitask`;
data and training live outside. The code travels with every saved folder, so that it opens anywhere:

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.predict(["Shares of Siemens rose."], tokenizer)
    model.encode(["Shares of Siemens rose."], tokenizer)             # (1, dim)
"""

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers.initialization as init
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import ModelOutput

try:  # in a saved folder; transformers finds these lines and copies the files along
    from .configuration_multitask import (
        FEATURE_EXTRACTION,
        LOWER_LAYERS,
        MODEL_PARTS,
        POOLINGS,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        MultiTaskConfig,
        check_task,
        check_task_name,
        nearest_name,
        num_outputs,
    )
    from .losses_multitask import LogVariance, has_label, losses_of, r_drop_losses, taught_losses
    from .pipeline_multitask import encode, predict
    from .sentence_transformers_files import sentence_transformers_fields, write_sentence_transformers_files
except ImportError:  # as flat modules
    if __package__:
        raise
    from configuration_multitask import (
        FEATURE_EXTRACTION,
        LOWER_LAYERS,
        MODEL_PARTS,
        POOLINGS,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        MultiTaskConfig,
        check_task,
        check_task_name,
        nearest_name,
        num_outputs,
    )
    from losses_multitask import LogVariance, has_label, losses_of, r_drop_losses, taught_losses
    from pipeline_multitask import encode, predict
    from sentence_transformers_files import sentence_transformers_fields, write_sentence_transformers_files

if TYPE_CHECKING:  # never imported here: transformers finds the line and copies the file along
    from .handler import EndpointHandler  # noqa: F401

logger = logging.getLogger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_multitask.MultiTaskConfig",
    "AutoModel": "modeling_multitask.MultiTaskModel",
    "AutoModelForSequenceClassification": "modeling_multitask.MultiTaskForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_multitask.MultiTaskForTokenClassification",
}
CUSTOM_PIPELINES = {"multitask": {"impl": "pipeline_multitask.MultiTaskPipeline", "pt": ["AutoModel"], "type": "text"}}
PUSH_OPTIONS = ("repo_id", "commit_message", "create_pr", "private", "token", "revision", "max_shard_size")
CACHE_LINE = 64
"""Bytes; where PyTorch starts a tensor."""


# Pooling: (hidden (B, T, H), mask (B, T)) -> (B, H). A row without a single real token pools to zeros.


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first real token, wherever padding puts it."""
    return token_at(hidden, mask, mask.long().argmax(dim=1))


def pool_max(hidden: Tensor, mask: Tensor) -> Tensor:
    """Element-wise maximum over the real tokens."""
    lowest = hidden.masked_fill(~mask.bool().unsqueeze(-1), torch.finfo(hidden.dtype).min).amax(dim=1)
    return lowest.masked_fill(~mask.bool().any(dim=1, keepdim=True), 0.0)


def pool_mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens, divided by the root of their number."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0).sqrt()


def pool_weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens, the k-th weighted by k (SGPT, Muennighoff 2022, eq. 2, https://arxiv.org/abs/2202.08904)."""
    weights = (mask.long().cumsum(dim=1) * mask.long()).unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def pool_last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last real token."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return token_at(hidden, mask, (positions * mask.long()).argmax(dim=1))


def token_at(hidden: Tensor, mask: Tensor, position: Tensor) -> Tensor:
    """The state at one position a row. Shapes (B, T, H), (B, T), (B,) -> (B, H); zeros where that token is padding."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, position] * mask[rows, position].unsqueeze(-1).to(hidden.dtype)


POOLERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(
    zip(POOLINGS, (pool_mean, pool_cls, pool_max, pool_mean_sqrt_len, pool_weighted_mean, pool_last_token), strict=True)
)


class TaskHead(nn.Module):
    """Dropout and a linear layer; with `head: mlp` a dense layer and an activation before them.

    `forward`: features (..., in) -> logits (..., classes).
    """

    ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}

    def __init__(self, spec: dict[str, Any], in_features: int, dropout: float):
        super().__init__()
        hidden = spec.get("head") == "mlp"
        self.dense = nn.Linear(in_features, in_features) if hidden else nn.Identity()
        self.activation = self.ACTIVATIONS[spec["head_activation"]]() if hidden else nn.Identity()
        self.dropout = nn.Dropout(spec.get("dropout", dropout))
        self.out = nn.Linear(in_features, num_outputs(spec))

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., in) -> logits (..., classes)."""
        return self.out(self.dropout(self.activation(self.dense(features))))


class CasedEmbedding(nn.Module):
    """Token embeddings for a vocabulary with case variants: the base token's vector plus the vector of its case.

    `forward`: ids (...) of the cased vocabulary -> vectors (..., hidden_size). `cased_vocabulary` makes the ids.

    Args:
        base (nn.Embedding): The encoder's own embeddings, of the uncased vocabulary.
        size (int): Tokens of the cased vocabulary.
    """

    CASES = 3  # lower, Capitalised, UPPER
    bases: Tensor  # the base token of every id. Shape (size,), int64
    cases: Tensor  # the case of every id. Shape (size,), int64

    def __init__(self, base: nn.Embedding, size: int):
        super().__init__()
        self.base = base
        self.case = nn.Embedding(self.CASES, base.embedding_dim, dtype=base.weight.dtype, device=base.weight.device)
        nn.init.zeros_(self.case.weight)
        self.num_embeddings = size
        self.register_buffer("bases", torch.zeros(size, dtype=torch.long))
        self.register_buffer("cases", torch.zeros(size, dtype=torch.long))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids (...) -> vectors (..., hidden_size)."""
        return self.base(self.bases[input_ids]) + self.case(self.cases[input_ids])


@dataclass
class MultiTaskOutput(ModelOutput):
    """What the model answers. Items are rows of the batch; the second texts of pairs are not among them.

    Attributes:
        loss: Sum over items and their tasks of `weight * loss`, over the number of items. Scalar; with labels only.
        last_hidden_state: Token states. Shape (items, tokens, hidden_size).
        sentence_embedding: Pooled, projected, normalised if configured. Shape (items, embedding_size).
        logits: Task -> (items, classes), (items, tokens, classes), (items,) cosines (NaN without a pair), or
            (items, embedding_size). Divided by the task's temperature, if it has one; the losses are not.
        task_losses: Task -> mean loss over its items in this batch, before its weight. Scalars, detached.
        task_items: Task -> how many items of this batch carry its label. Scalars, int64.
        item_losses: Each item's part of the loss, which is their mean. Shape (items,), detached.
        hidden_states: On request, the encoder's layers. Each (items [+ pairs], tokens, hidden_size).
        attentions: On request (eager attention). Each (items [+ pairs], heads, tokens, tokens).
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    task_losses: dict[str, Tensor] | None = None
    task_items: dict[str, Tensor] | None = None
    item_losses: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BatchTexts:
    """What the heads read of a batch: rows are the items, behind them the second texts of pairs, then the twins.

    Attributes:
        hidden: Token states. Shape (rows, tokens, hidden_size); None where stored outputs come without them. Stored
            ones have no rows behind the items where there are no twins, since no task reads a second text's tokens.
        pooled: Pooling -> sentence vectors, projected. Each (rows, embedding_size).
        items: How many rows are items.
        tokens: The width of the items' own texts.
        embedding: The items' sentence embedding. Shape (items, embedding_size); None from stored outputs.
        layers: `hidden_states` and `attentions`, as far as they were asked for.
    """

    hidden: Tensor | None
    pooled: Callable[[str], Tensor]
    items: int
    tokens: int
    embedding: Tensor | None = None
    layers: dict[str, Any] = field(default_factory=dict)


class MultiTaskPreTrainedModel(PreTrainedModel):
    """Encoder, projection and heads, how they are loaded and saved; the classes below differ in what they answer."""

    config_class = MultiTaskConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean already; Trainer must not divide or multiply it again
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config) if encoder is None else encoder
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # nothing reads it, and DDP would wait for its gradient
        if config.cased_vocab_size:
            base = self.encoder.get_input_embeddings()
            self.encoder.set_input_embeddings(CasedEmbedding(base, config.cased_vocab_size))
        self.projection = (
            nn.Linear(config.hidden_size, config.projection_dim) if config.projection_dim else nn.Identity()
        )
        self.heads = nn.ModuleDict(
            {name: self._new_head(spec) for name, spec in config.tasks.items() if num_outputs(spec)}
        )
        self.log_variances = nn.ModuleDict()
        self.learn_loss_weights(config.learned_loss_weights)
        self.loss_factors: dict[str, float] = {}
        self.encoder_inputs = frozenset(inspect.signature(self.encoder.forward).parameters)
        self.training_progress = 0.0  # 0 to 1, set before each step; only a teacher's weight depends on it
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Values of weights that a checkpoint lacks."""
        super()._init_weights(module)
        if isinstance(module, LogVariance):
            init.zeros_(module.value)

    def _new_head(self, spec: dict[str, Any]) -> TaskHead:
        is_token_level = spec["kind"] == TOKEN_CLASSIFICATION
        in_features = self.config.hidden_size if is_token_level else self.config.embedding_size
        return TaskHead(spec, in_features, self.config.head_dropout)

    @classmethod
    def from_backbone(
        cls, name: str, tasks: dict[str, dict[str, Any]] | None = None, revision: str | None = None, **config: Any
    ) -> "MultiTaskPreTrainedModel":
        """Start from a pretrained encoder: its weights, and for a sentence-transformers folder also its habits.

        Args:
            name (str): Folder or Hub id, anything `AutoModel.from_pretrained` opens (safetensors only).
            tasks (dict): The tasks, as for `MultiTaskConfig`; their heads start random.
            revision (str): Branch, tag or commit of a Hub repository.
            config: Further fields of `MultiTaskConfig`. `pooling`, `normalize_embeddings` and `max_seq_length` that are
                not given (or None) are taken from a sentence-transformers folder; the log says so.

        Returns:
            A model in evaluation mode.

        Raises:
            ValueError: for what is no encoder of text, or weights that are not those of its configuration.
        """
        encoder, report = AutoModel.from_pretrained(
            name, revision=revision, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        check_encoder(name, encoder)
        refuse_missing_weights(name, report["missing_keys"])
        encoder.config._name_or_path = ""  # else a path of this machine would be published in config.json
        config = {field: value for field, value in config.items() if value is not None}
        inherited = sentence_transformers_fields(Path(name), known=config)
        if inherited:
            logger.warning("From the sentence-transformers files of %s: %s", name, inherited)
        model_config = cls.config_class(encoder_config=encoder.config, tasks=tasks, **inherited, **config)
        return cls(model_config, encoder=encoder).eval()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Open a saved folder or a Hub repository as transformers does; equal weights answer with equal bits.

        A file holds its tensors one behind the other and is mapped into memory as it is, and the last bit of a product
        depends on where in memory an operand starts: beside a new head, an old one would answer otherwise. So tensors
        that do not start at a cache line are copied to one.
        """
        opened = super().from_pretrained(*args, **kwargs)
        model = opened[0] if isinstance(opened, tuple) else opened
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() % CACHE_LINE:
                tensor.data = tensor.data.clone()
        return opened

    def get_input_embeddings(self) -> Any:
        """The encoder's token embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    def read_case(self, bases: Sequence[int], cases: Sequence[int]) -> None:
        """Read the ids of a cased vocabulary from now on; every embedding stays as it was until training.

        Args:
            bases (Sequence[int]): The encoder's own token id for every id of the cased vocabulary.
            cases (Sequence[int]): The case of every id, 0 (lower) to 2.
        """
        embedding = CasedEmbedding(self.get_input_embeddings(), len(bases))
        embedding.bases.copy_(torch.as_tensor(bases))
        embedding.cases.copy_(torch.as_tensor(cases))
        self.set_input_embeddings(embedding)
        self.config.cased_vocab_size = len(bases)

    @property
    def embedding_layer(self) -> nn.Module:
        """What turns token ids into the encoder's first states; where no layer is called so, the token embeddings."""
        return getattr(self.encoder, "embeddings", self.get_input_embeddings())

    def add_task(self, name: str, spec: dict[str, Any]) -> None:
        """Add a task. Its head, if its kind has one, starts random; the other heads and the embedding keep their bits.

        Args:
            name (str): A new name.
            spec (dict): As an entry of `MultiTaskConfig.tasks`.

        Raises:
            ValueError: for a name that is taken or reserved, or a specification that is not valid.
        """
        self._check_new_name(name)
        spec, heads = check_task(name, spec), dict(self.heads.items())
        if num_outputs(spec):
            head = self._new_head(spec).apply(self._init_weights)
            heads[name] = head.to(self.device, self.dtype).train(self.training)
        self._set_tasks({**self.config.tasks, name: spec}, heads)

    def remove_task(self, name: str) -> None:
        """Remove a task and its head; `config.task_name` is cleared if it was this one.

        Raises:
            ValueError: for an unknown name, with the known ones.
        """
        self.check_tasks([name])
        tasks = dict(self.config.tasks)
        labels = tasks.pop(name).get("labels")
        self._set_tasks(tasks, dict(self.heads.items()))
        self.config.forget_task(name, labels)

    def rename_task(self, old: str, new: str) -> None:
        """Give a task another name; its head keeps its bits, and `config.task_name` follows.

        Raises:
            ValueError: for an unknown old name, or a new one that is taken or reserved.
        """
        self.check_tasks([old])
        self._check_new_name(new)
        names = {name: new if name == old else name for name in self.config.tasks}
        heads = {names[name]: head for name, head in self.heads.items()}
        variances = {names[name]: variance for name, variance in self.log_variances.items()}
        self._set_tasks({names[name]: spec for name, spec in self.config.tasks.items()}, heads)
        self.log_variances.update(variances)
        self.config.task_name = names.get(self.config.task_name)

    def _check_new_name(self, name: str) -> None:
        check_task_name(name)
        if name in self.config.tasks:
            known = ", ".join(self.config.tasks)
            raise ValueError(
                f"A new task needs a name of its own, but {name!r} is taken; this model's tasks are: {known}."
            )

    def _set_tasks(self, tasks: dict[str, dict[str, Any]], heads: dict[str, nn.Module]) -> None:
        """Take these tasks and, of `heads`, theirs; both sorted by name, as a reloaded model has them."""
        self.config.tasks = dict(sorted(tasks.items()))
        self.heads.clear()
        self.heads.update({name: heads[name] for name in self.config.tasks if name in heads})
        self.learn_loss_weights(self.config.learned_loss_weights)

    def learn_loss_weights(self, learn: bool) -> None:
        """Give every task a learned weight of its loss (see `LogVariance`), or take them away.

        Weights that are there already go on; new ones start at that of the plain sum. They act in training only:
        evaluation reports plain losses.
        """
        known = dict(self.log_variances.items())
        self.config.learned_loss_weights = learn
        self.log_variances.clear()
        for name in self.config.tasks if learn else ():
            self.log_variances[name] = known.get(name) or LogVariance().to(self.device, self.dtype)

    def loss_weights(self) -> dict[str, float]:
        """Task -> what its loss is multiplied by in training now: its static weight, times that of a balancing."""
        learned = {
            name: float(torch.exp(-module.get_parameter("value").detach()))
            for name, module in self.log_variances.items()
        }
        return {
            name: spec["loss"]["weight"] * self.loss_factors.get(name, 1.0) * learned.get(name, 1.0)
            for name, spec in self.config.tasks.items()
        }

    def balanced(self, name: str, losses: Tensor) -> Tensor:
        """A task's losses as training weighs them beside the static weight; in evaluation as they are. (N,) -> (N,)."""
        if not self.training:
            return losses
        if name in self.log_variances:
            losses = self.log_variances[name](losses)
        return losses * self.loss_factors.get(name, 1.0)

    @property
    def encoder_layers(self) -> list[nn.Module]:
        """The encoder's layers, the lowest first; none where they are no list (ALBERT's share their weights)."""
        count = getattr(self.config.encoder_config, "num_hidden_layers", None)
        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        return list(next((layers for layers in lists if len(layers) == count), ()))

    def encoder_depths(self) -> dict[str, int]:
        """Every parameter of the encoder by name -> how far up it is.

        1 to n is its layer; 0 is what lies below the layers, or is shared by all of them (tables of relative
        positions); n + 1 is a norm behind the last one (ModernBERT's `final_norm`).
        """
        layers = self.encoder_layers
        depths = {id(parameter): depth for depth, layer in enumerate(layers, 1) for parameter in layer.parameters()}
        return {
            name: depths.get(id(parameter), len(layers) + 1 if "final" in name else 0)
            for name, parameter in self.encoder.named_parameters(prefix="encoder")
        }

    def freeze(self, parts: str | Iterable[str]) -> None:
        """Train parts of the model no more: they keep their bits, and stay in evaluation mode while the rest trains.

        Args:
            parts: One or several of: `encoder`; `embeddings`, the encoder's embedding layer, but for vectors of cases,
                which are new and go on learning (half of MiniLM's parameters are word vectors, most of whose gradient
                is zero in any step); `layers:K`, the embedding layer (likewise) and the first K layers of the encoder,
                with what its layers share, so that no gradient is computed below layer K + 1; `heads`, those that
                there are now; `projection`, if there is one; a task's name, for its head; `all`, for evaluation only.

        Raises:
            ValueError: for an unknown part, with the known ones, a part's name that a task has, too, or a K that is not
                1 to the number of layers; nothing is frozen then.
        """
        parts = [parts] if isinstance(parts, str) else list(parts)
        for parameter in [parameter for part in parts for parameter in self._parameters_of(part)]:
            parameter.requires_grad_(False)
        self._rest_frozen_modules()

    def _parameters_of(self, part: str) -> list[nn.Parameter]:
        """The parameters that `freeze` knows by a name."""
        if part.startswith(f"{LOWER_LAYERS}:"):
            return self._lower_layers(part)
        modules = (self.encoder, self.embedding_layer, self.heads, self.projection, self)
        named = dict(zip(MODEL_PARTS, modules, strict=True)) | dict(self.heads.items())
        if part not in named:
            known = [*named, f"{LOWER_LAYERS}:K"]
            raise ValueError(
                f"There is no part {part!r} to freeze; this model's parts are: {', '.join(known)}."
                f"{nearest_name(part, known)}"
            )
        if part in MODEL_PARTS and part in self.heads:
            raise ValueError(
                f"{part!r} is a part of this model and one of its tasks: rename the task (rename_task) first."
            )
        learning = self._case_vectors() if part == "embeddings" else None
        return [parameter for parameter in named[part].parameters() if parameter is not learning]

    def _lower_layers(self, part: str) -> list[nn.Parameter]:
        """The parameters of `layers:K`."""
        count, number = len(self.encoder_layers), part.partition(":")[2]
        if not count:
            raise ValueError(f"{part!r} needs an encoder with a list of layers; this one has none. Freeze encoder.")
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise ValueError(
                f"{LOWER_LAYERS}:K freezes the embedding layer and the first K layers; this encoder has {count}, so K "
                f"is 1 to {count}. Got {part!r}."
            )
        depths, learning = self.encoder_depths(), self._case_vectors()
        named = self.encoder.named_parameters(prefix="encoder")
        return [p for name, p in named if depths[name] <= int(number) and p is not learning]

    def _case_vectors(self) -> Tensor | None:
        """The vectors of cases, if the embedding has them: they start at zero, so that freezing them is losing them."""
        tokens = self.get_input_embeddings()
        return tokens.case.weight if isinstance(tokens, CasedEmbedding) else None

    def _rest_frozen_modules(self) -> None:
        """Put modules whose every parameter is frozen into evaluation mode: their dropout is off."""
        parts = (self.encoder, self.embedding_layer, *self.encoder_layers, self.projection, *self.heads.values())
        for module in parts:
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights (safetensors), configuration, code, pipeline entry, handler and sentence-transformers files.

        `config.json` names every auto class and the `multitask` pipeline, whichever class it is saved from.

        `SentenceTransformer(folder, trust_remote_code=True)` gives the embeddings of `encode`, but for three things: it
        reads up to `length_limit` tokens, so a lower limit of the tokenizer must stand in `config.max_seq_length` as
        well (`train_hf.py` sees to it); a text without a single token (an empty one, and no special tokens) is zeros
        here, not there; and its module `2_Dense` is a copy of `projection`, so that training it there leaves the
        projection that the heads read behind.

        Args:
            save_directory (str): The folder; made if need be.
            is_main_process (bool): Whether this process writes; the others do nothing.
            state_dict (dict): Weights to save in place of the model's own, as `Trainer` gathers them from ranks.
            push_to_hub (bool): Whether to upload a copy to the repository `repo_id` (default: the folder's name).
            kwargs: Further arguments of `PreTrainedModel.save_pretrained`.
        """
        self.config.auto_map = dict(AUTO_MAP)
        self.config.custom_pipelines = {name: dict(entry) for name, entry in CUSTOM_PIPELINES.items()}
        weights = self.state_dict() if state_dict is None else state_dict  # super() empties the one it is given
        projection = {name: weights[f"projection.{name}"] for name in self.projection.state_dict()}
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if not self.should_save_on_this_rank(is_main_process):
            return
        write_sentence_transformers_files(
            Path(save_directory),
            pooling=self.config.pooling,
            hidden_size=self.config.hidden_size,
            max_seq_length=self.length_limit,
            projection=projection,
            normalize=self.config.normalize_embeddings,
        )
        if push_to_hub:  # not by super(), which uploads before these files are there
            options = {name: kwargs[name] for name in PUSH_OPTIONS if name in kwargs}
            self.push_to_hub(**{"repo_id": Path(save_directory).name} | options)

    def train(self, mode: bool = True) -> "MultiTaskPreTrainedModel":
        """Training mode, except for modules whose every parameter is frozen: their dropout stays off."""
        super().train(mode)
        if mode:
            self._rest_frozen_modules()
        return self

    @property
    def length_limit(self) -> int | None:
        """Tokens that are read of a text at most: `max_seq_length` or the encoder's positions, if fewer; None: all."""
        table = position_table(self.encoder)
        positions = getattr(self.config.encoder_config, "max_position_embeddings", None)
        if table is not None:
            positions = table.num_embeddings - first_position(table)
        return min((limit for limit in (self.config.max_seq_length, positions) if limit), default=None)

    def max_length(self, tokenizer: Any) -> int:
        """Tokens a text is cut to: the least of `max_seq_length`, the tokenizer's limit and the encoder's positions."""
        return min(limit for limit in (self.length_limit, getattr(tokenizer, "model_max_length", None)) if limit)

    def run_encoder(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The encoder's output; positions count the real tokens, so that padding on either side changes nothing.

        Left-padded BERT, DistilBERT, DeBERTa and ELECTRA count positions from the padding otherwise (states off by 2.0
        and more). Token types go only to encoders that have them.
        """
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if position_ids is None and attention_mask is not None and "position_ids" in self.encoder_inputs:
            position_ids = position_ids_of(attention_mask, first_position(position_table(self.encoder)))
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if token_type_ids is not None and getattr(self.config.encoder_config, "type_vocab_size", 0) > 1:
            if "token_type_ids" in self.encoder_inputs:
                inputs["token_type_ids"] = token_type_ids
        return self.encoder(**{name: value for name, value in inputs.items() if value is not None}, **kwargs)

    def with_second_texts(self, inputs: dict[str, Tensor], ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The encoder's inputs with the second texts of pairs as further rows; positions are counted anew.

        Shapes: ids and mask (pairs, pair tokens).
        """
        if "input_ids" not in inputs:
            raise ValueError("Pairs travel as pair_input_ids, so items must come as input_ids, not inputs_embeds.")
        seconds = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        if "token_type_ids" in inputs:
            seconds["token_type_ids"] = torch.zeros_like(ids)
        padding = {"input_ids": self.config.encoder_config.pad_token_id or 0}
        return {name: stack_padded(inputs[name], rows, padding.get(name, 0)) for name, rows in seconds.items()}

    def task_answers(
        self, name: str, hidden: Tensor | None, pooled: Callable[[str], Tensor], items: int, pair_items: Tensor | None
    ) -> Tensor:
        """Logits of one task.

        Args:
            name (str): The task.
            hidden (Tensor): Token states of the items, behind them of the pairs' second texts, then of the twins.
                Shape (rows, tokens, hidden_size). None where stored outputs come without them.
            pooled (Callable): Pooling -> sentence vectors of all these rows. Shape (rows, embedding_size).
            items (int): How many rows are items.
            pair_items (Tensor): The item of each pair. Shape (pairs,).

        Returns:
            Tensor with one row an item; see `MultiTaskOutput.logits`.
        """
        if name in self.heads:
            return self.head_logits(name, hidden, pooled, slice(items))
        spec = self.config.tasks[name]
        vectors = pooled(spec.get("pooling") or self.config.pooling)
        if spec["kind"] == FEATURE_EXTRACTION:
            return vectors[:items]
        cosines = vectors.new_full((items,), float("nan"))
        if pair_items is not None:
            seconds = vectors[items : items + len(pair_items)]
            cosines[pair_items] = F.cosine_similarity(vectors[pair_items], seconds, dim=-1)
        return cosines

    def head_logits(self, name: str, hidden: Tensor | None, pooled: Callable[[str], Tensor], rows: slice) -> Tensor:
        """Logits of a head for some rows of the batch; the other arguments are those of `task_answers`."""
        spec = self.config.tasks[name]
        if spec["kind"] != TOKEN_CLASSIFICATION:
            return self.heads[name](pooled(spec.get("pooling") or self.config.pooling)[rows])
        if hidden is None:
            raise ValueError(f"Task {name!r} reads token states, but the stored outputs come without token_states.")
        return self.heads[name](hidden[rows])

    def sentence_vectors(self, hidden: Tensor, mask: Tensor, pooling: str | None = None) -> Tensor:
        """Pooled and projected, not normalised. Shapes (B, T, H), (B, T) -> (B, embedding_size)."""
        return self.projection(POOLERS[pooling or self.config.pooling](hidden, mask))

    def embed(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """The sentence embedding before normalisation. Inputs as for `run_encoder` -> (items, embedding_size)."""
        hidden = self.run_encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        return self.sentence_vectors(hidden, attention_mask)

    def check_tasks(self, names: Iterable[str]) -> list[str]:
        """Return the names as a list, or raise ValueError listing the known ones."""
        names = list(names)
        unknown = [name for name in names if name not in self.config.tasks]
        if unknown:
            known = ", ".join(self.config.tasks) or "none"
            raise ValueError(f"Unknown tasks {unknown}; this model's tasks are: {known}.")
        return names

    def twins_of(self, labels: dict[str, Tensor]) -> Tensor:
        """The items that are read twice, dropout differing: labelled for a task with `r_drop`. Shape (twins,)."""
        labelled = [has_label(rows) for name, rows in labels.items() if self.config.tasks[name]["loss"].get("r_drop")]
        if not labelled:
            return torch.zeros(0, dtype=torch.long, device=self.device)
        return torch.stack(labelled).any(dim=0).nonzero().flatten()

    def cropped(self, name: str, logits: Tensor, tokens: int) -> Tensor:
        """A task's logits without the tokens by which the second text of a pair is longer than every item."""
        return logits[:, :tokens] if self.config.tasks[name]["kind"] == TOKEN_CLASSIFICATION else logits

    def calibrated(self, name: str, logits: Tensor) -> Tensor:
        """A task's logits divided by its temperature, if it has one (see `calibration`). Any shape."""
        temperature = self.config.tasks[name].get("temperature")
        if temperature is None:
            return logits
        # in bfloat16, two logits that differ could become equal, and the answer another
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature

    def multi_task_loss(
        self,
        logits: dict[str, Tensor],
        labels: dict[str, Tensor],
        items: int,
        second: dict[str, Tensor],
        teachers: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The batch's loss, each task's own, the number of its items, and each item's part.

        loss = sum over items and their tasks of weight * loss / items. The plan's micro-batches all have the same
        number of items, so accumulation and ranks average to the loss of the global batch. In training, `balanced`
        stands in place of each loss.

        Args:
            logits (dict): Task -> logits, one row an item.
            labels (dict): Task -> labels, one row an item.
            items (int): How many items there are.
            second (dict): Task with `r_drop` -> logits of its labelled items under other dropout; see `r_drop_losses`.
            teachers (dict): Task with a teacher -> the teacher's logits, one row an item; see `taught_losses`.

        Returns:
            The loss; task -> mean loss over the task's items (unweighted, detached); task -> number of its items; each
            item's weighted losses in sum (items,), detached. Tasks without a labelled item in this batch are not among
            them.
        """
        item_losses = torch.zeros(items, device=self.device)
        task_losses, task_items = {}, {}
        for name, task_labels in labels.items():
            spec = self.config.tasks[name]
            rows = has_label(task_labels)
            if not rows.any():
                continue
            # rows are selected before the loss: a NaN times a zero mask is a NaN
            item_loss = losses_of(spec)
            if name in teachers:
                item_loss = functools.partial(
                    taught_losses, teacher=teachers[name][rows], training_progress=self.training_progress
                )
            first = logits[name][rows].float()
            if name in second:
                losses = r_drop_losses(spec, first, second[name].float(), task_labels[rows], item_loss)
            else:
                losses = item_loss(spec, first, task_labels[rows])
            task_losses[name] = losses.mean().detach()
            task_items[name] = rows.sum()
            item_losses[rows] += spec["loss"]["weight"] * self.balanced(name, losses)
        total = item_losses.mean()
        if self.training:
            total = total + self.touch_heads()
        return total, task_losses, task_items, item_losses.detach()

    def touch_heads(self) -> Tensor:
        """Zero, through every trainable parameter outside the encoder, so that each has a gradient on every rank.

        DDP waits for the gradient of every parameter; a task that a batch lacks would stall it. Summing the logits is
        not enough: a projection without a head above it has none.
        """
        parts = (self.projection, self.heads, self.log_variances)
        parameters = [parameter for part in parts for parameter in part.parameters()]
        return sum((0.0 * p.sum() for p in parameters if p.requires_grad), torch.zeros((), device=self.device))

    def run_tasks(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_items: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        teacher_logits: dict[str, Tensor] | None = None,
        token_states: Tensor | None = None,
        pooled_states: dict[str, Tensor] | None = None,
        pair_pooled_states: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> MultiTaskOutput:
        """One encoder pass over items and second texts, then the heads; see `MultiTaskModel.forward`."""
        twins = self.twins_of(labels) if self.training and labels is not None else torch.zeros(0, dtype=torch.long)
        if token_states is not None or pooled_states is not None:
            if input_ids is not None or inputs_embeds is not None:
                raise ValueError("Stored outputs stand in place of a text: give them, or input_ids, but not both.")
            texts = self.stored_texts(
                attention_mask, pair_attention_mask, token_states, pooled_states, pair_pooled_states, twins
            )
        else:
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            }
            inputs = {name: value for name, value in given.items() if value is not None}
            texts = self.encoded_texts(inputs, pair_input_ids, pair_attention_mask, twins, **kwargs)
        hidden, pooled, items, tokens = texts.hidden, texts.pooled, texts.items, texts.tokens
        names = self.check_tasks(tasks if tasks is not None else (labels if labels is not None else self.config.tasks))
        unasked = [name for name in labels or {} if name not in names]
        if unasked:
            raise ValueError(f"Labels of {unasked} need their tasks' logits, but tasks={names}: add them there.")
        logits = {name: self.task_answers(name, hidden, pooled, items, pair_items) for name in names}
        logits = {name: self.cropped(name, value, tokens) for name, value in logits.items()}
        loss = task_losses = task_items = item_losses = None
        if labels is not None:
            second = {}
            for name, rows in labels.items():
                if len(twins) and self.config.tasks[name]["loss"].get("r_drop"):
                    of_twins = self.head_logits(name, hidden, pooled, slice(-len(twins), None))
                    second[name] = self.cropped(name, of_twins, tokens)[has_label(rows)[twins]]
            loss, task_losses, task_items, item_losses = self.multi_task_loss(
                logits, labels, items, second, teacher_logits or {}
            )
        logits = {name: self.calibrated(name, value) for name, value in logits.items()}
        return MultiTaskOutput(
            loss=loss,
            last_hidden_state=None if hidden is None else hidden[:items, :tokens],
            sentence_embedding=texts.embedding,
            logits=logits,
            task_losses=task_losses,
            task_items=task_items,
            item_losses=item_losses,
            **texts.layers,
        )

    def encoded_texts(
        self,
        inputs: dict[str, Tensor],
        pair_input_ids: Tensor | None,
        pair_attention_mask: Tensor | None,
        twins: Tensor,
        **kwargs: Any,
    ) -> "BatchTexts":
        """What the heads read, from one pass of the encoder over the items, the second texts and the twins."""
        if ("input_ids" in inputs) == ("inputs_embeds" in inputs):
            raise ValueError("Give either input_ids or inputs_embeds, and only one of them.")
        first = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        items, tokens = first.shape[:2]
        if "attention_mask" not in inputs:
            inputs = inputs | {"attention_mask": torch.ones((items, tokens), dtype=torch.long, device=first.device)}
        if pair_input_ids is not None:
            inputs = self.with_second_texts(inputs, pair_input_ids, pair_attention_mask)
        if len(twins):
            inputs = {name: torch.cat([value, value[twins]]) for name, value in inputs.items()}
        output = self.run_encoder(**inputs, **kwargs)
        hidden, mask = output.last_hidden_state, inputs["attention_mask"]
        embedding = self.sentence_vectors(hidden[:items], mask[:items])
        if self.config.normalize_embeddings:
            embedding = F.normalize(embedding, dim=-1)
        # measured: once a pooling, not once a task, saves 3 % of a step with 50 heads (MiniLM, 32 texts of 18 tokens)
        pooled = functools.cache(lambda pooling: self.sentence_vectors(hidden, mask, pooling))
        layers = {name: output.get(name) for name in ("hidden_states", "attentions")}
        return BatchTexts(hidden, pooled, items, tokens, embedding, layers)

    def stored_texts(
        self,
        attention_mask: Tensor | None,
        pair_attention_mask: Tensor | None,
        token_states: Tensor | None,
        pooled_states: dict[str, Tensor] | None,
        pair_pooled_states: dict[str, Tensor] | None,
        twins: Tensor,
    ) -> "BatchTexts":
        """What the heads read, from the encoder's stored outputs; the encoder does not run.

        The rows, and the width of the token states, are those of the pass that they stand for, so that the heads'
        dropout draws the same numbers.

        Raises:
            ValueError: without an attention mask, or for outputs that are not of its shape.
        """
        if attention_mask is None:
            raise ValueError("Stored outputs need the attention_mask of their texts, which says how long these are.")
        (items, tokens), pairs = attention_mask.shape, 0 if pair_attention_mask is None else len(pair_attention_mask)
        pooled_states, pair_pooled_states = pooled_states or {}, pair_pooled_states or {}
        size = self.config.hidden_size
        given: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            f"pooled_states[{name!r}]": (value, (items, size)) for name, value in pooled_states.items()
        }
        given |= {f"pair_pooled_states[{name!r}]": (v, (pairs, size)) for name, v in pair_pooled_states.items()}
        given |= {} if token_states is None else {"token_states": (token_states, (items, tokens, size))}
        for name, (value, shape) in given.items():
            if value.shape != shape:
                raise ValueError(
                    f"{name} must have the shape {shape} that the attention masks and the encoder's {size} features "
                    f"ask for; got {tuple(value.shape)}."
                )

        @functools.cache
        def pooled(pooling: str) -> Tensor:
            if pooling not in pooled_states:
                known = ", ".join(pooled_states) or "none"
                raise ValueError(f"A task here reads {pooling!r} pooling, but pooled_states holds: {known}.")
            of_items = pooled_states[pooling]
            seconds = pair_pooled_states.get(pooling, of_items.new_zeros(pairs, size))
            return self.projection(torch.cat([of_items, seconds, of_items[twins]]))

        hidden = token_states
        if hidden is not None:  # copied only if need be: in a cached step such a copy is a tenth of the time
            width = max(tokens, pair_attention_mask.shape[1]) if pair_attention_mask is not None else tokens
            hidden = hidden if width == tokens else F.pad(hidden, (0, 0, 0, width - tokens))
            if len(twins):
                hidden = torch.cat([hidden, hidden.new_zeros(pairs, width, size), hidden[twins]])
        return BatchTexts(hidden, pooled, items, tokens)


def stack_padded(first: Tensor, second: Tensor, value: int) -> Tensor:
    """Rows of both, padded on the right to one width. Shapes (A, T), (B, S) -> (A + B, max(T, S))."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(rows, (0, width - rows.shape[1]), value=value) for rows in (first, second)])


def check_encoder(name: str, encoder: PreTrainedModel) -> None:
    """Raise ValueError unless a model reads a text alone, as a whole and in one pass."""
    inputs = inspect.signature(encoder.forward).parameters
    if "input_ids" not in inputs or "pixel_values" in inputs:
        problem = f"it reads {encoder.main_input_name}, not a text alone"
    elif encoder.config.is_encoder_decoder:
        problem = "it writes one text from another (encoder and decoder)"
    elif is_causal(encoder):
        problem = "it is a decoder: a token sees only the ones before it"
    else:
        return
    raise ValueError(
        f"An encoder reads a whole text in one pass; {name!r} ({encoder.config.model_type}) does not: {problem}. "
        "Choose a model of the kind of BERT, RoBERTa, MPNet, DeBERTa, ELECTRA or ModernBERT."
    )


@torch.no_grad()
def is_causal(encoder: PreTrainedModel) -> bool:
    """Whether a token's state is the same whatever comes after it."""
    states = encoder(input_ids=torch.tensor([[1, 2], [1, 3]], device=encoder.device)).last_hidden_state
    return torch.allclose(states[0, 0], states[1, 0], rtol=0.0, atol=1e-6)


def refuse_missing_weights(name: str, missing: Collection[str]) -> None:
    """Raise ValueError if weights were not in a model's file and got random values; the pooler's are never used."""
    lost = sorted(key for key in missing if not key.startswith("pooler."))
    if lost:
        raise ValueError(
            f"The weights of {name!r} must be those of its configuration, but {len(lost)} tensors are not in the file: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}. Copy the whole folder from one source."
        )


def position_table(encoder: nn.Module) -> nn.Embedding | None:
    """The encoder's table of absolute positions, or None where it has none (rotary or relative positions)."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    return table if isinstance(table, nn.Embedding) else None


def first_position(table: nn.Embedding | None) -> int:
    """The position of the first real token: behind the padding index in RoBERTa's kin, else 0."""
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def position_ids_of(attention_mask: Tensor, first: int) -> Tensor:
    """Positions that count real tokens from `first`; padding gets the place before it, at least 0. Shape (B, T)."""
    mask = attention_mask.long()
    return ((mask.cumsum(dim=1) - 1) * mask + first - (1 - mask)).clamp(min=0)


class MultiTaskModel(MultiTaskPreTrainedModel):
    """Every task at once, and the sentence embedding: what `AutoModel` opens."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_items: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        teacher_logits: dict[str, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_states: Tensor | None = None,
        pooled_states: dict[str, Tensor] | None = None,
        pair_pooled_states: dict[str, Tensor] | None = None,
    ) -> MultiTaskOutput | tuple:
        """One pass of the encoder; the embedding and the tasks' logits, with labels also the loss.

        With `token_states` or `pooled_states` in place of a text the encoder does not run: they are what it said of the
        texts before (`encoder_cache` stores it), and the projection, the heads and the loss are computed from them.
        `attention_mask`, `pair_attention_mask` and `pair_items` are those of the texts. There is no
        `sentence_embedding` then, and only tasks can be answered whose states or pooling are given.

        Args:
            input_ids (Tensor): The items' tokens. Shape (items, tokens), int64.
            attention_mask (Tensor): 1 for a real token, 0 for padding, on either side. Shape (items, tokens).
                Default: no padding.
            token_type_ids (Tensor): Which of two jointly read texts a token is of. Shape (items, tokens).
            position_ids (Tensor): Shape (items, tokens). Default: counted over the real tokens.
            inputs_embeds (Tensor): In place of `input_ids`. Shape (items, tokens, embedding features).
            pair_input_ids (Tensor): Second texts of similarity items. Shape (pairs, pair tokens).
            pair_attention_mask (Tensor): Shape (pairs, pair tokens).
            pair_items (Tensor): The item each second text belongs to. Shape (pairs,), int64.
            labels (dict): Task -> labels, one row an item, `-100` or NaN where an item has none: (items,) classes,
                numbers or similarities; (items, classes) multi-hot; (items, tokens) tags; (items, dim) embeddings.
            tasks (list): Which tasks to answer. Default: the labelled ones, else all.
            teacher_logits (dict): Task -> a teacher's logits, of the shape of ours, NaN where it has none; the loss of
                labelled items then is that of `taught_losses`.
            output_hidden_states (bool): Whether to return the encoder's layers.
            output_attentions (bool): Whether to return attentions (eager attention only).
            return_dict (bool): False for a tuple.
            token_states (Tensor): The encoder's last states. Shape (items, tokens, hidden_size); zeros for padding, and
                for items of which no task reads them.
            pooled_states (dict): Pooling -> pooled token states, before the projection. Each (items, hidden_size);
                zeros for items of which no task reads that pooling.
            pair_pooled_states (dict): Likewise of the second texts of pairs. Each (pairs, hidden_size).

        Raises:
            ValueError: for an unknown task, not exactly one of `input_ids`, `inputs_embeds` and stored outputs, or
                stored outputs of another shape.
        """
        requested = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        output = self.run_tasks(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            pair_input_ids,
            pair_attention_mask,
            pair_items,
            labels,
            tasks,
            teacher_logits,
            token_states,
            pooled_states,
            pair_pooled_states,
            **{name: value for name, value in requested.items() if value is not None},
        )
        return output.to_tuple() if return_dict is False else output

    def encode(self, texts: Sequence[str], tokenizer: Any, batch_size: int = 32, normalize: bool | None = None) -> Any:
        """The sentence embedding of every text.

        Args:
            texts (Sequence[str]): Texts of any length; over `max_length(tokenizer)` they are cut, with a warning.
            tokenizer: The tokenizer saved beside the model.
            batch_size (int): Texts a pass; batches are made of texts of like length.
            normalize (bool): Whether rows get L2 norm 1. Default: as `config.normalize_embeddings` says.

        Returns:
            np.ndarray: Shape (texts, embedding_size), float32, in the order of `texts`.
        """
        return encode(self, tokenizer, texts, batch_size, normalize)

    def predict(
        self,
        texts: Sequence[Any],
        tokenizer: Any,
        tasks: Iterable[str] | None = None,
        batch_size: int = 32,
        aggregation_strategy: str = "first",
        top_k: int | None = None,
        bf16: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Every task's answer and the embedding for every text, from one encoder pass a batch.

        A text over `max_length(tokenizer)` is read for its tags in windows that overlap, so that no entity is lost at
        an edge; its embedding and other answers are those of its first window, as in `encode`, and a warning says so.

        Args:
            texts (Sequence): Texts, or pairs `(text, text)` for tasks that compare two or read two jointly.
            tokenizer: The tokenizer saved beside the model; a fast one, for character offsets.
            tasks (Iterable[str]): Which tasks to answer. Default: all.
            batch_size (int): Texts a pass.
            aggregation_strategy (str): How sub-words make entity spans: `first` (default: a word has its first
                sub-word's tag), `average`, `max`, `simple` (each sub-word by itself), or `none` (tags, no spans).
            top_k (int): How many classes `scores` lists. Default: all.
            bf16 (bool): Whether a float32 model multiplies in bfloat16: faster, probabilities change by about 0.01.
                Default: where the hardware has it (CPUs with AMX or avx512_bf16, GPUs since Ampere).

        Returns:
            One dict a text: `sentence_embedding` (array) and task -> answer: `{"label", "score", "scores"}`;
            `{"labels", "scores"}` for multi-label; `{"score"}` for regression and similarity; a list of
            `{"entity_group", "score", "word", "start", "end"}` for BIO tags, of `{"entity", ...}` for other tags, with
            `text[start:end] == word`. Similarity and joint tasks answer pairs only.

        Raises:
            ValueError: for an unknown task or strategy, or an item that is neither a string nor a pair of strings.
        """
        return predict(self, tokenizer, texts, tasks, batch_size, aggregation_strategy, top_k, bf16)


class MultiTaskOneHeadModel(MultiTaskPreTrainedModel):
    """One task's logits as a plain tensor, so that stock pipelines can read them; all heads stay in the folder."""

    kinds: tuple[str, ...] = ()
    output_class: type[ModelOutput]

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None):
        self.task_name = config.first_task_of(self.kinds)
        config.use_task(self.task_name)
        super().__init__(config, encoder)

    def _set_tasks(self, tasks: dict[str, dict[str, Any]], heads: dict[str, nn.Module]) -> None:
        """Refuse: `task_name` and the configuration's flat fields were settled when the view was made."""
        raise ValueError(
            f"A one-head view answers one task ({self.task_name!r}) for good. Open the folder with AutoModel to add, "
            "remove or rename tasks."
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The logits of the head, in the output class of its kind; inputs as `MultiTaskModel.forward`, labels bare."""
        output: Any = self.run_tasks(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=None if labels is None else {self.task_name: labels},
            tasks=[self.task_name],
            **kwargs,
        )
        answer = self.output_class(
            loss=output.loss,
            logits=output.logits[self.task_name],
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return answer.to_tuple() if return_dict is False else answer


class MultiTaskForSequenceClassification(MultiTaskOneHeadModel):
    """One text-classification head: what `AutoModelForSequenceClassification` opens; `task_name=` selects it.

    Shapes: logits (items, classes); labels as for the task.
    """

    kinds = (TEXT_CLASSIFICATION,)
    output_class = SequenceClassifierOutput


class MultiTaskForTokenClassification(MultiTaskOneHeadModel):
    """One token-classification head: what `AutoModelForTokenClassification` opens; `task_name=` selects it.

    Shapes: logits (items, tokens, classes), labels (items, tokens).
    """

    kinds = (TOKEN_CLASSIFICATION,)
    output_class = TokenClassifierOutput


# The auto class is inherited and one a class (a view would save itself as AutoModel), so each is registered.
MultiTaskModel.register_for_auto_class("AutoModel")
MultiTaskForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
MultiTaskForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
