"""Command: search for good values of a recipe's keys.

    python search_hf.py RECIPE.yaml --trials 20 --output_dir outputs/search
    python train_hf.py outputs/search/best_recipe.yaml --output_dir outputs/best

The recipe says what is varied: `search: {learning_rate: {low: 1e-5, high: 5e-4, log: true}, tasks.ner.loss.weight:
[0.5, 1, 2]}`; any argument of train_hf.py can be. A trial trains the recipe with its values, from the same seed, and is
judged by `eval_mean_score` of the best checkpoint, on validation rows; test rows are not read for it. Other arguments
are as in train_hf.py and go into the best recipe. The same command takes up a search that was broken off, or goes on
with more trials. One process; extra `search` (optuna).
"""

import argparse
import gc
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers import set_seed

from command_help import CommandParser
from hyperparameter_search import SearchTrainer, Values, corners, read_space, read_words, with_values, write_recipe
from input_errors import one_line_errors
from recipe_arguments import parse_arguments, read_recipe
from training_run import PreparedRun, build_trainer, prepare_run, train_model

TRIALS_FILE = "trials.json"
BEST_FILE = "best_recipe.yaml"
STUDY_FILE = "search.db"


def parse_search(argv: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command's own arguments, and the recipe with the other ones in it.

    Raises:
        ValueError: for words or a recipe that cannot be read.
    """
    parser = CommandParser(doc=__doc__)
    parser.add_argument("recipe", help="YAML file with an entry `search`.")
    parser.add_argument("--trials", type=int, default=20, help="Complete trials in the end (default: 20).")
    parser.add_argument(
        "--output_dir", help="Folder of the study, all trials and the best recipe (default: outputs/search_<recipe>)."
    )
    given, words = parser.parse_known_args(argv)
    given.output_dir = given.output_dir or f"outputs/search_{Path(given.recipe).stem}"
    recipe = {name: value for name, value in read_recipe(given.recipe).items() if name != "output_dir"}
    return given, with_values(recipe, read_words(words))


def parse_recipe(recipe: dict[str, Any], folder: Path) -> Any:
    """The checked arguments of a recipe that writes into a folder of its own, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_recipe(recipe, folder / "recipe.yaml")
    return parse_arguments([str(folder / "recipe.yaml"), "--output_dir", str(folder)])


def prepare(recipe: dict[str, Any], folder: Path) -> PreparedRun:
    """A run of a recipe, as train_hf.py prepares it."""
    model_args, data_args, args = parse_recipe(recipe, folder)
    if args.world_size > 1:
        raise ValueError("A search runs in one process; start it without accelerate launch.")
    set_seed(args.seed)
    return prepare_run(model_args, data_args, args)


def score_of(recipe: dict[str, Any], folder: Path) -> float:
    """Train a recipe; the mean score of its best checkpoint on validation rows, 0 if it diverged."""
    run = prepare(recipe, folder)
    trainer = build_trainer(run)
    try:
        train_model(run, trainer)
        score = float(trainer.evaluate()["eval_mean_score"])
    except FloatingPointError as error:  # raised before a weight is NaN; the other trials go on
        print(f"Diverged: {str(error).splitlines()[0]}", flush=True)
        score = 0.0
    shutil.rmtree(folder)
    gc.collect()  # models and their optimizers refer to each other; the next trial needs the memory
    return score


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse, check the values of the space, search, write; return all trials and the best."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    with one_line_errors("search_hf.py"):
        given, recipe = parse_search(argv)
        space = read_space(recipe.pop("search", None))
        folder = Path(given.output_dir)
        for values in corners(space):  # what cannot be trained shows now, not after hours
            parse_recipe(with_values(recipe, values), folder / "trial")
        run = prepare(with_values(recipe, values), folder / "trial")

    def score(values: Values) -> float:
        result = score_of(with_values(recipe, values), folder / "trial")
        print(f"{result:.4f}  {json.dumps(values)}", flush=True)
        return result

    trainer = SearchTrainer(model_init=lambda: run.model, args=run.args, eval_dataset=run.features.validation)
    with one_line_errors("search_hf.py"):
        facts = {"recipe": recipe, "space": space}
        found = trainer.search(space, score, given.trials, folder / STUDY_FILE, facts)
    shutil.rmtree(folder / "trial", ignore_errors=True)
    best = found["best"]
    (folder / TRIALS_FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    comment = f"Trial {best['number']} of {len(found['trials'])}: eval_mean_score {best['score']:.4f}."
    write_recipe(with_values(recipe, best["values"]), folder / BEST_FILE, comment)
    print(f"Best: {best['score']:.4f} with {json.dumps(best['values'])}\nRecipe in {folder / BEST_FILE}")
    return found


if __name__ == "__main__":
    main()
