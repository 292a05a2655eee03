"""The search for good values of a recipe's keys, by Trainer's own interface and optuna (extra `search`).

`Trainer.hyperparameter_search` sets what a trial suggests as attributes of the training arguments and asks `model_init`
for a new model; a key that is no training argument (a task's weight) it leaves out with a warning, and data, callbacks
and checked arguments stay those of the first trial. A recipe's keys reach all of these. So here a trial is a run of its
own, prepared from the recipe with the trial's values, and Trainer's interface does the rest: it asks optuna for values
and reports the score. Nothing is saved but the study; the best recipe is to be trained anew.

    space = read_space(recipe.pop("search"))
    trainer = SearchTrainer(model_init=lambda: run.model, args=run.args, eval_dataset=run.features.validation)
    trainer.search(space, score=lambda values: ..., trials=20, storage=Path("outputs/search/search.db"))
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import Trainer
from transformers.integrations import is_optuna_available
from transformers.trainer_utils import TrainOutput

from arguments_multitask import fits
from configuration_multitask import refuse_unknown_fields
from recipe_arguments import RecipeLoader, apply_override, read_yaml, take_overrides

STUDY = "search"
RANGE_FIELDS = frozenset({"low", "high", "log", "step"})
OWN_ARGUMENTS = ("search", "output_dir", "overwrite_output", "resume_from_checkpoint", "dry_run")
"""Arguments that are no values of a trial."""

Values = dict[str, Any]
"""Dotted name of an argument -> value."""
Scorer = Callable[[Values], float]
"""Trains with these values; the score to maximise."""


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads: text is quoted only where that would take it for something else."""


RecipeDumper.yaml_implicit_resolvers = RecipeLoader.yaml_implicit_resolvers


def read_space(space: Any) -> dict[str, list[Any] | dict[str, Any]]:
    """The entry `search` of a recipe, checked.

    Args:
        space (dict): Dotted name of an argument -> a list of plain values, or a mapping with `low` and `high` (both
            whole numbers, or the range is one of real numbers), and optionally `log` (bool: orders of magnitude count)
            or `step`.

    Raises:
        ValueError: for what is none of these.
    """
    if not isinstance(space, dict) or not space:
        raise ValueError(
            "A search needs the arguments to vary: in the recipe, search: {learning_rate: {low: 1e-5, high: 5e-4, log: "
            f"true}}, tasks.ner.loss.weight: [0.5, 1, 2]}}. Got {space!r}."
        )
    for name, values in space.items():
        if name.partition(".")[0] in OWN_ARGUMENTS:
            raise ValueError(f"search: {name} is where a run writes or what it does, and cannot be varied. Remove it.")
        if isinstance(values, dict):
            _check_range(name, values)
        elif not fits(values, list[str | float | bool | None]) or not values:
            raise ValueError(
                f"search: {name} must be a list of values (text, numbers, true, false, null), or a range {{low, high}};"
                f" got {values!r}."
            )
    return space


