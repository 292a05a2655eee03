"""The training order keeps its promises: shares, even passes, whole steps, and nothing but its arguments in it."""

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from data_collator import MultiTaskDataCollator
from task_sampler import (
    GROUPINGS,
    STRATEGIES,
    TaskSamplingDataset,
    dataset_lengths,
    largest_remainder,
    task_shares,
)

SIZES = {"ner": 90, "similarity": 33, "topic": 240}
SHARES = {"ner": 1.0, "similarity": 0.5, "topic": 2.5}


def rows(name, size, longest=40):
    """A dataset of `size` features whose lengths, 3 to `longest`, are unlike from task to task."""
    lengths = np.random.default_rng(len(name)).integers(3, longest, size)
    return [
        {"input_ids": [2, *[7] * (int(length) - 2), 3], "labels": {name: row % 3}, "row": row}
        for row, length in enumerate(lengths)
    ]


def sampling(strategy="temperature", sizes=SIZES, **options):
    """A `TaskSamplingDataset` over new datasets of the given sizes."""
    if strategy == "shares":
        options.setdefault("shares", SHARES)
    options = {"rows_per_step": 8, "num_epochs": 3} | options
    return TaskSamplingDataset({name: rows(name, size) for name, size in sizes.items()}, strategy, **options)


def counts_of(order, number):
    """Rows of each dataset in an order. Shape (number,)."""
    return np.bincount(order[:, 0], minlength=number)


def seen(dataset, epochs):
    """Counter of (dataset, row) over the first epochs."""
    return Counter(tuple(place) for epoch in range(epochs) for place in dataset.order(epoch).tolist())


def names_and_rows(features):
    """(task, row) of features as `__getitem__` gives them."""
    return [(next(iter(feature["labels"])), feature["row"]) for feature in features]


def keep(features):
    """A collator that collates nothing."""
    return features


# Shares


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch_draws_every_share_to_the_nearest_row(strategy, grouping):
    dataset = sampling(strategy, grouping=grouping)
    for epoch in range(3):
        found = counts_of(dataset.order(epoch), 3)
        assert found.tolist() == dataset.counts(epoch).tolist()
        assert found.sum() == len(dataset)
        shares = task_shares(dataset.sizes, strategy, 2.0, 2**18, np.array(list(SHARES.values())), epoch / 2)
        unit = dataset.rows_per_step if strategy == "alternating" else 1
        assert (np.abs(found - shares * len(dataset)) < unit).all()


def test_shares_are_the_published_formulas():
    sizes = np.array([90, 33, 240])

    def share(strategy, temperature=2.0, cap=None, progress=0.0):
        return task_shares(sizes, strategy, temperature, cap, np.array([1.0, 0.5, 2.5]), progress)

    def normalised(weights):
        return np.asarray(weights) / np.sum(weights)

    assert np.allclose(share("proportional"), sizes / 363)
    assert np.allclose(share("uniform"), 1 / 3)
    assert np.allclose(share("alternating"), 1 / 3)
    assert np.allclose(share("shares"), [0.25, 0.125, 0.625])
    assert np.allclose(share("temperature"), normalised(np.sqrt(sizes)))
    assert np.allclose(share("temperature", cap=50), normalised(np.sqrt([50, 33, 50])))
    assert np.allclose(share("temperature", temperature=1.0), share("proportional"))
    assert np.allclose(share("temperature", temperature=1e9), share("uniform"))
    assert np.allclose(share("annealed"), share("proportional"))
    assert np.allclose(share("annealed", progress=1.0), normalised(sizes**0.2))
    assert np.allclose(share("annealed", cap=50, progress=0.5), normalised(np.array([50, 33, 50]) ** 0.6))


@settings(deadline=None)
@given(
    shares=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20),
    total=st.integers(0, 10_000),
)
def test_largest_remainder_meets_the_total_and_every_share_within_one(shares, total):
    shares = np.array(shares)
    counts = largest_remainder(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares / shares.sum() * total) < 1 + 1e-9).all()


