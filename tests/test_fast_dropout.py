"""Cheap dropout drops as often, keeps the mean, is seeded; the encoder's answers and the saved folder stay the same."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from configuration_multitask import MultiTaskConfig
from fast_dropout import ATTENTION, LEVELS, FastDropout, dropout_factors, use_fast_dropout
from modeling_multitask import MultiTaskModel

TEXTS = ["Anna won the game in Paris, not in Berlin.", "Rain.", "The new phone is fast and very good."]
OWN_ATTENTION = ("mpnet", "deberta-v2")
"""Families whose attention transformers does not let exchange."""


def new_model(family: str, dropout: float) -> MultiTaskModel:
    """A tiny model with every kind of task."""
    encoder = tiny_encoder(family, dropout=dropout)
    return MultiTaskModel(MultiTaskConfig(encoder.config, TINY_TASKS, head_dropout=dropout), encoder=encoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_elements_are_dropped_as_often_as_said_and_the_others_keep_the_mean(probability: float, dtype: torch.dtype):
    """Within five standard deviations of a million draws, and one value besides zero."""
    torch.manual_seed(0)
    size = 1_000_003  # not a multiple of the four elements that a random word decides
    factors = dropout_factors(torch.empty(size, dtype=dtype), probability)
    dropped = float((factors == 0).double().mean())
    assert abs(dropped - probability) < 5 * (probability * (1 - probability) / size) ** 0.5 + 0.5 / LEVELS
    kept = factors[factors != 0].double().unique()
    exact = 1 / (1 - round(probability * LEVELS) / LEVELS)
    assert len(kept) == 1 and float(kept) == pytest.approx(exact, rel=torch.finfo(dtype).eps)


def test_neighbours_are_dropped_independently():
    """The four elements of one random word tell nothing about each other."""
    torch.manual_seed(0)
    zeros = (dropout_factors(torch.empty(400_000), 0.5) == 0).double().view(-1, 4)
    assert (torch.corrcoef(zeros.T) - torch.eye(4)).abs().max() < 5 / 100_000**0.5


def test_probability_0_and_1_and_evaluation_are_those_of_the_stock_module():
    values = torch.randn(3, 5)
    for probability, training in ((0.0, True), (1.0, True), (0.4, False)):
        module, stock = (one(probability).train(training) for one in (FastDropout, nn.Dropout))
        assert torch.equal(module(values), stock(values))


def test_the_same_seed_draws_the_same_mask_and_the_gradient_has_it_too():
    values = torch.randn(7, 9, requires_grad=True)
    torch.manual_seed(3)
    first = FastDropout(0.3)(values)
    first.sum().backward()
    torch.manual_seed(3)
    assert torch.equal(first, FastDropout(0.3)(values))
    assert torch.equal(values.grad == 0, first == 0) and not torch.equal(first, FastDropout(0.3)(values))


def test_every_family_answers_as_before_where_nothing_is_dropped(family: str):
    """The exchanged attention is the same function; states of padding mean nothing and are not compared."""
    model = new_model(family, dropout=0.0).train()
    batch = tiny_tokenizer(family)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**batch)
        use_fast_dropout(model)
        after = model(**batch)
    assert not any(type(module) is nn.Dropout for module in model.modules())
    assert (model.encoder.config._attn_implementation == ATTENTION) == (family not in OWN_ATTENTION)
    torch.testing.assert_close(after.sentence_embedding, before.sentence_embedding, atol=2e-6, rtol=1e-5)
    padding = batch["attention_mask"] == 0
    for name, logits in before.logits.items():
        for answer in (logits, after.logits[name]):
            if TINY_TASKS[name]["kind"] == "token-classification":
                answer[padding] = 0.0
        torch.testing.assert_close(after.logits[name], logits, atol=5e-6, rtol=1e-5, equal_nan=True)


def test_every_family_drops_in_training_only(family: str):
    """Evaluation is repeatable, training is not."""
    model = new_model(family, dropout=0.4)
    use_fast_dropout(model)
    batch = tiny_tokenizer(family)(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(model.eval()(**batch).sentence_embedding, model(**batch).sentence_embedding)
    model.train()
    assert not torch.equal(model(**batch).sentence_embedding, model(**batch).sentence_embedding)


def test_the_exchanged_attention_drops_too(tokenizer: PreTrainedTokenizerFast):
    """With dropout left in the attention alone, two passes in training differ."""
    model = new_model("bert", dropout=0.4).train()
    use_fast_dropout(model)
    for name, module in model.named_modules():
        if isinstance(module, FastDropout) and not name.endswith("attention.self.dropout"):
            module.p = 0.0
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not torch.equal(model(**batch).sentence_embedding, model(**batch).sentence_embedding)


def test_the_choice_is_not_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = new_model("bert", dropout=0.1)
    use_fast_dropout(model)
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["encoder_config"]["model_type"] == "bert"
    reloaded = MultiTaskModel.from_pretrained(tmp_path)
    assert reloaded.encoder.config._attn_implementation == "sdpa"
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    torch.testing.assert_close(
        reloaded(**batch).sentence_embedding, model.eval()(**batch).sentence_embedding, atol=2e-6, rtol=1e-5
    )