def _check_range(name: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError unless `low` and `high` make a range, in steps or by order of magnitude."""
    refuse_unknown_fields(f"search: {name}", values, RANGE_FIELDS)
    low, high, step = values.get("low"), values.get("high"), values.get("step")
    if not fits([low, high], list[float]) or not low < high:  # type: ignore[operator]  # numbers, by now
        raise ValueError(f"search: {name} needs numbers low < high; got low {low!r}, high {high!r}.")
    log = values.get("log", False)
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):  # type: ignore[operator]
        raise ValueError(f"search: {name}: log is true or false; if true, low is above 0 and there is no step.")
    if step is not None and (not fits(step, float) or step <= 0):
        raise ValueError(f"search: {name}: step must be a number above 0; got {step!r}.")


def suggest(trial: Any, space: Mapping[str, Any]) -> Values:
    """What a trial of optuna tries, within the space."""
    found = {}
    for name, values in space.items():
        if isinstance(values, list):
            found[name] = trial.suggest_categorical(name, values)
            continue
        whole = fits([value for key, value in values.items() if key != "log"], list[int])
        pick = trial.suggest_int if whole else trial.suggest_float
        options = {key: value for key, value in values.items() if key in ("log", "step")}
        found[name] = pick(name, values["low"], values["high"], **options)
    return found


def corners(space: Mapping[str, Any]) -> list[Values]:
    """Points of a space that between them have every value of each list, and both ends of each range."""
    listed = {name: v if isinstance(v, list) else [v["low"], v["high"]] for name, v in space.items()}
    longest = max(map(len, listed.values()))
    return [{name: values[place % len(values)] for name, values in listed.items()} for place in range(longest)]


def with_values(recipe: dict[str, Any], values: Values) -> dict[str, Any]:
    """A copy of a recipe with some arguments set, by dotted name.

    Raises:
        ValueError: for a field of a task that the recipe does not have.
    """
    recipe = copy.deepcopy(recipe)
    for name, value in values.items():
        if "." in name:
            apply_override(recipe, name.split("."), value)
        else:
            recipe[name] = value
    return recipe


def read_words(words: list[str]) -> Values:
    """A command line as values of arguments: `--seed 1 --offline --tasks.ner.loss.weight=2`; values are YAML.

    Raises:
        ValueError: for a word that follows no argument.
    """
    plain, overrides = take_overrides(words)
    found: Values = {".".join(path): value for path, value in overrides}
    name = ""
    for word in plain:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = read_yaml(value, f"--{name}") if has_value else True
            if has_value:
                name = ""
        elif not name:
            raise ValueError(f"Values follow a --name; got {word!r} without one.")
        else:
            found[name] = read_yaml(word, f"--{name}")
            name = ""
    return found


def write_recipe(recipe: dict[str, Any], path: Path, comment: str = "") -> None:
    """Write a recipe that `train_hf.py` reads, `comment` in its first line."""
    head = f"# {comment}\n" if comment else ""
    path.write_text(head + yaml.dump(recipe, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True), "utf-8")


class SearchTrainer(Trainer):
    """Trainer's search where training a trial is handed on; see the module. It trains no model itself."""

    score: Scorer

    def search(
        self, space: Mapping[str, Any], score: Scorer, trials: int, storage: Path, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Run trials until there are so many complete ones in the study, which is taken up where it stands.

        A trial depends on the seed, its place and the scores of those before it alone: a search that was broken off
        and taken up again tries what the unbroken one does. A trial that was broken off counts for nothing.

        Args:
            space (dict): From `read_space`.
            score (Callable): Trains with a trial's values; higher is better.
            trials (int): Complete trials in the end.
            storage (Path): File of the study (SQLite).
            facts (dict): What the study depends on, as JSON types.

        Returns:
            `{"best": {"number", "score", "values"}, "trials": [...]}`, the trials in order.

        Raises:
            ValueError: if the study in the file is of other facts, or optuna is missing.
        """
        if trials < 1:
            raise ValueError(f"A search has at least one trial; got {trials}.")
        if not is_optuna_available():
            raise ValueError("A search needs optuna: pip install multitask-sentence-transformer[search].")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.score = score
        address = f"sqlite:///{storage}"
        study = optuna.create_study(study_name=STUDY, storage=address, direction="maximize", load_if_exists=True)
        if study.user_attrs.get("facts", facts) != facts:
            raise ValueError(
                f"{storage} holds a search of another recipe or space; its trials cannot be compared with these. "
                "Choose another --output_dir, or delete the file."
            )
        study.set_user_attr("facts", facts)
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # broken off
        for number in range(len(complete_trials(study)), trials):
            self.hyperparameter_search(
                hp_space=lambda trial: suggest(trial, space),
                n_trials=1,
                direction="maximize",
                backend="optuna",
                study_name=STUDY,
                storage=address,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=self.args.seed + number),
            )
        return summary(study)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """Train the trial, and remember its score where Trainer's interface looks for it."""
        values = self.hp_space(trial)
        self.objective = self.score(values)
        return TrainOutput(0, 0.0, {})


def complete_trials(study: Any) -> list[Any]:
    """The trials of a study that have a score, in order."""
    return [trial for trial in study.get_trials() if trial.value is not None]


def summary(study: Any) -> dict[str, Any]:
    """The complete trials of a study and the best of them, as JSON types; numbers count complete trials from 0."""
    trials = [
        {"number": number, "score": trial.value, "values": trial.params}
        for number, trial in enumerate(complete_trials(study))
    ]
    return {"best": max(trials, key=lambda one: one["score"]), "trials": trials}
