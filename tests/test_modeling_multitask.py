"""Relations that the model keeps for every encoder family: padding, pooling, mixing, losses, gradients, saving."""

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import HIDDEN_SIZE, TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from configuration_multitask import POOLINGS, MultiTaskConfig, check_task
from data_collator import MultiTaskDataCollator
from losses_multitask import cosent_losses, has_label, r_drop_losses
from modeling_multitask import (
    POOLERS,
    MultiTaskForSequenceClassification,
    MultiTaskForTokenClassification,
    MultiTaskModel,
)

TEXTS = (
    "Anna won the game in Paris.",
    "Rain",
    "The new phone is fast, and the team is very good on this cold day in Berlin.",
    "It was not cold.",
)
POOLING_TASKS = {f"by_{pooling}": {"kind": "feature-extraction", "pooling": pooling} for pooling in POOLINGS}
ABSOLUTE_POSITIONS = ("bert", "minilm", "distilbert", "electra")
"""Families that number positions from the left edge, padding included, when left to themselves."""


def new_model(
    family: str = "bert", tasks: dict[str, Any] | None = None, seed: int = 0, cls: type = MultiTaskModel, **config: Any
) -> Any:
    """A model in evaluation mode without dropout. Heads are drawn wide, so that logits differ by tenths, not 1e-3."""
    encoder = tiny_encoder(family)
    tasks = copy.deepcopy(TINY_TASKS if tasks is None else tasks)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(
            MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, **{"head_dropout": 0.0, **config}),
            encoder=encoder,
        )
        for module in (model.heads, model.projection):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    return model.eval()


def item(tokenizer: Any, text: str, pair: str | None = None, **labels: Any) -> dict[str, Any]:
    """A feature as the collator takes it. A token label given as a number k becomes the tags k, k+1, ... modulo 5."""
    ids = tokenizer(text).input_ids
    for name in ("ner", "upos"):
        if name in labels:
            labels[name] = [-100, *((labels[name] + i) % 5 for i in range(len(ids) - 2)), -100]
    feature: dict[str, Any] = {"input_ids": ids, **({"labels": labels} if labels else {})}
    return feature if pair is None else {**feature, "pair_input_ids": tokenizer(pair).input_ids}


def mixed_items(tokenizer: Any) -> list[dict[str, Any]]:
    """Eight items of seven tasks, of all kinds and different lengths, one label each."""
    anchor = torch.linspace(-1, 1, HIDDEN_SIZE).tolist()
    return [
        item(tokenizer, TEXTS[0], topic=1),
        item(tokenizer, TEXTS[1], topic=0),
        item(tokenizer, TEXTS[2], ner=1),
        item(tokenizer, TEXTS[3], pair=TEXTS[2], similarity=0.4),
        item(tokenizer, TEXTS[0], tags=[1.0, 0.0, 0.0, 1.0]),
        item(tokenizer, TEXTS[1], rating=0.7),
        item(tokenizer, TEXTS[3], upos=2),
        item(tokenizer, TEXTS[2], anchor=anchor),
    ]


