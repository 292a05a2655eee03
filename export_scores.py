"""What the precision of a graph costs: every task scored before and after, on the data of a recipe.

Both go through the stock Trainer's prediction loop and `task_metrics`, so that the scores are those that
`evaluate_hf.py` prints. It exports nothing.

    datasets = read_rows(model, tokenizer, "recipes/news_entities.yaml", split="test")
    compare(score(model, tokenizer, datasets), score(graph, tokenizer, datasets))
"""

import tempfile
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from data_collator import MultiTaskDataCollator
from modeling_multitask import MultiTaskModel
from recipe_arguments import parse_arguments
from task_data import load_tasks, require_split
from task_features import build_features
from task_metrics import MultiTaskMetrics, preprocess_logits_for_metrics, primary_metric

Scores = dict[str, dict[str, Any]]
"""Task -> its primary metric's name, the rows scored, the score."""


def read_rows(
    model: MultiTaskModel,
    tokenizer: Any,
    recipe: str,
    split: str = "test",
    data_root: str | None = None,
    offline: bool = False,
    nano: bool = False,
) -> dict[str, Dataset]:
    """The rows of one split that the model's tasks have in a recipe, tokenised.

    Raises:
        ValueError: if the recipe has none of the model's tasks, or a task lacks the split.
    """
    _, data, _ = parse_arguments([recipe, "--output_dir", "unused", *(["--nano"] if nano else [])])
    tasks = {name: source for name, source in data.tasks.items() if name in model.config.tasks}
    if not tasks:
        raise ValueError(
            f"A recipe with tasks of the model is needed to score it; {recipe} has {', '.join(data.tasks)}, the model "
            f"{', '.join(model.config.tasks) or 'none'}."
        )
    labels = {name: model.config.tasks[name].get("labels", []) for name in tasks}
    loaded = load_tasks(tasks, data_root, offline=offline, known_labels=labels)
    require_split(loaded, split)
    return getattr(build_features(loaded, tokenizer, model.max_length(tokenizer), splits=(split,)), split)


def score(model: Any, tokenizer: Any, datasets: dict[str, Dataset]) -> Scores:
    """Each task's primary metric, on the CPU.

    Args:
        model: A `MultiTaskModel` or a `GraphModel`.
        tokenizer: The one saved beside it.
        datasets (dict): Task -> features, from `read_rows`.
    """
    tasks = model.config.tasks
    with tempfile.TemporaryDirectory() as unused:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                unused, use_cpu=True, per_device_eval_batch_size=32, label_names=["labels"], report_to="none"
            ),
            data_collator=MultiTaskDataCollator(tokenizer, tasks),
            compute_metrics=MultiTaskMetrics(tasks),
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        found = {}
        for name, rows in datasets.items():
            metric = primary_metric(tasks[name])
            value = trainer.predict(rows).metrics[f"test_{metric}"]
            found[name] = {"metric": metric, "rows": len(rows), "score": value}
    return found


def compare(before: Scores, after: Scores) -> Scores:
    """Task -> metric, rows, `before`, `after` and `change` of the score (0-1)."""
    return {
        name: {
            "metric": one["metric"],
            "rows": one["rows"],
            "before": one["score"],
            "after": after[name]["score"],
            "change": after[name]["score"] - one["score"],
        }
        for name, one in before.items()
    }
