"""LoRA: low-rank adapters in the shared encoder are trained in place of its weights (package `peft`, extra `lora`).

W x becomes W x + (alpha / r) B A x, with A (r, in) random, B (out, r) zero at first, and W as it was to the last bit
(Hu et al. 2021, section 4.1, https://arxiv.org/abs/2106.09685; `peft` can vary it: `use_dora`, `use_rslora`). Heads,
projection and vectors of cases, which are new, train beside them. Whatever asks the model for its weights gets them
*merged*, under the names that they have without adapters: a saved folder is a plain model that opens without `peft`.
What a run goes on from are the adapters themselves, in a folder of their own that `peft` opens over the bare encoder.

    add_adapters(model, {"r": 8, "lora_alpha": 16})
    ...                                          # train
    model.save_pretrained(folder)                # merged: AutoModel, pipelines, SentenceTransformer
    save_adapters(model, folder / ADAPTERS)      # a hundredth of it: adapters, heads
    merge_adapters(model)                        # for good: a plain model again
    load_adapters(other, folder / ADAPTERS)      # a model with the same encoder and tasks
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configuration_multitask import nearest_name
from encoder_cache import hash_tensors
from modeling_multitask import CasedEmbedding, MultiTaskPreTrainedModel

ADAPTERS = "adapters"
"""The folder of a checkpoint, or of a trained model, that its adapters lie in."""
CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The two files of `peft`; weights are named as in the encoder, behind `PEFT_PREFIX`."""
NEW_WEIGHTS = "new_weights.safetensors"
"""What was trained outside of the adapters, named as in the model; and the hash of the encoder that they belong to."""
PEFT_PREFIX = "base_model.model."
ENCODER = "encoder."
BASE_HASH = "encoder_sha256"


def import_peft() -> Any:
    """The package.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ValueError("lora needs the package peft: pip install 'multitask-sentence-transformer[lora]'.") from error
    return peft


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters that are not merged."""
    return bool(getattr(getattr(model, "encoder", None), "peft_config", None))


def add_adapters(model: MultiTaskPreTrainedModel, options: Mapping[str, Any]) -> None:
    """Put new adapters into the encoder, and freeze its own weights but for the vectors of cases.

    Args:
        model (MultiTaskPreTrainedModel): Without adapters. Parts that are frozen stay so.
        options (dict): Fields of `peft.LoraConfig`; the defaults here are `arguments_multitask.LoraArguments`'.

    Raises:
        ValueError: for a model that has adapters, or modules that `peft` does not find or cannot adapt.
    """
    peft = import_peft()
    if has_adapters(model):
        raise ValueError("This model has adapters already: merge them first (merge_adapters).")
    tokens = model.get_input_embeddings()
    learns_case = isinstance(tokens, CasedEmbedding) and tokens.case.weight.requires_grad
    base = hash_tensors(model.encoder.state_dict())
    try:
        peft.inject_adapter_in_model(peft.LoraConfig(**options), model.encoder)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, part in model.encoder.named_modules() if is_linear(part)})
        raise ValueError(f"lora: {error} This encoder's linear layers are called: {', '.join(linear)}.") from error
    for name, parameter in model.encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if learns_case:
        tokens.case.weight.requires_grad_(True)
    model.encoder.adapted_base = base
    model.encoder.merging = model.register_state_dict_post_hook(merge_state)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer."""
    return type(module) is nn.Linear


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> every layer of a model that `peft` put in place of one of its own."""
    layer_class = import_peft().tuners.tuners_utils.BaseTunerLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, layer_class)}


@torch.no_grad()
def merge_state(model: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any) -> None:
    """A hook of `state_dict`: adapted layers appear merged and under their own names, in place; the model stays as is.

    Each layer is merged as a copy: taking an adapter off again would change the last bits of the weights below it.
    """
    for name, layer in adapted_layers(model).items():
        for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
            del state[key]
        merged = copy.deepcopy(layer)
        merged.merge()
        for key, value in merged.get_base_layer().state_dict().items():
            state[f"{prefix}{name}.{key}"] = value