def test_largest_remainder_gives_ties_to_the_first():
    assert largest_remainder(np.ones(3), 4).tolist() == [2, 1, 1]
    assert largest_remainder(np.array([0.1, 0.5, 0.4]), 7).tolist() == [1, 3, 3]


def test_annealing_moves_from_proportional_towards_equal_shares():
    dataset = sampling("annealed", num_epochs=5)
    counts = np.array([dataset.counts(epoch) for epoch in range(5)])
    assert counts[0].tolist() == sampling("proportional").counts(0).tolist()
    distance = np.abs(counts - len(dataset) / 3).sum(1)
    assert (np.diff(distance) < 0).all()
    assert counts[4][1] < len(dataset) / 3  # towards equal, not equal
    assert dataset.counts(9).tolist() == counts[4].tolist()  # epochs beyond the plan stay at its end
    assert np.array_equal(counts_of(dataset.order(4), 3), counts[4])


def test_the_order_of_the_mapping_changes_nothing():
    data = {name: rows(name, size) for name, size in SIZES.items()}
    turned = TaskSamplingDataset(dict(reversed(data.items())), rows_per_step=8)
    assert np.array_equal(turned.order(0), TaskSamplingDataset(data, rows_per_step=8).order(0))
    assert turned.names == sorted(SIZES)


# Rows and steps


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_come_without_replacement_across_epochs(strategy, grouping):
    dataset, epochs = sampling(strategy, grouping=grouping), 5
    found = seen(dataset, epochs)
    drawn = sum(dataset.counts(epoch) for epoch in range(epochs))
    for index, size in enumerate(dataset.sizes):
        times = [found[index, row] for row in range(size)]
        assert set(times) <= {math.floor(drawn[index] / size), math.ceil(drawn[index] / size)}
        assert sum(times) == drawn[index]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    rows_per_step=st.integers(1, 40),
    strategy=st.sampled_from([strategy for strategy in STRATEGIES if strategy != "shares"]),
    grouping=st.sampled_from(GROUPINGS),
    epochs=st.integers(1, 4),
)
def test_any_sizes_give_whole_steps_and_even_passes(sizes, rows_per_step, strategy, grouping, epochs):
    data = {f"task_{index}": rows("x", size, longest=9) for index, size in enumerate(sizes)}
    dataset = TaskSamplingDataset(data, strategy, 1, rows_per_step, epochs, grouping)
    assert len(dataset) == max(1, sum(sizes) // rows_per_step) * rows_per_step
    found = seen(dataset, epochs)
    assert sum(found.values()) == epochs * len(dataset)
    for index, size in enumerate(sizes):
        times = [found.pop((index, row), 0) for row in range(size)]
        assert max(times) - min(times) <= 1
    assert not found  # no row that does not exist


def test_the_rows_left_over_by_whole_steps_come_in_the_next_epoch():
    dataset = sampling("proportional", {"topic": 10}, rows_per_step=8)
    assert len(dataset) == 8
    left_over = set(range(10)) - set(dataset.order(0)[:, 1].tolist())
    assert len(left_over) == 2
    assert left_over <= set(dataset.order(1)[:, 1].tolist())
    assert set(seen(dataset, 5).values()) == {4}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fewer_rows_than_a_step_make_one_step_in_which_rows_repeat(strategy, grouping):
    shares = {"a": 1.0, "b": 3.0} if strategy == "shares" else None
    sizes = {"a": 2, "b": 3}
    dataset = sampling(strategy, sizes, rows_per_step=16, grouping=grouping, shares=shares)
    assert len(dataset) == 16
    assert len([dataset[place] for place in range(16)]) == 16
    found = seen(dataset, 4)
    for index, size in enumerate(sizes.values()):
        times = [found[index, row] for row in range(size)]
        assert max(times) - min(times) <= 1
        assert min(times) >= 1
    assert str(dataset.plan(4)).count("\n") == 3


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "shares"])
def test_one_dataset_is_all_of_the_plan(strategy):
    dataset = sampling(strategy, {"topic": 50}, rows_per_step=8)
    assert counts_of(dataset.order(0), 1).tolist() == [48]
    assert sorted(dataset.order(0)[:, 1].tolist()) == sorted(set(dataset.order(0)[:, 1].tolist()))
    assert dataset.plan(8).purity == 1.0


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "shares"])
def test_twenty_datasets_are_all_drawn(strategy):
    sizes = {f"task_{number:02}": 10 + 3 * number for number in range(20)}
    dataset = sampling(strategy, sizes, rows_per_step=16)
    drawn = sum(dataset.counts(epoch) for epoch in range(3))
    assert drawn.sum() == 3 * len(dataset)
    assert drawn.min() > 0
    assert len(dataset.plan(16).tasks) == 20


