"""Which row of which task comes next: a map-style dataset whose order is the training plan.

`TaskSamplingDataset` is read in sequence by the stock `Trainer` (`train_sampling_strategy="sequential"`): mixing,
shuffling and grouping by length are already in its order, a pure function of (seed, epoch, index). It loads no data of
its own and trains nothing.

    dataset = TaskSamplingDataset({"topic": topic, "ner": ner}, rows_per_step=64, num_epochs=3)
    print(dataset.plan(micro_batch_rows=32))
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from configuration_multitask import nearest_name

STRATEGIES = ("proportional", "uniform", "temperature", "annealed", "shares", "alternating")
GROUPINGS = ("length", "none")
STEPS_PER_WINDOW = 400
"""Steps whose rows are sorted by length together: longer windows pad less and mix less."""


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}.{nearest_name(value, choices)}")


def check_sampling(strategy: str, grouping: str, temperature: float, cap: int | None) -> None:
    """Raise ValueError for an unknown strategy or grouping, or a temperature or cap below 1; before data is read."""
    check_choice("strategy", strategy, STRATEGIES)
    check_choice("grouping", grouping, GROUPINGS)
    if not temperature >= 1.0:  # NaN too
        raise ValueError(f"temperature must be at least 1 (proportional); got {temperature}.")
    if cap is not None and cap < 1:
        raise ValueError(f"cap must be at least 1, or None for no cap; got {cap}.")


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, as close to `shares * total` as can be. Shape (tasks,), int64."""
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")  # largest remainder first, ties by task order
    counts[order[: total - counts.sum()]] += 1
    return counts


def task_shares(
    sizes: np.ndarray, strategy: str, temperature: float, cap: int | None, explicit: np.ndarray | None, progress: float
) -> np.ndarray:
    """Each task's share of an epoch's rows, summing to 1. Shape (tasks,), float64.

    - proportional: share ~ size.
    - uniform, alternating: equal shares.
    - temperature: share ~ min(size, cap) ** (1 / temperature) (Raffel et al. 2020, section 3.5.2,
      https://arxiv.org/abs/1910.10683; temperature 2 with a cap was the best there, equal mixing the worst).
    - annealed: share ~ min(size, cap) ** (1 - 0.8 * progress), from proportional towards equal (Stickland and Murray
      2019, section 4.1, https://arxiv.org/abs/1902.02671).
    - shares: as given.

    Args:
        sizes (np.ndarray): Rows of each task. Shape (tasks,).
        strategy (str): One of `STRATEGIES`.
        temperature (float): At least 1 (proportional); towards infinity shares become equal.
        cap (int): Sizes count at most this much for `temperature` and `annealed`; None for no cap.
        explicit (np.ndarray): The shares of strategy `shares`, any positive scale. Shape (tasks,).
        progress (float): 0 in the first epoch, 1 in the last.
    """
    capped = np.minimum(sizes, np.inf if cap is None else cap)
    weights = {
        "proportional": sizes,
        "uniform": np.ones(len(sizes)),
        "alternating": np.ones(len(sizes)),
        "temperature": capped ** (1.0 / temperature),
        "annealed": capped ** (1.0 - 0.8 * progress),
        "shares": explicit,
    }[strategy]
    return np.asarray(weights, dtype=np.float64) / np.sum(weights)


@dataclass(frozen=True)
class TaskPlan:
    """What a run will see of one dataset: rows it has, rows drawn in all epochs, passes over it, share of the draws."""

    name: str
    rows: int
    drawn: int
    share: float

    @property
    def passes(self) -> float:
        """How often each row is seen, on average."""
        return self.drawn / self.rows


