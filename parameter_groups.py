"""Which parameters are trained at which rate and weight decay: the optimizer's groups, and the table that shows them.

The groups are made from what is trainable in a model and from four arguments of a run; `trainer_multitask` hands them
to the optimizer that Trainer makes. It freezes nothing and runs no step.

    groups = parameter_groups(model, learning_rate=1e-4, weight_decay=0.01, head_learning_rate=1e-3, layer_decay=0.9)
    optimizer = torch.optim.AdamW(groups)
    print(describe_groups(model, groups))
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainingArguments

CASE_VECTORS = ".case.weight"
"""How the name of the vectors of cases ends: in the encoder, but as new as a head."""
LOSS_WEIGHTS = "log_variances."
"""How the names of learned weights of losses begin (`loss_balancing: uncertainty`)."""
MATRICES, VECTORS = "matrices", "biases and norms"


def groups_of_run(model: nn.Module, args: TrainingArguments) -> list[dict[str, Any]]:
    """`parameter_groups` with the arguments of a run; plain `TrainingArguments` have none of the last three."""
    own = ("head_learning_rate", "layer_decay", "balancing_learning_rate")
    return parameter_groups(
        model, args.learning_rate, args.weight_decay, **{name: getattr(args, name, None) for name in own}
    )


def parameter_groups(
    model: Any,
    learning_rate: float,
    weight_decay: float,
    head_learning_rate: float | None = None,
    layer_decay: float | None = None,
    balancing_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The optimizer's groups: parameters with the same rate and the same weight decay.

    Layer l of n layers has the rate `learning_rate * layer_decay ** (n - l)`, the embeddings (l = 0) the lowest. So are
    ELECTRA's "layerwise learning rate decay" (Clark et al. 2020, appendix, https://arxiv.org/abs/2003.10555), whose
    factors are 0.8 and 0.9, and ULMFiT's discriminative fine-tuning (Howard and Ruder 2018, section 3.2,
    https://arxiv.org/abs/1801.06146), whose factor is 1 / 2.6. What is shared by all layers (tables of relative
    positions) goes with the embeddings, a norm behind the last layer with that one.

    Args:
        model (MultiTaskPreTrainedModel): Its trainable parameters are grouped.
        learning_rate (float): Of the encoder's highest layer.
        weight_decay (float): Of matrices; biases and norms have none.
        head_learning_rate (float): Of all that is new: heads, projection, vectors of cases. Default: `learning_rate`.
        layer_decay (float): Above 0, at most 1. Default: 1, every layer has the same rate.
        balancing_learning_rate (float): Of learned weights of losses. Default: `learning_rate`.

    Returns:
        `[{"params": [(name, parameter)], "lr", "weight_decay"}]`; those at `learning_rate` first, because Trainer logs
        the first one's. The optimizer keeps the names in its state (`trained_names`).

    Raises:
        ValueError: if nothing is trainable, or layers that are no list shall have rates of their own.
    """
    depths, layers = model.encoder_depths(), len(model.encoder_layers)
    if layer_decay is not None and not layers:
        raise ValueError("layer_decay needs an encoder with a list of layers; this one has none. Leave it away.")
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name.removeprefix("module."))
        if name.removeprefix("module.").startswith(LOSS_WEIGHTS):
            rate = learning_rate if balancing_learning_rate is None else balancing_learning_rate
        elif depth is None or name.endswith(CASE_VECTORS):
            rate = learning_rate if head_learning_rate is None else head_learning_rate
        else:
            rate = learning_rate * (1.0 if layer_decay is None else layer_decay) ** max(0, layers - depth)
        groups[rate, weight_decay if is_matrix(name, parameter) else 0.0].append((name, parameter))
    if not groups:
        raise ValueError(
            "Training needs a parameter to train, but all are frozen. Freeze less; evaluate_hf.py scores a model "
            "without training it."
        )
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != learning_rate)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in ordered]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for a parameter: no vector (bias, norm), and no table of biases (MPNet's positions)."""
    return parameter.dim() > 1 and "bias" not in name


def describe_groups(model: Any, groups: list[dict[str, Any]]) -> str:
    """The groups as a table: rate, weight decay, how many numbers, which parameters; the last line what is frozen."""
    rows = [
        (f"{group['lr']:.3g}", f"{group['weight_decay']:g}", *_describe(model, group["params"])) for group in groups
    ]
    frozen = [(name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        rows.append(("frozen", "-", *_describe(model, frozen)))
    return "\n".join(
        f"{rate:>10}  {decay:>12}  {numbers:>13}  {what}"
        for rate, decay, numbers, what in [("rate", "weight decay", "numbers", "parameters"), *rows]
    )


def _describe(model: Any, parameters: list[tuple[str, nn.Parameter]]) -> tuple[str, str]:
    """How many numbers there are in some parameters, and where they are in words."""
    depths, layers = model.encoder_depths(), len(model.encoder_layers)
    kinds = {MATRICES if is_matrix(name, parameter) else VECTORS for name, parameter in parameters}
    depth_of = {name: depths.get(name.removeprefix("module.")) for name, _ in parameters}
    cases = {name for name, _ in parameters if name.endswith(CASE_VECTORS)}
    found = {depth for name, depth in depth_of.items() if depth is not None and name not in cases}
    parts = ["embeddings"] if 0 in found else []
    parts += _ranges(sorted(depth for depth in found if 0 < depth <= layers))
    parts += ["final norm"] if layers + 1 in found else []
    parts += ["vectors of cases"] if cases else []
    parts += dict.fromkeys(name.removeprefix("module.").split(".")[0] for name in depth_of if depth_of[name] is None)
    numbers = sum(parameter.numel() for _, parameter in parameters)
    return f"{numbers:,}", f"{', '.join(parts)}: {' and '.join(sorted(kinds, reverse=True))}"


def _ranges(numbers: Iterable[int]) -> list[str]:
    """`[1, 2, 3, 5]` -> `["layers 1-3", "layer 5"]`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {run[0]}" for run in runs]


def trained_names(optimizer_state: dict[str, Any]) -> list[str]:
    """The names of the parameters that an optimizer's `state_dict` is of, in its order; none in a stock Trainer's."""
    return [name for group in optimizer_state["param_groups"] for name in group.get("param_names", ())]


def carried_over(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The `state_dict` of a new optimizer with the state that an earlier one had for the parameters both train.

    An optimizer's state is by place; with other parameters the places are others.
    """
    names = {index: name for group in before["param_groups"] for index, name in _named(group)}
    states = {names[index]: state for index, state in before["state"].items()}
    places = {name: index for group in now["param_groups"] for index, name in _named(group)}
    return now | {"state": {index: states[name] for name, index in places.items() if name in states}}


def _named(group: dict[str, Any]) -> list[tuple[int, str]]:
    """Index and name of every parameter of a group in a `state_dict`."""
    return list(zip(group["params"], group["param_names"], strict=True))
