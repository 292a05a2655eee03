"""What the Hub would say of a model card's metadata, as far as its published rules go; `loopback_hub` answers with it.

It looks at form alone: that the numbers are right is for the tests of `model_card` to show. Rules: the Hub's
documentation of model cards (https://huggingface.co/docs/hub/model-cards) and `modelcard.md` of hub-docs.

    assert card_errors(Path("README.md").read_text()) == []
"""

import re
from typing import Any

import yaml

PIPELINE_TAGS = {"text-classification", "token-classification", "sentence-similarity", "feature-extraction"}
WIDGET_FIELDS = {"text", "source_sentence"}


def card_errors(content: str) -> list[str]:
    """Everything that is wrong with the metadata block of a README.md."""
    block = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, re.DOTALL)
    if block is None:
        return ["there is no metadata block between two lines of ---"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    return [*_field_errors(data), *_widget_errors(data), *_index_errors(data)]


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _field_errors(data: dict[str, Any]) -> list[str]:
    """Ids, tags and languages."""
    patterns = {
        "license": r"[a-z0-9.-]+",
        "language": r"[a-z]{2,3}|multilingual|code",
        "datasets": r"[\w.-]+(/[\w.-]+)?",
        "base_model": r"[\w.-]+/[\w.-]+",
        "library_name": r"[\w-]+",
        "tags": r".+",
        "metrics": r"[\w-]+",
    }
    errors = [
        f"{name}: {value!r} is not valid"
        for name, pattern in patterns.items()
        for value in _texts(data.get(name, []))
        if not isinstance(value, str) or not re.fullmatch(pattern, value)
    ]
    if "pipeline_tag" in data and data["pipeline_tag"] not in PIPELINE_TAGS:
        errors.append(f"pipeline_tag: {data['pipeline_tag']!r} is not one of {sorted(PIPELINE_TAGS)}")
    return errors


def _widget_errors(data: dict[str, Any]) -> list[str]:
    """Examples: a text each, and an output in the form of its task."""
    errors = []
    for example in data.get("widget", []):
        if not isinstance(example, dict) or not WIDGET_FIELDS & example.keys():
            errors.append(f"widget: {example!r} has none of {sorted(WIDGET_FIELDS)}")
            continue
        for part in _texts(example.get("output", [])):
            is_score = isinstance(part, dict) and isinstance(part.get("label"), str)
            is_span = isinstance(part, dict) and {"word", "start", "end"} <= part.keys()
            if not (is_score or is_span) or not isinstance(part.get("score"), float):
                errors.append(f"widget: the output {part!r} is neither a label nor an entity with its score")
    return errors


def _index_errors(data: dict[str, Any]) -> list[str]:
    """`model-index`: a name, and for each result a task, a data set and numbers."""
    errors = []
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model.get("results"):
            errors.append("model-index: a model needs a name and results")
        for result in model.get("results", []):
            if not result.get("task", {}).get("type"):
                errors.append(f"model-index: a result has no task.type: {result}")
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                errors.append(f"model-index: a result has no dataset.name or dataset.type: {result}")
            if "source" in result and not result["source"].get("url"):
                errors.append(f"model-index: a source has no url: {result}")
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or not isinstance(metric.get("value"), int | float):
                    errors.append(f"model-index: a metric needs a type and a number: {metric}")
    return errors