@torch.no_grad()
def merge_adapters(model: MultiTaskPreTrainedModel) -> None:
    """Merge the adapters for good: a plain model again; the encoder's own weights are still frozen."""
    for name, layer in adapted_layers(model).items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model.encoder.merging.remove()
    for name in ("peft_config", "adapted_base", "merging"):
        delattr(model.encoder, name)


def trained_weights(model: MultiTaskPreTrainedModel) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The adapters, named as `peft` saves them, and what else a run trains, named as in the model."""
    adapters, others = {}, {}
    for name, parameter in model.named_parameters():
        if name.startswith(ENCODER) and "lora_" in name:
            adapters[PEFT_PREFIX + name.removeprefix(ENCODER).replace(".default", "")] = parameter
        elif not name.startswith(ENCODER) or name.endswith(".case.weight"):
            others[name] = parameter
    return adapters, others


def save_adapters(model: MultiTaskPreTrainedModel, folder: Path) -> None:
    """Write the adapters as `peft` does, and beside them what else was trained: heads, projection, vectors of cases."""
    adapters, others = trained_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    (config,) = model.encoder.peft_config.values()
    config.save_pretrained(folder)
    save_file({name: value.detach().cpu().contiguous() for name, value in adapters.items()}, folder / ADAPTER_WEIGHTS)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in others.items()},
        folder / NEW_WEIGHTS,
        {BASE_HASH: model.encoder.adapted_base},
    )


@torch.no_grad()
def load_adapters(model: MultiTaskPreTrainedModel, folder: Path) -> None:
    """Put saved adapters on, bit-equal, with the heads and the projection that were trained beside them.

    Args:
        model (MultiTaskPreTrainedModel): With the encoder that they were trained over, and the same tasks. If it has
            adapters, they take these values.
        folder (Path): What `save_adapters` wrote.

    Raises:
        ValueError: for a folder without adapters, another encoder, or weights that do not fit the model's.
    """
    missing = [name for name in (CONFIG_NAME, ADAPTER_WEIGHTS, NEW_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"Saved adapters are three files; {folder} lacks {', '.join(missing)}.")
    if not has_adapters(model):
        options = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        known = import_peft().LoraConfig.__dataclass_fields__
        add_adapters(model, {name: value for name, value in options.items() if name in known and name != "peft_type"})
    refuse_other_encoder(model, folder)
    for weights, file in zip(trained_weights(model), (ADAPTER_WEIGHTS, NEW_WEIGHTS), strict=True):
        saved = load_file(folder / file)
        for name in saved.keys() ^ weights.keys():
            where, other = ("the model", saved) if name in weights else (file, weights)
            raise ValueError(f"{folder} belongs to another model: only {where} has {name}.{nearest_name(name, other)}")
        for name, value in saved.items():
            if value.shape != weights[name].shape:
                shapes = f"{tuple(value.shape)} there, {tuple(weights[name].shape)} in the model"
                raise ValueError(f"{folder} belongs to another model: {name} has the shape {shapes}.")
            weights[name].copy_(value)


def refuse_other_encoder(model: MultiTaskPreTrainedModel, folder: Path) -> None:
    """Raise ValueError unless the encoder below a model's adapters is the one that saved ones were trained over."""
    with safe_open(folder / NEW_WEIGHTS, "pt") as file:
        saved = (file.metadata() or {}).get(BASE_HASH)
    if saved != model.encoder.adapted_base:
        raise ValueError(
            f"Adapters fit only the encoder that they were trained over; {folder} was trained over other weights "
            f"(sha256 {str(saved)[:12]}..., here {model.encoder.adapted_base[:12]}...). Open that encoder first."
        )


def describe_adapters(model: nn.Module) -> str:
    """A sentence for the plan: how many parameters train, and where."""
    trained = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
    total = sum(value.numel() for value in model.parameters())
    adapters = sum(count for name, count in trained.items() if "lora_" in name)
    new = sum(trained.values())
    return (
        f"LoRA: adapters in {len(adapted_layers(model))} layers of the encoder. Trainable parameters: {new:,} of "
        f"{total:,} ({new / total:.2%}): adapters {adapters:,}, all else (heads, projection) {new - adapters:,}."
    )
