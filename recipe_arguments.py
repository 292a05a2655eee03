"""A recipe and a command line -> the checked arguments of a run: YAML, `--name value` and `--tasks.TASK.FIELD value`.

What can be set, and what is checked of it, stands in `arguments_multitask`; here is how it is read. Nothing here opens
a dataset or a model.

    model_args, data_args, training_args = parse_arguments(["recipes/quickstart.yaml", "--learning_rate", "2e-5"])
"""

import argparse
import dataclasses
import functools
import re
import sys
import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from arguments_multitask import (
    ARGUMENT_CLASSES,
    ARGUMENT_FIELDS,
    ARGUMENT_HINTS,
    LIST_ARGUMENTS,
    MAPPING_ARGUMENTS,
    NANO_ROWS,
    TASK_HINTS,
    DataArguments,
    ModelArguments,
    MultiTaskTrainingArguments,
    TaskArguments,
    check_type,
    fits,
    rows_by_split,
)
from command_help import CommandParser
from configuration_multitask import nearest_name

HELP = """Train one encoder with a head for each task of a recipe, evaluate it, save it.

    python train_hf.py recipes/quickstart.yaml --output_dir outputs/quickstart --learning_rate 5e-5
    python train_hf.py recipes/quickstart.yaml --dry_run         # print the plan and stop
    python train_hf.py recipes/quickstart.yaml --nano            # try it in a minute
    accelerate launch --config_file accelerate_configs/cpu_2_processes.yaml train_hf.py RECIPE.yaml --use_cpu

Every argument is also a key of the recipe, a YAML file; what stands on the command line wins. Arguments of this project
come first, those of transformers.TrainingArguments behind them, the fields of a task at the end.
"""
ARGUMENT_GROUPS: dict[str, frozenset[str]] = {
    "the run": frozenset(
        {"output_dir", "overwrite_output", "resume_changed_recipe", "nano", "dry_run", "sample_texts", "search"}
    ),
    "data": frozenset({"tasks", "data_root", "offline", "drift_data"}),
    "order of the rows": frozenset(
        {"sampling_strategy", "sampling_temperature", "sampling_cap", "sampling_shares", "grouping"}
    ),
    "model": frozenset(one.name for one in dataclasses.fields(ModelArguments)),
    "what learns, and how fast": frozenset(
        {"freeze", "stages", "cache_encoder", "encoder_cache_dir", "head_learning_rate", "layer_decay"}
        | {"loss_balancing", "balancing_learning_rate"}
    ),
    "what is measured": frozenset({"early_stopping_patience", "calibrate", "gradient_cosines", "max_head_drift"}),
    "transformers.TrainingArguments, with defaults of this project": frozenset(
        MultiTaskTrainingArguments.__annotations__
    ),
    "transformers.TrainingArguments": frozenset(ARGUMENT_FIELDS),
}
"""Groups of `--help` in their order; an argument stands in the first that has its name."""


class RecipeLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a doubled key and reads plain words as YAML 1.2 does.

    `1e-4` is a number, and `no`, `yes`, `on`, `off`, `12:30` and dates are text: a recipe says `eval_strategy: no`.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, refusing a key that stands twice (the later one would win unseen)."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _words, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan", "-+.0123456789"),
):
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_words})$"), list(_first))


def read_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says; `where` stands in front of the error.

    Raises:
        ValueError: if it is no YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=RecipeLoader)
    except Exception as error:  # a YAMLError, or Python's own for a wrong tag (`!!int x`, `!!timestamp x`)
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def read_recipe(path: str) -> dict[str, Any]:
    """Return the keys of a recipe file, each the name of an argument.

    Raises:
        ValueError: if there is no such file, it is not a YAML mapping, or a key is no argument (with the nearest one).
    """
    file = Path(path)
    if not file.is_file():
        siblings = sorted(str(one) for one in file.parent.glob("*.yaml"))
        listed = f" In its folder are: {', '.join(siblings)}." if siblings else ""
        raise ValueError(f"There is no recipe {path!r}; the first argument must be a YAML file.{listed}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}. Save it again as UTF-8.") from error
    recipe = read_yaml(text, path)
    if not isinstance(recipe, dict):
        raise ValueError(f"A recipe is a mapping from argument to value; {path} holds {type(recipe).__name__}.")
    for key in recipe:
        if key not in ARGUMENT_FIELDS:
            raise ValueError(f"{path}: there is no argument {key!r}.{nearest_name(key, ARGUMENT_FIELDS)}")
        if key in MAPPING_ARGUMENTS:
            check_type(f"{path}: {key}", recipe[key], (list if key in LIST_ARGUMENTS else dict) | None)
    return recipe


