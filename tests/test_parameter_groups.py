"""The optimizer's groups: the rate and decay of a parameter of each encoder family, and what the table says."""

import re

import pytest
import torch
from test_trainer_multitask import FOUR_TASKS, arguments, data_of, largest_difference, new_model, new_trainer
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from transformers import Trainer

from arguments_multitask import MultiTaskTrainingArguments
from cased_vocabulary import cased_tokenizer
from configuration_multitask import MultiTaskConfig
from modeling_multitask import MultiTaskModel
from parameter_groups import carried_over, describe_groups, parameter_groups, trained_names
from task_sampler import TaskSamplingDataset

RATES = {"learning_rate": 1e-4, "weight_decay": 0.01, "head_learning_rate": 1e-3, "layer_decay": 0.5}


def model_of(family, tasks=FOUR_TASKS):
    """A tiny model over the encoder of a family."""
    encoder = tiny_encoder(family)
    return MultiTaskModel(MultiTaskConfig(encoder.config, tasks, projection_dim=16), encoder=encoder)


def rate_and_decay(model, **rates):
    """Parameter -> its rate and its decay."""
    groups = parameter_groups(model, **(RATES | rates))
    named = [(name, group) for group in groups for name, _ in group["params"]]
    assert len(dict(named)) == len(named), "each in one group"
    return {name: (group["lr"], group["weight_decay"]) for name, group in named}


def test_every_trainable_parameter_is_in_exactly_one_group_with_its_parts_rate():
    """Also where a task is called `encoder`: its head is a head."""
    tasks = {"encoder": TINY_TASKS["topic"], "encoder_tags": TINY_TASKS["ner"]}
    model = new_model(tasks, projection_dim=16)
    model.encoder.embeddings.word_embeddings.weight.requires_grad = False
    found = rate_and_decay(model, layer_decay=None)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in found.items():
        assert rate == (1e-4 if name.startswith("encoder.") else 1e-3), name
        assert decay == (0.01 if model.get_parameter(name).dim() > 1 else 0.0), name
    assert len(set(found.values())) == 4


def test_the_rate_falls_by_the_factor_from_layer_to_layer_in_every_family(family):
    """The first layer's parameters twice the embeddings' rate, and so on up to the highest at the learning rate."""
    model = model_of(family)
    found = {name: rate for name, (rate, _) in rate_and_decay(model).items()}
    layers = model.encoder_layers
    assert len(layers) == (3 if family == "minilm" else 2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for depth, layer in enumerate(layers, 1):
        rates = {found[names[id(parameter)]] for parameter in layer.parameters()}
        assert rates == {1e-4 * 0.5 ** (len(layers) - depth)}, depth
    assert {found[names[id(p)]] for p in model.embedding_layer.parameters()} == {1e-4 * 0.5 ** len(layers)}
    assert {rate for name, rate in found.items() if not name.startswith("encoder.")} == {1e-3}
    assert found.get("encoder.final_norm.weight") == (1e-4 if family == "modernbert" else None)
    shared = {name: rate for name, rate in found.items() if "relative_attention_bias" in name or "rel_emb" in name}
    assert set(shared.values()) == ({2.5e-5} if family in ("mpnet", "deberta-v2") else set())


def test_no_bias_and_no_norm_decays_in_any_family_and_all_else_does(family):
    """Found by module, not by name; and as the stock Trainer has it, with a rate of the heads' own or without."""
    model = model_of(family)
    spared = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
        if own == "bias" or "Norm" in type(module).__name__ or name.endswith("relative_attention_bias")
    }
    assert len(spared) > 8
    for rates in ({}, {"head_learning_rate": None, "layer_decay": None}):
        found = rate_and_decay(model, **rates)
        assert {name for name, (_, decay) in found.items() if decay == 0.0} == spared
    stock = Trainer.get_decay_parameter_names(None, model)
    assert set(found) - spared == set(stock)


def test_vectors_of_cases_have_the_heads_rate():
    model = model_of("bert")
    _, bases, cases = cased_tokenizer(tiny_tokenizer("bert"))
    model.read_case(bases, cases)
    found = rate_and_decay(model)
    assert found["encoder.embeddings.word_embeddings.case.weight"] == (1e-3, 0.01)
    assert found["encoder.embeddings.word_embeddings.base.weight"] == (2.5e-5, 0.01)


def test_the_group_whose_rate_trainer_logs_has_the_learning_rate():
    assert parameter_groups(model_of("bert"), **RATES)[0]["lr"] == 1e-4
    model = model_of("bert")
    model.freeze("encoder")
    assert {group["lr"] for group in parameter_groups(model, **RATES)} == {1e-3}


