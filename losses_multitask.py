"""What a task's answers cost: the loss of every item, by kind of task; and the weight of a loss that is learned.

Pure functions of tensors: logits and labels of the labelled items in, one loss an item out, so that the divisor is the
model's business (`modeling_multitask.multi_task_loss`). Which rows these are, and the sum over tasks, stand there. This
file travels with the weights.

    losses_of(spec)(spec, logits, labels)     # (N,)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:  # in a saved folder; transformers finds this line and copies the file along
    from .configuration_multitask import (
        FEATURE_EXTRACTION,
        LABEL_PADDING,
        MULTI_LABEL,
        REGRESSION,
        SENTENCE_SIMILARITY,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
    )
except ImportError:  # as a flat module
    if __package__:
        raise
    from configuration_multitask import (
        FEATURE_EXTRACTION,
        LABEL_PADDING,
        MULTI_LABEL,
        REGRESSION,
        SENTENCE_SIMILARITY,
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
    )

COSENT_SCALE = 20.0
LABEL_SHARE = (0.0, 1.0)
"""Weight of the labels beside a teacher at the first and the last step."""

ItemLoss = Callable[[dict[str, Any], Tensor, Tensor], Tensor]
"""Specification, logits and labels of N items -> their losses (N,)."""


def class_weight_tensor(spec: dict[str, Any], logits: Tensor) -> Tensor | None:
    """`loss.class_weights` as a tensor beside the logits, or None."""
    weights = spec["loss"].get("class_weights")
    return None if weights is None else logits.new_tensor(weights)


def classification_losses(spec: dict[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy an item, times its class's weight (not divided by the weights, which would depend on the batch).

    Shapes: logits (N, classes), labels (N,) -> (N,).
    """
    return F.cross_entropy(
        logits,
        labels,
        weight=class_weight_tensor(spec, logits),
        reduction="none",
        label_smoothing=spec["loss"].get("label_smoothing", 0.0),
    )


