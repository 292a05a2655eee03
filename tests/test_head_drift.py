"""Drift: what counts as another answer, by kind; and that asking a model changes neither it nor a random number."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import TINY_TASKS, tiny_encoder, tiny_tokenizer
from torch import tensor

from arguments_multitask import TaskArguments
from configuration_multitask import MultiTaskConfig, check_task
from data_collator import MultiTaskDataCollator
from head_drift import TEXTS_A_TASK, DriftReport, HeadDrift, TaskDrift, changed_share, drawn, labels_of
from modeling_multitask import MultiTaskModel
from task_data import load_tasks
from task_features import TaskFeatures, build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics
from trainer_multitask import MultiTaskTrainer

SPECS = {name: check_task(name, spec) for name, spec in TINY_TASKS.items()}
DATA = {
    "topic": TaskArguments(dataset="builtin:topic", max_rows={"validation": 9}),
    "entities": TaskArguments(
        dataset="builtin:entities", columns={"tokens": "tokens", "label": "ner_tags"}, max_rows={"validation": 9}
    ),
    "similarity": TaskArguments(
        dataset="builtin:similarity",
        columns={"text": "sentence1", "text_pair": "sentence2", "label": "score"},
        max_rows={"validation": 9},
    ),
}


@pytest.mark.parametrize(
    ("name", "before", "after", "share"),
    [
        ("topic", [[1.0, 2, 3], [3, 2, 1]], [[2.0, 1, 9], [2, 3, 1]], 0.5),  # the class
        ("tags", [[1.0, -1, 1, -1], [1, 1, 1, 1]], [[9.0, -9, 9, -9], [1, 1, 1, -1]], 0.5),  # the set of classes
        ("ner", [[[0.0, 1], [1, 0]], [[1, 0], [1, 0]]], [[[0.0, 9], [9, 0]], [[1, 0], [0, 1]]], 0.5),  # any tag
        ("rating", [[0.0], [4.0]], [[0.19], [4.21]], 0.5),  # a tenth of the standard deviation, which is 2
        ("similarity", [0.0, 0.2], [-0.011, 0.209], 0.5),  # here 0.1
    ],
)
def test_a_text_counts_if_its_class_set_any_tag_or_number_is_another(
    name: str, before: Any, after: Any, share: float
) -> None:
    """And its logits alone do not."""
    rows, others = list(tensor(before)), list(tensor(after))
    assert changed_share(SPECS[name], rows, others) == share
    assert changed_share(SPECS[name], rows, [row.clone() for row in rows]) == 0.0


@pytest.fixture(scope="module")
def features() -> TaskFeatures:
    """Validation features of three tasks."""
    return build_features(load_tasks(DATA), tiny_tokenizer("bert"), 64, splits=("validation",))


@pytest.fixture
def model() -> MultiTaskModel:
    """A model with dropout and the tasks of `features`, and one head that no data is of."""
    tasks = {name: task.spec for name, task in load_tasks(DATA, splits=("validation",)).items()}
    encoder = tiny_encoder("bert", dropout=0.1)
    torch.manual_seed(0)
    config = MultiTaskConfig(encoder_config=encoder.config, tasks=tasks | {"rating": copy.deepcopy(SPECS["rating"])})
    return MultiTaskModel(config, encoder)


def drift_of(model: MultiTaskModel, features: TaskFeatures, own: tuple[str, ...] = ()) -> HeadDrift:
    """Of all tasks but topic, whose texts are at hand."""
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), model.config.tasks)
    texts = {"topic": features.validation["topic"]}
    kept = [name for name in model.config.tasks if name != "topic"]
    return HeadDrift(model, collator, kept, texts, {name: features.validation[name] for name in own})


def test_asking_twice_gives_the_same_bits_also_after_training_mode(model, features) -> None:
    """Dropout is off, and no random number is drawn."""
    random_state = torch.get_rng_state()
    drift = drift_of(model.train(), features, own=("entities", "similarity"))
    model.train()
    report = drift.compare()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(report.tasks) == ["entities", "rating", "similarity"]
    assert all(task.is_equal and task.changed == 0 for task in report.tasks.values()) and report.embedding_is_equal
    assert str(report).count("unchanged, bit for bit, on 9") == 3
    assert report.embedding_cosine == pytest.approx(1.0)


def test_what_moved_is_what_is_reported(model, features) -> None:
    """A head that moved is one, and leaves the embedding; the encoder moves all."""
    drift = drift_of(model, features, own=("entities",))
    with torch.no_grad():
        model.heads["entities"].out.bias[1] += 100.0
    report = drift.compare()
    assert report.tasks["rating"].is_equal and report.embedding_is_equal
    assert report.tasks["entities"].changed == 1.0 and not report.tasks["entities"].is_equal
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    report = drift.compare()
    assert not report.embedding_is_equal and report.embedding_cosine < 0.99
    assert not report.tasks["rating"].is_equal and report.tasks["rating"].changed > 0
    assert f"mean cosine {report.embedding_cosine:.4f}" in str(report)


def test_scores_on_own_rows_are_those_of_an_evaluation(model, features, tmp_path) -> None:
    """The same rows through the Trainer give the same number, for tags (padded), classes and pairs."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, label_names=["labels"], report_to="none")
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), model.config.tasks)
    trainer = MultiTaskTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        compute_metrics=MultiTaskMetrics(model.config.tasks),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    own = features.validation
    drift = HeadDrift(model, collator, list(own), {"topic": own["topic"]}, own)
    metrics = drift.compare().metrics()
    for name, rows in own.items():
        scores = trainer.evaluate(rows, metric_key_prefix="eval")
        measured = drift.compare().tasks[name]
        assert measured.before == measured.after == scores[f"eval_{measured.metric}"]
        assert metrics[f"drift_{name}_{measured.metric}_after"] == measured.after
        assert metrics[f"drift_{name}_rows"] == len(rows) == 9


