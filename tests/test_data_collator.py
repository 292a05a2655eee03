"""Batches are what `forward` reads: one row an item, padding on the right, holes where an item has no label."""

import inspect
import math

import pytest
import torch
from tiny_models import MAX_LENGTH, TINY_TASKS, tiny_encoder

from configuration_multitask import LABEL_PADDING, MultiTaskConfig
from data_collator import MultiTaskDataCollator, pad_rows
from modeling_multitask import MultiTaskModel

NAN = float("nan")
LABELS = {
    "anchor": [0.5, -1.0, 0.25],
    "ner": [-100, 1, 2, -100],
    "rating": 3.5,
    "similarity": 0.75,
    "tags": [1.0, 0.0, 0.0, 1.0],
    "topic": 2,
    "upos": [-100, 4, 0, -100],
}
"""A label of every task of `TINY_TASKS`, for an item of four tokens."""

HOLES = {
    "anchor": [NAN] * 3,
    "ner": [LABEL_PADDING] * 4,
    "rating": NAN,
    "similarity": NAN,
    "tags": [NAN] * 4,
    "topic": LABEL_PADDING,
    "upos": [LABEL_PADDING] * 4,
}
"""What stands in a batch where an item has no label of the task."""


@pytest.fixture
def collator(tokenizer, tiny_tasks):
    return MultiTaskDataCollator(tokenizer, tiny_tasks)


def item(tokens=4, pair_tokens=None, first=7, **labels):
    """A feature of `tokens` tokens with the given labels; with `pair_tokens` also a second text."""
    feature = {"input_ids": [2, *range(first, first + tokens - 2), 3], "labels": labels}
    if pair_tokens is not None:
        feature["pair_input_ids"] = [2, *range(first, first + pair_tokens - 2), 3]
    return feature


def as_lists(batch):
    """A batch with its tensors as lists."""
    return {k: as_lists(v) if isinstance(v, dict) else v.tolist() for k, v in batch.items()}