@dataclass(frozen=True)
class SamplingPlan:
    """The training plan in figures; `str()` of it is the table that is printed before training.

    Attributes:
        tasks: One entry a dataset.
        steps_per_epoch: Optimizer steps an epoch.
        num_epochs: Epochs planned.
        rows_per_step: Items an optimizer step, over all ranks and accumulation.
        padding: Share (0-1) of token places in the first epoch's micro-batches that are padding.
        purity: Mean share (0-1) of a micro-batch's most frequent dataset; 1 = every micro-batch holds one dataset.
        order_hash: Hash of the first epoch's order: equal hash, equal order.
    """

    tasks: tuple[TaskPlan, ...]
    steps_per_epoch: int
    num_epochs: int
    rows_per_step: int
    padding: float
    purity: float
    order_hash: str

    def __str__(self) -> str:
        """The plan as a table and a line of totals."""
        width = max(4, *(len(task.name) for task in self.tasks))
        lines = [f"{'data':<{width}}  {'rows':>9}  {'drawn':>9}  {'passes':>6}  {'share':>6}"]
        lines += [
            f"{task.name:<{width}}  {task.rows:>9,}  {task.drawn:>9,}  {task.passes:>6.2f}  {task.share:>6.1%}"
            for task in self.tasks
        ]
        lines.append(
            f"{self.num_epochs} epochs x {self.steps_per_epoch:,} steps x {self.rows_per_step} rows; padding "
            f"{self.padding:.1%}; a batch is {self.purity:.0%} one dataset on average; order {self.order_hash}"
        )
        return "\n".join(lines)


