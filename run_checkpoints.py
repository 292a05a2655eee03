"""The checkpoints of a run: which are complete, the newest of them, and whether their recipe is still the run's.

A checkpoint is marked as incomplete (transformers' own marker) from before its first byte until every rank has written
its part, and holds the recipe of its run as JSON. So a run that was killed, or whose disk was full, goes on from the
newest checkpoint that is whole, and a run that would end elsewhere than the unbroken one says so before it starts.

    checkpoint = find_checkpoint("last", "outputs/quickstart", world_size=1)
    check_recipe(checkpoint, describe_run([model_args, data_args, args], facts), allow_changes=False)
"""

import dataclasses
import json
import logging
import signal
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

logger = logging.getLogger(__name__)

INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"
"""The file by which transformers marks a checkpoint that is being written."""
RECIPE_NAME = "run_recipe.json"
"""The recipe of the run that wrote a checkpoint, see `describe_run`."""

UNRECORDED_PREFIXES = ("hub_", "log_", "logging_", "save_", "trackio_", "do_")
UNRECORDED = frozenset(
    """output_dir overwrite_output resume_from_checkpoint resume_changed_recipe restore_callback_states_from_checkpoint
    notes dry_run offline nano sample_texts task_name enable_jit_checkpoint push_to_hub disable_tqdm report_to run_name
    project local_rank debug skip_memory_metrics ddp_timeout include_num_input_tokens_seen include_for_metrics
    per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches eval_use_gather_object batch_eval_metrics
    prediction_loss_only bf16_full_eval fp16_full_eval torch_empty_cache_steps drift_data
    max_head_drift encoder_cache_dir calibrate search gradient_cosines""".split()
)
"""Arguments that say where a run writes, what it prints and how it scores: nothing that it learns depends on them."""
NOTED = frozenset(
    """eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end metric_for_best_model greater_is_better
    early_stopping_patience dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context data_root cache_encoder machine""".split()
)
"""What may change and is said: every step stays what it was, but which checkpoint is the best, when training stops or
(another version or machine) the last bits may not."""


# Complete or not