def test_tags_of_padding_are_no_answers(features) -> None:
    """A row has as many logits, and labels, as the text has tokens, however long the others of its batch are."""
    rows = features.validation["entities"]
    collator = MultiTaskDataCollator(tiny_tokenizer("bert"), {"entities": SPECS["ner"]})
    lengths = [len(ids) for ids in rows["input_ids"][:]]
    assert len(set(lengths)) > 1, "premise"
    assert [len(labels) for labels in labels_of(collator, rows, "entities")] == lengths


def test_texts_are_drawn_evenly_and_not_too_many() -> None:
    """From the longest to the shortest."""
    from datasets import Dataset

    for rows in (1, TEXTS_A_TASK, TEXTS_A_TASK + 1, 1000):
        kept = drawn(Dataset.from_dict({"row": list(range(rows))}))["row"][:]
        assert kept[0] == 0 and len(kept) <= TEXTS_A_TASK
        assert len(set(map(int, tensor(kept).diff()))) <= 1
        assert rows - kept[-1] <= -(-rows // TEXTS_A_TASK)


def test_a_limit_refuses_what_is_beyond_it_and_allows_what_is_at_it() -> None:
    """The message names the worst task, the share, and the ways out."""
    tasks = {
        "ner": TaskDrift(rows=8, is_own=False, is_equal=False, changed=0.25),
        "topic": TaskDrift(rows=8, is_own=False, is_equal=False, changed=0.125),
    }
    report = DriftReport(tasks, embedding_cosine=0.9, embedding_is_equal=False)
    report.refuse_beyond(0.25, "outputs/x")
    with pytest.raises(
        ValueError, match="'ner' does on 0.2500 of 8.*not saved.*outputs/x.*--freeze encoder,projection"
    ):
        report.refuse_beyond(0.2, "outputs/x")


def test_a_change_of_bits_need_not_be_one_of_answers(model, features) -> None:
    """It is said, and counts for nothing."""
    drift = drift_of(model, features)
    with torch.no_grad():
        model.heads["rating"].out.bias += 1e-5
    rating = drift.compare().tasks["rating"]
    assert not rating.is_equal and rating.changed == 0.0
    assert "0.00% of answers changed" in str(rating)
