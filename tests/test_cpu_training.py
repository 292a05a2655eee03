"""Cheap dropout drops as often, keeps the mean, is seeded; answers stay the same, in bfloat16 nearly; so do folders."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from configuration_multitask import MultiTaskConfig
from cpu_training import (
    ATTENTION,
    LEVELS,
    FastDropout,
    dropped_elements,
    eager_attention,
    use_bfloat16_states,
    use_fast_dropout,
)
from modeling_multitask import MultiTaskModel

TEXTS = ["Anna won the game in Paris, not in Berlin.", "Rain.", "The new phone is fast and very good."]
OWN_ATTENTION = ("mpnet", "deberta-v2")
"""Families whose attention transformers does not let exchange."""


def new_model(family: str, dropout: float) -> MultiTaskModel:
    """A tiny model with every kind of task."""
    encoder = tiny_encoder(family, dropout=dropout)
    return MultiTaskModel(MultiTaskConfig(encoder.config, TINY_TASKS, head_dropout=dropout), encoder=encoder)


@pytest.mark.parametrize("probability", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999, 1.0])
def test_elements_are_dropped_as_often_as_said(probability: float):
    """Within five standard deviations of the draws, among them those of the threshold."""
    torch.manual_seed(0)
    calls, size = 4000, 1003  # not a multiple of the eight elements that a random word decides
    share = sum(float(dropped_elements(torch.Size([size]), probability).double().mean()) for _ in range(calls)) / calls
    draws = (probability * (1 - probability) / (calls * size)) ** 0.5 + 0.5 / LEVELS / calls**0.5
    assert abs(share - probability) <= 5 * draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_kept_elements_are_scaled_so_that_the_mean_stays(probability: float, dtype: torch.dtype):
    torch.manual_seed(0)
    values = FastDropout(probability)(torch.ones(4096, dtype=dtype))
    kept = values[values != 0].double().unique()
    assert len(kept) == 1 and float(kept) == pytest.approx(1 / (1 - probability), rel=torch.finfo(dtype).eps)


def test_neighbours_are_dropped_independently():
    """The eight elements of one random word tell nothing about each other."""
    torch.manual_seed(0)
    zeros = dropped_elements(torch.Size([800_000]), 0.5).double().view(-1, 8)
    assert (torch.corrcoef(zeros.T) - torch.eye(8)).abs().max() < 5 / 100_000**0.5


def test_attention_drops_whole_weights_and_keeps_the_mean():
    """With uniform attention over values of one, the mean over many masks is one."""
    torch.manual_seed(0)
    query = torch.zeros(64, 2, 16, 8)
    module = nn.Identity().train()
    output, weights = eager_attention(module, query, query, torch.ones_like(query), None, dropout=0.25)
    assert float((weights == 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(output.mean()) == pytest.approx(1.0, abs=0.02)
    still, _ = eager_attention(module.eval(), query, query, torch.ones_like(query), None, dropout=0.25)
    assert torch.equal(still, torch.ones_like(still))


def test_attention_in_bfloat16_stays_there_under_a_float32_mask():
    """As autocast has it: the mask is made in float32, the products are bfloat16."""
    query = torch.randn(2, 2, 4, 8, dtype=torch.bfloat16)
    mask = torch.zeros(2, 1, 4, 4).masked_fill(torch.tensor([0, 0, 0, 1]).bool(), torch.finfo(torch.float32).min)
    _, weights = eager_attention(nn.Identity().eval(), query, query, query, mask)
    assert weights.dtype == torch.bfloat16
    assert (weights[..., 3] == 0).all() and torch.allclose(weights.float().sum(-1), torch.ones(2, 2, 4), atol=0.02)


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


def test_states_are_bfloat16_under_autocast_alone_and_the_answers_nearly_those_of_before(family: str):
    """To a few units of bfloat16; without autocast to the bit."""
    model = new_model(family, dropout=0.0).eval()
    batch = tiny_tokenizer(family)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        exact = model(**batch).sentence_embedding
        use_bfloat16_states(model)
        states = []
        layers = next(m for m in model.encoder.modules() if isinstance(m, nn.ModuleList))
        layers[-1].register_forward_hook(lambda module, args, output: states.append(output))
        assert torch.equal(model(**batch).sentence_embedding, exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**batch)
    dtypes = [(state[0] if isinstance(state, tuple) else state).dtype for state in states]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert output.last_hidden_state.dtype == torch.float32
    torch.testing.assert_close(output.sentence_embedding, exact, atol=4 * torch.finfo(torch.bfloat16).eps, rtol=0.0)
