"""The files by which sentence-transformers opens a model, in both directions: written beside ours, read from others.

It holds no model: `modeling_multitask` writes them into every saved folder and starts from a folder that has them. This
file travels with the weights.

    write_sentence_transformers_files(folder, "mean", hidden_size=384, max_seq_length=256)
    sentence_transformers_fields(folder)                  # {"pooling": "mean", "max_seq_length": 256}
"""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

POOLING_NAMES = {
    "mean": ("mean_tokens", "mean"),
    "cls": ("cls_token", "cls"),
    "max": ("max_tokens", "max"),
    "mean_sqrt_len": ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weighted_mean": ("weightedmean_tokens", "weightedmean"),
    "last_token": ("lasttoken", "lasttoken"),
}
"""Our pooling -> theirs in `1_Pooling/config.json`: the old flag `pooling_mode_...` and the new `pooling_mode`."""
MODULES_FILE = "modules.json"
SETTINGS_FILE = "sentence_bert_config.json"
MODULE_TYPE = "sentence_transformers.models."
"""The modules' old paths: they open in old and new clients, the new ones in new clients only."""


def write_sentence_transformers_files(
    folder: Path,
    pooling: str,
    hidden_size: int,
    max_seq_length: int | None = None,
    projection: dict[str, Tensor] | None = None,
    normalize: bool = False,
) -> None:
    """Write what `SentenceTransformer(folder, trust_remote_code=True)` needs beside a model that `AutoModel` opens.

    `config_sentence_transformers.json` (prompts, similarity) is left to sentence-transformers: it writes its own before
    it asks the model to save itself.

    Args:
        folder (Path): The saved model's folder.
        pooling (str): One of `POOLING_NAMES`.
        hidden_size (int): Features of a token state.
        max_seq_length (int): Tokens a text is cut to, special tokens included. Default: the tokenizer's limit.
        projection (dict): `weight` (out, in) and `bias` (out,) of a linear map after pooling. Default: none.
        normalize (bool): Whether embeddings get L2 norm 1.
    """
    length = {} if max_seq_length is None else {"max_seq_length": max_seq_length}
    write_json(folder / SETTINGS_FILE, {**length, "do_lower_case": False})
    flags = {f"pooling_mode_{flag}": name == pooling for name, (flag, _) in POOLING_NAMES.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **flags})
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    if projection:
        paths["Dense"] = "2_Dense"
        write_dense(folder / "2_Dense", projection)
    if normalize:
        paths["Normalize"] = f"{len(paths)}_Normalize"  # has no settings, so no folder
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": MODULE_TYPE + kind}
        for index, (kind, path) in enumerate(paths.items())
    ]
    write_json(folder / MODULES_FILE, modules)


def write_dense(folder: Path, projection: dict[str, Tensor]) -> None:
    """Write a linear map as their Dense module: settings, weights `linear.weight` (out, in), `linear.bias` (out,)."""
    out_features, in_features = projection["weight"].shape
    settings = {"in_features": in_features, "out_features": out_features, "bias": True}
    write_json(folder / "config.json", settings | {"activation_function": "torch.nn.modules.linear.Identity"})
    weights = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in projection.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, its folder made if need be."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sentence_transformers_fields(folder: Path, known: Collection[str] = ()) -> dict[str, Any]:
    """Pooling, normalisation and length from a sentence-transformers folder; empty for any other folder or a Hub id.

    Fields that are `known` already are left out, and not read.

    Raises:
        ValueError: if the folder pools in a way that this model has not, or in several at once.
    """
    if not (folder / MODULES_FILE).is_file():
        return {}
    fields: dict[str, Any] = {}
    for module in json.loads((folder / MODULES_FILE).read_text()):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling" and "pooling" not in known:
            fields["pooling"] = pooling_of(json.loads((folder / module["path"] / "config.json").read_text()), folder)
        elif kind == "Normalize":
            fields["normalize_embeddings"] = True
        elif kind not in ("Transformer", "Pooling"):
            logger.warning("The %s module of %s is not taken over: the embedding starts before it.", kind, folder)
    settings = folder / SETTINGS_FILE
    length = json.loads(settings.read_text()).get("max_seq_length") if settings.is_file() else None
    if length:
        fields["max_seq_length"] = length
    return {field: value for field, value in fields.items() if field not in known}


def pooling_of(settings: dict[str, Any], folder: Path) -> str:
    """Our name for the pooling of a sentence-transformers `1_Pooling/config.json`, in its old or its new form."""
    modes = settings.get("pooling_mode") or []  # a list where several are concatenated
    chosen = [modes] if isinstance(modes, str) else list(modes)
    chosen += [new for old, new in POOLING_NAMES.values() if settings.get(f"pooling_mode_{old}")]
    ours = [name for name, (_, new) in POOLING_NAMES.items() if new in chosen]
    if len(chosen) != 1 or not ours:
        raise ValueError(
            f"{folder} pools by {chosen or settings}; exactly one of {', '.join(POOLING_NAMES)} can be taken over. "
            "Pass pooling=... to choose one."
        )
    return ours[0]
