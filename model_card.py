"""The model card of a folder: `model_card.md` filled in from the files that a run wrote beside the weights.

Everything in it is read: the run (`run_facts.json`, by `describe_run_facts`), the scores (`test_results.json`), the
tasks (`config.json`), the sizes, the pictures; the examples are the model's own answers. So a card can be written again
from its folder, and says the same. Nothing is measured here.

    write_card(Path("outputs/news"), "alice/news", partial(model.predict, tokenizer=tokenizer, bf16=False))
"""

import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import TrainingArguments

from configuration_multitask import (
    FEATURE_EXTRACTION,
    REGRESSION,
    SENTENCE_SIMILARITY,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from task_data import LoadedTask
from task_metrics import primary_metric
from task_report import format_answers

FACTS_NAME = "run_facts.json"
"""What a run did, as far as its card says so; see `describe_run_facts`."""
COMPARISON_NAME = "comparison.json"
"""What single-task models reached, where `compare_hf.py` trained them."""
EXAMPLE_TEXTS = ("Maria Jensen joined Nordwind Systems in Oslo last Monday.", "Will it rain in Lisbon tomorrow?")
"""Texts that a card shows answers to, where the recipe has no `sample_texts`."""
HYPERPARAMETERS = """num_train_epochs max_steps learning_rate head_learning_rate lr_scheduler_type warmup_steps
weight_decay optim max_grad_norm per_device_train_batch_size gradient_accumulation_steps early_stopping_patience
loss_balancing layer_decay freeze stages seed data_seed""".split()
"""Arguments of training that a card lists, unless they are unset (None, or -1 steps)."""
METRIC_IDS = {
    "f1": "f1",
    "strict_f1": "f1",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "accuracy": "accuracy",
    "word_accuracy": "accuracy",
    "subset_accuracy": "accuracy",
    "reduced_word_accuracy": "accuracy",
    "matthews": "matthews_correlation",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
}
"""Our metric -> the Hub's id of it, where that is another."""
UNSCORED = {"rows", "loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}
UNSCORED |= {"ece", "ece_uncalibrated"}
"""What stands among the metrics of a task and is no score; calibration errors have a table of their own."""
PAGE_ORDER = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, SENTENCE_SIMILARITY, FEATURE_EXTRACTION)
"""The kind that a page on the Hub shows the model as: the first of these that it has."""

Answer = Callable[[Sequence[str]], list[dict[str, Any]]]


# ---------------------------------------------------------------------------------------------------------------------
# The facts of a run


def describe_run_facts(
    args: TrainingArguments,
    encoder: str,
    loaded: Mapping[str, LoadedTask],
    plan: Any,
    notes: Sequence[str],
    sample_texts: Sequence[str],
) -> dict[str, Any]:
    """What a card says of a run and no other file holds, as JSON types; no path of this machine but what was typed.

    Args:
        args (TrainingArguments): How it trained.
        encoder (str): What it started from, as it was given.
        loaded (Mapping): The tasks and where their rows came from.
        plan (SamplingPlan): What training saw.
        notes (Sequence[str]): What was inferred, cut and capped.
        sample_texts (Sequence[str]): Texts to show answers to.
    """
    hyperparameters = {name: getattr(args, name, None) for name in HYPERPARAMETERS}
    hyperparameters = {name: value for name, value in hyperparameters.items() if value not in (None, -1)}
    precision = "bfloat16, mixed" if args.bf16 else "float16, mixed" if args.fp16 else "float32"
    is_folder = Path(encoder).expanduser().exists()
    facts = {
        "encoder": Path(encoder).name if is_folder else encoder,
        "base_model": None if is_folder else encoder,
        "data": {name: task.source for name, task in loaded.items()},
        "hyperparameters": {
            **hyperparameters,
            "rows_per_step": plan.rows_per_step,
            "processes": args.world_size,
            "precision": precision,
        },
        "hardware": describe_hardware(args.device),
        "plan": str(plan),
        "sampling": dataclasses.asdict(plan),
        "notes": list(notes),
        "sample_texts": list(sample_texts),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
    }
    return json.loads(json.dumps(facts))


def describe_hardware(device: torch.device) -> str:
    """What a process computes on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write what `describe_run_facts` said into a model folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_scores(folder: Path) -> tuple[str, dict[str, Any]]:
    """The split that a run was scored on at its end, and the result file; `("", {})` where it was not scored."""
    for split in ("test", "validation"):
        scores = read_json(folder / f"{split}_results.json")
        if f"{split}_protocol" in scores:
            return split, scores
    return "", {}


# ---------------------------------------------------------------------------------------------------------------------
# The card


def write_card(folder: Path, name: str, answer: Answer | None) -> None:
    """Write the card of a model folder as its `README.md`; see `build_card`."""
    build_card(folder, name, answer).save(folder / "README.md")


def build_card(folder: Path, name: str, answer: Answer | None) -> ModelCard:
    """The card of a model folder.

    Args:
        folder (Path): What `save_pretrained` and a run wrote; whatever is missing (a run that is not over, a model that
            was put together by hand) the card leaves out.
        name (str): The repository's id, or the folder's name: what the examples of use open.
        answer (Callable): Texts -> answers of every task, as `model.predict` gives; None for no examples.
    """
    config, facts = read_json(folder / "config.json"), read_json(folder / FACTS_NAME)
    split, scores = read_scores(folder)
    comparison = read_json(folder / COMPARISON_NAME)
    facts.setdefault("data", scores.get(f"{split}_protocol", {}))  # all that an older run wrote of its data
    texts = list(facts.get("sample_texts") or EXAMPLE_TEXTS)
    answers = answer(texts) if answer is not None else []
    return ModelCard.from_template(
        card_data(folder, name, config, facts, texts, answers),
        template_path=str(template_file("model_card.md")),
        name=name,
        config=config,
        facts=facts,
        tasks=[describe_task(task, spec, facts) for task, spec in config["tasks"].items()],
        split=split,
        results=[
            row | single_task(comparison.get("tasks", {}).get(row["name"]))
            for row in result_rows(config["tasks"], split, scores)
        ],
        comparison=comparison,
        mean_score=scores.get(f"{split}_mean_score"),
        calibration=calibration_rows(config["tasks"], split, scores),
        training=read_json(folder / "all_results.json"),
        rates=scoring_rates(config["tasks"], split, scores),
        embedding_size=config.get("projection_dim") or hidden_size(config),
        has_curves=(folder / "curves.png").is_file(),
        matrices=[task for task in config["tasks"] if (folder / f"confusion_{task}.png").is_file()],
        has_sentence_transformers=(folder / "modules.json").is_file(),
        has_handler=(folder / "handler.py").is_file(),
        head_of={kind: head_of(config, kind) for kind in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)},
        answers=format_answers(texts[: len(answers)], answers).strip(),
        **sizes(folder),
    )


def template_file(name: str) -> Path:
    """The template of a card: beside this file, or where the wheel puts it."""
    beside = Path(__file__).with_name(name)
    return beside if beside.is_file() else Path(sys.prefix) / "share/multitask-sentence-transformer" / name


def card_data(
    folder: Path,
    name: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    texts: Sequence[str],
    answers: Sequence[dict[str, Any]],
) -> ModelCardData:
    """The metadata at the head of the card, which the Hub searches and shows."""
    kinds = {spec["kind"] for spec in config["tasks"].values()}
    sources = facts.get("data", {}).values()
    languages = {language for source in sources for language in source.get("language") or []}
    results = eval_results(folder, name, config["tasks"])
    tags = ["multi-task-learning", "sentence-embedding", *sorted(kinds)]
    tags += ["sentence-transformers"] if (folder / "modules.json").is_file() else []
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=page_kind(kinds),
        license=facts.get("license"),
        language=sorted(languages) or None,
        base_model=facts.get("base_model"),
        datasets=sorted({source["dataset"] for source in sources if is_on_hub(source)}) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=tags,
        widget=widget_examples(config, page_kind(kinds), texts, answers) or None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def page_kind(kinds: set[str]) -> str:
    """The kind that the page shows the model as."""
    return next((kind for kind in PAGE_ORDER if kind in kinds), FEATURE_EXTRACTION)


def is_on_hub(source: Mapping[str, Any]) -> bool:
    """Whether the rows of a task are those of a dataset on the Hub, read there or from a local copy of it."""
    return source["location"] == "hub" or str(source["location"]).startswith("data_root/")


def head_of(config: dict[str, Any], kind: str) -> str | None:
    """The task that a stock pipeline of a kind answers with; None where there is none."""
    fitting = [task for task, spec in config["tasks"].items() if spec["kind"] == kind]
    return config["task_name"] if config.get("task_name") in fitting else next(iter(fitting), None)


def hidden_size(config: dict[str, Any]) -> int:
    """Features of a token state, whatever the encoder's configuration calls them."""
    encoder = config["encoder_config"]
    return encoder.get("hidden_size") or encoder["dim"]


def sizes(folder: Path) -> dict[str, Any]:
    """`parameters` and `megabytes` (10^6 bytes) of the weights, from the headers of their files."""
    parameters, size = 0, 0
    for file in folder.glob("model*.safetensors"):
        size += file.stat().st_size
        with safe_open(file, "pt") as tensors:
            parameters += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return {"parameters": parameters, "megabytes": size / 1e6}


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and results


def describe_task(task: str, spec: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A task's rows in the tables of tasks and data."""
    source = facts.get("data", {}).get(task)
    described = {"name": task, "kind": spec["kind"], "problem_type": spec.get("problem_type")}
    described["labels"] = ", ".join(cell(label) for label in spec.get("labels", [])) or "-"
    if source is not None:
        rows = source.get("rows", {})
        described |= {
            "data": data_name(source),
            "revision": source.get("commit") or source.get("revision") or "not recorded",
            "license": source.get("license") or "not stated",
            "rows": [f"{rows[split]:,}" if split in rows else "-" for split in ("train", "validation", "test")],
        }
    return described


def cell(text: Any) -> str:
    """A text that can stand in a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def data_name(source: Mapping[str, Any]) -> str:
    """What the data is called, and whether it was a local copy."""
    dataset = source["dataset"]
    name = ", ".join(dataset.values()) if isinstance(dataset, dict) else dataset
    name += f" ({source['config']})" if source.get("config") else ""
    return cell(name + (" (local copy)" if str(source["location"]).startswith("data_root/") else ""))


def protocol_of(tasks: dict[str, Any], split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """How each task was scored; tasks that the model no longer has are left out."""
    return {task: about for task, about in scores.get(f"{split}_protocol", {}).items() if task in tasks}


def own_scores(task: str, split: str, scores: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> value of a task; what is no number (a correlation of equal scores) is left out."""
    start = f"{split}_{task}_"
    found = {key.removeprefix(start): value for key, value in scores.items() if key.startswith(start)}
    return {name: value for name, value in found.items() if name not in UNSCORED and math.isfinite(value)}


def result_rows(tasks: dict[str, Any], split: str, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of the table of results for every task that was scored: the primary metric, then the others."""
    rows = []
    for task, about in protocol_of(tasks, split, scores).items():
        own, first = own_scores(task, split, scores), primary_metric(tasks[task])
        others = ", ".join(f"{name} {value:.4f}" for name, value in own.items() if name != first)
        rows.append(
            {
                "name": task,
                "metric": first,
                "score": f"{own[first]:.4f}" if first in own else "-",
                "rows": f"{about['rows_scored']:,}",
                "split": about["splits"].get(split, split),
                "scorer": about["scorer"],
                "others": others or "-",
            }
        )
    return rows


def calibration_rows(tasks: dict[str, Any], split: str, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every task with a temperature: that, and the expected calibration error without and with it."""
    return [
        {
            "name": task,
            "temperature": f"{spec['temperature']:.3f}",
            "before": f"{scores[f'{split}_{task}_ece_uncalibrated']:.4f}",
            "after": f"{scores[f'{split}_{task}_ece']:.4f}",
        }
        for task, spec in tasks.items()
        if spec.get("temperature") and f"{split}_{task}_ece" in scores
    ]


def single_task(compared: Mapping[str, Any] | None) -> dict[str, str]:
    """The cells of a task that a comparison fills in: dashes where it was not compared."""
    if compared is None:
        return {"alone": "-", "difference": "-"}
    difference, low, high = (f"{100 * one:+.2f}" for one in (compared["difference"], *compared["interval"]))
    return {
        "alone": f"{sum(compared['alone']) / len(compared['alone']):.4f}",
        "difference": f"{difference} ({low} to {high}): {compared['verdict']}",
    }


def scoring_rates(tasks: dict[str, Any], split: str, scores: Mapping[str, Any]) -> dict[str, str]:
    """Task -> rows a second while it was scored, all processes together."""
    rates = {task: scores.get(f"{split}_{task}_samples_per_second") for task in protocol_of(tasks, split, scores)}
    return {task: f"{rate:,.1f}" for task, rate in rates.items() if rate is not None}


def eval_results(folder: Path, name: str, tasks: dict[str, Any]) -> list[EvalResult]:
    """The scores as the Hub's `model-index` holds them, to four digits; the primary metric of each task first."""
    split, scores = read_scores(folder)
    url = f"https://huggingface.co/{name}/blob/main/{split}_results.json" if "/" in name else None
    results = []
    for task, about in protocol_of(tasks, split, scores).items():
        own, first = own_scores(task, split, scores), primary_metric(tasks[task])
        for metric in sorted(own, key=lambda metric: metric != first):
            results.append(
                EvalResult(
                    task_type=tasks[task]["kind"],
                    task_name=task,
                    dataset_type=about["dataset"] if is_on_hub(about) else "custom",
                    dataset_name=data_name(about),
                    dataset_config=about.get("config"),
                    dataset_split=about["splits"].get(split, split),
                    dataset_revision=about.get("commit") or about.get("revision"),
                    dataset_args={"rows": about["rows_scored"]},
                    metric_type=METRIC_IDS.get(metric, metric),
                    metric_name=metric,
                    metric_value=round(own[metric], 4),
                    metric_args={"scorer": about["scorer"]} if metric == first else None,
                    source_name=f"{split}_results.json" if url else None,
                    source_url=url,
                )
            )
    return results


def widget_examples(
    config: dict[str, Any], kind: str, texts: Sequence[str], answers: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Examples of the page's kind, with the model's own answers as `output`; none without answers.

    Every task of the kind that answers single texts with labels is a group. Similarity takes a text and others.
    """
    if kind in (SENTENCE_SIMILARITY, FEATURE_EXTRACTION):
        return [{"source_sentence": texts[0], "sentences": list(texts[1:])}] if len(texts) > 1 else []
    return [
        {"text": text, "group": task, "example_title": f"{task} {place}", "output": widget_output(answer[task])}
        for task, spec in config["tasks"].items()
        if spec["kind"] == kind
        for place, (text, answer) in enumerate(zip(texts, answers, strict=False), start=1)
        if task in answer and spec.get("problem_type") != REGRESSION
    ]


def widget_output(answer: Any) -> list[dict[str, Any]]:
    """An answer as the widget shows it: labels by score, or entities."""
    if isinstance(answer, list):
        return [{**part, "score": round(float(part["score"]), 4)} for part in answer]
    ordered = sorted(answer["scores"].items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": round(float(score), 4)} for label, score in ordered]
