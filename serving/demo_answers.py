"""What the tabs of the web demo compute: from the model's answers and embeddings to what is shown of them.

Plain functions of plain values, so that a test can hold each against `model.predict` and `model.encode`. It asks no
model (`app` does) and draws nothing (`demo_html` does).

    cards(model.config.tasks, model.predict(["Shares of Siemens rose."], tokenizer)[0])
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from configuration_multitask import (
    FEATURE_EXTRACTION,
    MULTI_LABEL,
    REGRESSION,
    SENTENCE_SIMILARITY,
    TOKEN_CLASSIFICATION,
)
from handler import MAX_CHARACTERS
from model_card import read_json, read_scores, result_rows

MAX_SENTENCES = 30
"""Of a heat map or a map: more cannot be read on one page."""
NEAREST = 5
"""Pairs that are listed beside a heat map."""


class Bar(NamedTuple):
    """A class and its probability, 0 to 1."""

    label: str
    score: float
    chosen: bool


@dataclass(frozen=True)
class Card:
    """A task's answer for a text.

    Attributes:
        task (str): Its name.
        kind (str): In words.
        headline (str): The answer in short.
        bars (list[Bar]): The classes, likeliest first; none where there are none.
        needs_pair (bool): Whether it waits for a second text.
    """

    task: str
    kind: str
    headline: str = ""
    bars: list[Bar] = field(default_factory=list)
    needs_pair: bool = False


def is_tagger(spec: dict[str, Any]) -> bool:
    """Whether a task marks words."""
    return spec["kind"] == TOKEN_CLASSIFICATION


def is_for_pairs(spec: dict[str, Any]) -> bool:
    """Whether a task compares two texts, or reads two as one."""
    return spec["kind"] == SENTENCE_SIMILARITY or bool(spec.get("text_pair"))


def kind_in_words(spec: dict[str, Any]) -> str:
    """What a task does."""
    kinds = {
        SENTENCE_SIMILARITY: "cosine of two texts",
        TOKEN_CLASSIFICATION: "marks words",
        FEATURE_EXTRACTION: "an embedding",
    }
    problems = {REGRESSION: "a number", MULTI_LABEL: "any number of labels"}
    words = kinds.get(spec["kind"]) or problems.get(str(spec.get("problem_type")), "one label")
    return f"{words}, of two texts read together" if spec.get("text_pair") else words


def cards(tasks: dict[str, dict[str, Any]], answer: dict[str, Any]) -> list[Card]:
    """A card for each task that answers with labels or a number, in the model's order.

    Args:
        tasks (dict): `config.tasks`.
        answer (dict): Of `predict`, for one text or pair.
    """
    whole = {name: spec for name, spec in tasks.items() if not is_tagger(spec) and spec["kind"] != FEATURE_EXTRACTION}
    return [card(name, spec, answer.get(name)) for name, spec in whole.items()]


def card(name: str, spec: dict[str, Any], answer: dict[str, Any] | None) -> Card:
    """The card of a task; without an answer, of one that needs a second text."""
    kind = kind_in_words(spec)
    if answer is None:
        return Card(name, kind, needs_pair=True)
    if "scores" not in answer:
        return Card(name, kind, f"{answer['score']:.3f}")
    chosen = answer.get("labels", [answer.get("label")])
    bars = [Bar(label, score, label in chosen) for label, score in answer["scores"].items()]
    return Card(name, kind, ", ".join(bar.label for bar in bars if bar.chosen) or "none of them", bars)


def highlighted(text: str, spans: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """A text cut into what is marked, with its label, and what is not, with None; joined, it is the text again."""
    pieces: list[tuple[str, str | None]] = []
    done = 0
    for span in spans:
        label = span.get("entity_group") or span["entity"]
        pieces += [(text[done : span["start"]], None), (text[span["start"] : span["end"]], label)]
        done = span["end"]
    return [piece for piece in [*pieces, (text[done:], None)] if piece[0]]


# ---------------------------------------------------------------------------------------------------------------------
# What may come in


def checked_text(text: str | None, what: str = "The text") -> str:
    """A text as it came.

    Raises:
        ValueError: for one of nothing but white space, or too long.
    """
    if not (text or "").strip():
        raise ValueError(f"{what} must hold at least a word; it is empty. Type one, or click an example.")
    assert text is not None
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{what} may have {MAX_CHARACTERS:,} characters; it has {len(text):,}. Split it, or ask by predict_hf.py."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be Unicode; it holds half of a surrogate pair. Type it again.") from None
    return text


def sentences_of(lines: str | None, at_least: int) -> list[str]:
    """The sentences of a text box, one a line, empty lines left out.

    Raises:
        ValueError: for fewer than `at_least` or more than `MAX_SENTENCES`, or one that is too long.
    """
    sentences = [line.strip() for line in (lines or "").splitlines() if line.strip()]
    if not at_least <= len(sentences) <= MAX_SENTENCES:
        raise ValueError(
            f"Give {at_least} to {MAX_SENTENCES} sentences, one a line; there are {len(sentences)}. "
            "The API (/similarity, /embed) takes more."
        )
    return [checked_text(sentence, f"Sentence {number}") for number, sentence in enumerate(sentences, start=1)]


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of every two rows. Shape (texts, size) to (texts, texts), -1 to 1."""
    return cosine_similarity(vectors).clip(-1, 1)