def test_a_model_that_is_frozen_as_a_whole_is_refused_with_the_reason_also_by_the_trainer(tmp_path):
    model = new_model(FOUR_TASKS)
    model.freeze("all")
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 4), rows_per_step=8)
    with pytest.raises(ValueError, match="all are frozen.*evaluate_hf.py scores a model without training it"):
        new_trainer(arguments(tmp_path), model, sampling).train()


def test_layers_that_are_no_list_have_no_rates_of_their_own():
    """ALBERT's layers share their weights; here a configuration says another number than there is."""
    model = model_of("bert")
    model.config.encoder_config.num_hidden_layers = 12
    assert model.encoder_layers == []
    with pytest.raises(ValueError, match="layer_decay needs an encoder with a list of layers"):
        parameter_groups(model, **RATES)
    assert {lr for lr, _ in rate_and_decay(model, layer_decay=None, head_learning_rate=None).values()} == {1e-4}
    with pytest.raises(ValueError, match="'layers:1' needs an encoder with a list of layers"):
        model.freeze("layers:1")


def test_the_table_counts_every_number_once_and_names_parts_rates_and_decays():
    model = model_of("minilm")
    model.freeze("topic")
    lines = describe_groups(model, parameter_groups(model, **(RATES | {"layer_decay": None}))).splitlines()
    counted = [int(re.split(" {2,}", line.strip())[2].replace(",", "")) for line in lines[1:]]
    assert sum(counted) == sum(parameter.numel() for parameter in model.parameters())
    assert [line.split()[:2] for line in lines] == [
        ["rate", "weight"],
        ["0.0001", "0.01"],
        ["0.0001", "0"],
        ["0.001", "0.01"],
        ["0.001", "0"],
        ["frozen", "-"],
    ]
    assert lines[1].endswith("  embeddings, layers 1-3: matrices")
    assert lines[2].endswith("  embeddings, layers 1-3: biases and norms")
    assert lines[3].endswith("  projection, heads: matrices")
    assert lines[5].endswith("  heads: matrices and biases and norms")
    by_layer = describe_groups(model, parameter_groups(model, **RATES))
    for part in ("embeddings: matrices", "layer 1: matrices", "layer 3: biases and norms"):
        assert part in by_layer


def test_the_lowest_layer_learns_most_slowly_where_the_rate_decays(tmp_path):
    """Plain gradient descent: a step is rate times gradient, so the factor is seen in the weights themselves."""
    moved = {}
    for factor in (None, 0.1):
        model = new_model(FOUR_TASKS)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 2), rows_per_step=8)
        options = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "layer_decay": factor}
        new_trainer(arguments(tmp_path, MultiTaskTrainingArguments, **options), model, sampling).train()
        moved[factor] = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    for layer, share in ((0, 0.1), (1, 1.0)):
        name = f"encoder.encoder.layer.{layer}.output.dense.weight"
        assert torch.allclose(moved[0.1][name], share * moved[None][name], rtol=1e-3, atol=1e-7), layer
        assert moved[None][name].abs().max() > 1e-5


def test_state_is_carried_over_by_name_to_an_optimizer_of_other_parameters():
    """Moments of what both train are kept, bit by bit; what was frozen then has none, what is frozen now is dropped."""
    model = new_model(FOUR_TASKS)
    model.freeze("embeddings")
    before = torch.optim.AdamW(parameter_groups(model, **RATES))
    for index, (_, parameter) in enumerate(p for p in model.named_parameters() if p[1].requires_grad):
        parameter.grad = torch.full_like(parameter, float(index + 1))
    before.step()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.freeze("topic")
    now = torch.optim.AdamW(parameter_groups(model, **(RATES | {"layer_decay": None})))
    now.load_state_dict(carried_over(before.state_dict(), now.state_dict()))
    names = trained_names(now.state_dict())
    assert "heads.topic.out.weight" not in names and "heads.ner.out.weight" in names
    for name in names:
        parameter = model.get_parameter(name)
        if name.startswith("encoder.embeddings."):
            assert parameter not in now.state
        else:
            assert torch.equal(now.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"]), name
    assert {group["lr"] for group in now.param_groups} == {1e-4, 1e-3}


def test_the_groups_of_the_stock_trainer_come_out_where_nothing_is_set(tmp_path):
    """The same weights after training, with weight decay."""
    models = []
    for trainer_class in (Trainer, None):
        model = new_model(FOUR_TASKS)
        sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8)
        args = arguments(tmp_path, weight_decay=0.1)
        new_trainer(args, model, sampling, *([trainer_class] if trainer_class else [])).train()
        models.append(model)
    assert largest_difference(*models) == 0.0