def test_alternating_takes_turns_where_an_epoch_has_fewer_steps_than_datasets():
    dataset = sampling("alternating", {f"task_{number}": 4 for number in range(5)}, rows_per_step=8, num_epochs=5)
    assert dataset.steps_per_epoch == 2
    drawn = np.array([dataset.counts(epoch) for epoch in range(5)])
    assert set(drawn.flatten().tolist()) == {0, 8}
    assert drawn.sum(0).tolist() == [16] * 5


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_alternating_gives_whole_steps_of_one_dataset_in_turn(grouping):
    dataset = sampling("alternating", grouping=grouping)
    for epoch in range(3):
        steps = dataset.order(epoch)[:, 0].reshape(-1, dataset.rows_per_step)
        assert (steps == steps[:, :1]).all()
        owners = steps[:, 0]
        for start in range(0, len(owners) - 2, 3):
            assert sorted(owners[start : start + 3]) == [0, 1, 2]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_other_strategies_mix_the_datasets_along_the_epoch(grouping):
    """No part of an epoch is without a dataset: a quarter has its share, give or take."""
    order = sampling("proportional", {"a": 4000, "b": 4000}, grouping=grouping).order(0)
    for quarter in np.split(order, 4):
        assert 0.4 < quarter[:, 0].mean() < 0.6


# What the order depends on


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    order = sampling().order(1)
    assert np.array_equal(order, sampling().order(1))
    assert not np.array_equal(order, sampling(seed=43).order(1))
    assert not np.array_equal(order, sampling().order(0))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002  # the global state of old, which must not matter
    assert np.array_equal(order, sampling().order(1))


def test_an_epoch_does_not_depend_on_the_ones_read_before():
    straight, jumping = sampling(), sampling()
    orders = [straight.order(epoch) for epoch in range(3)]
    for epoch in (2, 0, 1, 2):
        assert np.array_equal(jumping.order(epoch), orders[epoch])


def test_another_process_with_other_string_hashes_makes_the_same_order(repository):
    program = (
        "from task_sampler import TaskSamplingDataset\n"
        "data = {n: [{'input_ids': [1] * (row % 7 + 1)} for row in range(50)] for n in ('b', 'a', 'topic')}\n"
        "hashes = [TaskSamplingDataset(data, s, grouping=g, rows_per_step=8).plan(4).order_hash"
        " for s in ('temperature', 'alternating') for g in ('length', 'none')]\n"
    )
    here: dict[str, list[str]] = {}
    exec(program, here)
    other = subprocess.run(
        [sys.executable, "-c", f"{program}print(*hashes)"],
        env={**os.environ, "PYTHONPATH": str(repository), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == here["hashes"]
    assert len(set(here["hashes"])) == 4


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 8), (1, 2), (2, 4), (2, 2), (4, 1), (8, 1)])
def test_ranks_and_accumulation_read_the_same_global_sequence(ranks, micro_batch):
    """Rank r of W reads micro-batches r, r + W, ...; all of a step together are that step of the plan."""
    dataset = sampling(rows_per_step=8)
    shards = [
        list(BatchSamplerShard(BatchSampler(SequentialSampler(dataset), micro_batch, drop_last=False), ranks, rank))
        for rank in range(ranks)
    ]
    turns = list(zip(*shards, strict=True))
    read = [place for turn in turns for batch in turn for place in batch]
    assert read == list(range(len(dataset)))
    assert {len(batch) for turn in turns for batch in turn} == {micro_batch}
    batches = dataset.micro_batches(0, micro_batch)
    assert all(np.array_equal(dataset.order(0)[batch], next(batches)) for turn in turns for batch in turn)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_read_the_order_of_the_epoch_that_was_set(persistent):
    """A persistent worker keeps its copy of the dataset: only the epoch in shared memory reaches it."""
    dataset = sampling(sizes={"a": 20, "b": 12})
    loader = DataLoader(dataset, batch_size=8, num_workers=2, persistent_workers=persistent, collate_fn=keep)
    check_epochs(dataset, loader)


