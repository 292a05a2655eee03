"""Adapters train in place of the encoder's weights, are merged in what is saved, and go on exactly where they stood."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_ranks import largest_difference as difference_of_folders
from test_ranks import on_ranks
from test_trainer_multitask import FOUR_TASKS, StopAt, arguments, data_of, largest_difference, new_model, new_trainer
from tiny_models import ENCODER_FAMILIES, tiny_encoder, tiny_tokenizer, vocabulary_size

import train_hf
from arguments_multitask import MultiTaskTrainingArguments
from cased_vocabulary import cased_tokenizer
from configuration_multitask import MultiTaskConfig
from cpu_training import FastDropout, use_bfloat16_states, use_fast_dropout
from lora_adapters import (
    ADAPTERS,
    adapted_layers,
    add_adapters,
    describe_adapters,
    has_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from task_sampler import TaskSamplingDataset

peft = pytest.importorskip("peft")

OPTIONS = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}
BATCH = {
    "input_ids": torch.tensor([[2, 7, 9, 3], [2, 11, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}

RECIPE = """
encoder: {encoder}
lora: {{r: 4}}
head_dropout: 0.0
grouping: none
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 24, validation: 9, test: 9}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 24, validation: 9, test: 9}}
num_train_epochs: 2
per_device_train_batch_size: 8
optim: sgd
learning_rate: 0.05
metric_for_best_model: eval_loss
bf16: false
report_to: none
"""


def family_model(family):
    encoder = tiny_encoder(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiTaskModel(MultiTaskConfig(encoder.config, FOUR_TASKS), encoder=encoder).eval()


def adapted_model(family="bert", **options):
    """A tiny model in evaluation mode whose adapters say something."""
    model = family_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        add_adapters(model, OPTIONS | options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    return model.eval()


def answers(model):
    with torch.no_grad():
        output = model(**BATCH, tasks=["ner", "topic"])
    return torch.cat([output.logits["ner"].flatten(), output.logits["topic"].flatten()])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked by peft
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("family", ENCODER_FAMILIES)
def test_what_is_saved_is_a_plain_model_and_the_adapters_open_with_peft_alone(tmp_path, family, variant):
    assert vocabulary_size(family) > 11
    model, plain = adapted_model(family, **variant), family_model(family)
    model.save_pretrained(tmp_path)
    save_adapters(model, tmp_path / ADAPTERS)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == plain.state_dict().keys() and set(plain.state_dict()) == set(model.state_dict())
    opened, report = MultiTaskModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (answers(opened) - answers(model)).abs().max() < 1e-5
    assert (answers(plain) - answers(model)).abs().max() > 1e-2, "the premise: the adapters say something"
    with torch.no_grad():
        stock = peft.PeftModel.from_pretrained(tiny_encoder(family), tmp_path / ADAPTERS).eval()
        states = stock(**BATCH).last_hidden_state
        assert (states - model(**BATCH).last_hidden_state)[BATCH["attention_mask"].bool()].abs().max() < 1e-5


def test_merging_for_good_gives_the_saved_weights_and_leaves_nothing_behind(tmp_path):
    model = adapted_model()
    before = answers(model)
    model.save_pretrained(tmp_path)
    merge_adapters(model)
    assert not has_adapters(model) and not adapted_layers(model)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in family_model("bert").named_parameters()
    ]
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert (answers(model) - before).abs().max() < 1e-5
    add_adapters(model, OPTIONS)  # again, over the merged weights


def test_asking_for_the_weights_changes_no_bit_of_the_model():
    model = adapted_model(use_dora=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.state_dict()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}])
def test_adapters_put_on_again_are_bit_equal(tmp_path, variant):
    model = adapted_model(**variant)
    with torch.no_grad():
        model.heads["topic"].out.bias += 1
    save_adapters(model, tmp_path)
    again = family_model("bert")
    load_adapters(again, tmp_path)
    assert torch.equal(answers(again.eval()), answers(model))
    assert describe_adapters(again) == describe_adapters(model)


def test_adapters_of_another_encoder_or_model_are_refused(tmp_path):
    model = adapted_model()
    save_adapters(model, tmp_path)
    other = MultiTaskModel(
        MultiTaskConfig(tiny_encoder("bert").config, FOUR_TASKS), encoder=tiny_encoder("bert", seed=1)
    )
    with pytest.raises(ValueError, match="fit only the encoder that they were trained over"):
        load_adapters(other, tmp_path)
    fewer = family_model("bert")
    fewer.remove_task("topic")
    with pytest.raises(ValueError, match=r"only new_weights.safetensors has heads.topic.out.(weight|bias)"):
        load_adapters(fewer, tmp_path)
    with pytest.raises(ValueError, match="another model: .* has the shape"):
        load_adapters(adapted_model(r=2), tmp_path)
    with pytest.raises(
        ValueError, match="lacks adapter_config.json, adapter_model.safetensors, new_weights.safetensors"
    ):
        load_adapters(family_model("bert"), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(model, OPTIONS)


# Training


def run(folder, callbacks=(), resume=None, seed=0, options=(), cased=False, **further):
    """Three epochs of 4 steps of a model with adapters and dropout; its own weights before, and the trainer."""
    model = new_model(FOUR_TASKS, dropout=0.1, seed=0, projection_dim=16)
    if cased:
        _, bases, cases = cased_tokenizer(tiny_tokenizer("bert"))
        model.read_case(bases, cases)
        with torch.no_grad():
            model.get_input_embeddings().cases[:90] = 1  # so that the short texts here have capitals
    torch.manual_seed(seed)
    add_adapters(model, OPTIONS | dict(options))
    own = {
        n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("encoder.") and not p.requires_grad
    }
    sampling = TaskSamplingDataset(data_of(FOUR_TASKS, 8), rows_per_step=8, num_epochs=3)
    args = arguments(folder, MultiTaskTrainingArguments, **{"num_train_epochs": 3, "save_steps": 5} | further)
    trainer = new_trainer(args, model, sampling, validation=data_of(FOUR_TASKS, 5, seed=1), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return own, trainer


def test_adapters_and_what_is_new_train_and_the_encoders_own_weights_keep_their_bits(tmp_path):
    own, trainer = run(tmp_path, cased=True)
    plain = new_model(FOUR_TASKS, projection_dim=16)
    assert len(own) == len(list(plain.encoder.parameters()))
    moved = dict(trainer.model.named_parameters())
    assert all(torch.equal(moved[name], value) for name, value in own.items())
    trained = {name for name, value in moved.items() if value.requires_grad}
    assert trained == moved.keys() - own.keys()
    assert "encoder.embeddings.word_embeddings.case.weight" in trained and "projection.weight" in trained
    assert moved["encoder.embeddings.word_embeddings.case.weight"].abs().max() > 0
    assert all(value.abs().max() > 0 for name, value in moved.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_training_resumed_with_adapters_is_unbroken_training(tmp_path, options):
    """Bit-equal, with dropout, in the middle of an epoch, whatever the new adapters start with."""
    further = {"save_strategy": "steps", "options": options.items()}
    _, unbroken = run(tmp_path / "unbroken", **further)
    run(tmp_path / "broken", callbacks=[StopAt(5)], **further)
    _, resumed = run(tmp_path / "broken", resume=str(tmp_path / "broken" / "checkpoint-5"), seed=7, **further)
    assert resumed.state.global_step == unbroken.state.global_step == 12
    pairs = zip(unbroken.model.named_parameters(), resumed.model.named_parameters(), strict=True)
    assert all(one[0] == other[0] and torch.equal(one[1], other[1]) for one, other in pairs)
    checkpoint = tmp_path / "unbroken" / "checkpoint-10"
    assert (
        load_file(checkpoint / "model.safetensors").keys()
        == new_model(FOUR_TASKS, projection_dim=16).state_dict().keys()
    )


def test_the_best_checkpoint_is_what_is_left(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 0.05}
    _, trainer = run(tmp_path, eval_strategy="epoch", save_strategy="epoch", save_total_limit=None, **best)
    assert trainer.state.best_global_step != 12, "else the last would do as well"
    saved = load_file(tmp_path / f"checkpoint-{trainer.state.best_global_step}" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_activation_checkpointing_makes_the_same_adapters(tmp_path):
    options = {"lora_dropout": 0.0}.items()
    weights = []
    for checkpointing in (False, True):
        further = {"optim": "sgd", "learning_rate": 0.05, "activation_checkpointing": checkpointing}
        _, trainer = run(tmp_path, options=options, **further)
        weights.append(trainer.model)
    assert largest_difference(*weights) < 1e-6


def test_cheaper_steps_on_a_cpu_reach_the_adapters():
    model = adapted_model(lora_dropout=0.5)
    use_fast_dropout(model)
    use_bfloat16_states(model)
    layer = next(iter(adapted_layers(model).values()))
    assert type(layer.lora_dropout["default"]) is FastDropout
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(**BATCH, labels={"topic": torch.tensor([0, 1])}).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_" in name}
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())


# Arguments and the command


def test_unknown_and_impossible_options_are_refused_with_the_nearest(recipe, capsys):
    for words, message in {
        ("--lora.alpha", "8"): "lora has no field 'alpha'; its fields are .* Did you mean 'lora_alpha'",
        ("--lora.r", "0"): "lora: r must be at least 1; got 0",
        ("--lora.r", "four"): "lora: r must be int; got 'four'",
        ("--lora.lora_dropout", "1.0"): "lora_dropout is a probability below 1; got 1.0",
        ("--lora", "8"): "--lora must be dict; got 8",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            parse_arguments([str(recipe), *words])
        assert re.search(message, capsys.readouterr().err), message
    model, _, _ = parse_arguments([str(recipe), "--lora.lora_alpha", "32", "--lora.target_modules", "[query, value]"])
    assert model.lora == {
        "r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": ["query", "value"],
        "exclude_modules": None,
        "use_rslora": False,
        "use_dora": False,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze", "encoder"], "freeze names the encoder: leave out one of both"),
        (["--cache_encoder", "true"], "the whole encoder must be frozen"),
        (["--lora.target_modules", "[q_proj]"], "linear layers are called: dense, key, query, value"),
    ],
)
def test_what_contradicts_adapters_is_refused_in_one_line(recipe, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(tmp_path), *words])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_the_package_the_command_says_what_to_install(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(tmp_path)])
    assert "pip install 'multitask-sentence-transformer[lora]'" in capsys.readouterr().err


def test_the_plan_counts_what_trains(recipe, tmp_path, capsys):
    train_hf.main([str(recipe), "--output_dir", str(tmp_path), "--dry_run", "--tasks.topic.max_rows.train", "8"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "LoRA" in line)
    assert "adapters in 12 layers" in line and "adapters 3,584," in line, "2 x (4 x 256 + 2 x 384)"


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None
from transformers import AutoModel, AutoTokenizer
from sentence_transformers import SentenceTransformer
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
texts = ["the new phone", "rain in Paris"]
ours = model.encode(texts, AutoTokenizer.from_pretrained(folder, trust_remote_code=True))
theirs = SentenceTransformer(folder, trust_remote_code=True, device="cpu").encode(texts)
print(abs(ours - theirs).max() < 1e-5)
"""


@pytest.mark.slow
def test_two_ranks_train_what_one_process_trains_and_the_folder_opens_without_peft(recipe, tmp_path):
    """The command itself: equal weights on both ranks, no search for unused parameters, adapters beside the model."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    trainer = train_hf.main([str(recipe), "--output_dir", str(one), "--load_best_model_at_end", "false"])
    assert not has_adapters(trainer.model)
    options = [
        "--per_device_train_batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
        "--load_best_model_at_end",
        False,
    ]
    reports = on_ranks("command", two, recipe, *options)
    assert reports[0]["sha256"] == reports[1]["sha256"]
    assert [report["find_unused"] for report in reports] == [False, False]
    assert difference_of_folders(one, two) < 1e-5
    start, saved = (load_file(folder / "model.safetensors") for folder in (one / "checkpoint-6", one))
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    assert (start[name] - saved[name]).abs().max() > 1e-5, "the premise: the adapters move"
    assert json.loads((one / ADAPTERS / "adapter_config.json").read_text())["r"] == 4
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PEFT, str(one)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr[-3000:]
