"""Runs that start from a trained model: what it knew stays or is measured, and what contradicts it is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import evaluate_hf
import train_hf
from arguments_multitask import ModelArguments
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from task_data import load_tasks
from training_run import build_model

RECIPE = """
encoder: {encoder}
tasks:
  topic: {{dataset: "builtin:topic", max_rows: {{train: 32, validation: 12, test: 8}}}}
  entities:
    dataset: builtin:entities
    columns: {{tokens: tokens, label: ner_tags}}
    max_rows: {{train: 32, validation: 12, test: 8}}
pooling: cls
projection_dim: 16
max_seq_length: 48
num_train_epochs: 1
per_device_train_batch_size: 16
learning_rate: 1e-3
bf16: false
report_to: none
"""
ONE_MORE = """
tasks:
  sentiment: {dataset: "builtin:sentiment", max_rows: {train: 48, validation: 12, test: 8}}
num_train_epochs: 2
per_device_train_batch_size: 16
learning_rate: 1e-2
bf16: false
report_to: none
"""
FROZEN = ("--freeze", "encoder,projection,heads")

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two tasks."""
    folder = tmp_path_factory.mktemp("trained")
    train_hf.main([str(recipe), "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def one_more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a third task; it names no encoder."""
    path = tmp_path_factory.mktemp("recipe") / "one_more.yaml"
    path.write_text(ONE_MORE)
    return path


@pytest.fixture
def run(trained: Path, one_more: Path, tmp_path: Path) -> Run:
    """A function that trains the third task on the trained model and returns its folder."""

    def start(*words: str, recipe: Path = one_more, name: str = "out") -> Path:
        folder = tmp_path / name
        train_hf.main([str(recipe), "--init_from", str(trained), "--output_dir", str(folder), *words])
        return folder

    return start


def results(folder: Path, split: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((folder / f"{split}_results.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The saved weights."""
    return load_file(folder / "model.safetensors")


def test_on_a_frozen_encoder_a_new_head_leaves_every_old_bit(trained: Path, run: Run, capsys) -> None:
    """Weights and logits of the old heads, the embedding, the tokenizer; and the run says so itself."""
    folder = run(*FROZEN, "--max_head_drift", "0")
    printed = capsys.readouterr().out
    assert "frozen besides: encoder, projection, heads" in printed
    for name in ("entities", "topic", "sentence_embedding"):
        assert any(line.startswith(name) and "unchanged, bit for bit" in line for line in printed.splitlines()), name
    old, new = weights(trained), weights(folder)
    assert {name for name in new if name not in old} == {"heads.sentiment.out.weight", "heads.sentiment.out.bias"}
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert (folder / "tokenizer.json").read_text() == (trained / "tokenizer.json").read_text()
    texts = ["Maria flew to Oslo.", "It was good."]
    before, after = (
        MultiTaskModel.from_pretrained(one).predict(
            texts, AutoTokenizer.from_pretrained(trained, trust_remote_code=False)
        )
        for one in (trained, folder)
    )
    for one, two in zip(before, after, strict=True):
        assert set(two) == set(one) | {"sentiment"}
        assert all(one[name] == two[name] for name in ("topic", "entities"))
        assert (one["sentence_embedding"] == two["sentence_embedding"]).all()
    drift = results(folder, "drift")
    assert drift["drift_topic_is_equal"] and drift["drift_entities_is_equal"] and drift["drift_topic_rows"] == 12
    assert str(trained) not in (folder / "config.json").read_text()


def test_on_a_moving_encoder_the_old_heads_keep_their_bits_and_their_drift_is_measured(
    trained: Path, recipe: Path, run: Run, capsys, tmp_path: Path
) -> None:
    """Scores before are those of the run that trained them, scores after are those that the saved model gets."""
    folder = run("--drift_data", str(recipe))
    old, new = weights(trained), weights(folder)
    assert all(torch.equal(new[name], old[name]) for name in old if name.startswith("heads."))
    assert not all(torch.equal(new[name], old[name]) for name in old)
    drift, first = results(folder, "drift"), results(trained, "eval")
    assert 0 < drift["drift_entities_changed"] <= 1 and drift["drift_embedding_cosine"] < 1
    words = [str(folder), "--data", str(recipe), "--split", "validation", "--output_dir", str(tmp_path / "again")]
    printed = capsys.readouterr().out
    evaluate_hf.main(words)
    again = results(tmp_path / "again", "validation")
    for metric in ("topic_accuracy", "entities_f1"):
        assert drift[f"drift_{metric}_before"] == pytest.approx(first[f"eval_{metric}"], abs=1e-12)
        assert drift[f"drift_{metric}_after"] == pytest.approx(again[f"validation_{metric}"], abs=1e-12)
        scores = f"{drift[f'drift_{metric}_before']:.4f} -> {drift[f'drift_{metric}_after']:.4f}"
        assert f"of its own validation rows; {metric.partition('_')[2]} {scores}" in printed


def test_a_run_beyond_the_allowed_drift_saves_no_model(run: Run, tmp_path: Path, capsys) -> None:
    """In one line; checkpoints and what was measured stay."""
    with pytest.raises(SystemExit, match="2"):
        run("--max_head_drift", "0")
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("train_hf.py: error: A task that is not trained may answer otherwise on at most 0 of its")
    assert not (tmp_path / "out" / "model.safetensors").exists() and not (tmp_path / "out" / "config.json").exists()
    assert len(list((tmp_path / "out").glob("checkpoint-*/model.safetensors"))) == 2
    assert results(tmp_path / "out", "drift")["drift_entities_changed"] > 0


@pytest.mark.slow
def test_a_resumed_run_on_a_trained_model_ends_like_the_unbroken_one(run: Run, tmp_path: Path) -> None:
    """The drift is still measured against the model it started from, not against the checkpoint."""
    unbroken = run(name="unbroken")
    checkpoints = sorted(unbroken.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / checkpoints[0].name).symlink_to(checkpoints[0])
    resumed = run("--resume_from_checkpoint", "last", "--max_head_drift", "1", name="resumed")
    one, two = (load_file(folder / checkpoints[1].name / "model.safetensors") for folder in (unbroken, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results(unbroken, "drift") == results(resumed, "drift")


def test_a_task_that_the_model_has_goes_on_from_its_head_with_the_recipes_loss(trained: Path, recipe: Path) -> None:
    """Its own head and the shared parts learn, the other head is frozen, whatever else is."""
    _, data, _ = parse_arguments([str(recipe), "--tasks.topic.loss.weight", "0.25"])
    loaded = load_tasks({"topic": data.tasks["topic"]}, offline=True)
    arguments = ModelArguments(init_from=str(trained))
    model, _ = build_model(arguments, loaded, offline=True)
    old = weights(trained)
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    assert model.config.tasks["topic"]["loss"]["weight"] == 0.25
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "heads.entities.out.weight",
        "heads.entities.out.bias",
    }
    frozen, _ = build_model(arguments, loaded, offline=True, freeze=["heads"])
    assert not any(parameter.requires_grad for parameter in frozen.heads.parameters())
    assert all(parameter.requires_grad for parameter in frozen.encoder.parameters())


def test_the_encoder_of_a_recipe_gives_way_to_a_trained_model_and_the_plan_says_so(
    run: Run, recipe: Path, capsys
) -> None:
    """So that a recipe serves both ways."""
    run("--dry_run", recipe=recipe)
    printed = capsys.readouterr().out
    assert "The encoder is that of" in printed and "is not read" in printed
    assert "tasks that are not trained: none" in printed


REFUSED = {
    "another pooling": (("--pooling", "mean"), "pooling is cls in", "cannot be mean. Leave it away"),
    "another projection": (
        ("--projection_dim", "8"),
        "projection_dim is 16 in",
    ),
    "another length": (
        ("--max_seq_length", "64"),
        "max_seq_length is 48 in",
    ),
    "another dropout": (
        ("--head_dropout", "0.5"),
        "head_dropout is 0.1 in",
    ),
    "case that it does not read": (
        ("--read_case", "true"),
        "read_case is False in",
    ),
    "normalisation": (
        ("--normalize_embeddings",),
        "normalize_embeddings is False in",
    ),
    "an unknown part": (("--freeze", "encoder,topik"), "no part 'topik'", "Did you mean 'topic'?"),
    "a new head frozen": (("--freeze", "sentiment"), "no part 'sentiment' to freeze"),
    "an unknown task_name": (("--task_name", "topik"), "Unknown tasks ['topik']", "entities, sentiment, topic"),
    "a share above 1": (("--max_head_drift", "1.5"), "between 0 and 1"),
    "no such model": (("--init_from", "outputs/none"), "The model 'outputs/none' cannot be opened"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_the_trained_model_is_refused_in_one_line(name: str, run: Run, tmp_path: Path, capsys) -> None:
    """Before anything is written."""
    words, *parts = REFUSED[name]
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert ": error: " in told and all(part in told for part in parts), told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--tasks.topic.labels", "[Business, Sports, Weather, Technology]"), ("Task 'topic'",)),
        (("--tasks.topic.head", "mlp"), ("Task 'topic' goes on", "head is linear there, mlp", "rename the task")),
        (("--tasks.topic.kind", "feature-extraction"), ("kind is text-classification there", "'topic_2'")),
        (FROZEN, ("Task 'topic' has nothing to train", "encoder, projection, its head", "evaluate_hf.py")),
        (("--max_head_drift", "0.1"), ("here is none to measure",)),
        (("--drift_data", "{recipe}"), ("not trained here (there are none)", "has topic, entities")),
    ],
)
def test_tasks_that_go_on_must_be_the_same_and_have_something_to_train(
    words: tuple[str, ...], parts: tuple[str, ...], run: Run, recipe: Path, capsys
) -> None:
    """With the recipe of the trained model itself, so that all its tasks go on."""
    with pytest.raises(SystemExit, match="2"):
        run(*(word.format(recipe=recipe) for word in words), recipe=recipe)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in told for part in parts), told


def test_labels_in_another_order_are_refused_with_the_order_to_write(run: Run, trained: Path, recipe: Path, capsys):
    """A head would answer with another label's name."""
    labels = MultiTaskModel.from_pretrained(trained).config.tasks["topic"]["labels"]
    turned = [*labels[1:], labels[0]]
    with pytest.raises(SystemExit, match="2"):
        run("--tasks.topic.labels", json.dumps(turned), recipe=recipe)
    told = capsys.readouterr().err
    assert f"labels is {labels} there, {turned} in the recipe. Write labels as it is there" in told


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--freeze", "encoder,projection,heads"), "Task 'topic' has nothing to train"),
        (("--freeze", "encodr"), "Did you mean 'encoder'?"),
        (("--max_head_drift", "0"), "it needs init_from"),
        (("--drift_data", "x.yaml"), "it needs init_from"),
    ],
)
def test_from_an_encoder_too_nothing_to_train_and_nothing_to_compare_with_are_refused(
    words: tuple[str, ...], part: str, recipe: Path, tmp_path: Path, capsys
) -> None:
    """The reason is in the message."""
    with pytest.raises(SystemExit, match="2"):
        train_hf.main([str(recipe), "--output_dir", str(tmp_path / "out"), *words])
    assert part in capsys.readouterr().err


@pytest.mark.slow
def test_through_the_command_line_frozen_keeps_every_logit_and_moving_is_refused(
    trained: Path, one_more: Path, repository: Path, tmp_path: Path
) -> None:
    """As a user runs it: a third task on a frozen encoder, then on a moving one that may change nothing."""
    shutil.copytree(trained, tmp_path / "trained")  # a user's folder, elsewhere than where it was trained

    def command(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        folders = ["--init_from", str(tmp_path / "trained"), "--output_dir", str(tmp_path / name)]
        return subprocess.run(
            [sys.executable, "train_hf.py", str(one_more), *folders, *words],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("frozen", *FROZEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unchanged, bit for bit, on 12 validation texts of this run") == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trained", trust_remote_code=False)
    batch = tokenizer(["Maria flew to Oslo.", "It was good."], padding=True, return_tensors="pt")
    with torch.no_grad():
        old, new = (MultiTaskModel.from_pretrained(tmp_path / name)(**batch) for name in ("trained", "frozen"))
    assert torch.equal(old.sentence_embedding, new.sentence_embedding)
    assert set(new.logits) == {*old.logits, "sentiment"}
    assert all(torch.equal(new.logits[name], logits) for name, logits in old.logits.items())

    done = command("moving", "--max_head_drift", "0")
    assert done.returncode == 2 and "The model is not saved" in done.stderr, done.stderr
    assert not (tmp_path / "moving" / "model.safetensors").exists()
    assert list((tmp_path / "moving").glob("checkpoint-*"))
