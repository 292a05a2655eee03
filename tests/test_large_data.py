"""Memory grows by bytes a row, not by Python objects: from the file to the first batch, whatever the number of rows.

The figures for 2,000,000 rows are in `benchmarks/results/large_data.json`; here two small sizes are compared, by what
Python allocates (numpy arrays included), so that neither the machine nor the allocator matters.
"""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer

from arguments_multitask import TaskArguments
from data_collator import MultiTaskDataCollator
from task_data import load_tasks
from task_features import build_features
from task_sampler import TaskSamplingDataset

SIZES = (5_000, 10_000)
BYTES_A_ROW = 90
"""A Python string alone takes 49 and more; a list of small dicts several hundred."""


def write_rows(path: Path, rows: int) -> Path:
    """Different texts of four classes."""
    texts = [f"the team won game {number} in Paris" for number in range(rows)]
    pq.write_table(pa.table({"text": texts, "label": np.array(list("abcd"))[np.arange(rows) % 4]}), path)
    return path


def measured(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What `work` returns; bytes that Python holds at its peak, bytes after it, and objects after it."""
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    result = work()
    gc.collect()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, np.array([peak, after, len(gc.get_objects()) - objects])


def run(path: Path, tokenizer: Any) -> dict[str, np.ndarray]:
    """Every stage of a run before its first step, measured."""
    loaded, load = measured(lambda: load_tasks({"topic": TaskArguments(dataset=str(path))}))
    features, tokenise = measured(lambda: build_features(loaded, tokenizer, max_length=16))

    def make_plan() -> None:
        sampling = TaskSamplingDataset(features.train, rows_per_step=32, num_epochs=3)
        sampling.plan(32)
        collator = MultiTaskDataCollator(tokenizer, {"topic": loaded["topic"].spec})
        collator([sampling[place] for place in range(32)])

    return {"load": load, "tokenise": tokenise, "plan": measured(make_plan)[1]}


def test_memory_grows_by_bytes_a_row_and_not_by_objects(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("bert")
    run(write_rows(tmp_path / "warm.parquet", 1_000), tokenizer)  # imports and caches of the libraries
    small, large = (run(write_rows(tmp_path / f"{rows}.parquet", rows), tokenizer) for rows in SIZES)
    for stage in small:
        peak, after, objects = (large[stage] - small[stage]) / (SIZES[1] - SIZES[0])
        assert peak < BYTES_A_ROW and after < BYTES_A_ROW, f"{stage}: {peak:.0f} and {after:.0f} bytes a row"
        assert objects < 0.01, f"{stage}: {objects:.3f} Python objects a row"


@pytest.mark.parametrize("strategy", ["temperature", "alternating"])
def test_the_order_of_an_epoch_is_sixteen_bytes_a_row(strategy: str) -> None:
    """Two int64 a row, and passing copies of them while it is made."""
    lengths = [{"input_ids": [0] * 5}] * 40_000
    sampling = TaskSamplingDataset({"a": lengths, "b": lengths}, strategy=strategy, rows_per_step=32)
    _, (peak, after, objects) = measured(lambda: sampling.order(0))
    assert sampling.order(0).nbytes == 16 * len(sampling)
    assert after < 20 * len(sampling) and peak < 100 * len(sampling) and objects < 100