class RunArgumentParser(CommandParser, HfArgumentParser):
    """The parser of a run's arguments: errors of one line, groups and the fields of a task in `--help`."""

    def __init__(self) -> None:
        super().__init__(
            ARGUMENT_CLASSES,
            doc=HELP,
            usage="%(prog)s [RECIPE.yaml] [--argument value ...] [--tasks.TASK.FIELD value ...]",
            epilog=_describe_task_fields(),
            allow_abbrev=False,
        )
        self.add_argument("recipe", nargs="?", help="YAML file whose keys are the arguments below.")
        self.source = ""

    @functools.cached_property
    def groups(self) -> dict[str, Any]:
        """Title -> group of `--help`, made in their order when the first argument needs one."""
        return {title: self.add_argument_group(title) for title in ARGUMENT_GROUPS}

    def _parse_dataclass_field(self, parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        """Add an argument to its group, not to the one of its class."""
        title = next(title for title, names in ARGUMENT_GROUPS.items() if field.name in names)
        super()._parse_dataclass_field(self.groups[title], field)

    def error(self, message: str) -> NoReturn:
        """Print one line (not the usage of two hundred arguments) and leave with exit code 2."""
        sys.stderr.write(f"{self.prog}: error: {self.source}{message}\n")
        raise SystemExit(2)

    def use_recipe(self, path: str, recipe: dict[str, Any]) -> list[str]:
        """Make lists, mappings and nulls of a recipe defaults; return its other values as command-line words.

        Raises:
            ValueError: for a list, mapping or null where the argument takes none.
        """
        words = []
        for key, value in recipe.items():
            if key in MAPPING_ARGUMENTS:
                continue
            if value is None or isinstance(value, list | dict):
                check_type(f"{path}: {key}", value, ARGUMENT_HINTS[key])
                self.set_defaults(**{key: value})
            elif value is True and ARGUMENT_FIELDS[key].metadata.get("const") is True:
                words.append(f"--{key}")
            else:
                words.append(f"--{key}={value}")
        self.source = f"{path}: "
        self.parse_known_args(words)  # so that a value of the wrong type is reported as the recipe's
        self.source = ""
        return words

    def refuse_unknown(self, words: list[str]) -> None:
        """Leave with the nearest known argument if `words` (what argparse did not understand) is not empty."""
        if not words:
            return
        flag = next((word for word in words if word.startswith("--")), words[0])
        if not flag.startswith("--"):
            self.error(f"unexpected {flag!r}; a recipe comes first, and values follow a --name.")
        name = flag.partition("=")[0].lstrip("-").replace("-", "_")
        self.error(f"there is no argument --{name}.{nearest_name(name, ARGUMENT_FIELDS)}")


def _describe_task_fields() -> str:
    """The fields of an entry under `tasks:`, one a line."""
    described = []
    for one in dataclasses.fields(TaskArguments):
        default = f" (default: {one.default})" if isinstance(one.default, float) else ""
        text = f"{one.name:<20}  {one.metadata['help']}{default}"
        described.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent=" " * 24))
    return "fields of a task (--tasks.TASK.FIELD VALUE, the value is YAML):\n" + "\n".join(described)


