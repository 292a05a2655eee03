"""A trained model of ours as the start of a run: its tasks stay, new ones get heads beside theirs.

What the model is comes from its folder; a recipe that asks for another one is refused. It opens no data and trains
nothing; how far training moves the answers of the tasks that it leaves alone is `head_drift`'s business.

    arguments = ModelArguments(init_from="outputs/news")
    model, tokenizer = extend_trained(arguments, {"sentiment": spec}, offline=True, freeze=["encoder"])
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from arguments_multitask import ARGUMENT_FIELDS, ModelArguments
from configuration_multitask import TOKEN_CLASSIFICATION, MultiTaskConfig
from modeling_multitask import MultiTaskModel
from saved_model import open_model

CONFIG_ARGUMENTS = ("pooling", "projection_dim", "normalize_embeddings", "head_dropout", "max_seq_length")
"""Arguments that a configuration holds under the same name."""


def extend_trained(
    arguments: ModelArguments, specs: dict[str, dict[str, Any]], offline: bool, freeze: Iterable[str]
) -> tuple[MultiTaskModel, Any]:
    """A trained model with a new head for each task that it lacks, and its tokenizer.

    A task that it has goes on from its head, with the loss of `specs` and without its temperature, which was fitted to
    the head as it was. The heads of its other tasks are frozen, because
    weight decay would move them.

    Args:
        arguments (ModelArguments): `init_from` names the model.
        specs (dict): The tasks to train, checked and complete.
        offline (bool): Never ask the Hub.
        freeze (Iterable[str]): Parts as `freeze` of the model takes them; `heads` are those that the model brings.

    Raises:
        ValueError: for a model that cannot be opened, arguments or tasks that contradict it, or an unknown part.
    """
    model, tokenizer = open_model(str(arguments.init_from), offline)
    refuse_contradiction(arguments, model.config)
    model.freeze([*freeze, *(name for name in model.heads if name not in specs)])
    for name, spec in specs.items():
        if name not in model.config.tasks:
            model.add_task(name, spec)
        else:
            refuse_other_task(name, model.config.tasks[name], spec, str(arguments.init_from))
            model.config.tasks[name]["loss"] = spec["loss"]
            model.config.tasks[name].pop("temperature", None)
    if arguments.task_name:
        (model.config.task_name,) = model.check_tasks([arguments.task_name])
    return model, tokenizer


def refuse_contradiction(arguments: ModelArguments, config: MultiTaskConfig) -> None:
    """Raise ValueError if the recipe asks for another model than the one it starts from."""
    here = {name: getattr(config, name) for name in CONFIG_ARGUMENTS} | {"read_case": bool(config.cased_vocab_size)}
    for name, there in here.items():
        asked = getattr(arguments, name)
        if asked not in (ARGUMENT_FIELDS[name].default, there):
            raise ValueError(
                f"A run goes on with the model of init_from as it is: {name} is {there} in {arguments.init_from} and "
                f"cannot be {asked}. Leave it away."
            )


def refuse_other_task(name: str, old: dict[str, Any], new: dict[str, Any], folder: str) -> None:
    """Raise ValueError unless a task of the recipe is the one of that name in a trained model.

    Its loss may be another, and a recipe has no temperature.
    """
    for field in ("kind", *sorted((old.keys() | new.keys()) - {"kind", "loss", "temperature"})):
        if old.get(field) != new.get(field):
            raise ValueError(
                f"Task {name!r} goes on from its head in {folder} only if it is the same task: {field} is "
                f"{old.get(field)} there, {new.get(field)} in the recipe. Write {field} as it is there, or rename the "
                f"task in the recipe (to '{name}_2', say): it then gets a head of its own, and the old one stays."
            )


def parts_of_task(name: str, spec: dict[str, Any], model: MultiTaskModel) -> dict[str, nn.Module]:
    """What a task depends on, by name."""
    parts = {"encoder": model.encoder}
    parts |= {} if spec["kind"] == TOKEN_CLASSIFICATION else {"projection": model.projection}
    return parts | ({"its head": model.heads[name]} if name in model.heads else {})


def is_trained(name: str, spec: dict[str, Any], model: MultiTaskModel) -> bool:
    """Whether anything that a task depends on is trainable."""
    parts = parts_of_task(name, spec, model).values()
    return any(parameter.requires_grad for part in parts for parameter in part.parameters())


def refuse_frozen(name: str, spec: dict[str, Any], model: MultiTaskModel) -> None:
    """Raise ValueError if nothing that a task depends on is trained."""
    if not is_trained(name, spec, model):
        parts = ", ".join(parts_of_task(name, spec, model))
        raise ValueError(
            f"Task {name!r} has nothing to train: all that it depends on ({parts}) is frozen. Freeze less, "
            "or take it out of the recipe; evaluate_hf.py scores a model without training it."
        )
