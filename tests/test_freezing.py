"""What is frozen stays so through real training, in every encoder family: bits, rest, and no backward pass below it."""

import copy

import pytest
import torch
from test_trainer_multitask import FOUR_TASKS, arguments, data_of, largest_difference, new_model, new_trainer
from tiny_models import tiny_encoder, tiny_tokenizer

from arguments_multitask import MultiTaskTrainingArguments
from cased_vocabulary import cased_tokenizer
from configuration_multitask import MultiTaskConfig
from cpu_training import use_bfloat16_states, use_fast_dropout
from data_collator import MultiTaskDataCollator
from modeling_multitask import MultiTaskModel
from task_sampler import TaskSamplingDataset

TEXTS = ["Anna won the game in Paris.", "It was not cold."]
ABOVE = {"modernbert": ["encoder.final_norm.weight"]}
"""What lies behind the last layer, by family."""


def model_of(family, dropout=0.1):
    """A tiny model with four tasks, in training mode."""
    encoder = tiny_encoder(family, dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiTaskModel(MultiTaskConfig(encoder.config, FOUR_TASKS), encoder=encoder).train()


def states_of(model, family):
    """The states that leave each layer, from one pass over two texts."""
    states = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
        for layer in model.encoder_layers
    ]
    model(**tiny_tokenizer(family)(TEXTS, padding=True, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    return [state[0] if isinstance(state, tuple) else state for state in states]


def test_the_layers_of_every_family_are_found_from_the_lowest_to_the_highest(family):
    """By what they do: in one pass, each layer's states come out in the order of the list."""
    model, order = model_of(family), []
    for layer in model.encoder_layers:
        layer.register_forward_hook(lambda module, inputs, output: order.append(module))
    model(**tiny_tokenizer(family)(TEXTS, padding=True, return_tensors="pt"))
    assert len(order) == model.config.encoder_config.num_hidden_layers
    assert all(ran is listed for ran, listed in zip(order, model.encoder_layers, strict=True))


def test_no_gradient_is_computed_below_the_lowest_layer_that_learns_in_every_family(family):
    """Nor for tables of relative positions, which all layers share: they would need the whole way down."""
    model = model_of(family)
    assert all(state.requires_grad for state in states_of(model, family)), "the premise"
    for count in range(1, len(model.encoder_layers) + 1):
        model = model_of(family)
        model.freeze(f"layers:{count}")
        needed = [state.requires_grad for state in states_of(model, family)]
        assert needed == [False] * count + [True] * (len(needed) - count)
        rest = [module.training for layer in model.encoder_layers[:count] for module in layer.modules()]
        assert not any(rest) and not any(module.training for module in model.embedding_layer.modules())
        assert all(layer.training for layer in model.encoder_layers[count:])


def test_all_layers_are_the_encoder_but_for_a_norm_behind_them(family):
    model = model_of(family)
    model.freeze(f"layers:{len(model.encoder_layers)}")
    learning = [name for name, parameter in model.encoder.named_parameters(prefix="encoder") if parameter.requires_grad]
    assert learning == ABOVE.get(family, [])


@pytest.mark.parametrize("part", ["layers:0", "layers:3", "layers:", "layers:-1", "layers:top"])
def test_a_number_of_layers_that_there_is_not_is_refused_with_the_number_there_is(part):
    model = new_model(FOUR_TASKS)
    with pytest.raises(ValueError, match=f"this encoder has 2, so K is 1 to 2. Got '{part}'"):
        model.freeze(["heads", part])
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="no part 'layer:2'.*Did you mean 'layers:K'"):
        model.freeze("layer:2")


def test_vectors_of_cases_learn_below_frozen_layers():
    model = model_of("bert")
    _, bases, cases = cased_tokenizer(tiny_tokenizer("bert"))
    model.read_case(bases, cases)
    model.freeze("layers:1")
    learning = [name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
    assert learning[0] == "embeddings.word_embeddings.case.weight"
    assert all(name.startswith("encoder.layer.1.") for name in learning[1:])
    model.freeze("all")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def train(folder, model, batch, accumulation, **options):
    """Two epochs of 6 steps of 8 rows."""
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 12), rows_per_step=8, num_epochs=2, grouping="none")
    batches = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args = arguments(folder, MultiTaskTrainingArguments, num_train_epochs=2, **batches, **options)
    new_trainer(args, model, sampling).train()


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("parts", [["layers:1"], ["encoder"], ["embeddings", "topic"], ["layers:1", "projection"]])
def test_frozen_parts_keep_their_bits_through_bfloat16_accumulation_and_decay(tmp_path, parts, accumulation):
    """With the cheaper steps of a CPU, whose hooks sit on the embedding layer; what is not frozen moves."""
    model = new_model(FOUR_TASKS, dropout=0.1, projection_dim=16)
    model.freeze(parts)
    use_fast_dropout(model)
    use_bfloat16_states(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"bf16": True, "weight_decay": 0.1, "learning_rate": 1e-2}
    train(tmp_path, model, 8 // accumulation, accumulation, **options)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


@pytest.mark.parametrize("parts", [["layers:1"], ["encoder"]])
def test_accumulation_and_checkpointing_train_what_one_batch_trains_on_frozen_layers(tmp_path, parts):
    models = []
    for batch, accumulation, checkpointing in ((8, 1, False), (2, 4, False), (8, 1, True)):
        model = new_model(FOUR_TASKS)
        model.freeze(parts)
        options = {"optim": "sgd", "learning_rate": 0.05, "activation_checkpointing": checkpointing}
        train(tmp_path, model, batch, accumulation, **options)
        models.append(model)
    assert largest_difference(models[0], new_model(FOUR_TASKS)) > 1e-2
    assert largest_difference(models[0], models[1]) < 1e-6
    assert largest_difference(models[0], models[2]) < 1e-6


def test_dropout_is_off_in_frozen_layers_and_on_above_them():
    """The states that leave the last frozen layer are the same in every pass of training, those above are not."""
    model = new_model(FOUR_TASKS, dropout=0.4)
    model.freeze("layers:1")
    model.train()
    first, second = (states_of(model, "bert") for _ in range(2))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


def test_the_gradients_above_frozen_layers_are_those_of_the_model_that_learns_as_a_whole():
    """Freezing leaves out work, it changes none that is done; without dropout, which would be off below."""
    whole = new_model(FOUR_TASKS).train()
    frozen = copy.deepcopy(whole)
    frozen.freeze("layers:1")
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), whole.config.tasks)
    batch = collator([feature for features in data_of(FOUR_TASKS, 2).values() for feature in features])
    for model in (whole, frozen):
        model(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("encoder.encoder.layer.1.") for name in gradients)
    assert not any(name.startswith(("encoder.embeddings.", "encoder.encoder.layer.0.")) for name in gradients)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, whole.get_parameter(name).grad), name