@pytest.mark.slow
def test_spawned_workers_read_the_order_of_the_epoch_that_was_set():
    dataset = sampling(sizes={"a": 20, "b": 12})
    spawned = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"}
    check_epochs(dataset, DataLoader(dataset, batch_size=8, collate_fn=keep, **spawned))


def check_epochs(dataset, loader):
    """Assert that a loader gives each epoch's order after `set_epoch`, and that epochs differ."""
    epochs = []
    for epoch in (0, 1, 2, 1):
        dataset.set_epoch(epoch)
        assert dataset.epoch == epoch
        epochs.append(names_and_rows([feature for batch in loader for feature in batch]))
        order = sampling(sizes={"a": 20, "b": 12}).order(epoch).tolist()
        assert epochs[-1] == [(dataset.names[index], row) for index, row in order]
    assert epochs[1] == epochs[3] != epochs[0] != epochs[2] != epochs[1]


def test_places_are_features_of_the_order():
    dataset = sampling()
    assert names_and_rows(dataset[place] for place in range(len(dataset))) == [
        (dataset.names[index], row) for index, row in dataset.order(0).tolist()
    ]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


# Grouping by length


def padding_by_collator(dataset, tokenizer, micro_batch):
    """Share of padding in the first epoch's batches as the collator makes them."""
    tasks = {name: {"kind": "text-classification", "labels": ["a", "b", "c"]} for name in dataset.names}
    masks = [
        batch["attention_mask"]
        for batch in DataLoader(dataset, batch_size=micro_batch, collate_fn=MultiTaskDataCollator(tokenizer, tasks))
    ]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize("strategy", ["temperature", "alternating"])
def test_grouping_by_length_pads_less_and_draws_the_same_rows(strategy):
    grouped, mixed = sampling(strategy, grouping="length"), sampling(strategy, grouping="none")
    assert grouped.plan(8).padding < 0.3 * mixed.plan(8).padding
    for epoch in range(3):
        assert Counter(map(tuple, grouped.order(epoch).tolist())) == Counter(map(tuple, mixed.order(epoch).tolist()))


def test_grouping_shuffles_the_steps():
    """The length of a step says nothing about its time: no drift from short to long."""
    dataset = sampling(sizes={"a": 400})
    lengths = dataset_lengths(rows("a", 400))[dataset.order(0)[:, 1]].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.3


def test_lengths_are_those_of_the_column_or_of_the_tokens():
    features = rows("topic", 30)
    counted = dataset_lengths(features)
    assert counted.tolist() == [len(feature["input_ids"]) for feature in features]
    arrow = datasets.Dataset.from_list([feature | {"length": len(feature["input_ids"])} for feature in features])
    assert dataset_lengths(arrow).tolist() == counted.tolist()
    assert dataset_lengths(arrow.select(range(29, -1, -1))).tolist() == counted.tolist()[::-1]
    assert dataset_lengths(arrow.remove_columns("length")).tolist() == counted.tolist()


def test_arrow_datasets_and_lists_make_the_same_order():
    data = {name: rows(name, size) for name, size in SIZES.items()}
    arrow = {
        name: datasets.Dataset.from_list([row | {"length": len(row["input_ids"])} for row in features])
        for name, features in data.items()
    }
    first, second = (TaskSamplingDataset(source, rows_per_step=8) for source in (data, arrow))
    assert np.array_equal(first.order(0), second.order(0))
    assert first[5] == {name: value for name, value in second[5].items() if name != "length"}