def take_overrides(words: list[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """Split a command line into plain words and overrides of mapping arguments.

    Returns:
        The words that argparse reads, and for each `--tasks.ner.loss.weight 0.5` (or `...weight=0.5`) a pair of path
        and value: `(["tasks", "ner", "loss", "weight"], 0.5)`.

    Raises:
        ValueError: if a value is missing or is not valid YAML.
    """
    plain, overrides, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        flag, has_value, value = word.partition("=")
        path = flag.removeprefix("--").split(".")
        if not word.startswith("--") or path[0].replace("-", "_") not in MAPPING_ARGUMENTS:
            plain.append(word)
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{flag} needs a value: {flag} VALUE.")
            value = rest.pop(0)
        overrides.append(([path[0].replace("-", "_"), *path[1:]], read_yaml(value, flag)))
    return plain, overrides


def apply_override(arguments: dict[str, Any], path: list[str], value: Any) -> None:
    """Set one dotted path in the mapping arguments, in place.

    Raises:
        ValueError: if the path leads through a task that the recipe does not have, or through something that is no
            mapping. (Unknown fields are refused when the task is read.)
    """
    flag = f"--{'.'.join(path)}"
    if path[0] == "tasks" and len(path) == 2:
        raise ValueError(f"{flag} names a task but no field of it; write {flag}.FIELD VALUE.")
    if path[0] == "tasks" and len(path) > 2 and path[1] not in (arguments.get("tasks") or {}):
        known = arguments.get("tasks") or {}
        raise ValueError(
            f"{flag}: there is no task {path[1]!r}; the recipe's tasks are: {', '.join(known) or 'none'}."
            f"{nearest_name(path[1], known)}"
        )
    node = arguments
    for depth, key in enumerate(path[:-1]):
        inner = node.get(key)
        if path[0] == "tasks" and depth == 2 and key == "max_rows" and isinstance(inner, int):
            inner = rows_by_split(inner)
        node[key] = {} if inner is None else inner
        node = node[key]
        if not isinstance(node, dict):
            raise ValueError(f"{flag}: {key} is {node!r} and has no field {path[depth + 1]!r}; set {key} as a whole.")
    node[path[-1]] = value
    if len(path) == 1:
        check_type(flag, value, list if path[0] in LIST_ARGUMENTS else dict)


def cap_rows(tasks: dict[str, Any], overrides: list[tuple[list[str], Any]]) -> None:
    """Cap every task to `NANO_ROWS`, in place; smaller caps, and those of the command line, stay."""
    for name, entry in tasks.items():
        if not isinstance(entry, dict) or not fits(entry.get("max_rows"), TASK_HINTS["max_rows"]):
            continue  # refused, with its reason, when the task is read
        given = rows_by_split(entry.get("max_rows"))
        capped = {split: min(rows, given.get(split, rows)) for split, rows in NANO_ROWS.items()}
        for path, value in overrides:
            if path[:3] == ["tasks", name, "max_rows"]:
                capped |= rows_by_split(value) if len(path) == 3 else {path[3]: value}
        entry["max_rows"] = capped


def one_epoch_each(stages: list[Any] | None) -> list[Any] | None:
    """The stages of a recipe with one epoch each; what is no mapping is refused when they are read."""
    return stages and [{**stage, "epochs": 1} if isinstance(stage, dict) else stage for stage in stages]


def parse_arguments(
    argv: list[str] | None = None,
) -> tuple[ModelArguments, DataArguments, MultiTaskTrainingArguments]:
    """Read `[recipe.yaml] [--argument value ...] [--tasks.<task>.<field> value ...]`; the later one wins.

    Args:
        argv (list[str]): Words of the command line, without the program. Default: `sys.argv[1:]`.

    Returns:
        The checked arguments; `data_args.notes` and `training_args.notes` say what was decided for the user.

    Raises:
        SystemExit: with exit code 2 and one line on standard error, as argparse does, for anything that is unknown (the
            line names the nearest known argument, task or field), of the wrong type or out of its range.
    """
    parser = RunArgumentParser()
    try:
        return _parse(parser, list(sys.argv[1:] if argv is None else argv))
    except ValueError as error:
        parser.error(str(error))


def check_start(model: ModelArguments, data: DataArguments, training: MultiTaskTrainingArguments) -> None:
    """Refuse arguments that need `init_from`, and say in `data.notes` that it stands in place of an encoder."""
    if model.init_from:
        if model.encoder != ARGUMENT_FIELDS["encoder"].default:
            data.notes.append(
                f"The encoder is that of {model.init_from} (init_from); encoder: {model.encoder} is not read."
            )
        return
    for name, value in {"drift_data": data.drift_data, "max_head_drift": training.max_head_drift}.items():
        if value is not None:
            raise ValueError(f"{name} is about tasks that were trained before: it needs init_from.")


def _parse(
    parser: RunArgumentParser, words: list[str]
) -> tuple[ModelArguments, DataArguments, MultiTaskTrainingArguments]:
    """`parse_arguments` with ValueError for what argparse does not see."""
    words, overrides = take_overrides(words)
    recipe_words: list[str] = []
    recipe: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        recipe = read_recipe(words[0])
        recipe_words = [words[0], *parser.use_recipe(words.pop(0), recipe)]
    given, unknown = parser.parse_known_args([*recipe_words, *words])
    parser.refuse_unknown(unknown)
    if given.recipe and not recipe_words:
        parser.refuse_unknown([given.recipe])
    mappings = {name: recipe.get(name) for name in MAPPING_ARGUMENTS}
    for path, value in overrides:
        apply_override(mappings, path, value)
    if given.nano:
        cap_rows(mappings["tasks"] or {}, overrides)
        recipe_words += ["--max_steps=-1"]
        if not any(path[0] == "stages" for path, _ in overrides):
            mappings["stages"] = one_epoch_each(mappings["stages"])
            recipe_words += [f"--num_train_epochs={len(mappings['stages'] or [None])}"]
    parser.set_defaults(**mappings)
    model_args, data_args, training_args, _ = parser.parse_args_into_dataclasses(
        [*recipe_words, *words], look_for_args_file=False
    )
    check_start(model_args, data_args, training_args)
    if model_args.task_name is not None and model_args.task_name not in data_args.tasks and not model_args.init_from:
        known = ", ".join(data_args.tasks)
        raise ValueError(
            f"task_name must be one of the run's tasks ({known}); got {model_args.task_name!r}."
            f"{nearest_name(model_args.task_name, data_args.tasks)}"
        )
    if given.nano:
        rows = ", ".join(f"{rows} {split}" for split, rows in NANO_ROWS.items())
        epochs = "1 epoch a stage" if training_args.stages else "1 epoch"
        data_args.notes.append(
            f"nano: at most {rows} rows a task and {epochs}, unless the command line says otherwise."
        )
    return model_args, data_args, training_args
