"""One task of a saved model as a plain folder, which opens without code of ours: `BertForTokenClassification` and kin.

Hosted widgets, TEI and other tools run no custom code; these folders are for them. A head is written only where the
encoder's own class computes the same function: the logits of both are compared before anything is saved. The embedding
becomes a sentence-transformers folder. A vocabulary with case variants is spelled out into one embedding table. It
converts nothing to another format or precision (`graph_export` does).

    write_head(model, tokenizer, "ner", folder)     # AutoModelForTokenClassification.from_pretrained(folder)
    write_embedding(model, tokenizer, folder)       # SentenceTransformer(folder)
"""

import copy
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from configuration_multitask import FEATURE_EXTRACTION, SENTENCE_SIMILARITY, TOKEN_CLASSIFICATION
from modeling_multitask import CasedEmbedding, MultiTaskModel
from sentence_transformers_files import write_sentence_transformers_files

ROBERTA_HEAD = ("tanh", "classifier.dense", "classifier.out_proj")
SENTENCE_HEADS: dict[str, tuple[str, str, str]] = {
    "bert": ("tanh", "bert.pooler.dense", "classifier"),
    "deberta-v2": ("any", "pooler.dense", "classifier"),
    "distilbert": ("relu", "pre_classifier", "classifier"),
    "electra": ("gelu", *ROBERTA_HEAD[1:]),
    "mpnet": ROBERTA_HEAD,
    "roberta": ROBERTA_HEAD,
    "xlm-roberta": ROBERTA_HEAD,
}
"""Model type -> activation and two layers of its `ForSequenceClassification`; all of them read the first token.

DeBERTa's activation is a field of its configuration.
"""


class NoPlainClassError(ValueError):
    """The encoder's own class computes something else than a head; the message says what, and the ways that stay."""


PROBE = ["A short text.", "And a longer one, so that the first is padded in a batch of both."]