def same(found, expected):
    """Whether nested lists are equal, NaN being equal to NaN."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected or (math.isnan(expected) and math.isnan(found))


def test_the_example_of_the_docstring_is_true(collator):
    features = [
        {"input_ids": [2, 7, 3], "labels": {"topic": 1}},
        {"input_ids": [2, 8, 9, 3], "labels": {"ner": [-100, 0, 1, -100]}},
    ]
    expected = {
        "input_ids": [[2, 7, 3, 0], [2, 8, 9, 3]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
        "labels": {"ner": [[-100, -100, -100, -100], [-100, 0, 1, -100]], "topic": [1, -100]},
    }
    assert as_lists(collator(features)) == expected
    shown = "".join(inspect.getdoc(MultiTaskDataCollator).split())
    for name, value in expected["labels"].items():
        assert f'"{name}":{value}'.replace(" ", "") in shown
    for name in ("input_ids", "attention_mask"):
        assert f'"{name}":{expected[name]}'.replace(" ", "") in shown


@pytest.mark.parametrize("task_name", LABELS)
def test_every_kind_of_label_arrives_unchanged_and_a_missing_one_is_a_hole(collator, task_name):
    other = "topic" if task_name != "topic" else "rating"
    features = [
        item(pair_tokens=4, **{task_name: LABELS[task_name]}),
        item(pair_tokens=4, **{other: LABELS[other]}),
        item(pair_tokens=4, **{task_name: None, other: LABELS[other]}),
        item(pair_tokens=4, **{task_name: LABELS[task_name], other: LABELS[other]}),
    ]
    labels = collator(features)["labels"][task_name]
    label, hole = LABELS[task_name], HOLES[task_name]
    assert same(labels.tolist(), [label, hole, hole, label])
    is_integer = isinstance(torch.tensor(hole).flatten()[0].item(), int)
    assert labels.dtype == (torch.int64 if is_integer else torch.float32)


@pytest.mark.parametrize("task_name", LABELS)
def test_labels_of_one_task_alone_have_no_holes(collator, task_name):
    batch = collator([item(pair_tokens=4, **{task_name: LABELS[task_name]})] * 3)
    assert as_lists(batch)["labels"] == {task_name: [LABELS[task_name]] * 3}


def test_tags_are_padded_to_the_longest_item_even_if_that_has_none(collator):
    labels = collator([item(4, ner=LABELS["ner"]), item(9, topic=0)])["labels"]
    assert labels["ner"].tolist() == [[*LABELS["ner"], *[LABEL_PADDING] * 5], [LABEL_PADDING] * 9]


def test_only_tasks_with_a_label_in_the_batch_are_in_it_in_the_order_of_their_names(collator):
    batch = collator([item(topic=1, anchor=None), item(ner=LABELS["ner"], rating=None)])
    assert list(batch["labels"]) == ["ner", "topic"]


def test_a_batch_without_labels_has_none(collator):
    batch = collator([{"input_ids": [2, 7, 3]}])
    assert as_lists(batch) == {"input_ids": [[2, 7, 3]], "attention_mask": [[1, 1, 1]]}


def test_pairs_stand_apart_and_name_their_items(collator):
    pairs = [item(4, pair_tokens=6, similarity=0.5), item(5, pair_tokens=3, first=20, similarity=0)]
    features = [item(3, topic=1), *pairs]
    batch = collator(features)
    assert len(batch["input_ids"]) == len(batch["labels"]["similarity"]) == 3
    assert batch["pair_items"].tolist() == [1, 2]
    for row, index in enumerate(batch["pair_items"].tolist()):
        real = batch["pair_attention_mask"][row].bool()
        assert batch["pair_input_ids"][row][real].tolist() == features[index]["pair_input_ids"]
    assert batch["pair_input_ids"][1, 3:].tolist() == [collator.tokenizer.pad_token_id] * 3


def test_token_types_of_joint_pairs_are_padded_and_zero_for_single_texts(collator):
    joint = {"input_ids": [2, 7, 3, 8, 3], "token_type_ids": [0, 0, 0, 1, 1], "labels": {"topic": 0}}
    empty = {"input_ids": [2, 7, 3], "token_type_ids": None, "labels": {"topic": 0}}
    batch = collator([joint, item(3, topic=1), empty])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0] * 5, [0] * 5]
    assert "token_type_ids" not in collator([empty, item(3, topic=1)])


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_rounding_the_width_up_adds_only_padding(tokenizer, tiny_tasks, multiple):
    features = [
        item(5, pair_tokens=3, similarity=0.5) | {"token_type_ids": [0, 0, 1, 1, 1]},
        item(3, ner=[-100, 2, -100]),
    ]
    plain = MultiTaskDataCollator(tokenizer, tiny_tasks)(features)
    wide = MultiTaskDataCollator(tokenizer, tiny_tasks, pad_to_multiple_of=multiple)(features)
    flat_wide, flat_plain = {**wide, **wide["labels"]}, {**plain, **plain["labels"]}
    padding = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "ner": LABEL_PADDING}
    padding |= {"pair_input_ids": 0, "pair_attention_mask": 0}
    for name, value in padding.items():
        width = flat_plain[name].shape[1]
        assert flat_wide[name].shape[1] % multiple == 0
        assert flat_wide[name].shape[1] - width < multiple
        assert torch.equal(flat_wide[name][:, :width], flat_plain[name])
        assert (flat_wide[name][:, width:] == value).all()


def test_padding_is_the_tokenizers_own(collator):
    collator.tokenizer = type("Tokenizer", (), {"pad_token_id": 5})
    batch = collator([item(3, topic=0), item(5, pair_tokens=3, similarity=1.0), item(4, pair_tokens=4, similarity=1.0)])
    assert batch["input_ids"][0].tolist() == [2, 7, 3, 5, 5]
    assert batch["pair_input_ids"][0].tolist() == [2, 7, 3, 5]


def test_a_real_token_that_is_also_the_padding_is_not_masked(collator):
    """As where a tokenizer without a padding token pads with its end of text."""
    collator.tokenizer = type("Tokenizer", (), {"pad_token_id": 3})
    assert collator([item(3, topic=0), item(5, topic=0)])["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_pad_rows_pads_on_the_right_of_the_longest():
    assert pad_rows([[1], [2, 3], []], 9).tolist() == [[1, 9], [2, 3], [9, 9]]
    assert pad_rows([[1, 2, 3]], 9, multiple_of=2).tolist() == [[1, 2, 3, 9]]


def test_batch_keys_are_parameters_of_forward_and_the_model_reads_them(collator):
    features = [item(4, pair_tokens=5, **LABELS), item(3, topic=0) | {"length": 3, "row": 17}]
    features[0]["labels"]["anchor"] = [0.1] * 32
    features[0]["token_type_ids"] = [0, 0, 1, 1]
    batch = collator(features)
    assert set(batch) <= set(inspect.signature(MultiTaskModel.forward).parameters)
    assert not {"length", "row"} & set(batch)
    encoder = tiny_encoder("bert")
    output = MultiTaskModel(MultiTaskConfig(encoder.config, TINY_TASKS), encoder=encoder).eval()(**batch)
    assert set(output.task_losses) == set(LABELS)
    assert output.loss.isfinite()


def test_the_order_of_the_items_is_the_order_of_the_rows(collator):
    features = [item(3 + n, pair_tokens=3 + n, similarity=n / 10, topic=n) for n in range(3)]
    batch, reverse = collator(features), collator(features[::-1])
    for name in ("input_ids", "attention_mask", "pair_input_ids", "pair_attention_mask"):
        assert torch.equal(batch[name], reverse[name].flip(0))
    assert torch.equal(batch["labels"]["topic"], reverse["labels"]["topic"].flip(0))


def test_the_longest_text_a_tiny_encoder_reads_is_not_cut(collator):
    assert collator([item(MAX_LENGTH, topic=0), item(2, topic=1)])["attention_mask"].sum(1).tolist() == [MAX_LENGTH, 2]


def test_a_batch_without_items_is_refused(collator):
    with pytest.raises(ValueError, match="at least one item; got none"):
        collator([])


@pytest.mark.parametrize("labels", [{}, None, {"topic": None, "ner": None}])
def test_an_item_without_any_label_is_refused_with_its_row(collator, labels):
    bare = {"input_ids": [2, 7, 3], "labels": labels}
    with pytest.raises(ValueError, match=r"item 1 of the batch \(row 17 of its dataset\) has none"):
        collator([item(topic=1), bare | {"row": 17}])
    with pytest.raises(ValueError, match="item 1 of the batch has none"):
        collator([item(topic=1), bare])


def test_a_label_of_an_unknown_task_is_refused_naming_the_known_ones(collator):
    with pytest.raises(ValueError, match=r"unknown tasks \['topics'\]; the model's tasks are: anchor, ner, .*, upos"):
        collator([item(topics=1)])


@pytest.mark.parametrize("tags", [[-100, 0, -100], [-100, 0, 1, 2, -100], []])
def test_tags_that_are_not_one_a_token_are_refused(collator, tags):
    """Neither cut to the width of the batch nor moved against the tokens."""
    features = [item(9, topic=1), item(4, ner=tags) | {"row": 17}]
    with pytest.raises(ValueError, match=rf"'ner'.*item 1 of the batch \(row 17 of .*\) has {len(tags)} .* 4 tokens"):
        collator(features)


def test_a_similarity_without_a_second_text_is_refused(collator):
    """Its cosine is NaN, and one NaN in the loss is NaN in every weight."""
    with pytest.raises(ValueError, match="'similarity'.*pair_input_ids.*item 1 of the batch has none"):
        collator([item(pair_tokens=3, similarity=0.5), item(similarity=0.5)])