class Pair(NamedTuple):
    """Two sentences by their places, and their cosine."""

    first: int
    second: int
    cosine: float


def nearest_pairs(matrix: np.ndarray, count: int = NEAREST) -> list[Pair]:
    """The pairs of different rows with the highest cosines, highest first."""
    pairs = [Pair(i, j, float(matrix[i, j])) for i, j in combinations(range(len(matrix)), 2)]
    return sorted(pairs, key=lambda pair: -pair.cosine)[:count]


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Rows seen along their two directions of greatest variance (PCA).

    Args:
        vectors (ndarray): Shape (texts, size), at least two texts.

    Returns:
        Points, shape (texts, 2), and the share of the variance along either axis, 0 to 1. Two texts lie on a line;
        where all are equal, all are at 0 and the shares are 0.
    """
    axes = min(2, *vectors.shape)
    if np.ptp(vectors, axis=0).max() == 0:
        return np.zeros((len(vectors), 2)), [0.0, 0.0]
    pca = PCA(axes, svd_solver="full")
    points = pca.fit_transform(vectors.astype(np.float64))
    shares = [float(share) for share in pca.explained_variance_ratio_]
    return np.pad(points, ((0, 0), (0, 2 - axes))), [*shares, 0.0][:2]


# ---------------------------------------------------------------------------------------------------------------------
# What is known of a model


@dataclass(frozen=True)
class ModelFacts:
    """What a model's folder says of it, beside its tasks.

    Attributes:
        card (str): Its README without front matter; empty where there is none.
        split (str): What it was scored on; empty where it was not.
        results (list[dict]): Rows of `model_card.result_rows`.
        mean_score (float): Mean of the primary metrics; None where it was not scored.
    """

    card: str = ""
    split: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    mean_score: float | None = None


def read_facts(folder: Path | None) -> ModelFacts:
    """What a folder says of its model; nothing where there is no folder, or no such files in it."""
    if folder is None:
        return ModelFacts()
    split, scores = read_scores(folder)
    tasks = read_json(folder / "config.json").get("tasks") or {}
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    return ModelFacts(
        without_pictures(without_front_matter(text)),
        split,
        result_rows(tasks, split, scores),
        scores.get(f"{split}_mean_score"),
    )


def without_front_matter(text: str) -> str:
    """A Markdown text without the block of YAML between `---` that it may begin with."""
    if not text.startswith("---\n"):
        return text
    _, end, rest = text[4:].partition("\n---\n")
    return rest.lstrip() if end else text


def without_pictures(text: str) -> str:
    """A Markdown text with the names of its pictures in their place: they lie in the folder, or at another host."""
    return re.sub(r"<img\b[^>]*>", "", re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"(picture: \1)", text))