def plain_weights(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """The encoder's weights; a vocabulary with case variants becomes one table with a row a token."""
    weights = encoder.state_dict()
    for name, module in encoder.named_modules():
        if isinstance(module, CasedEmbedding):
            table = module(torch.arange(module.num_embeddings, device=encoder.device))
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
            weights[f"{name}.weight"] = table
    return weights


def plain_config(model: MultiTaskModel) -> Any:
    """The encoder's configuration with the vocabulary that its tokenizer has."""
    config = copy.deepcopy(model.config.encoder_config)
    config.vocab_size = model.config.cased_vocab_size or config.vocab_size
    return config


def save_tokenizer(model: MultiTaskModel, tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer with what our model does by itself: the length it cuts at, positions that skip padding."""
    own = copy.deepcopy(tokenizer)
    own.model_max_length = model.max_length(tokenizer)
    own.padding_side = "right"  # plain classes count positions, and look for the first token, from the left
    own.save_pretrained(folder)


def head_layers(model: MultiTaskModel, name: str) -> dict[str, str]:
    """Layers of our head -> layers of the family's own class.

    Raises:
        NoPlainClassError: if that class computes something else.
    """
    spec, config = model.config.tasks[name], model.config
    if spec["kind"] == TOKEN_CLASSIFICATION:
        return {"out": "classifier"}
    family = config.encoder_config.model_type
    if family not in SENTENCE_HEADS:
        refuse(model, name, f"the class of {family} has layers that this head has not")
    activation, dense, out = SENTENCE_HEADS[family]
    found = {
        "pooling": spec.get("pooling") or config.pooling,
        "head": spec["head"],
        "head_activation": spec.get("head_activation"),
        "projection_dim": config.projection_dim,
    }
    needed = {"pooling": "cls", "head": "mlp", "head_activation": activation, "projection_dim": None}
    if activation == "any":
        del needed["head_activation"]
    other = [f"{field} {value} (here {found[field]})" for field, value in needed.items() if found[field] != value]
    if other:
        refuse(model, name, f"the class of {family} computes {', '.join(other)}")
    return {"dense": dense, "out": out}


def refuse(model: MultiTaskModel, name: str, reason: str) -> NoReturn:
    """Raise NoPlainClassError, with the ways that stay."""
    kind = model.config.tasks[name]["kind"]
    auto = "AutoModelForTokenClassification" if kind == TOKEN_CLASSIFICATION else "AutoModelForSequenceClassification"
    raise NoPlainClassError(
        f"A plain folder must compute what the task {name!r} computes, but {reason}. Use the model's own folder: "
        f"{auto}.from_pretrained(folder, trust_remote_code=True, task_name={name!r}), or pipeline({kind!r}, "
        f"model=folder, trust_remote_code=True, model_kwargs={{'task_name': {name!r}}}); or, without code of ours, "
        "its graph: --format onnx."
    )


def plain_head(model: MultiTaskModel, name: str) -> PreTrainedModel:
    """The family's own class with the weights of the encoder and of one head.

    Raises:
        NoPlainClassError: if that class computes something else.
    """
    spec, config, layers = model.config.tasks[name], plain_config(model), head_layers(model, name)
    config.id2label = dict(enumerate(spec["labels"]))
    config.label2id = {label: index for index, label in config.id2label.items()}
    is_token_level = spec["kind"] == TOKEN_CLASSIFICATION
    if not is_token_level:
        config.problem_type = spec["problem_type"]
        config.pooler_hidden_act = spec["head_activation"]  # read by DeBERTa's class alone
    auto = AutoModelForTokenClassification if is_token_level else AutoModelForSequenceClassification
    plain = auto.from_config(config, dtype=model.dtype).eval()
    weights = {f"{plain.base_model_prefix}.{key}": value for key, value in plain_weights(model.encoder).items()}
    for ours, theirs in layers.items():
        divisor = spec.get("temperature", 1.0) if ours == "out" else 1.0  # so that scores are those of our model
        for key, value in getattr(model.heads[name], ours).state_dict().items():
            weights[f"{theirs}.{key}"] = value / divisor
    differing = sorted(plain.state_dict().keys() ^ weights.keys())
    if differing:
        refuse(model, name, f"{type(plain).__name__} differs in {', '.join(differing)}")
    plain.load_state_dict(weights)
    return plain


@torch.no_grad()
def check_same_logits(model: MultiTaskModel, plain: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Raise NoPlainClassError unless both give the same logits, on a padded batch."""
    batch = tokenizer(PROBE, padding=True, padding_side="right", return_tensors="pt").to(model.device)
    expected = model(**batch, tasks=[name]).logits[name]
    difference = (plain.to(model.device)(**batch).logits - expected).abs()
    if difference.dim() == 3:
        difference = difference[batch["attention_mask"].bool()]
    if not difference.max() <= 1e-3 * (1 + expected.abs().max()):
        refuse(model, name, f"the logits of {type(plain).__name__} differ by {difference.max():.3g}")


def write_head(model: MultiTaskModel, tokenizer: Any, name: str, folder: Path) -> None:
    """Write one head as a folder that opens without code of ours.

    Args:
        model (MultiTaskModel): In evaluation mode.
        tokenizer: The one saved beside it.
        name (str): A text- or token-classification task. Of the others, `write_embedding` is the plain form.
        folder (Path): Where config, weights and tokenizer are written.

    Raises:
        NoPlainClassError: if the encoder's own class computes something else than this head.
    """
    plain = plain_head(model, name)
    check_same_logits(model, plain, tokenizer, name)
    plain.save_pretrained(folder)
    save_tokenizer(model, tokenizer, folder)


def write_embedding(model: MultiTaskModel, tokenizer: Any, folder: Path, pooling: str | None = None) -> None:
    """Write the sentence embedding as a plain sentence-transformers folder.

    Args:
        model (MultiTaskModel): In evaluation mode.
        tokenizer: The one saved beside it.
        folder (Path): Where the encoder's class, the tokenizer and the modules' settings are written.
        pooling (str): That of a task. Default: the model's.
    """
    plain = AutoModel.from_config(plain_config(model), dtype=model.dtype)
    missing, _ = plain.load_state_dict(plain_weights(model.encoder), strict=False)
    for key in missing:  # of the pooler, which nothing reads; without a value, loading would warn of it
        nn.init.zeros_(plain.get_parameter(key))
    plain.save_pretrained(folder)
    save_tokenizer(model, tokenizer, folder)
    write_sentence_transformers_files(
        folder,
        pooling or model.config.pooling,
        model.config.hidden_size,
        max_seq_length=model.max_length(tokenizer),
        projection=dict(model.projection.state_dict()),
        normalize=model.config.normalize_embeddings,
    )


def write_native(model: MultiTaskModel, tokenizer: Any, folder: Path, task: str | None = None) -> None:
    """Write the plain folder of a task; of the embedding, if no task is given or it answers with embeddings.

    Raises:
        ValueError: for an unknown task; NoPlainClassError for a head that has no plain class.
    """
    spec = model.config.tasks[model.check_tasks([task])[0]] if task is not None else {}
    if task is None or spec["kind"] in (SENTENCE_SIMILARITY, FEATURE_EXTRACTION):
        write_embedding(model, tokenizer, folder, spec.get("pooling"))
    else:
        write_head(model, tokenizer, task, folder)