class TaskSamplingDataset(Dataset):
    """Rows of several datasets in the order in which training reads them.

    Its length is one epoch: the datasets' rows in sum, cut down to whole optimizer steps (at least one). Each epoch
    draws from every dataset its share, met exactly; a dataset's rows come without replacement, and where an epoch ends
    in the middle of a pass over it, the next epoch goes on from there. The order depends on `rows_per_step` alone, so
    that ranks, accumulation and workers do not change it: rank r of W reads micro-batches r, r + W, ... of the same
    sequence.

    The epoch is set by the data loader (`set_epoch`) and lives in shared memory, so that persistent workers see it.

    Args:
        datasets (dict): Name -> map-style dataset of features; names and order decide the plan (sorted by name here).
        strategy (str): One of `STRATEGIES`; see `task_shares`. `alternating` gives whole steps to one dataset, in turn.
        seed (int): Decides shuffling.
        rows_per_step (int): Items an optimizer step: batch size x ranks x accumulation.
        num_epochs (int): Epochs planned (annealing ends in the last).
        grouping (str): `length`: rows of like length share a step; `none`: they are mixed at random.
        temperature (float): For strategy `temperature`; at least 1.
        cap (int): Sizes count at most this much in `temperature` and `annealed`.
        shares (dict): Name -> share for strategy `shares`, any positive scale.

    Raises:
        ValueError: for an empty dataset, an unknown strategy or grouping, a temperature or cap below 1, or shares that
            do not match the names.
    """

    def __init__(
        self,
        datasets: dict[str, Any],
        strategy: str = "temperature",
        seed: int = 42,
        rows_per_step: int = 32,
        num_epochs: int = 1,
        grouping: str = "length",
        temperature: float = 2.0,
        cap: int | None = 2**18,
        shares: dict[str, float] | None = None,
    ):
        check_sampling(strategy, grouping, temperature, cap)
        if rows_per_step < 1 or num_epochs < 1:
            raise ValueError(f"rows_per_step and num_epochs must be positive; got {rows_per_step} and {num_epochs}.")
        empty = [name for name, dataset in datasets.items() if len(dataset) == 0]
        if empty or not datasets:
            raise ValueError(f"Every dataset needs rows; {empty or 'no datasets'} has none. Remove it from the recipe.")
        self.names = sorted(datasets)
        self.datasets = [datasets[name] for name in self.names]
        self.strategy, self.grouping = strategy, grouping
        self.seed, self.rows_per_step, self.num_epochs = seed, rows_per_step, num_epochs
        self.temperature, self.cap = temperature, cap
        self.shares = self._checked_shares(shares)
        self.sizes = np.array([len(dataset) for dataset in self.datasets], dtype=np.int64)
        self.lengths = [dataset_lengths(dataset) for dataset in self.datasets]
        self.steps_per_epoch = max(1, int(self.sizes.sum()) // rows_per_step)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._cached_epoch, self._order = -1, np.empty((0, 2), dtype=np.int64)

    def _checked_shares(self, shares: dict[str, float] | None) -> np.ndarray | None:
        if self.strategy != "shares":
            if shares:
                raise ValueError(f"shares are given, but strategy is {self.strategy!r}. Set the strategy to 'shares'.")
            return None
        shares = shares or {}
        if sorted(shares) != self.names or not all(0 < share < np.inf for share in shares.values()):
            raise ValueError(
                f"Strategy 'shares' needs a positive share for each of {', '.join(self.names)}; got {shares}. "
                "Remove a dataset from the recipe to leave it out."
            )
        return np.array([shares[name] for name in self.names])

    def __len__(self) -> int:
        """Rows an epoch: a whole number of steps."""
        return self.steps_per_epoch * self.rows_per_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The feature at a place of the current epoch's order."""
        dataset, row = self.order(self.epoch)[index]
        return self.datasets[dataset][int(row)]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The features at several places, each dataset's read at once where it can (an Arrow dataset's in a tenth)."""
        places = self.order(self.epoch)[list(indices)]
        features: list[dict[str, Any]] = [{}] * len(places)
        for number in np.unique(places[:, 0]).tolist():
            dataset, chosen = self.datasets[number], np.flatnonzero(places[:, 0] == number)
            rows = places[chosen, 1].tolist()
            read = dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[row] for row in rows]
            for place, feature in zip(chosen.tolist(), read, strict=True):
                features[place] = feature
        return features

    @property
    def epoch(self) -> int:
        """The epoch whose order is read."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Read the order of `epoch` from now on, in every worker. Epochs count from 0."""
        self._epoch.fill_(int(epoch))

    def read_from(self, datasets: dict[str, Any]) -> None:
        """Read the same rows from other datasets from now on; the order stays.

        Args:
            datasets (dict): The names of now -> datasets of as many rows each.
        """
        if {name: len(dataset) for name, dataset in datasets.items()} != dict(
            zip(self.names, self.sizes.tolist(), strict=True)
        ):
            raise ValueError("Rows are read elsewhere only under the same names, and as many of each.")
        self.datasets = [datasets[name] for name in self.names]

    def order(self, epoch: int) -> np.ndarray:
        """Dataset index and row of every place of an epoch. Shape (len(self), 2), int64."""
        if epoch != self._cached_epoch:
            self._order, self._cached_epoch = self._epoch_order(epoch), epoch
        return self._order

    def counts(self, epoch: int) -> np.ndarray:
        """Rows drawn from each dataset in an epoch. Shape (datasets,), int64."""
        progress = min(1.0, epoch / max(1, self.num_epochs - 1))
        shares = task_shares(self.sizes, self.strategy, self.temperature, self.cap, self.shares, progress)
        if self.strategy == "alternating":  # whole steps; where they do not go up, each dataset is first in turn
            turns = np.roll(largest_remainder(np.roll(shares, -epoch), self.steps_per_epoch), epoch)
            return turns * self.rows_per_step
        return largest_remainder(shares, len(self))

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _stream(self, dataset: int, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of the endless stream of shuffled passes over a dataset."""
        size = int(self.sizes[dataset])
        first, last = start // size, (start + count - 1) // size
        passes = [self._generator(1, dataset, number).permutation(size) for number in range(first, last + 1)]
        return np.concatenate(passes)[start - first * size :][:count] if count else np.empty(0, dtype=np.int64)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        before = np.sum([self.counts(past) for past in range(epoch)], axis=0) if epoch else np.zeros_like(self.sizes)
        counts = self.counts(epoch)
        drawn = [self._stream(d, int(before[d]), int(counts[d])) for d in range(len(self.names))]
        generator = self._generator(0, epoch)
        if self.strategy == "alternating":
            return self._alternate(drawn, generator)
        order = np.concatenate([np.stack([np.full_like(rows, d), rows], axis=1) for d, rows in enumerate(drawn)])
        order = order[generator.permutation(len(order))]
        return self._group(order, generator) if self.grouping == "length" else order

    def _row_lengths(self, order: np.ndarray) -> np.ndarray:
        """Tokens of every row of an order. Shape (len(order),)."""
        lengths = np.empty(len(order), dtype=np.int64)
        for dataset, of_dataset in enumerate(self.lengths):
            chosen = order[:, 0] == dataset
            lengths[chosen] = of_dataset[order[chosen, 1]]
        return lengths

    def _group(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sort windows of steps by length, then shuffle the steps: like lengths meet, and their order says nothing."""
        lengths = self._row_lengths(order)
        window = STEPS_PER_WINDOW * self.rows_per_step
        starts = range(0, len(order), window)
        parts = [start + np.argsort(lengths[start : start + window], kind="stable") for start in starts]
        steps = order[np.concatenate(parts)].reshape(-1, self.rows_per_step, 2)
        return steps[generator.permutation(len(steps))].reshape(-1, 2)

    def _alternate(self, drawn: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """Whole steps of one dataset, taking turns; grouped by length inside each dataset."""
        steps = []
        for dataset, rows in enumerate(drawn):
            order = np.stack([np.full_like(rows, dataset), rows], axis=1)
            if self.grouping == "length" and len(order):
                order = self._group(order, generator)
            steps.append(order.reshape(-1, self.rows_per_step, 2))
        turns = sorted((number / len(own), d, number) for d, own in enumerate(steps) for number in range(len(own)))
        return np.concatenate([steps[dataset][number] for _, dataset, number in turns])

    def micro_batches(self, epoch: int, rows: int) -> Iterator[np.ndarray]:
        """The order of an epoch in batches of `rows`. Each of shape (rows, 2)."""
        order = self.order(epoch)
        for start in range(0, len(order), rows):
            yield order[start : start + rows]

    def step_items(self, step: int) -> list[tuple[str, dict[str, Any]]]:
        """Dataset name and feature of every item of an optimizer step, counted from 0 through all epochs.

        They are in the order of reading: micro-batch by micro-batch, rank 0's before rank 1's.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        places = self.order(epoch)[place * self.rows_per_step :][: self.rows_per_step]
        return [(self.names[index], self.datasets[index][int(row)]) for index, row in places.tolist()]

    def plan(self, micro_batch_rows: int) -> SamplingPlan:
        """What training will see, in figures.

        Args:
            micro_batch_rows (int): Items one forward pass of one rank holds (`per_device_train_batch_size`).
        """
        drawn = np.sum([self.counts(epoch) for epoch in range(self.num_epochs)], axis=0)
        places = tokens = 0
        purities = []
        for batch in self.micro_batches(0, micro_batch_rows):
            lengths = self._row_lengths(batch)
            places += int(lengths.max()) * len(lengths)
            tokens += int(lengths.sum())
            purities.append(np.bincount(batch[:, 0]).max() / len(batch))
        return SamplingPlan(
            tasks=tuple(
                TaskPlan(name, int(size), int(count), float(count / drawn.sum()))
                for name, size, count in zip(self.names, self.sizes, drawn, strict=True)
            ),
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.num_epochs,
            rows_per_step=self.rows_per_step,
            padding=1.0 - tokens / places,
            purity=float(np.mean(purities)),
            order_hash=hashlib.sha256(np.ascontiguousarray(self.order(0)).tobytes()).hexdigest()[:12],
        )


def dataset_lengths(dataset: Any) -> np.ndarray:
    """Tokens of every row: the `length` column of an Arrow dataset, else counted row by row. Shape (rows,), int64."""
    if "length" in (getattr(dataset, "column_names", None) or []):
        return np.asarray(dataset.with_format("numpy")["length"][:], dtype=np.int64)
    return np.array([len(dataset[row]["input_ids"]) for row in range(len(dataset))], dtype=np.int64)
