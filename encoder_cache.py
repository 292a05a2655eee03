"""A frozen encoder's outputs, computed once: later epochs train the heads from a store in place of running it.

With the whole encoder frozen its answer to a row never changes. For every training and validation row the store holds
what the row's tasks read of it and no more: vectors pooled from the token states, before the projection (which may
train), a vector for each pooling and for each text of a pair; the token states themselves for tags. Each dataset has a
folder of plain `.npy` files, mapped into memory. It trains nothing, chooses no order and knows no labels: rows of the
store stand in for rows with token ids, and the batch that the collator makes of them is `MultiTaskModel.forward`'s.

    cache = EncoderCache(None, model, {"train": features.train, "validation": features.validation}, None, args.device)
    cache.check_disk()
    cache.compute(model, collator)
    sampling.read_from(cache.rows("train"))
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers
from datasets import Dataset
from datasets.utils import tqdm
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn

from configuration_multitask import SENTENCE_SIMILARITY, TOKEN_CLASSIFICATION, MultiTaskConfig
from data_collator import MultiTaskDataCollator
from modeling_multitask import POOLERS, MultiTaskPreTrainedModel

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(HF_HOME) / "multitask_encoder_cache"
"""Beside the Hub's and the data sets' caches, so that runs with another seed or other heads find what was computed."""
FORMAT = 1
"""Raised when the files or what stands in them change, so that an old store is not read as a new one."""
INPUTS = ("input_ids", "token_type_ids", "pair_input_ids")
"""Columns that the encoder reads."""
TOKENS_PER_PASS = 2**13
"""Token places of a pass of the encoder; more do not make it faster on a CPU, and take memory."""


class EncoderStore:
    """The stored outputs of one dataset.

    Files: `lengths` and `pair_lengths` (tokens of the texts; shape (rows,)), `pooled_<pooling>` and
    `pair_pooled_<pooling>` (rows, hidden_size), `token_states` (tokens of all rows, hidden_size), one row's states
    behind the other's. Vectors are float32. Token states are float32, or the upper half of a float32 (bfloat16, as
    uint16), where the encoder's states have no more digits (see `EncoderCache`).

    Args:
        root (Path): The folder of all stores.
        dataset (Dataset): Features with `INPUTS`, as `task_features` makes them.
        tasks (list): The tasks that read these rows.
        config (MultiTaskConfig): Of the model.
        has_bfloat16_states (bool): Whether token states are kept as bfloat16.
        facts (dict): What the outputs depend on besides the rows and what is stored of them; JSON types.
    """

    def __init__(
        self,
        root: Path,
        dataset: Dataset,
        tasks: list[str],
        config: MultiTaskConfig,
        has_bfloat16_states: bool,
        facts: dict[str, Any],
    ):
        specs = [config.tasks[name] for name in tasks]
        poolings = {spec.get("pooling") or config.pooling for spec in specs if not reads_tokens(spec)}
        compared = {spec.get("pooling") or config.pooling for spec in specs if spec["kind"] == SENTENCE_SIMILARITY}
        self.dataset = dataset
        self.inputs = [name for name in INPUTS if name in dataset.column_names]
        self.lengths = {"lengths": text_lengths(dataset, "input_ids")}
        if compared:
            self.lengths["pair_lengths"] = text_lengths(dataset, "pair_input_ids")
        row = (len(dataset), config.hidden_size)
        self.arrays: dict[str, tuple[type, tuple[int, ...]]] = {name: (np.int32, row[:1]) for name in self.lengths}
        self.arrays |= {f"pooled_{pooling}": (np.float32, row) for pooling in sorted(poolings)}
        self.arrays |= {f"pair_pooled_{pooling}": (np.float32, row) for pooling in sorted(compared)}
        if any(map(reads_tokens, specs)):
            shape = (int(self.lengths["lengths"].sum()), config.hidden_size)
            self.arrays["token_states"] = (np.uint16 if has_bfloat16_states else np.float32, shape)
        files = {name: [dtype.__name__, *shape] for name, (dtype, shape) in self.arrays.items()}
        self.facts = facts | {"files": files, "rows": hash_columns(dataset, self.inputs)}
        self.folder = root / hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def is_there(self) -> bool:
        """Whether the outputs were computed; a folder gets this name when it is complete."""
        return self.folder.is_dir()

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in self.arrays.values())

    def compute(self, model: MultiTaskPreTrainedModel, collator: MultiTaskDataCollator) -> None:
        """Compute and write the outputs under a temporary name, which becomes the store's when all is written.

        The caller sees to the model's mode, device and precision.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.unfinished-", dir=self.folder.parent))
        try:
            arrays = {
                name: np.lib.format.open_memmap(unfinished / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
                for name, (dtype, shape) in self.arrays.items()
            }
            for name, lengths in self.lengths.items():
                arrays[name][:] = lengths
            self._fill(arrays, model, collator)
            for array in arrays.values():
                array.flush()
            (unfinished / "store.json").write_text(json.dumps(self.facts, indent=2, sort_keys=True) + "\n")
            unfinished.rename(self.folder)
        except OSError:
            if not self.is_there:  # else another process was faster
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _fill(
        self, arrays: Mapping[str, np.ndarray], model: MultiTaskPreTrainedModel, collator: MultiTaskDataCollator
    ) -> None:
        """Run the encoder over the first texts, then over the second texts."""
        ends = np.cumsum(self.lengths["lengths"], dtype=np.int64)
        for prefix, lengths in zip(("", "pair_"), self.lengths.values(), strict=False):
            columns = [name for name in self.inputs if name.startswith("pair_") == bool(prefix)]
            texts = self.dataset.select_columns(columns).rename_columns({n: n.removeprefix("pair_") for n in columns})
            poolings = [name for name in arrays if name.startswith(f"{prefix}pooled_")]
            for rows in tqdm(list(batches_by_length(lengths)), desc="Encoding", leave=False):
                batch = {n: value.to(model.device) for n, value in collator([texts[int(r)] for r in rows]).items()}
                hidden = model.run_encoder(**batch).last_hidden_state
                for name in poolings:
                    vectors = POOLERS[name.removeprefix(f"{prefix}pooled_")](hidden, batch["attention_mask"])
                    arrays[name][rows] = vectors.float().cpu().numpy()
                if "token_states" in arrays and not prefix:
                    for row, states in zip(rows, hidden.float().cpu().numpy(), strict=True):
                        states = states[: lengths[row]]
                        arrays["token_states"][ends[row] - lengths[row] : ends[row]] = (
                            states if arrays["token_states"].dtype == np.float32 else states.view(np.uint32) >> 16
                        )


class StoredRows:
    """A dataset's rows with the encoder's outputs in place of token ids: what the collator makes a batch of.

    A row has the columns of the dataset but `INPUTS`, and beside them `attention_mask`, `pooled_states` {pooling:
    (hidden_size,)}, for pairs `pair_attention_mask` and `pair_pooled_states`, for tags `token_states` (tokens,
    hidden_size). Arrays are float32. Other processes map the files anew.

    Args:
        dataset (Dataset): The features.
        folder (Path): A complete store.
    """

    def __init__(self, dataset: Dataset, folder: Path):
        self.rest = dataset.remove_columns([name for name in INPUTS if name in dataset.column_names])
        self.folder = folder
        self.column_names = self.rest.column_names

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays, which pickle would copy."""
        return {name: value for name, value in vars(self).items() if name not in ("arrays", "ends")}

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """File name -> its array, mapped; plain arrays, because slices of `np.memmap` are slow to make."""
        files = sorted(self.folder.glob("*.npy"))
        return {file.stem: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files}

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each row's token states end. Shape (rows,)."""
        return np.cumsum(self.arrays["lengths"], dtype=np.int64)

    def __len__(self) -> int:
        """Rows."""
        return len(self.rest)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """One row; see the class."""
        return self._with_outputs(self.rest[row], row)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Several rows, in a tenth of the time that one by one they take."""
        return [self._with_outputs(rest, row) for rest, row in zip(self.rest.__getitems__(rows), rows, strict=True)]

    def _with_outputs(self, rest: dict[str, Any], row: int) -> dict[str, Any]:
        """A row's other columns and its outputs."""
        feature = dict(rest)
        length = int(self.arrays["lengths"][row])
        feature["attention_mask"] = np.ones(length, dtype=np.int64)
        if "pair_lengths" in self.arrays:
            feature["pair_attention_mask"] = np.ones(self.arrays["pair_lengths"][row], dtype=np.int64)
        for name, array in self.arrays.items():
            prefix, _, pooling = name.partition("pooled_")
            if pooling:
                feature.setdefault(f"{prefix}pooled_states", {})[pooling] = array[row]
        if "token_states" in self.arrays:
            states = self.arrays["token_states"][self.ends[row] - length : self.ends[row]]
            is_bfloat16 = states.dtype == np.uint16
            feature["token_states"] = (states.astype(np.uint32) << 16).view(np.float32) if is_bfloat16 else states
        return feature


class EncoderCache:
    """The stores of a run.

    Token states are kept as bfloat16 where training is in bfloat16 on a CPU: there they have no more digits
    (`cpu_training.use_bfloat16_states`). A GPU's autocast ends in a float32 norm, so there they are kept in float32.

    Args:
        folder (str): Where stores lie; None for `DEFAULT_FOLDER`.
        model (MultiTaskPreTrainedModel): Its whole encoder is frozen.
        splits (dict): Split -> group of tasks (`a`, or aligned ones `a+b`) -> features.
        autocast (torch.dtype): The dtype of mixed precision, None for none.
        device (torch.device): What trains.

    Raises:
        ValueError: if a part of the encoder is to be trained.
    """

    def __init__(
        self,
        folder: str | None,
        model: MultiTaskPreTrainedModel,
        splits: dict[str, dict[str, Dataset]],
        autocast: torch.dtype | None,
        device: torch.device,
    ):
        refuse_trained_encoder(model.encoder)
        self.root = Path(folder).expanduser().absolute() if folder else DEFAULT_FOLDER
        self.autocast, self.device = autocast, device
        facts = {
            "format": FORMAT,
            "weights": hash_tensors(model.encoder.state_dict()),
            "encoder_config": json.loads(model.config.encoder_config.to_json_string(use_diff=False)),
            "precision": f"{autocast or torch.float32} on {device.type}",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        is_bfloat16 = autocast == torch.bfloat16 and device.type == "cpu"
        self.stores = {
            split: {
                group: EncoderStore(self.root, dataset, group.split("+"), model.config, is_bfloat16, facts)
                for group, dataset in groups.items()
            }
            for split, groups in splits.items()
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of all stores."""
        return sum(store.num_bytes for groups in self.stores.values() for store in groups.values())

    @property
    def missing(self) -> list[EncoderStore]:
        """The stores that are not there yet."""
        stores = {store.folder: store for groups in self.stores.values() for store in groups.values()}
        return [store for store in stores.values() if not store.is_there]

    def __str__(self) -> str:
        """A sentence for the plan: rows, size and place, and how much is still to be computed."""
        stores = [store for groups in self.stores.values() for store in groups.values()]
        rows = sum(len(store.dataset) for store in stores)
        missing = sum(store.num_bytes for store in self.missing)
        state = f"{missing / 2**20:,.1f} MiB of it are computed before the first step" if missing else "all there"
        return (
            f"Encoder cache: the outputs for {rows:,} training and validation rows, {self.num_bytes / 2**20:,.1f} MiB "
            f"in {self.root} ({state}); training reads them and does not run the encoder."
        )

    def check_disk(self) -> None:
        """Raise ValueError if what is missing does not fit on the disk."""
        needed = sum(store.num_bytes for store in self.missing)
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise ValueError(
                f"The encoder cache needs {needed:,} bytes more in {self.root}, where {free:,} are free. Name a folder "
                "with room (encoder_cache_dir), take fewer rows (max_rows of a task), or leave cache_encoder away."
            )

    def compute(self, model: MultiTaskPreTrainedModel, collator: MultiTaskDataCollator) -> None:
        """Compute what is missing, in the precision of training; the model is left on the device and in its mode."""
        missing = self.missing
        if not missing:
            return
        was_training = model.training
        model.to(self.device).eval()
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            for number, store in enumerate(missing, start=1):
                logger.info("Encoder cache, %d of %d: %d rows", number, len(missing), len(store.dataset))
                store.compute(model, collator)
        model.train(was_training)

    def rows(self, split: str) -> dict[str, StoredRows]:
        """The rows of a split, by group; to be called when all was computed."""
        return {group: StoredRows(store.dataset, store.folder) for group, store in self.stores[split].items()}


def reads_tokens(spec: dict[str, Any]) -> bool:
    """Whether a task reads token states, not pooled ones."""
    return spec["kind"] == TOKEN_CLASSIFICATION


def refuse_trained_encoder(encoder: nn.Module) -> None:
    """Raise ValueError unless every parameter is frozen."""
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"cache_encoder stores what a frozen encoder says, so the whole encoder must be frozen, but {len(trained)} "
            f"of its tensors are trained (the first is {trained[0]}). Set freeze: [encoder], or leave cache_encoder "
            "away."
        )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bits."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def hash_columns(dataset: Dataset, columns: list[str]) -> str:
    """A hash of columns of number lists, their names and order of rows included."""
    sha = hashlib.sha256()
    for batch in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        for name in columns:
            sha.update(name.encode())
            for part in (pc.list_value_length(batch[name]), pc.list_flatten(batch[name])):
                sha.update(as_numpy(part).tobytes())
    return sha.hexdigest()


def text_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Tokens of every row of a column of token ids. Shape (rows,), int32."""
    batches = dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)
    return np.concatenate([as_numpy(pc.list_value_length(batch[column])) for batch in batches])


def as_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """An Arrow column of numbers."""
    return np.ascontiguousarray(column.to_numpy())


def batches_by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, the longest first, each of about `TOKENS_PER_PASS` token places."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, TOKENS_PER_PASS // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows
