"""`MultiTaskConfig` accepts what the model can build, refuses the rest with a way out, and survives `config.json`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY_TASKS, tiny_config
from torch import nn

from configuration_multitask import (
    MODULE_ATTRIBUTES,
    RESERVED_TASK_NAMES,
    MultiTaskConfig,
    entity_types,
    has_entities,
    nearest_name,
    num_outputs,
)

TOPIC = {"kind": "text-classification", "labels": ["a", "b"]}
TAGS = {"kind": "token-classification", "labels": ["O", "B-PER", "I-PER"]}
SIMILARITY = {"kind": "sentence-similarity"}
NUMBER = {"kind": "text-classification", "problem_type": "regression"}


def as_json(config: MultiTaskConfig) -> dict[str, Any]:
    """What `config.json` says of a config, without the library's version."""
    fields = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in fields.items() if "version" not in name}


def test_the_default_config_is_a_plain_sentence_encoder():
    config = MultiTaskConfig()
    assert config.tasks == {}
    assert config.encoder_config.model_type == "bert"
    assert config.embedding_size == config.hidden_size == 256


def test_a_config_reads_back_as_it_was_written(family: str, tmp_path: Path):
    tasks = {
        **TINY_TASKS,
        "joint": {
            "kind": "text-classification",
            "labels": ["no", "yes"],
            "text_pair": True,
            "head": "mlp",
            "head_activation": "gelu",
            "dropout": 0.2,
            "pooling": "cls",
            "loss": {"weight": 0.5, "class_weights": [1.0, 3], "label_smoothing": 0.1},
        },
        "sts": {"kind": "sentence-similarity", "loss": {"name": "cosent", "scale": 10}},
    }
    config = MultiTaskConfig(
        encoder_config=tiny_config(family),
        tasks=tasks,
        task_name="topic",
        pooling="weighted_mean",
        projection_dim=16,
        normalize_embeddings=True,
        head_dropout=0.3,
        max_seq_length=64,
    )
    config.save_pretrained(tmp_path)
    reopened = MultiTaskConfig.from_pretrained(tmp_path)
    assert as_json(reopened) == as_json(config)
    assert list(reopened.tasks) == list(config.tasks)
    assert reopened.encoder_config.model_type == config.encoder_config.model_type
    assert reopened.tasks["joint"]["loss"] == {"weight": 0.5, "class_weights": [1.0, 3], "label_smoothing": 0.1}


def test_tasks_are_sorted_by_name_whatever_order_they_come_in():
    forwards = MultiTaskConfig(tasks=TINY_TASKS)
    backwards = MultiTaskConfig(tasks=dict(reversed(TINY_TASKS.items())))
    assert list(forwards.tasks) == list(backwards.tasks) == sorted(TINY_TASKS)
    assert as_json(forwards) == as_json(backwards)


def test_the_config_does_not_share_the_callers_task_mapping():
    given = {"topic": dict(TOPIC)}
    config = MultiTaskConfig(tasks=given)
    config.tasks["topic"]["labels"].append("c")
    assert given == {"topic": {"kind": "text-classification", "labels": ["a", "b"]}}


def test_checking_a_checked_task_changes_nothing():
    once = MultiTaskConfig(tasks=TINY_TASKS).tasks
    assert MultiTaskConfig(tasks=once).tasks == once


def test_defaults_are_filled_in():
    tasks = MultiTaskConfig(tasks={"topic": TOPIC, "rating": NUMBER}).tasks
    assert tasks["topic"]["loss"] == {"weight": 1.0}
    assert tasks["topic"]["head"] == "linear"
    assert tasks["topic"]["problem_type"] == "single_label_classification"
    assert tasks["rating"]["labels"] == ["score"]


@pytest.mark.parametrize(
    ("name", "outputs"), [("topic", 3), ("ner", 5), ("rating", 1), ("similarity", 0), ("anchor", 0)]
)
def test_a_head_puts_out_a_number_for_each_label(name: str, outputs: int):
    assert num_outputs(MultiTaskConfig(tasks=TINY_TASKS).tasks[name]) == outputs


@pytest.mark.parametrize(
    ("labels", "entities", "types"),
    [
        (["O", "B-PER", "I-PER", "B-LOC"], True, ["LOC", "PER"]),
        (["O", "I-PER"], True, ["PER"]),
        (["NOUN", "VERB"], False, None),
        (["B-PER", "I-PER"], False, None),
        (["O", "PER"], False, None),
    ],
)
def test_bio_tags_are_recognised(labels: list[str], entities: bool, types: list[str] | None):
    assert has_entities(labels) is entities
    if entities:
        assert entity_types(labels) == types


@pytest.mark.parametrize("name", ["1st", "two words", "class", "a.b", "", "naïve!", 7])
def test_a_task_name_that_cannot_name_a_module_is_refused(name: Any):
    with pytest.raises(ValueError, match="Rename the task"):
        MultiTaskConfig(tasks={name: TOPIC})


@pytest.mark.parametrize("name", sorted(RESERVED_TASK_NAMES) + ["keys", "forward", "to", "type", "training"])
def test_a_reserved_task_name_is_refused(name: str):
    with pytest.raises(ValueError, match=f"'{name}' is reserved.*'{name}_task'"):
        MultiTaskConfig(tasks={name: TOPIC})


def test_every_name_that_torch_refuses_as_a_module_is_refused_before():
    container = nn.ModuleDict()
    public = {name for name in dir(container) if not name.startswith("_")}
    assert public, "premise: a ModuleDict has attributes"
    assert public <= MODULE_ATTRIBUTES, f"torch has new attributes: {sorted(public - MODULE_ATTRIBUTES)}"


def test_a_name_with_a_dash_is_accepted():
    assert list(MultiTaskConfig(tasks={"news-topic": TOPIC}).tasks) == ["news-topic"]