def batch_of(tokenizer: Any, model: Any, items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The collated batch."""
    return MultiTaskDataCollator(tokenizer, model.config.tasks)(list(items))


def padded(rows: list[list[int]], side: str, fill: int, extra: int = 3) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, every row padded by at least `extra` places of `fill` on one side."""
    width = max(map(len, rows)) + extra
    ids, mask = [], []
    for row in rows:
        space = width - len(row)
        left, right = (space, 0) if side == "left" else (0, space)
        ids.append([fill] * left + row + [fill] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def gradients(model: Any) -> dict[str, Tensor]:
    """A copy of every parameter's gradient."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: Any, loss: Tensor, other: Tensor) -> None:
    """Two losses of one model, which must have no gradients yet, have the same ones."""
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    other.backward()
    found = gradients(model)
    assert found.keys() == expected.keys() and any(gradient.any() for gradient in found.values())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def mean_cross_entropy(logits: Tensor, classes: Iterable[int]) -> float:
    """Cross-entropy by its definition, in double precision."""
    rows = zip(logits.tolist(), classes, strict=True)
    losses = [-math.log(math.exp(row[index]) / sum(map(math.exp, row))) for row, index in rows]
    return sum(losses) / len(losses)


# Padding


@pytest.fixture(scope="module")
def padding_model(family: str) -> MultiTaskModel:
    """A model of each family with every kind of task and, as tasks, every pooling."""
    return new_model(family, {**TINY_TASKS, **POOLING_TASKS})


def answers_alone(model: MultiTaskModel, rows: list[list[int]], pairs: list[list[int]]) -> list[Any]:
    """The output for each pair of texts by itself, without a padded place."""
    return [
        model(
            input_ids=torch.tensor([row]),
            pair_input_ids=torch.tensor([pair]),
            pair_attention_mask=torch.ones(1, len(pair), dtype=torch.long),
            pair_items=torch.tensor([0]),
        )
        for row, pair in zip(rows, pairs, strict=True)
    ]


@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_embedding_and_no_logit(family, padding_model: MultiTaskModel, side: str):
    tokenizer = tiny_tokenizer(family)
    rows = [tokenizer(text).input_ids for text in TEXTS]
    pairs = [[*row[:1], *row[1:-1][::-1], row[-1]] for row in rows]  # the same words backwards
    alone = answers_alone(padding_model, rows, pairs)
    for fill in (tokenizer.pad_token_id, 9):  # whatever stands in a padded place
        batch = padded(rows, side, fill)
        assert (batch["attention_mask"] == 0).any(dim=1).all(), "premise: every row is padded"
        second = {f"pair_{name}": tensor for name, tensor in padded(pairs, side, fill, extra=5).items()}
        output = padding_model(**batch, **second, pair_items=torch.arange(len(rows)))
        real = batch["attention_mask"].bool()
        for index, single in enumerate(alone):
            states = output.last_hidden_state[index][real[index]]
            assert_close(states, single.last_hidden_state[0], atol=2e-5, rtol=1e-4)
            assert_close(output.sentence_embedding[index], single.sentence_embedding[0], atol=2e-5, rtol=1e-4)
            for name, logits in output.logits.items():
                is_token_level = padding_model.config.tasks[name]["kind"] == "token-classification"
                own = logits[index][real[index]] if is_token_level else logits[index]
                assert not own.isnan().any()
                assert_close(own, single.logits[name][0], atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", ABSOLUTE_POSITIONS)
@torch.no_grad()
def test_left_padding_does_move_these_encoders_when_they_count_positions_themselves(name: str):
    encoder, tokenizer = tiny_encoder(name), tiny_tokenizer(name)
    rows = [tokenizer(TEXTS[0]).input_ids]
    states = [encoder(**padded(rows, side, 0)).last_hidden_state for side in ("left", "right")]
    assert (states[0][0, -len(rows[0]) :] - states[1][0, : len(rows[0])]).abs().max() > 0.1


@torch.no_grad()
def test_a_batch_without_a_mask_has_no_padding(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    pair = {"pair_input_ids": ids[:, 1:], "pair_items": torch.tensor([0])}
    with_mask = model(ids, torch.ones_like(ids), **pair, pair_attention_mask=torch.ones_like(ids[:, 1:]))
    without = model(ids, **pair)
    for name in ("topic", "ner", "similarity"):
        assert torch.equal(with_mask.logits[name], without.logits[name])


@torch.no_grad()
def test_the_poolings_differ_from_each_other(family: str, padding_model: MultiTaskModel):
    ids = torch.tensor([tiny_tokenizer(family)(TEXTS[0]).input_ids])
    logits = padding_model(ids).logits
    vectors = torch.cat([logits[name] for name in POOLING_TASKS])
    assert (torch.cdist(vectors, vectors) + torch.eye(len(POOLINGS)) > 1e-2).all()


# Pooling, by hand

ROOT2 = math.sqrt(2)
POOLED = {
    "mean": [2.0, -1.0],
    "cls": [1.0, 2.0],
    "max": [3.0, 2.0],
    "mean_sqrt_len": [4 / ROOT2, -2 / ROOT2],
    "weighted_mean": [7 / 3, -2.0],
    "last_token": [3.0, -4.0],
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pooling_gives_the_value_worked_by_hand_whatever_the_padding(pooling: str, dtype: torch.dtype):
    a, b, junk = [1.0, 2.0], [3.0, -4.0], [100.0, -100.0]
    hidden = torch.tensor([[a, b, junk], [junk, a, b], [junk, junk, junk]], dtype=dtype)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    expected = torch.tensor([POOLED[pooling], POOLED[pooling], [0.0, 0.0]])  # a row without a real token: zeros
    pooled = POOLERS[pooling](hidden, mask)
    assert pooled.dtype == dtype
    assert_close(pooled.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_without_a_real_token_has_no_gradient_that_is_not_a_number(pooling: str):
    hidden = torch.ones(1, 3, 2, requires_grad=True)
    POOLERS[pooling](hidden, torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    assert torch.equal(hidden.grad, torch.zeros(1, 3, 2))


# What a model is made of


@torch.no_grad()
def test_a_task_pools_its_own_way_and_leaves_the_embedding_alone(tokenizer: PreTrainedTokenizerFast):
    topic = {"kind": "text-classification", "labels": ["a", "b", "c"]}
    tasks = {"topic": {**topic, "pooling": "max"}, "plain": topic}
    model = new_model(tasks=tasks, pooling="mean")
    model.heads["topic"].load_state_dict(model.heads["plain"].state_dict())
    output = model(**tokenizer(list(TEXTS), padding=True, return_tensors="pt"))
    mask = tokenizer(list(TEXTS), padding=True, return_tensors="pt")["attention_mask"]
    by_max = model.heads["topic"](POOLERS["max"](output.last_hidden_state, mask))
    by_mean = model.heads["plain"](POOLERS["mean"](output.last_hidden_state, mask))
    assert torch.equal(output.logits["topic"], by_max)
    assert torch.equal(output.logits["plain"], by_mean)
    assert_close(output.sentence_embedding, POOLERS["mean"](output.last_hidden_state, mask))
    assert not torch.allclose(by_max, by_mean)


@torch.no_grad()
def test_normalisation_touches_only_the_sentence_embedding(tokenizer: PreTrainedTokenizerFast):
    plain, unit = new_model(), new_model(normalize_embeddings=True)
    batch = batch_of(tokenizer, plain, [item(tokenizer, text, pair=TEXTS[0]) for text in TEXTS])
    a, b = plain(**batch), unit(**batch)
    assert_close(b.sentence_embedding.norm(dim=1), torch.ones(len(TEXTS)))
    assert_close(b.sentence_embedding, F.normalize(a.sentence_embedding, dim=1))
    assert (a.sentence_embedding.norm(dim=1) - 1).abs().min() > 0.1, "premise: it does something"
    for name in TINY_TASKS:
        assert torch.equal(a.logits[name], b.logits[name]), name


@torch.no_grad()
def test_the_projection_is_read_by_sentence_heads_and_the_embedding_but_not_by_token_heads(tokenizer):
    model = new_model(projection_dim=8)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    output = model(**batch)
    pooled = POOLERS["mean"](output.last_hidden_state, batch["attention_mask"])
    assert output.sentence_embedding.shape == (len(TEXTS), 8)
    assert output.logits["anchor"].shape == (len(TEXTS), 8)
    assert_close(output.sentence_embedding, pooled @ model.projection.weight.T + model.projection.bias)
    assert_close(output.logits["topic"], model.heads["topic"](output.sentence_embedding))
    assert_close(output.logits["ner"], model.heads["ner"](output.last_hidden_state))


@pytest.mark.parametrize(("activation", "function"), [("tanh", torch.tanh), ("gelu", F.gelu), ("relu", F.relu)])
@torch.no_grad()
def test_an_mlp_head_is_dense_activation_linear(tokenizer: PreTrainedTokenizerFast, activation: str, function: Any):
    spec = {"kind": "text-classification", "labels": ["a", "b"], "head": "mlp", "head_activation": activation}
    model = new_model(tasks={"topic": spec})
    output = model(**tokenizer(TEXTS[0], return_tensors="pt"))
    head = model.heads["topic"]
    expected = head.out(function(output.sentence_embedding @ head.dense.weight.T + head.dense.bias))
    assert_close(output.logits["topic"], expected)


def test_dropout_is_the_tasks_own_or_the_models():
    spec = {"kind": "text-classification", "labels": ["a", "b"]}
    model = new_model(tasks={"own": {**spec, "dropout": 0.4}, "shared": spec}, head_dropout=0.2)
    assert (model.heads["own"].dropout.p, model.heads["shared"].dropout.p) == (0.4, 0.2)


@torch.no_grad()
def test_a_model_without_tasks_is_a_sentence_encoder(tokenizer: PreTrainedTokenizerFast):
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    plain, full = new_model(tasks={})(**batch), new_model()(**batch)
    assert plain.logits == {} and plain.loss is None
    assert torch.equal(plain.sentence_embedding, full.sentence_embedding)


@torch.no_grad()
def test_asking_for_some_tasks_changes_no_answer(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    full, some, none = model(**batch), model(**batch, tasks=["topic", "ner"]), model(**batch, tasks=[])
    assert set(full.logits) == set(TINY_TASKS) and set(some.logits) == {"topic", "ner"} and none.logits == {}
    assert torch.equal(full.logits["topic"], some.logits["topic"])
    assert torch.equal(full.sentence_embedding, none.sentence_embedding)


@torch.no_grad()
def test_adding_a_task_leaves_the_others_answers_as_they_were_to_the_bit(family: str):
    before, tokenizer = new_model(family), tiny_tokenizer(family)
    extra = {"a_first": {"kind": "text-classification", "labels": ["x", "y"]}}
    after = new_model(family, {**TINY_TASKS, **extra}, seed=1)
    report = after.load_state_dict(before.state_dict(), strict=False)
    assert sorted(report.missing_keys) == ["heads.a_first.out.bias", "heads.a_first.out.weight"]
    assert not report.unexpected_keys
    batch = batch_of(tokenizer, before, [item(tokenizer, text, pair=TEXTS[0]) for text in TEXTS])
    old, new = before(**batch), after(**batch)
    for name in TINY_TASKS:
        assert torch.equal(old.logits[name], new.logits[name]), name


@torch.no_grad()
def test_jointly_read_texts_are_told_apart_by_token_types(tokenizer: PreTrainedTokenizerFast):
    model = new_model(tasks={"joint": {"kind": "text-classification", "labels": ["no", "yes"], "text_pair": True}})
    batch = tokenizer(TEXTS[0], TEXTS[3], return_tensors="pt")
    assert batch["token_type_ids"].max() == 1, "premise: the tokenizer marks the second text"
    with_types = model(**batch).logits["joint"]
    without = model(batch["input_ids"], batch["attention_mask"]).logits["joint"]
    assert not torch.allclose(with_types, without)


@torch.no_grad()
def test_encoders_without_token_types_ignore_them():
    model, tokenizer = new_model("roberta"), tiny_tokenizer("roberta")
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    types = torch.ones_like(batch["input_ids"])
    assert torch.equal(model(**batch, token_type_ids=types).logits["topic"], model(**batch).logits["topic"])


@torch.no_grad()
def test_embeddings_of_tokens_can_stand_in_for_their_ids(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    vectors = model.get_input_embeddings()(batch["input_ids"])
    by_vector = model(inputs_embeds=vectors, attention_mask=batch["attention_mask"])
    assert_close(by_vector.logits["ner"], model(**batch).logits["ner"])


def test_input_must_come_in_exactly_one_form(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    pair = {"pair_input_ids": ids, "pair_attention_mask": torch.ones_like(ids), "pair_items": torch.tensor([0])}
    with pytest.raises(ValueError, match="items must come as input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(ids), **pair)


def test_an_unknown_task_is_refused_with_the_known_ones(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    with pytest.raises(ValueError, match=r"Unknown tasks \['topics'\]; this model's tasks are: anchor, ner"):
        model(**batch, tasks=["topics"])
    with pytest.raises(ValueError, match=r"Unknown tasks \['topics'\]"):
        model(**batch, labels={"topics": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"Labels of \['topic'\].*tasks=\['ner'\]"):
        model(**batch, labels={"topic": torch.tensor([0])}, tasks=["ner"])


@torch.no_grad()
def test_hidden_states_attentions_and_tuples_come_on_request(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    model.encoder.set_attn_implementation("eager")
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert len(output.attentions) == model.config.encoder_config.num_hidden_layers
    assert torch.equal(model(**batch, return_dict=False)[0], output.last_hidden_state)
    plain = model(**batch)
    assert plain.hidden_states is None and plain.attentions is None


# Pairs


@torch.no_grad()
def test_similarity_is_the_cosine_of_the_two_embeddings_and_the_same_when_swapped(family: str):
    model, tokenizer = new_model(family), tiny_tokenizer(family)
    pairs = [(TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[3])]
    there = model(**batch_of(tokenizer, model, [item(tokenizer, a, b) for a, b in pairs]))
    back = model(**batch_of(tokenizer, model, [item(tokenizer, b, a) for a, b in pairs]))
    expected = F.cosine_similarity(there.sentence_embedding, back.sentence_embedding)
    assert_close(there.logits["similarity"], expected, atol=1e-5, rtol=0)
    assert_close(there.logits["similarity"], back.logits["similarity"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["mse", "cosent"])
def test_swapping_the_two_texts_of_every_pair_changes_neither_loss_nor_gradient(family: str, loss: str):
    tasks = {"similarity": {"kind": "sentence-similarity", "loss": {"name": loss}}}
    model, tokenizer = new_model(family, tasks, projection_dim=8).train(), tiny_tokenizer(family)
    pairs = [(TEXTS[0], TEXTS[2], 0.3), (TEXTS[1], TEXTS[3], 0.9), (TEXTS[2], TEXTS[1], 0.5)]
    there = model(**batch_of(tokenizer, model, [item(tokenizer, a, b, similarity=score) for a, b, score in pairs]))
    back = model(**batch_of(tokenizer, model, [item(tokenizer, b, a, similarity=score) for a, b, score in pairs]))
    assert_close(there.loss, back.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, there.loss, back.loss)


@torch.no_grad()
def test_every_row_is_an_item_and_an_item_without_a_pair_has_no_similarity(tokenizer: PreTrainedTokenizerFast):
    model = new_model()
    items = [item(tokenizer, TEXTS[0]), item(tokenizer, TEXTS[1], TEXTS[2]), item(tokenizer, TEXTS[3])]
    output = model(**batch_of(tokenizer, model, items))
    tokens = max(len(feature["input_ids"]) for feature in items)
    assert output.logits["similarity"].isnan().tolist() == [True, False, True]
    assert output.sentence_embedding.shape == (3, HIDDEN_SIZE)
    assert output.last_hidden_state.shape == (3, tokens, HIDDEN_SIZE)
    assert output.logits["ner"].shape == (3, tokens, 5)
    pair = model(**batch_of(tokenizer, model, [items[1]]))
    assert_close(output.logits["similarity"][1], pair.logits["similarity"][0], atol=1e-5, rtol=0)
    single = model(**batch_of(tokenizer, model, [items[0]]))
    assert_close(output.logits["ner"][0, : len(items[0]["input_ids"])], single.logits["ner"][0], atol=1e-5, rtol=1e-4)


# Losses


def test_a_mixed_batch_loses_and_learns_what_its_tasks_do_by_themselves(family: str):
    tasks = copy.deepcopy(TINY_TASKS)
    for weight, name in enumerate(tasks, start=1):
        tasks[name]["loss"] = {"weight": weight / 2}
    model, tokenizer = new_model(family, tasks).train(), tiny_tokenizer(family)
    items = mixed_items(tokenizer)
    whole = model(**batch_of(tokenizer, model, items))
    by_task = {name: [feature for feature in items if name in feature["labels"]] for name in tasks}
    parts = {name: model(**batch_of(tokenizer, model, own)) for name, own in by_task.items()}
    assert_close(len(items) * whole.loss, sum(len(by_task[name]) * parts[name].loss for name in tasks))
    for name, part in parts.items():
        assert whole.task_items[name] == part.task_items[name] == len(by_task[name])
        assert_close(whole.task_losses[name], part.task_losses[name])
        assert_close(part.loss, part.task_losses[name] * tasks[name]["loss"]["weight"])
    assert_same_gradients(model, len(items) * whole.loss, sum(len(by_task[name]) * parts[name].loss for name in tasks))


def test_an_item_with_several_labels_loses_and_learns_what_its_copies_with_one_label_do(family: str):
    model, tokenizer = new_model(family).train(), tiny_tokenizer(family)
    labels = [
        {"topic": 1, "ner": 2, "tags": [1.0, 0.0, 1.0, 0.0], "rating": 0.2},
        {"topic": 0, "upos": 1},
        {"rating": 0.9, "ner": 0},
    ]
    aligned = [item(tokenizer, text, **own) for text, own in zip(TEXTS, labels, strict=False)]
    disjoint = [item(tokenizer, t, **{k: v}) for t, own in zip(TEXTS, labels, strict=False) for k, v in own.items()]
    assert len(disjoint) == 8
    joint, apart = model(**batch_of(tokenizer, model, aligned)), model(**batch_of(tokenizer, model, disjoint))
    assert_close(len(aligned) * joint.loss, len(disjoint) * apart.loss)
    assert {n: int(v) for n, v in joint.task_items.items()} == {n: int(v) for n, v in apart.task_items.items()}
    assert_same_gradients(model, len(aligned) * joint.loss, len(disjoint) * apart.loss)


def test_one_batch_of_eight_and_eight_batches_of_one_accumulate_the_same_gradient(family: str):
    model, tokenizer = new_model(family, projection_dim=HIDDEN_SIZE).train(), tiny_tokenizer(family)
    items = mixed_items(tokenizer)
    model(**batch_of(tokenizer, model, items)).loss.backward()
    at_once = gradients(model)
    model.zero_grad()
    for feature in items:
        (model(**batch_of(tokenizer, model, [feature])).loss / len(items)).backward()
    one_by_one = gradients(model)
    assert at_once.keys() == one_by_one.keys()
    for name, gradient in at_once.items():
        assert_close(one_by_one[name], gradient, atol=2e-6, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_trainer_leaves_the_loss_as_it_is(tmp_path: Path):
    trainer = Trainer(new_model(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    assert trainer.model_accepts_loss_kwargs is False


def loss_of(spec: dict[str, Any], tokenizer: Any, labels: list[Any], pairs: bool = False) -> tuple[Tensor, Tensor]:
    """The logits and the loss for texts labelled for one task called `ner` (tags) or `topic`."""
    name = "ner" if spec["kind"] == "token-classification" else "topic"
    model = new_model(tasks={name: spec})
    pair = TEXTS[2] if pairs else None
    items = [item(tokenizer, text, pair, **{name: label}) for text, label in zip(TEXTS, labels, strict=False)]
    output = model(**batch_of(tokenizer, model, items))
    return output.logits[name].detach().double(), output.loss.detach()


THREE = {"kind": "text-classification", "labels": ["a", "b", "c"]}


def test_the_loss_of_classes_is_their_cross_entropy(tokenizer: PreTrainedTokenizerFast):
    logits, loss = loss_of(THREE, tokenizer, [2, 0, 1])
    assert float(loss) == pytest.approx(mean_cross_entropy(logits, [2, 0, 1]), rel=1e-5)


def test_class_weights_multiply_each_item_and_are_not_divided_out(tokenizer: PreTrainedTokenizerFast):
    logits, loss = loss_of({**THREE, "loss": {"class_weights": [0.5, 2.0, 3.0]}}, tokenizer, [2, 0, 1])
    own = [mean_cross_entropy(logits[i : i + 1], [c]) for i, c in enumerate([2, 0, 1])]
    assert float(loss) == pytest.approx((3.0 * own[0] + 0.5 * own[1] + 2.0 * own[2]) / 3, rel=1e-5)


def test_label_smoothing_mixes_in_the_mean_over_all_classes(tokenizer: PreTrainedTokenizerFast):
    logits, loss = loss_of({**THREE, "loss": {"label_smoothing": 0.3}}, tokenizer, [2, 0])
    every = sum(mean_cross_entropy(logits, [c, c]) for c in range(3)) / 3
    assert float(loss) == pytest.approx(0.7 * mean_cross_entropy(logits, [2, 0]) + 0.3 * every, rel=1e-5)


def test_r_drop_is_the_mean_of_two_losses_and_the_symmetric_divergence_of_their_predictions():
    generator = torch.Generator().manual_seed(0)
    spec = check_task("topic", {**THREE, "loss": {"r_drop": 0.7}})
    first, second = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    one, two = (Categorical(logits=logits) for logits in (first, second))
    divergence = (kl_divergence(one, two) + kl_divergence(two, one)) / 2
    expected = -(one.log_prob(labels) + two.log_prob(labels)) / 2 + 0.7 * divergence
    assert_close(r_drop_losses(spec, first, second, labels), expected)
    tags = check_task("ner", {"kind": "token-classification", "labels": list("abc"), "loss": {"r_drop": 0.7}})
    padded = torch.tensor([[-100, 0, 1, 2, -100]])  # an item with tags: the mean over its labelled tokens
    tokens = slice(1, 4)
    whole = r_drop_losses(tags, first[None], second[None], padded)
    assert_close(whole, r_drop_losses(spec, first[tokens], second[tokens], padded[0, tokens]).mean()[None])


def test_r_drop_without_dropout_is_the_plain_loss_with_its_gradient(family: str):
    tasks = copy.deepcopy(TINY_TASKS)
    for name in ("topic", "ner", "upos"):
        tasks[name]["loss"] = {"r_drop": 2.0}
    twice, once = new_model(family, tasks).train(), new_model(family).train()
    tokenizer = tiny_tokenizer(family)
    passes = []
    twice.encoder.register_forward_hook(lambda module, args, output: passes.append(len(output.last_hidden_state)))
    batch = batch_of(tokenizer, once, mixed_items(tokenizer))
    losses = [model(**batch).loss for model in (twice, once)]
    assert passes == [13], "one pass over eight items, a pair, and the rows of ner, topic and upos again"
    assert_close(losses[0], losses[1])
    sum(losses).backward()  # of two models, each with its own
    expected = gradients(once)
    for name, gradient in gradients(twice).items():
        assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
    passes.clear()
    twice.eval()(**batch)
    assert passes == [9], "evaluation has nothing to drop"


def test_the_loss_weight_scales_the_loss(tokenizer: PreTrainedTokenizerFast):
    _, plain = loss_of(THREE, tokenizer, [2, 0])
    _, heavy = loss_of({**THREE, "loss": {"weight": 2.5}}, tokenizer, [2, 0])
    assert_close(heavy, 2.5 * plain)


def test_the_loss_of_several_labels_is_binary_cross_entropy_averaged_over_classes(tokenizer: PreTrainedTokenizerFast):
    spec = {**THREE, "problem_type": "multi_label_classification", "loss": {"class_weights": [1.0, 2.0, 0.5]}}
    labels = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    logits, loss = loss_of(spec, tokenizer, labels)
    expected = 0.0
    for row, own in zip(logits.tolist(), labels, strict=True):
        for logit, label, weight in zip(row, own, [1.0, 2.0, 0.5], strict=True):
            probability = 1 / (1 + math.exp(-logit))
            expected += weight * -math.log(probability if label else 1 - probability) / 3 / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_number_is_its_squared_error(tokenizer: PreTrainedTokenizerFast):
    logits, loss = loss_of({"kind": "text-classification", "problem_type": "regression"}, tokenizer, [0.5, -2.0])
    assert logits.shape == (2, 1)
    expected = ((logits[0, 0] - 0.5) ** 2 + (logits[1, 0] + 2.0) ** 2) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_tags_is_a_mean_per_item_so_that_long_items_count_as_much_as_short_ones(tokenizer):
    spec = {**TINY_TASKS["ner"], "loss": {"class_weights": [1.0, 2.0, 1.0, 3.0, 1.0]}}
    logits, loss = loss_of(spec, tokenizer, [0, 3])
    weights, expected = [1.0, 2.0, 1.0, 3.0, 1.0], 0.0
    lengths = [len(tokenizer(text).input_ids) - 2 for text in TEXTS[:2]]
    assert lengths[0] != lengths[1], "premise: items of different length"
    for row, first, length in zip(logits, (0, 3), lengths, strict=True):
        tags = [(first + i) % 5 for i in range(length)]
        losses = [weights[tag] * mean_cross_entropy(row[1 + i : 2 + i], [tag]) for i, tag in enumerate(tags)]
        expected += sum(losses) / length / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_similarity_is_the_squared_error_of_the_cosine(tokenizer: PreTrainedTokenizerFast):
    logits, loss = loss_of({"kind": "sentence-similarity"}, tokenizer, [0.1, 0.9], pairs=True)
    assert float(loss) == pytest.approx(float(((logits - torch.tensor([0.1, 0.9])) ** 2).mean()), rel=1e-4)


def test_cosent_is_the_log_of_one_plus_the_wrongly_ordered_pairs(tokenizer: PreTrainedTokenizerFast):
    labels = [0.1, 0.9, 0.5, 0.5]
    spec = {"kind": "sentence-similarity", "loss": {"name": "cosent", "scale": 5.0}}
    cosines, loss = loss_of(spec, tokenizer, labels, pairs=True)
    terms = [math.exp(5.0 * (cosines[i] - cosines[j])) for i in range(4) for j in range(4) if labels[i] < labels[j]]
    assert len(terms) == 5
    assert float(loss) == pytest.approx(math.log(1 + sum(terms)), rel=1e-4)
    assert_close(cosent_losses(torch.tensor([0.3, 0.8]), torch.tensor([0.5, 0.5])), torch.zeros(2))
    assert_close(cosent_losses(torch.tensor([0.3]), torch.tensor([0.5])), torch.zeros(1))


def test_the_loss_of_an_embedding_is_one_minus_its_cosine_to_the_teachers(tokenizer: PreTrainedTokenizerFast):
    teacher = torch.linspace(-1, 1, HIDDEN_SIZE)
    logits, loss = loss_of({"kind": "feature-extraction"}, tokenizer, [teacher.tolist()])
    cosine = (logits[0] @ teacher.double()) / logits[0].norm() / teacher.double().norm()
    assert float(loss) == pytest.approx(1 - float(cosine), rel=1e-4)


def test_only_labelled_rows_count_and_a_batch_without_labels_loses_nothing(tokenizer: PreTrainedTokenizerFast):
    assert has_label(torch.tensor([1, -100])).tolist() == [True, False]
    assert has_label(torch.tensor([[float("nan")] * 2, [0.0, float("nan")]])).tolist() == [False, True]
    assert has_label(torch.tensor([[-100, 3], [-100, -100]])).tolist() == [True, False]
    model = new_model().train()
    batch = tokenizer(list(TEXTS[:2]), padding=True, return_tensors="pt")
    nothing = {"topic": torch.tensor([-100, -100]), "similarity": torch.tensor([float("nan")] * 2)}
    for labels in (nothing, {}):
        output = model(**batch, labels=labels)
        assert output.loss == 0.0 and output.task_losses == {} and output.task_items == {}
        output.loss.backward()
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.heads.parameters())


# Gradients


@pytest.mark.parametrize("name", TINY_TASKS)
def test_a_batch_of_one_task_gives_the_other_heads_a_gradient_of_exactly_zero(tokenizer, name: str):
    model = new_model(projection_dim=HIDDEN_SIZE).train()
    items = [feature for feature in mixed_items(tokenizer) if name in feature["labels"]]
    model(**batch_of(tokenizer, model, items)).loss.backward()
    for parameter_name, parameter in model.heads.named_parameters():
        assert parameter.grad is not None, f"{parameter_name}: DDP waits for a gradient of every parameter"
        assert parameter.grad.any() == parameter_name.startswith(f"{name}."), parameter_name
    for parameter in model.projection.parameters():  # token heads do not read it
        assert parameter.grad is not None
        assert parameter.grad.any() == (TINY_TASKS[name]["kind"] != "token-classification")
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.encoder.parameters())


def test_every_trainable_parameter_takes_part_in_a_step(family: str):
    model, tokenizer = new_model(family, {"ner": TINY_TASKS["ner"]}, projection_dim=4).train(), tiny_tokenizer(family)
    model(**batch_of(tokenizer, model, [item(tokenizer, TEXTS[0], ner=1)])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_labels_that_are_not_there_poison_no_gradient(tokenizer: PreTrainedTokenizerFast):
    model = new_model().train()
    output = model(**batch_of(tokenizer, model, mixed_items(tokenizer)))
    assert output.logits["similarity"].isnan().any(), "premise: items without a pair"
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_frozen_parts_stay_in_evaluation_mode_and_keep_their_bits(tokenizer: PreTrainedTokenizerFast):
    model = new_model(projection_dim=8)
    model.encoder.requires_grad_(False)
    model.heads["topic"].requires_grad_(False)
    model.train()
    assert not model.encoder.training and not model.heads["topic"].training
    assert not any(module.training for module in model.encoder.modules())
    assert model.training and model.heads["ner"].training and model.projection.training
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    batch = batch_of(tokenizer, model, mixed_items(tokenizer)[:7])  # the teacher's embedding has another size
    model(**batch).loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        frozen = name.startswith(("encoder.", "heads.topic."))
        assert torch.equal(tensor, before[name]) == frozen, name
    assert not model.eval().training and not model.projection.training


def test_frozen_embeddings_keep_their_bits_and_the_rest_learns(family: str):
    model, tokenizer = new_model(family), tiny_tokenizer(family)
    model.freeze("embeddings")
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.train().parameters() if p.requires_grad), lr=0.1)
    assert not model.encoder.embeddings.training and model.encoder.training
    model(**batch_of(tokenizer, model, mixed_items(tokenizer))).loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        unused = "relative_attention_bias" in name  # MPNet's, whose gradient may be zero
        assert torch.equal(tensor, before[name]) == name.startswith("encoder.embeddings.") or unused, name


def test_activation_checkpointing_changes_no_gradient(family: str):
    model, tokenizer = new_model(family).train(), tiny_tokenizer(family)
    batch = batch_of(tokenizer, model, mixed_items(tokenizer))
    model(**batch).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    if family == "mpnet":  # transformers' own MPNet cannot, and says so
        with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
            model.activation_checkpointing_enable()
        return
    model.activation_checkpointing_enable()
    assert model.encoder.is_activation_checkpointing, "premise"
    model(**batch).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, plain[name], atol=1e-6, rtol=1e-4)


# Training, saving and reloading


@torch.no_grad()
def all_answers(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Embedding, states and every logit in evaluation mode, by name."""
    output = model.eval()(**{**batch, "labels": None})
    return {"embedding": output.sentence_embedding, "states": output.last_hidden_state, **output.logits}


def test_every_family_learns_saves_and_reopens_with_the_same_bits(family: str, tmp_path: Path):
    model, tokenizer = new_model(family, projection_dim=HIDDEN_SIZE), tiny_tokenizer(family)
    batch = batch_of(tokenizer, model, mixed_items(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    losses = []
    for _ in range(4):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses
    model.save_pretrained(tmp_path)
    reopened, report = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert not reopened.training
    assert list(reopened.heads) == list(model.heads) == sorted(model.heads)
    expected = all_answers(model, batch)
    for name, tensor in all_answers(reopened, batch).items():
        assert torch.equal(tensor.nan_to_num(7.0), expected[name].nan_to_num(7.0)), name
    names = {path.name for path in tmp_path.iterdir()}
    modules = (
        "configuration_multitask",
        "handler",
        "losses_multitask",
        "modeling_multitask",
        "pipeline_multitask",
        "sentence_transformers_files",
    )
    sentence_transformers = {"1_Pooling", "2_Dense", "modules.json", "sentence_bert_config.json"}
    assert names == {f"{module}.py" for module in modules} | sentence_transformers | {
        "config.json",
        "model.safetensors",
    }


def test_parameters_keep_their_order_when_tasks_were_given_in_another(tmp_path: Path):
    model = new_model(tasks=dict(reversed(TINY_TASKS.items())))
    model.save_pretrained(tmp_path)
    reopened = MultiTaskModel.from_pretrained(tmp_path)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in reopened.named_parameters()] == names  # optimizer states are matched by position


def test_saved_weights_have_no_pooler_and_the_config_names_every_auto_class(tmp_path: Path):
    new_model().save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "pooler" in name]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_multitask.MultiTaskConfig",
        "AutoModel": "modeling_multitask.MultiTaskModel",
        "AutoModelForSequenceClassification": "modeling_multitask.MultiTaskForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_multitask.MultiTaskForTokenClassification",
    }
    assert config["custom_pipelines"]["multitask"]["impl"] == "pipeline_multitask.MultiTaskPipeline"


VIEWS = [
    (MultiTaskForSequenceClassification, "topic"),
    (MultiTaskForSequenceClassification, "tags"),
    (MultiTaskForTokenClassification, "upos"),
]


@pytest.mark.parametrize(("view", "name"), VIEWS, ids=[name for _, name in VIEWS])
def test_a_one_head_view_answers_with_that_heads_logits_and_saves_the_whole_model(view, name, tokenizer, tmp_path):
    model = new_model()
    model.save_pretrained(tmp_path / "whole")
    head = view.from_pretrained(tmp_path / "whole", task_name=name)
    features = [feature for feature in mixed_items(tokenizer) if name in feature["labels"]]
    batch = batch_of(tokenizer, model, features)
    labels = batch.pop("labels")
    with torch.no_grad():
        whole, one = model(**batch, labels=labels), head(**batch, labels=labels[name])
        assert torch.equal(one.logits, whole.logits[name]) and torch.equal(one.loss, whole.loss)
        assert torch.equal(head(**batch, return_dict=False)[0], one.logits)
    assert list(head.config.id2label.values()) == TINY_TASKS[name]["labels"]
    head.save_pretrained(tmp_path / "again")
    again = MultiTaskModel.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        for task, logits in again(**batch, tasks=["ner", "topic"]).logits.items():
            assert torch.equal(logits, model(**batch, tasks=[task]).logits[task])


def test_a_view_without_a_task_of_its_kind_is_refused():
    with pytest.raises(ValueError, match="answers text-classification.*are: none"):
        new_model(tasks={"ner": TINY_TASKS["ner"]}, cls=MultiTaskForSequenceClassification)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_the_longest_text_that_is_not_cut_still_fits_the_encoder(name: str):
    model, tokenizer = new_model(name, {}), tiny_tokenizer(name)
    tokenizer.model_max_length = 10**30  # a tokenizer that knows no limit
    limit = model.max_length(tokenizer)
    assert limit == 128
    encoded = tokenizer("the " * 400, truncation=True, max_length=limit, return_tensors="pt")
    assert encoded["input_ids"].shape == (1, limit)
    with torch.no_grad():
        assert model(**encoded).sentence_embedding.isfinite().all()
    model.config.max_seq_length = 20
    assert model.max_length(tokenizer) == 20
    tokenizer.model_max_length = 12
    assert model.max_length(tokenizer) == 12


# Starting from a pretrained encoder


def test_from_backbone_starts_with_the_encoders_very_weights(family: str, encoder_folder):
    folder = encoder_folder(family)
    model = MultiTaskModel.from_backbone(str(folder), tasks=TINY_TASKS, projection_dim=8)
    expected = tiny_encoder(family).state_dict()
    own = model.encoder.state_dict()
    assert own and all(torch.equal(tensor, expected[name]) for name, tensor in own.items())
    assert all("pooler" in name for name in expected.keys() - own.keys())
    assert not model.training
    assert str(folder) not in model.config.to_json_string(use_diff=False), "no path of this machine is published"


def test_from_backbone_keeps_the_attention_implementation_of_the_encoder(encoder_folder):
    model = MultiTaskModel.from_backbone(str(encoder_folder("bert")))
    assert model.encoder.config._attn_implementation == model.config._attn_implementation == "sdpa"


MODULE_NAMES = {
    "old": ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"),
    "new": (
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    ),
}


def sentence_transformers_folder(
    folder: Path, pooling: dict[str, Any], form: str = "old", normalize: bool = False, length: int | None = None
) -> Path:
    """Write the files of a sentence-transformers folder around a tiny BERT."""
    tiny_encoder("bert").save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    transformer, pooler = MODULE_NAMES[form]
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": transformer},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": pooler},
    ]
    if normalize:
        kind = pooler.replace("Pooling", "Normalize").replace("pooling", "normalize")
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if length:
        settings = {"max_seq_length": length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


OLD_FLAGS = {
    "mean": "mean_tokens",
    "cls": "cls_token",
    "max": "max_tokens",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean_tokens",
    "last_token": "lasttoken",
}
NEW_NAMES = {"mean_sqrt_len": "mean_sqrt_len_tokens", "weighted_mean": "weightedmean", "last_token": "lasttoken"}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_from_backbone_inherits_every_pooling_of_old_and_new_sentence_transformers_folders(pooling, tmp_path: Path):
    flags = {f"pooling_mode_{flag}": ours == pooling for ours, flag in OLD_FLAGS.items()}
    old = sentence_transformers_folder(tmp_path / "old", {"word_embedding_dimension": HIDDEN_SIZE, **flags})
    settings = {"embedding_dimension": HIDDEN_SIZE, "pooling_mode": NEW_NAMES.get(pooling, pooling)}
    new = sentence_transformers_folder(tmp_path / "new", settings, form="new")
    for folder in (old, new):
        config = MultiTaskModel.from_backbone(str(folder)).config
        assert (config.pooling, config.normalize_embeddings, config.max_seq_length) == (pooling, False, None)


@pytest.mark.parametrize("form", ["old", "new"])
def test_from_backbone_inherits_normalisation_and_length_says_so_and_what_is_given_wins(form, tmp_path, caplog):
    folder = sentence_transformers_folder(tmp_path, {"pooling_mode_cls_token": True}, form, normalize=True, length=64)
    config = MultiTaskModel.from_backbone(str(folder)).config
    assert (config.pooling, config.normalize_embeddings, config.max_seq_length) == ("cls", True, 64)
    assert "'pooling': 'cls'" in caplog.text and "'max_seq_length': 64" in caplog.text
    config = MultiTaskModel.from_backbone(
        str(folder), pooling="max", normalize_embeddings=False, max_seq_length=32, projection_dim=None
    ).config
    assert (config.pooling, config.normalize_embeddings, config.max_seq_length) == ("max", False, 32)


CONCATENATED = [
    {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    {"pooling_mode": ["cls", "mean"]},
    {"pooling_mode": "attention"},
]


@pytest.mark.parametrize("settings", CONCATENATED, ids=["old", "new", "unknown"])
def test_from_backbone_refuses_several_poolings_at_once_or_an_unknown_one_unless_one_is_chosen(
    settings: dict, tmp_path: Path
):
    folder = sentence_transformers_folder(tmp_path, settings)
    with pytest.raises(ValueError, match=r"pools by \['(cls', 'mean|mean', 'cls|attention)'\].*Pass pooling="):
        MultiTaskModel.from_backbone(str(folder))
    assert MultiTaskModel.from_backbone(str(folder), pooling="cls").config.pooling == "cls"


def test_a_dense_module_behind_the_pooling_is_left_out_with_a_warning(tmp_path: Path, caplog):
    folder = sentence_transformers_folder(tmp_path, {"pooling_mode": "mean"})
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    MultiTaskModel.from_backbone(str(folder))
    assert "Dense module" in caplog.text


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_equal_those_of_sentence_transformers_itself(pooling: str, encoder_folder, tmp_path: Path):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    transformer = modules.Transformer(str(encoder_folder("bert")))
    pooler = modules.Pooling(HIDDEN_SIZE, NEW_NAMES.get(pooling, pooling))
    reference = SentenceTransformer(modules=[transformer, pooler, modules.Normalize()], device="cpu")
    reference.save(str(tmp_path))
    model = MultiTaskModel.from_backbone(str(tmp_path))
    own = model.encode(list(TEXTS), tiny_tokenizer("bert"))
    assert_close(torch.from_numpy(own), torch.from_numpy(reference.encode(list(TEXTS))), atol=1e-5, rtol=0)