def multi_label_losses(spec: dict[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the classes. Shapes: logits and labels (N, classes) -> (N,)."""
    weight = class_weight_tensor(spec, logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight=weight, reduction="none").mean(1)


def regression_losses(spec: dict[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error. Shapes: logits (N, 1), labels (N,) -> (N,)."""
    return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")


def token_losses(spec: dict[str, Any], logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, mean over an item's labelled tokens. Shapes: logits (N, T, classes), labels (N, T) -> (N,)."""
    labelled = labels != LABEL_PADDING
    losses = logits.new_zeros(labels.shape)
    losses[labelled] = classification_losses(spec, logits[labelled], labels[labelled]).to(losses.dtype)
    return losses.sum(1) / labelled.sum(1)


def r_drop_losses(
    spec: dict[str, Any], first: Tensor, second: Tensor, labels: Tensor, item_loss: ItemLoss | None = None
) -> Tensor:
    """R-Drop: two passes over an item, dropout differing, shall learn its label and agree.

    loss = (loss(first) + loss(second)) / 2 + r_drop * (KL(first || second) + KL(second || first)) / 2, the divergence
    of an item with tags being the mean over its labelled tokens. Half of equations 2 to 4 of Liang et al. 2021
    (https://arxiv.org/abs/2106.14448), so that an item weighs what it does with one pass: their alpha is 2 * r_drop.
    With a teacher both passes learn from label and teacher (`item_loss`); the divergence keeps its weight.

    Shapes: logits (N, classes) or (N, T, classes), labels (N,) or (N, T) -> (N,).
    """
    one, two = first.log_softmax(-1), second.log_softmax(-1)
    divergences = ((one.exp() - two.exp()) * (one - two)).sum(-1) / 2
    if divergences.dim() == 2:
        labelled = labels != LABEL_PADDING
        divergences = divergences.masked_fill(~labelled, 0.0).sum(1) / labelled.sum(1)
    item_loss = item_loss or losses_of(spec)
    likelihood = (item_loss(spec, first, labels) + item_loss(spec, second, labels)) / 2
    return likelihood + spec["loss"]["r_drop"] * divergences


def similarity_losses(spec: dict[str, Any], cosines: Tensor, labels: Tensor) -> Tensor:
    """Squared error of the cosine, or CoSENT. Shapes: cosines and labels (N,) -> (N,)."""
    if spec["loss"].get("name", "mse") == "cosent":
        return cosent_losses(cosines, labels, spec["loss"].get("scale", COSENT_SCALE))
    return F.mse_loss(cosines, labels.to(cosines.dtype), reduction="none")


def cosent_losses(cosines: Tensor, labels: Tensor, scale: float = COSENT_SCALE) -> Tensor:
    """CoSENT: log(1 + sum over pairs i, j with label_i < label_j of exp(scale * (cos_i - cos_j))).

    A loss of the whole micro-batch, not of an item: it is the same number for each of the N items here, so that its
    share of the mean is that of the other tasks. It therefore depends on how a global batch is cut, and is exempt from
    the rule that 1x8 and 8x1 accumulation give equal gradients.

    Shapes: cosines and labels (N,) -> (N,). Reference: Su 2022, https://kexue.fm/archives/8847, eq. 4 (there scale 20).
    """
    differences = scale * (cosines[:, None] - cosines[None, :])
    ordered = labels[:, None] < labels[None, :]
    terms = torch.cat([cosines.new_zeros(1), differences[ordered]])
    return torch.logsumexp(terms, dim=0).expand(len(cosines))


def embedding_losses(spec: dict[str, Any], embeddings: Tensor, labels: Tensor) -> Tensor:
    """One minus the cosine to the teacher's embedding. Shapes: both (N, dim) -> (N,)."""
    return 1.0 - F.cosine_similarity(embeddings, labels.to(embeddings.dtype), dim=-1)


def losses_of(spec: dict[str, Any]) -> ItemLoss:
    """The loss function of a task: by kind, and for text-classification by problem type."""
    if spec["kind"] == TEXT_CLASSIFICATION:
        return {MULTI_LABEL: multi_label_losses, REGRESSION: regression_losses}.get(
            spec["problem_type"], classification_losses
        )
    return {
        TOKEN_CLASSIFICATION: token_losses,
        SENTENCE_SIMILARITY: similarity_losses,
        FEATURE_EXTRACTION: embedding_losses,
    }[spec["kind"]]


def has_label(labels: Tensor) -> Tensor:
    """Which items carry a label: not all `LABEL_PADDING` (integers) or NaN (floats). Shape (items, ...) -> (items,)."""
    present = ~labels.isnan() if labels.is_floating_point() else labels != LABEL_PADDING
    return present.flatten(1).any(1) if present.dim() > 1 else present


def teacher_losses(spec: dict[str, Any], logits: Tensor, teacher: Tensor) -> Tensor:
    """How far a task's answers are from its teacher's: T^2 times the cross-entropy to the teacher's distribution.

    Both distributions are softened by the temperature T = `loss.distillation_temperature` (Hinton et al. 2015, section
    2, https://arxiv.org/abs/1503.02531). Class weights and label smoothing do not count here. A teacher's number
    (regression, similarity) is learnt as a label is.

    Shapes: logits and teacher (N, classes) -> (N,); numbers: logits (N, 1) or (N,), teacher (N,) -> (N,).
    """
    if spec["kind"] == SENTENCE_SIMILARITY or spec.get("problem_type") == REGRESSION:
        return losses_of(spec)(spec, logits, teacher)
    temperature = spec["loss"].get("distillation_temperature", 1.0)
    logits, teacher = logits / temperature, teacher / temperature
    if spec.get("problem_type") == MULTI_LABEL:
        losses = F.binary_cross_entropy_with_logits(logits, teacher.sigmoid(), reduction="none").mean(1)
    else:
        losses = F.cross_entropy(logits, teacher.softmax(-1), reduction="none")
    return temperature**2 * losses


def taught_losses(
    spec: dict[str, Any], logits: Tensor, labels: Tensor, teacher: Tensor, training_progress: float
) -> Tensor:
    """Labels and a teacher at once, the teacher giving way: share * loss of the label + (1 - share) * `teacher_losses`.

    The share of the labels goes linearly from the first to the second number of `loss.label_share` (default: 0 to 1)
    over training: teacher annealing, BAM! (Clark et al. 2019, section 3, https://arxiv.org/abs/1907.04829), their
    lambda. An item that the teacher said nothing of learns from its label alone; of an item with tags, the teacher's
    part is the mean over the labelled tokens that it knows.

    Args:
        spec (dict): The task.
        logits (Tensor): As for the loss of the labels.
        labels (Tensor): Likewise.
        teacher (Tensor): The teacher's logits, NaN where it has none. Shape (N, classes), (N, T, classes) for tags,
            (N,) for numbers.
        training_progress (float): Which part of training is over, 0 to 1.

    Returns:
        Tensor of shape (N,).
    """
    losses = losses_of(spec)(spec, logits, labels)
    known = ~(teacher.isnan().any(-1) if teacher.dim() > 1 else teacher.isnan())
    if spec["kind"] == TOKEN_CLASSIFICATION:
        known &= labels != LABEL_PADDING
    taught = known.flatten(1).any(1) if known.dim() > 1 else known
    if spec["kind"] == TOKEN_CLASSIFICATION:
        of_tokens = logits.new_zeros(labels.shape)
        of_tokens[known] = teacher_losses(spec, logits[known], teacher[known]).to(of_tokens.dtype)
        of_teacher = of_tokens[taught].sum(1) / known[taught].sum(1)
    else:
        of_teacher = teacher_losses(spec, logits[taught], teacher[taught])
    first, last = spec["loss"].get("label_share", LABEL_SHARE)
    share = first + (last - first) * training_progress
    return losses.index_put((taught,), share * losses[taught] + (1 - share) * of_teacher)


class LogVariance(nn.Module):
    """A task's learned log variance, which weighs its loss (Kendall et al. 2018, https://arxiv.org/abs/1705.07115).

    `forward`: exp(-s) * loss + s / 2, for losses (N,) of items -> (N,). That is their equation 10 for a cross-entropy,
    loss / variance + log(standard deviation), with s the log variance; and their equation 7 for a squared error,
    loss / (2 * variance) + log(standard deviation), with s the log of twice the variance, but for a constant. So every
    task starts at s = 0, where its weight is that of the plain sum. At rest, exp(s) is twice the task's mean loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))  # not a scalar: FSDP shards none

    def forward(self, losses: Tensor) -> Tensor:
        """Losses (N,) -> (N,)."""
        return torch.exp(-self.value) * losses + self.value / 2