# The plan


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("micro_batch", [8, 4, 2])
def test_the_plan_states_what_training_will_see(tokenizer, grouping, micro_batch):
    dataset = sampling(grouping=grouping)
    plan = dataset.plan(micro_batch)
    found = seen(dataset, 3)
    for index, task in enumerate(plan.tasks):
        drawn = sum(times for (of_dataset, _), times in found.items() if of_dataset == index)
        assert (task.name, task.rows, task.drawn) == (dataset.names[index], SIZES[dataset.names[index]], drawn)
        assert task.passes == drawn / task.rows
        assert task.share == pytest.approx(drawn / sum(found.values()))
    assert plan.steps_per_epoch * plan.rows_per_step == len(dataset)
    assert plan.num_epochs == 3
    assert plan.padding == pytest.approx(padding_by_collator(dataset, tokenizer, micro_batch))
    batches = dataset.order(0)[:, 0].reshape(-1, micro_batch).tolist()
    assert plan.purity == pytest.approx(np.mean([Counter(b).most_common(1)[0][1] / micro_batch for b in batches]))
    assert plan.order_hash == hashlib.sha256(dataset.order(0).tobytes()).hexdigest()[:12]


def test_the_printed_plan_has_a_line_a_dataset_and_the_totals():
    plan = sampling("proportional", {"news": 1500, "a_long_name": 500}, rows_per_step=100).plan(50)
    head, first, second, totals = str(plan).splitlines()
    assert head.split() == ["data", "rows", "drawn", "passes", "share"]
    assert first.split() == ["a_long_name", "500", "1,500", "3.00", "25.0%"]
    assert second.split() == ["news", "1,500", "4,500", "3.00", "75.0%"]
    assert len({len(line) for line in (head, first, second)}) == 1
    assert totals.startswith("3 epochs x 20 steps x 100 rows; padding ")
    assert totals.endswith(plan.order_hash)


def test_an_alternating_batch_is_one_dataset():
    assert sampling("alternating").plan(4).purity == 1.0
    assert sampling("uniform", grouping="none").plan(4).purity < 0.9


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "temprature"}, "strategy must be one of proportional, .*; got 'temprature'. Did you mean 'temp"),
        ({"grouping": "lengths"}, "grouping must be one of length, none; got 'lengths'. Did you mean 'length'"),
        ({"temperature": 0.5}, r"temperature must be at least 1 \(proportional\); got 0.5"),
        ({"temperature": float("nan")}, "temperature must be at least 1 .*; got nan"),
        ({"cap": 0}, "cap must be at least 1, or None for no cap; got 0"),
        ({"rows_per_step": 0}, "rows_per_step and num_epochs must be positive; got 0 and 3"),
        ({"num_epochs": 0}, "rows_per_step and num_epochs must be positive; got 8 and 0"),
        ({"sizes": {"a": 3, "b": 0, "c": 0}}, r"Every dataset needs rows; \['b', 'c'\]"),
        ({"sizes": {}}, "Every dataset needs rows; no datasets"),
        ({"shares": SHARES}, "shares are given, but strategy is 'temperature'. Set the strategy to 'shares'"),
        ({"strategy": "shares", "shares": None}, "needs a positive share for each of ner, similarity, topic; got {}"),
        ({"strategy": "shares", "shares": {"ner": 1, "topic": 1}}, "for each of ner, similarity, topic; got {'ner': 1"),
        ({"strategy": "shares", "shares": SHARES | {"sst": 1}}, "for each of ner, similarity, topic; got .*'sst': 1"),
        ({"strategy": "shares", "shares": SHARES | {"ner": 0}}, "Remove a dataset from the recipe to leave it out"),
        ({"strategy": "shares", "shares": SHARES | {"ner": math.inf}}, "needs a positive share for each of ner"),
    ],
)
def test_wrong_arguments_are_refused_with_a_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        sampling(**options)