REFUSED_TASKS: list[tuple[Any, str]] = [
    ("text-classification", "must be described by a mapping with a 'kind'"),
    ({"labels": ["a"]}, "kind must be one of .*got None"),
    ({**TOPIC, "kind": "text-clasification"}, "Did you mean 'text-classification'"),
    ({**TOPIC, "label": ["a"]}, "no field 'label'.*Did you mean 'labels'"),
    ({**TAGS, "pooling": "cls"}, "no field 'pooling'"),
    ({**SIMILARITY, "labels": ["a"]}, "no field 'labels'"),
    ({**TOPIC, "pooling": "maen"}, "pooling must be one of .*Did you mean 'mean'"),
    ({**TOPIC, "problem_type": "multilabel"}, "problem_type must be one of .*got 'multilabel'"),
    ({**TOPIC, "head": "mpl"}, "head must be one of linear, mlp; got 'mpl'"),
    ({**TOPIC, "head": "mlp", "head_activation": "relus"}, "head_activation .*Did you mean 'relu'"),
    ({**TOPIC, "dropout": 1.5}, "dropout must be a finite number between 0.0 and 1.0; got 1.5"),
    ({**TOPIC, "dropout": True}, "dropout must be a finite number .*got True"),
    ({"kind": "text-classification"}, "labels must be a list of label names .*got None"),
    ({**TOPIC, "labels": []}, r"labels must be a list of label names .*got \[\]"),
    ({**TOPIC, "labels": ["a", True]}, "Quote names that YAML reads"),
    ({**TOPIC, "labels": "ab"}, "labels must be a list of label names .*got 'ab'"),
    ({**TOPIC, "labels": ["a", "b", "a"]}, r"labels must be distinct; \['a'\]"),
    ({**NUMBER, "labels": ["a", "b"]}, "predicts one number, so one label name"),
    ({**TOPIC, "loss": {"wieght": 2}}, "loss has no field 'wieght'.*Did you mean 'weight'"),
    ({**TOPIC, "loss": {"weight": -1}}, "loss.weight must be a finite number at least 0.0; got -1"),
    ({**TOPIC, "loss": {"weight": float("nan")}}, "loss.weight must be a finite number .*got nan"),
    ({**TOPIC, "loss": {"weight": float("inf")}}, "loss.weight must be a finite number .*got inf"),
    ({**TOPIC, "loss": {"weight": "2"}}, "loss.weight must be a finite number .*got '2'"),
    ({**TOPIC, "loss": {"class_weights": [1.0]}}, r"one number for each of the 2 labels.*a, b.*got \[1.0\]"),
    ({**TOPIC, "loss": {"class_weights": [1.0, -1.0]}}, "class_weights must be a finite number at least 0.0; got -1"),
    ({**NUMBER, "loss": {"class_weights": [1.0]}}, "a regression task has none"),
    ({**TOPIC, "loss": {"label_smoothing": 2}}, "label_smoothing must be a finite number between 0.0 and 1.0"),
    ({**NUMBER, "loss": {"label_smoothing": 0.1}}, "label_smoothing is for single-label and tag losses"),
    ({**TOPIC, "loss": {"r_drop": -1}}, "r_drop must be a finite number at least 0"),
    ({**NUMBER, "loss": {"r_drop": 1.0}}, "r_drop compares distributions over classes"),
    ({**SIMILARITY, "loss": {"name": "cosine"}}, "loss.name must be one of mse, cosent; got 'cosine'"),
    ({**SIMILARITY, "loss": {"name": "cosent", "scale": 0}}, "loss.scale must be a finite number"),
    ({**SIMILARITY, "loss": {"class_weights": [1.0]}}, "loss has no field 'class_weights'"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED_TASKS, ids=[message[:40] for _, message in REFUSED_TASKS])
def test_a_task_that_no_head_can_serve_is_refused_by_name(spec: Any, message: str):
    with pytest.raises(ValueError, match=message) as error:
        MultiTaskConfig(tasks={"topic": spec})
    assert "'topic'" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "lasttoken"}, "pooling must be one of .*Did you mean 'last_token'"),
        ({"projection_dim": 0}, "projection_dim must be a positive whole number or None; got 0"),
        ({"projection_dim": 2.5}, "projection_dim must be a positive whole number or None; got 2.5"),
        ({"max_seq_length": True}, "max_seq_length must be a positive whole number or None; got True"),
        ({"task_name": "topics"}, "task_name is 'topics'; this model's tasks are: topic"),
    ],
)
def test_a_field_that_is_not_valid_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(tasks={"topic": TOPIC}, **fields)


def test_the_one_head_views_take_the_named_task_or_the_first_of_their_kind():
    config = MultiTaskConfig(tasks=TINY_TASKS)
    assert config.first_task_of(("token-classification",)) == "ner"
    assert config.first_task_of(("text-classification",)) == "rating"
    named = MultiTaskConfig(tasks=TINY_TASKS, task_name="upos")
    assert named.first_task_of(("token-classification",)) == "upos"


def test_a_view_of_another_kind_says_which_tasks_would_do():
    config = MultiTaskConfig(tasks=TINY_TASKS, task_name="upos")
    with pytest.raises(ValueError, match="of that kind here are: rating, tags, topic, but task_name is 'upos'"):
        config.first_task_of(("text-classification",))
    with pytest.raises(ValueError, match="of that kind here are: none"):
        MultiTaskConfig().first_task_of(("text-classification",))


def test_the_nearest_name_is_offered_only_where_one_is_near():
    assert nearest_name("poling", ["pooling", "kind"]) == " Did you mean 'pooling'?"
    assert nearest_name("xyz", ["pooling", "kind"]) == ""
