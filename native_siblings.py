"""The parts of a model that hosted widgets can run, each in a folder that becomes a repository of its own.

A page on the Hub runs no custom code. `publish_hf.py --native_heads` therefore publishes, beside the model, every head
that the encoder's own class can compute, and the embedding, with a card and examples of their own (`native_card.md`).
How a folder is written, and why a head may have none, is `native_export`; nothing here touches a network.

    siblings, refused = write_siblings(model, tokenizer, staged, Path("siblings"), "alice/news")
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor
from transformers import pipeline

from configuration_multitask import REGRESSION, SENTENCE_SIMILARITY, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from hub_folder import CHECK_TEXTS, answers_elsewhere, compare_answers
from hub_repository import SIBLING_KEY
from model_card import EXAMPLE_TEXTS, FACTS_NAME, cell, eval_results, read_json, read_scores, result_rows, template_file
from native_export import NoPlainClassError, write_native

EMBEDDING = "sentence_embedding"
"""Sibling of the embedding; no task can have this name."""
AGGREGATION = "first"
"""How a stock pipeline, and by the card's `inference` field the widget, joins tokens: a word is as its first token.

Their default, `simple`, breaks words and entities wherever the tokens of a word disagree.
"""
TOLERANCE = 1e-4
"""Largest difference of a logit or token state: the same products, added up in another order."""

READER = """
import transformers

tokenizer = AutoTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, return_tensors="pt")
architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
with torch.no_grad():
    output = getattr(transformers, architecture).from_pretrained(folder).eval()(**batch)
answers = output.logits if "logits" in output else output.last_hidden_state
if answers.dim() == 3:
    answers = answers * batch["attention_mask"].unsqueeze(-1)
found = {"token ids": batch["input_ids"], "answers": answers}
"""
"""Opens a native folder as anybody would, without `trust_remote_code`."""


@dataclass(frozen=True)
class Sibling:
    """A native folder that is ready to be published.

    Attributes:
        name (str): The task, or `EMBEDDING`.
        repo_id (str): Where it goes: the model's id, then `-` and the name.
        folder (Path): Config, weights, tokenizer and card.
    """

    name: str
    repo_id: str
    folder: Path


def write_siblings(
    model: Any, tokenizer: Any, published: Path, root: Path, repo_id: str
) -> tuple[list[Sibling], dict[str, str]]:
    """Write, check and describe a native folder for every head that can have one, and for the embedding.

    Args:
        model (MultiTaskModel): In evaluation mode, in float32.
        tokenizer: The one saved beside it.
        published (Path): The model's own folder as it is published; scores and data are read from it.
        root (Path): Where the folders are made, each by its name.
        repo_id (str): The model's own repository.

    Returns:
        The siblings; and task -> reason for each head that has none.

    Raises:
        ValueError: if a folder does not answer in a fresh process as the model does here.
    """
    siblings: list[Sibling] = []
    refused: dict[str, str] = {}
    kinds = {name: spec["kind"] for name, spec in model.config.tasks.items()}
    heads = [name for name, kind in kinds.items() if kind in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)]
    for name in [*heads, EMBEDDING]:
        sibling = Sibling(name, f"{repo_id}-{name}", root / name)
        task = name if name != EMBEDDING else None
        try:
            write_native(model, tokenizer, sibling.folder, task)
        except NoPlainClassError as error:
            refused[name] = str(error)
            continue
        mark(sibling.folder, repo_id)
        difference = compare_answers(
            answers_here(model, tokenizer, task), answers_elsewhere(sibling.folder, READER), TOLERANCE
        )
        native_card(sibling, repo_id, published, difference).save(sibling.folder / "README.md")
        siblings.append(sibling)
    return siblings, refused


def mark(folder: Path, repo_id: str) -> None:
    """Say in a native folder's configuration which model it is of, so that publishing again knows it for ours."""
    path = folder / "config.json"
    path.write_text(json.dumps(read_json(path) | {SIBLING_KEY: repo_id}, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def answers_here(model: Any, tokenizer: Any, task: str | None) -> dict[str, Tensor]:
    """What `READER` finds, from the model in this process."""
    batch = tokenizer(list(CHECK_TEXTS), padding=True, padding_side="right", return_tensors="pt")
    output = model(**batch, tasks=[task] if task is not None else [])
    answers = output.logits[task] if task is not None else output.last_hidden_state
    if answers.dim() == 3:
        answers = answers * batch["attention_mask"].unsqueeze(-1)
    return {"token ids": batch["input_ids"], "answers": answers}


def native_card(sibling: Sibling, repo_id: str, published: Path, difference: float) -> ModelCard:
    """The card of a native folder: what it is a part of, how to use it, its scores, examples with its own answers."""
    config, facts = read_json(published / "config.json"), read_json(published / FACTS_NAME)
    split, scores = read_scores(published)
    spec = config["tasks"].get(sibling.name, {})
    task, tasks = (sibling.name, {sibling.name: spec}) if spec else (None, {})
    kind = spec.get("kind", SENTENCE_SIMILARITY)
    texts = list(facts.get("sample_texts") or EXAMPLE_TEXTS)
    results = eval_results(published, repo_id, tasks)
    sources = [source for name, source in facts.get("data", {}).items() if name in (tasks or config["tasks"])]
    data = ModelCardData(
        library_name="transformers" if task is not None else "sentence-transformers",
        pipeline_tag=kind,
        license=facts.get("license"),
        language=sorted({language for source in sources for language in source.get("language") or []}) or None,
        base_model=repo_id,
        tags=["multi-task-learning"],
        inference={"parameters": {"aggregation_strategy": AGGREGATION}} if kind == TOKEN_CLASSIFICATION else None,
        widget=widget_examples(sibling.folder, kind, texts, spec),
        model_name=sibling.repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(template_file("native_card.md")),
        name=sibling.repo_id,
        source=repo_id,
        task=task,
        architecture=read_json(sibling.folder / "config.json")["architectures"][0],
        labels=", ".join(cell(label) for label in spec.get("labels", [])),
        use=how_to_use(sibling.repo_id, kind, task),
        compared="logits" if task is not None else "token states",
        difference=difference,
        results=result_rows(tasks, split, scores),
        max_length=read_json(sibling.folder / "tokenizer_config.json")["model_max_length"],
        is_token_level=kind == TOKEN_CLASSIFICATION,
        license=facts.get("license"),
    )


def how_to_use(repo_id: str, kind: str, task: str | None) -> str:
    """The lines that open a native repository."""
    if task is None:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'SentenceTransformer("{repo_id}").encode(["A text."])'
        )
    options = f', aggregation_strategy="{AGGREGATION}"' if kind == TOKEN_CLASSIFICATION else ""
    return f'from transformers import pipeline\n\npipeline("{kind}", model="{repo_id}"{options})("A text.")'


def widget_examples(folder: Path, kind: str, texts: Sequence[str], spec: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Examples with the folder's own answers, as the widget calls it; similarity takes a text and others."""
    if kind == SENTENCE_SIMILARITY:
        return [{"source_sentence": texts[0], "sentences": list(texts[1:])}] if len(texts) > 1 else None
    if spec.get("problem_type") == REGRESSION:
        return None
    options = {"aggregation_strategy": AGGREGATION} if kind == TOKEN_CLASSIFICATION else {"top_k": None}
    answer = pipeline(kind, model=str(folder), device="cpu", **options)
    return [
        {
            "text": text,
            "example_title": f"Example {place}",
            "output": [{**part, "score": round(float(part["score"]), 4)} for part in answer([text])[0]],
        }
        for place, text in enumerate(texts, start=1)
    ]
