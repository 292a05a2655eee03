"""Tasks come and go in a loaded model: names, order and flat fields stay right, the other heads keep their bits.

And parts are frozen by name: what is named keeps its bits and rests, what is not learns.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cased_vocabulary import cased_tokenizer
from configuration_multitask import MODEL_PARTS, MultiTaskConfig
from data_collator import MultiTaskDataCollator
from modeling_multitask import MultiTaskForSequenceClassification, MultiTaskForTokenClassification, MultiTaskModel

TEXTS = ["Anna won the game in Paris.", "It was not cold."]
SENTIMENT = {"kind": "text-classification", "labels": ["bad", "good"]}
EVERY_KIND = {f"new_{name}": spec for name, spec in TINY_TASKS.items()}


def new_model(**config: Any) -> MultiTaskModel:
    """A model with a task of every kind, in evaluation mode."""
    encoder = tiny_encoder("bert", dropout=0.1)
    tasks = copy.deepcopy(TINY_TASKS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiTaskModel(MultiTaskConfig(encoder_config=encoder.config, tasks=tasks, **config), encoder).eval()


def reopened(folder: Path) -> MultiTaskModel:
    """A saved model, in which every weight was found."""
    model, report = MultiTaskModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model.eval()


@torch.no_grad()
def answers(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """The embedding and every task's logits."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    output = model(**batch, pair_input_ids=batch["input_ids"].flip(0), pair_items=torch.arange(2))
    return {"embedding": output.sentence_embedding, **output.logits}


def assert_same_bits(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """All that was answered before is answered now, bit for bit."""
    for name, tensor in before.items():
        assert torch.equal(now[name], tensor), name


@pytest.mark.parametrize("name", EVERY_KIND)
def test_an_added_task_leaves_the_others_bits_and_keeps_its_own_through_saving(name: str, tokenizer, tmp_path: Path):
    model = new_model(projection_dim=8)
    before = answers(model, tokenizer)
    model.add_task(name, EVERY_KIND[name])
    after = answers(model, tokenizer)
    assert_same_bits(after, before)
    assert name in after
    model.save_pretrained(tmp_path)
    assert_same_bits(answers(reopened(tmp_path), tokenizer), after)


@pytest.mark.parametrize("size", range(1, 6))
def test_an_old_head_answers_with_the_same_bits_wherever_its_weights_lie_in_the_file(
    size: int, tokenizer, tmp_path: Path
):
    """Each float that a new head in front of it adds moves its place in the file; a single output shows it."""
    model = new_model()
    before = answers(model, tokenizer)
    model.add_task("aaa", {**SENTIMENT, "labels": [f"label {i}" for i in range(size)]})
    model.remove_task("ner")
    model.save_pretrained(tmp_path)
    again = reopened(tmp_path)
    assert not any(tensor.data_ptr() % 64 for tensor in again.state_dict().values())
    after = answers(again, tokenizer)
    assert_same_bits(after, {name: before[name] for name in after if name in before})


@pytest.mark.parametrize("name", ["aaa", "place", "zzz"])
def test_tasks_and_heads_stay_sorted_as_a_reloaded_model_has_them(name: str, tmp_path: Path):
    model = new_model()
    model.add_task(name, SENTIMENT)
    assert list(model.config.tasks) == sorted([*TINY_TASKS, name])
    model.rename_task("topic", "bbb")
    model.remove_task("ner")
    model.save_pretrained(tmp_path)
    again = reopened(tmp_path)
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in again.named_parameters()]
    assert list(model.config.tasks.items()) == list(again.config.tasks.items())
    assert list(model.heads) == [task for task in model.config.tasks if task in again.heads]


def test_a_new_head_is_drawn_as_the_first_ones_were():
    """Zero biases, and weights of the encoder's initial range; `nn.Linear`'s own are of another size."""
    model = new_model()
    model.add_task("many", {**SENTIMENT, "labels": [f"label {i}" for i in range(500)], "head": "mlp"})
    head = model.heads["many"]
    for layer in (head.dense, head.out):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(model.config.encoder_config.initializer_range, rel=0.1)


def test_a_new_head_takes_the_dtype_and_the_mode_of_the_model():
    model = new_model().to(torch.bfloat16).train()
    model.add_task("sentiment", SENTIMENT)
    assert {parameter.dtype for parameter in model.heads["sentiment"].parameters()} == {torch.bfloat16}
    assert all(module.training for module in model.heads["sentiment"].modules())
    model.eval().add_task("place", SENTIMENT)
    assert not any(module.training for module in model.heads["place"].modules())


def test_frozen_heads_stay_frozen_and_at_rest_when_tasks_change():
    model = new_model()
    model.freeze("topic")
    model.train()
    model.add_task("sentiment", SENTIMENT)
    model.rename_task("topic", "subject")
    model.remove_task("ner")
    learning = {name: next(head.parameters()).requires_grad for name, head in model.heads.items()}
    assert learning == {name: name != "subject" for name in model.heads}
    assert {name: head.training for name, head in model.heads.items()} == learning


def test_a_renamed_task_keeps_its_bits_and_a_removed_one_takes_only_its_own(tokenizer):
    model = new_model()
    before = answers(model, tokenizer)
    model.rename_task("topic", "a_subject")
    after = answers(model, tokenizer)
    assert torch.equal(after.pop("a_subject"), before.pop("topic"))
    assert_same_bits(after, before)
    model.remove_task("similarity")
    model.remove_task("ner")
    left = answers(model, tokenizer)
    assert set(left) == set(before) - {"similarity", "ner"} | {"a_subject"}
    assert_same_bits(left, {name: before[name] for name in left if name in before})


def test_a_model_without_its_last_task_is_a_plain_sentence_encoder(tokenizer, tmp_path: Path):
    model = new_model()
    before = answers(model, tokenizer)["embedding"]
    for name in TINY_TASKS:
        model.remove_task(name)
    model.save_pretrained(tmp_path)
    again = reopened(tmp_path)
    assert not again.config.tasks and torch.equal(answers(again, tokenizer)["embedding"], before)


def test_task_name_follows_a_renamed_task_and_is_cleared_with_a_removed_one():
    model = new_model(task_name="topic")
    model.rename_task("ner", "entities")
    model.remove_task("entities")
    assert model.config.task_name == "topic"
    model.rename_task("topic", "subject")
    assert model.config.task_name == "subject"
    model.remove_task("subject")
    assert model.config.task_name is None


def test_the_flat_fields_of_a_removed_task_go_with_it(tmp_path: Path):
    """A folder that a one-head view saved describes that head for stock pipelines; without it, nothing."""
    new_model().save_pretrained(tmp_path / "all")
    view = MultiTaskForSequenceClassification.from_pretrained(tmp_path / "all", task_name="tags")
    view.save_pretrained(tmp_path / "view")
    model = MultiTaskModel.from_pretrained(tmp_path / "view")
    assert model.config.label2id["safe"] == 3 and model.config.problem_type == "multi_label_classification", "premise"
    model.rename_task("tags", "traits")
    assert model.config.label2id["safe"] == 3
    model.remove_task("traits")
    plain = MultiTaskConfig()
    for field in ("id2label", "label2id", "num_labels", "problem_type"):
        assert getattr(model.config, field) == getattr(plain, field), field
    model.save_pretrained(tmp_path / "without")
    view = MultiTaskForTokenClassification.from_pretrained(tmp_path / "without")
    assert list(view.config.id2label.values()) == TINY_TASKS["ner"]["labels"]


def test_names_that_are_unknown_taken_or_reserved_are_refused_and_nothing_changes():
    model = new_model()
    known = f"tasks are: {', '.join(TINY_TASKS)}"
    for change, message in (
        (lambda: model.add_task("topic", SENTIMENT), f"'topic' is taken.*{known}"),
        (lambda: model.rename_task("ner", "topic"), f"'topic' is taken.*{known}"),
        (lambda: model.rename_task("nerr", "entities"), rf"Unknown tasks \['nerr'\].*{known}"),
        (lambda: model.remove_task("nerr"), rf"Unknown tasks \['nerr'\].*{known}"),
        (lambda: model.add_task("mean", SENTIMENT), "'mean' is reserved"),
        (lambda: model.rename_task("ner", "forward"), "'forward' is reserved"),
        (lambda: model.add_task("sentiment", {"kind": "text-classification"}), "'sentiment': labels must be"),
    ):
        with pytest.raises(ValueError, match=message):
            change()
    assert list(model.config.tasks) == list(TINY_TASKS)
    assert list(model.heads) == [name for name in TINY_TASKS if name not in ("anchor", "similarity")]


def test_a_one_head_view_refuses_to_change_its_tasks():
    config = MultiTaskConfig(
        encoder_config=tiny_encoder("bert").config, tasks=copy.deepcopy(TINY_TASKS), task_name="topic"
    )
    view = MultiTaskForSequenceClassification(config)
    for change in (
        lambda: view.add_task("sentiment", SENTIMENT),
        lambda: view.rename_task("topic", "subject"),
        lambda: view.remove_task("topic"),
    ):
        with pytest.raises(ValueError, match="answers one task .*Open the folder with AutoModel"):
            change()
    assert list(config.tasks) == list(TINY_TASKS) and config.task_name == "topic" and "topic" in view.heads