def checkpoint_problems(folder: Path, world_size: int) -> list[str]:
    """What is missing or broken in a checkpoint; nothing, if a run can go on from it exactly.

    Weights, optimizer and scheduler of sharded checkpoints (FSDP, DeepSpeed) are not looked into.

    Args:
        folder (Path): The checkpoint.
        world_size (int): Processes of the run, each of which has a random state of its own.
    """
    if not folder.is_dir():
        return ["there is no such folder"]
    problems = []
    if (folder / INCOMPLETE_MARKER).exists():
        problems.append(f"saving it was cut off ({INCOMPLETE_MARKER} is there)")
    archives = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    if not any(folder.glob("pytorch_model_fsdp*")) and not any(folder.glob("global_step*")):
        problems += _weight_problems(folder)
        archives = [OPTIMIZER_NAME, SCHEDULER_NAME, *archives]
    problems += _json_problems(folder / TRAINER_STATE_NAME)
    if (folder / RECIPE_NAME).exists():
        problems += _json_problems(folder / RECIPE_NAME)
    for name in archives:
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif not zipfile.is_zipfile(folder / name):  # torch.save writes a zip, whose directory stands at its end
            problems.append(f"{name} is cut off")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    """Weight files that are missing, or whose size is not what their header says."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME]
    if index.exists():
        if problems := _json_problems(index):
            return problems
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    problems = []
    for name in names:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except SafetensorError as error:
            problems.append(f"{name} is broken or cut off ({error})")
    return problems


def _json_problems(file: Path) -> list[str]:
    """Say that a JSON file is missing or does not parse to a mapping."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{file.name} is missing"]
    except ValueError as error:  # of JSON or of UTF-8
        return [f"{file.name} is no JSON ({error})"]
    return [] if isinstance(parsed, dict) else [f"{file.name} holds no mapping"]


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-<step>` of a run, the latest step first."""
    folders = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = [path for path in folders if path.name.rpartition("-")[2].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def find_checkpoint(name: str, output_dir: str, world_size: int) -> Path:
    """The checkpoint to go on from, complete for as many processes as wrote it.

    Args:
        name (str): A folder, or `last` for the newest complete checkpoint in `output_dir`; the log says which newer
            ones were passed over and why.
        output_dir (str): The folder of the run.
        world_size (int): Processes of this run; what counts for a checkpoint that does not say how many wrote it.

    Raises:
        ValueError: if the named checkpoint is incomplete or no checkpoint is complete; the message says what is there,
            what each lacks, and the way out.
    """
    candidates = list_checkpoints(Path(output_dir)) if name == "last" else [Path(name)]
    passed_over: list[str] = []
    for folder in candidates:
        problems = checkpoint_problems(folder, _world_size_of(folder, world_size))
        if not problems:
            for line in passed_over:
                logger.warning("Passed over an incomplete checkpoint: %s", line)
            logger.info("Going on from %s", folder)
            return folder
        passed_over.append(f"{folder}: {'; '.join(problems)}")
    if name == "last":
        listed = "".join(f"\n- {line}" for line in passed_over) or " It holds no checkpoint at all."
        raise ValueError(
            f"--resume_from_checkpoint last needs a complete checkpoint in {output_dir}.{listed}\n"
            "Leave --resume_from_checkpoint away to start anew, or name the checkpoint of another folder."
        )
    raise ValueError(
        f"A run goes on only from a complete checkpoint. {passed_over[0]}.\n"
        "Name another one, or take the newest complete one in --output_dir with --resume_from_checkpoint last."
    )


def _world_size_of(folder: Path, default: int) -> int:
    """How many processes wrote a checkpoint, as far as it says so."""
    recipe = folder / RECIPE_NAME
    if not recipe.is_file() or _json_problems(recipe):
        return default
    return int(json.loads(recipe.read_text(encoding="utf-8"))["world_size"])


# Writing one


@contextmanager
def marked_incomplete(folder: Path, recipe: dict[str, Any] | None) -> Iterator[None]:
    """Mark a checkpoint as incomplete while its files are written; the mark stays if that fails.

    Args:
        folder (Path): The checkpoint; made if need be.
        recipe (dict): What `describe_run` said of this run, written beside the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / INCOMPLETE_MARKER
    marker.write_text("This checkpoint is being written, or its writing was cut off: do not go on from it.\n")
    if recipe is not None:
        (folder / RECIPE_NAME).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    yield
    marker.unlink(missing_ok=True)  # taken off already before a push to the Hub


class SigtermCheckpoint(JITCheckpointCallback):
    """`enable_jit_checkpoint` made exact: on SIGTERM every rank saves at the end of the same step, then leaves.

    The stock callback also saves in the middle of a step, when dropout has drawn its numbers but no weight has moved,
    and each rank at the step at which its own signal came; then training ends as if it were complete: it evaluates,
    saves again over the checkpoint and loads (or, with `save_total_limit=1`, keeps only) the best one. Here the process
    ends with exit code 143, as SIGTERM does, as soon as the checkpoint is complete.

    Args:
        stock (JITCheckpointCallback): The callback that Trainer made, whose signal handler goes on to serve.
    """

    def __init__(self, stock: JITCheckpointCallback):
        super().__init__()
        self.trainer: Trainer = stock.trainer
        self.jit_manager = stock.jit_manager
        self.is_leaving = False

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the end of the step."""

    on_pre_optimizer_step = on_epoch_end = on_step_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint if any rank got the signal."""
        got_signal = torch.tensor(float(self.jit_manager.is_checkpoint_requested), device=args.device)
        self.is_leaving = self.trainer.accelerator.reduce(got_signal, reduction="sum").item() > 0
        control.should_save = control.should_save or self.is_leaving

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave, once the checkpoint is complete.

        Raises:
            SystemExit: if it was SIGTERM that asked for it.
        """
        if not self.is_leaving:
            return
        self.trainer.accelerator.wait_for_everyone()  # a rank that ends makes the launcher end the others
        logger.warning("Stopped by SIGTERM after step %d; go on with --resume_from_checkpoint last", state.global_step)
        raise SystemExit(128 + signal.SIGTERM)


# Same recipe or not


def describe_run(arguments: Iterable[Any], world_size: int, facts: dict[str, Any]) -> dict[str, Any]:
    """What decides where a run ends, as JSON types: compared when it is resumed.

    Args:
        arguments (iterable): Dataclasses of arguments; fields in `UNRECORDED` are left out.
        world_size (int): Processes.
        facts (dict): What the arguments came to: the sampling plan's figures and order hash, the labels.
    """
    recorded: dict[str, Any] = {}
    for one in arguments:
        values = one.to_dict() if isinstance(one, TrainingArguments) else dataclasses.asdict(one)
        recorded |= {
            name: value
            for name, value in values.items()
            if name not in UNRECORDED and not name.startswith(UNRECORDED_PREFIXES)
        }
    machine = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    recipe = {"arguments": recorded, "world_size": world_size, "facts": facts, "machine": machine}
    return json.loads(json.dumps(recipe))


def recipe_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (before, now) of what differs between two recipes, `(not set)` where one has none; sorted."""
    flat_before, flat_now = _dotted(before), _dotted(now)
    pairs = {
        name: (flat_before.get(name, "(not set)"), flat_now.get(name, "(not set)"))
        for name in sorted(flat_before.keys() | flat_now.keys())
    }
    return {name.removeprefix("arguments."): pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        path: leaf
        for key, inner in value.items()
        for path, leaf in _dotted(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def check_recipe(checkpoint: Path, recipe: dict[str, Any], allow_changes: bool) -> None:
    """Say what changed since a checkpoint was written, and refuse what would make its run end elsewhere.

    Args:
        checkpoint (Path): A complete checkpoint; one without a recipe (of the stock Trainer) cannot be checked, which
            is said.
        recipe (dict): What `describe_run` says of this run.
        allow_changes (bool): Whether a changed recipe is only warned of.

    Raises:
        ValueError: for changes that break exactness, with each value before and now, unless they are allowed.
    """
    file = checkpoint / RECIPE_NAME
    if not file.exists():
        logger.warning("%s holds no %s: whether its recipe was this one is not known", checkpoint, RECIPE_NAME)
        return
    changes = recipe_changes(json.loads(file.read_text(encoding="utf-8")), recipe)
    breaking = {}
    for name, (before, now) in changes.items():
        if name.partition(".")[0] in NOTED:
            logger.info("Changed since %s: %s: %r -> %r", checkpoint.name, name, before, now)
        else:
            breaking[name] = f"\n- {name}: {before!r} -> {now!r}"
    if not breaking:
        return
    said = f"{checkpoint} was written under another recipe (before -> now):{''.join(breaking.values())}\n"
    if not allow_changes:
        raise ValueError(
            f"A resumed run ends where the unbroken one would only under the same recipe, but {said}"
            "Set these back, start anew in another --output_dir, or go on all the same with --resume_changed_recipe."
        )
    logger.warning("%sIt goes on all the same, but does not end where an unbroken run would.", said)
