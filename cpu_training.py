"""What makes a training step cheaper on a CPU: dropout masks from whole random words, token states in bfloat16.

PyTorch draws one random number an element. Here one draw of 64 random bits decides eight elements. On a CPU, where the
encoder's dropout is a quarter of a training step, this is what makes it cheap; on a GPU it is not, and nothing is
replaced there. Autocast keeps the token states between the layers in float32 and casts them for each product; here they
are bfloat16 from the embeddings to the last layer. Neither changes a parameter, a name or a file.

    use_fast_dropout(model)         # before training
    use_bfloat16_states(model)      # where training is in bf16
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

ATTENTION = "eager_fast_dropout"
"""Name of the attention function below among those of transformers."""
LEVELS = 2**8
"""Values of the random byte that decides an element."""


def dropped_elements(shape: torch.Size, probability: float) -> Tensor:
    """Which elements to drop, each with a probability. Bool, of a shape.

    A byte meets probabilities of whole 256ths alone; the threshold of a call is therefore drawn too, between the two
    nearest, so that each element is dropped as often as said. The random numbers come from PyTorch's default CPU
    generator, so that seeds, checkpoints' random states and activation checkpointing hold as they do for `nn.Dropout`.

    Args:
        shape (torch.Size): Any.
        probability (float): 0 to 1.
    """
    exact = probability * LEVELS
    threshold = int(exact) + int(torch.rand(()).item() < exact % 1)
    size = shape.numel()
    words = torch.empty(-(-size // 8), dtype=torch.int64).random_(-(2**63), None)
    # a comparison with 256 would wrap around in a byte
    return words.view(torch.uint8)[:size].view(shape) < threshold if threshold < LEVELS else torch.ones(shape).bool()


class FastDropout(nn.Dropout):
    """`nn.Dropout` with the masks of `dropped_elements`; on other devices than the CPU the stock one."""

    def forward(self, input: Tensor) -> Tensor:
        """Elements zeroed with probability `p` in training, the others divided by 1 - p. Any shape."""
        if input.device.type != "cpu":
            return super().forward(input)
        if not self.training or not self.p:
            return input
        kept = dropped_elements(input.shape, self.p).logical_not_()
        return input * (kept * input.new_tensor(1 / (1 - self.p) if self.p < 1 else 0.0))


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention in plain products, its dropout from `dropped_elements`.

    On a CPU in bfloat16 it is also faster than PyTorch's fused attention, whose backward pass is slow there. Everything
    of shape (tokens, tokens) stays in the scores' dtype: a float32 mask would lift it all to float32.

    Args:
        module (nn.Module): The attention layer; in evaluation mode nothing is dropped.
        query (Tensor): Shape (batch, heads, tokens, features); `key` and `value` alike.
        key (Tensor): See `query`.
        value (Tensor): See `query`.
        attention_mask (Tensor): Added to the scores: 0, or the dtype's minimum. Shape (batch, 1, tokens, tokens).
        scaling (float): Factor of the scores. Default: features ** -0.5.
        dropout (float): Probability.
        kwargs: What other attention functions read, and this one does not.

    Returns:
        Shape (batch, tokens, heads, features), and the attention weights (batch, heads, tokens, tokens).
    """
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = scores.softmax(dim=-1)
    if dropout and module.training:
        weights = weights.masked_fill(dropped_elements(weights.shape, dropout), 0.0)
        value = value / (1 - dropout) if dropout < 1 else value
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, eager_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def use_fast_dropout(model: PreTrainedModel) -> None:
    """Let every `nn.Dropout` of a model, and its encoder's attention where it can be exchanged, draw its masks cheaply.

    Encoders with an attention of their own (MPNet, DeBERTa) keep it; its dropout modules are replaced like all others.
    The choice is not saved: a reloaded model has PyTorch's own.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
    encoder = model.encoder
    if encoder._supports_attention_backend and encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(ATTENTION)


def use_bfloat16_states(model: PreTrainedModel) -> None:
    """Under autocast keep the encoder's token states in bfloat16 between its layers; its answer is float32 again.

    Norms take and give bfloat16 then, and compute in float32 inside, as they do in a model that is bfloat16 as a whole.
    """

    def lower(module: nn.Module, inputs: object, states: Tensor) -> Tensor:
        return states.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else states

    def lift(module: nn.Module, inputs: object, output: BaseModelOutput) -> BaseModelOutput:
        if torch.is_autocast_enabled("cpu"):
            output.last_hidden_state = output.last_hidden_state.float()
        return output

    model.embedding_layer.register_forward_hook(lower)
    model.encoder.register_forward_hook(lift)