REMOTE = """
import sys
# `make install` installs the project editable, by a finder on the import path; this process must do without it
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
model.add_task("sentiment", {"kind": "text-classification", "labels": ["bad", "good"]})
model.rename_task("topic", "subject")
model.remove_task("ner")
model.freeze(["encoder", "subject"])
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_a_remotely_loaded_model_changes_its_tasks_too(tokenizer, tmp_path: Path):
    model = new_model()
    model.save_pretrained(tmp_path / "before")
    words = [sys.executable, "-P", "-c", REMOTE, str(tmp_path / "before"), str(tmp_path / "after")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "after" / "modeling_multitask.py").is_file()
    before = answers(model, tokenizer)
    after = answers(reopened(tmp_path / "after"), tokenizer)
    assert set(after) == set(before) - {"ner", "topic"} | {"sentiment", "subject"}
    assert torch.equal(after["subject"], before["topic"])
    assert_same_bits(after, {name: before[name] for name in after if name in before})


# Freezing


PREFIXES = {
    "encoder": ("encoder.",),
    "embeddings": ("encoder.embeddings.",),
    "heads": ("heads.",),
    "projection": ("projection.",),
    "topic": ("heads.topic.",),
    "layers:1": ("encoder.embeddings.", "encoder.encoder.layer.0."),
    "layers:2": ("encoder.",),  # it has two
}


def labelled_batch(model: MultiTaskModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Items that every head learns from."""
    ids = [tokenizer(text).input_ids for text in TEXTS]
    tags = {"ner": [-100, *([1] * (len(ids[0]) - 2)), -100], "upos": [-100, *([2] * (len(ids[0]) - 2)), -100]}
    first = {"input_ids": ids[0], "labels": {"topic": 1, "rating": 0.7, **tags}}
    second = {"input_ids": ids[1], "labels": {"tags": [1.0, 0.0, 0.0, 1.0], "similarity": 0.4}}
    return MultiTaskDataCollator(tokenizer, model.config.tasks)([first, {**second, "pair_input_ids": ids[0]}])


@pytest.mark.parametrize(
    "parts", [*([part] for part in PREFIXES), ["embeddings", "projection", "topic"], ["encoder", "embeddings"]]
)
def test_what_is_frozen_keeps_its_bits_and_rests_and_the_rest_learns(parts: list[str], tokenizer):
    model = new_model(projection_dim=8)
    model.freeze(parts)
    prefixes = tuple(prefix for part in parts for prefix in PREFIXES[part])
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.train().parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
    model(**labelled_batch(model, tokenizer)).loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(prefixes), name
    for name, module in model.named_modules():
        assert module.training != f"{name}.".startswith(prefixes) or name == "heads", name


def test_freezing_while_training_puts_the_part_at_rest_at_once():
    model = new_model().train()
    model.freeze("encoder")
    assert not any(module.training for module in model.encoder.modules())
    assert model.training and model.heads["topic"].training


def test_frozen_heads_are_those_that_there_are_and_later_ones_learn():
    model = new_model()
    model.freeze("heads")
    model.add_task("sentiment", SENTIMENT)
    learning = {name for name, parameter in model.heads.named_parameters() if parameter.requires_grad}
    assert learning == {"sentiment.out.weight", "sentiment.out.bias"}


def test_vectors_of_cases_learn_on_frozen_embeddings_but_not_in_a_frozen_encoder():
    for parts, learns in ((["embeddings"], True), (["encoder"], False), (["encoder", "embeddings"], False)):
        model = new_model()
        _, bases, cases = cased_tokenizer(tiny_tokenizer("bert"))
        model.read_case(bases, cases)
        model.freeze(parts)
        assert model.get_input_embeddings().case.weight.requires_grad == learns, parts


def test_an_unknown_part_is_refused_with_the_list_and_freezes_nothing():
    model = new_model()
    parts = ", ".join([*MODEL_PARTS, *model.heads, "layers:K"])
    with pytest.raises(ValueError, match=f"no part 'topik'.*parts are: {parts}. Did you mean 'topic'"):
        model.freeze(["encoder", "topik"])
    with pytest.raises(ValueError, match="no part 'similarity'"):
        model.freeze("similarity")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("part", MODEL_PARTS)
def test_a_name_that_is_both_a_parts_and_a_tasks_freezes_neither(part: str):
    model = new_model(projection_dim=8)
    model.add_task(part, SENTIMENT)
    with pytest.raises(ValueError, match=f"'{part}' is a part of this model and one of its tasks: rename the task"):
        model.freeze(["topic", part])
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.rename_task(part, "sentiment")
    model.freeze(part)
    assert not all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_config_says_nothing_of_where_a_model_was_loaded_from(tmp_path: Path):
    new_model().save_pretrained(tmp_path / "before")
    model = MultiTaskModel.from_pretrained(tmp_path / "before")
    model.add_task("sentiment", SENTIMENT)
    model.save_pretrained(tmp_path / "after")
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "after" / "config.json").read_text()))
