"""The bodies of requests and answers, with their bounds and an example each: what `/openapi.json` says of them.

The bounds on texts are those of the handler, so that a model answers the same requests here and on Inference Endpoints.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from handler import MAX_CHARACTERS, MAX_TEXTS
from pipeline_multitask import AGGREGATION_STRATEGIES

Text = Annotated[str, Field(strict=True, max_length=MAX_CHARACTERS, description="Unicode; may be empty.")]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2, description="Two texts, compared or read together.")]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Vector = list[float]

SIEMENS = "Shares of Siemens rose in Munich."
RAIN = "It rained on the players."


class Body(BaseModel):
    """Of a request: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def example(value: Any) -> ConfigDict:
    """A configuration that shows an example in the schema."""
    return ConfigDict(json_schema_extra={"examples": [value]})


class PredictBody(Body):
    """Texts or pairs, and what is asked about them."""

    model_config = example({"texts": [SIEMENS, [SIEMENS, RAIN]], "tasks": ["topic", "ner"], "top_k": 3})

    texts: list[Text | Pair] = Field(min_length=1, max_length=MAX_TEXTS, description="Texts, and pairs of texts.")
    tasks: list[str] | None = Field(None, max_length=1000, description="Tasks to answer (default: all); see /info.")
    top_k: Annotated[int, Field(strict=True, ge=1, le=2**31)] | None = Field(
        None, description="How many classes `scores` lists (default: all)."
    )
    aggregation_strategy: Literal[AGGREGATION_STRATEGIES] = Field(  # type: ignore[valid-type]
        "first", description="How sub-words make entities."
    )
    embeddings: Annotated[bool, Field(strict=True)] = Field(False, description="Also give the sentence embedding.")


class ClassAnswer(BaseModel):
    """One class of several."""

    label: str
    score: float
    scores: dict[str, float] = Field(description="Class -> probability, best first, at most `top_k`.")


class LabelsAnswer(BaseModel):
    """Any number of classes."""

    labels: list[str] = Field(description="Those of probability 0.5 or more.")
    scores: dict[str, float]


class ScoreAnswer(BaseModel):
    """A number: of a regression, or a similarity."""

    score: float


class EntityAnswer(BaseModel):
    """An entity, `text[start:end]`."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class TagAnswer(BaseModel):
    """A word's tag, `text[start:end]`."""

    entity: str
    score: float
    word: str
    start: int
    end: int


Answer = ClassAnswer | LabelsAnswer | ScoreAnswer | list[EntityAnswer] | list[TagAnswer] | Vector


class PredictAnswer(BaseModel):
    """Task -> answer for every text; tasks that compare or read two texts answer pairs only."""

    model_config = example(
        {
            "answers": [
                {
                    "topic": {"label": "Business", "score": 0.9, "scores": {"Business": 0.9, "World": 0.1}},
                    "ner": [{"entity_group": "ORG", "score": 0.98, "word": "Siemens", "start": 10, "end": 17}],
                }
            ]
        }
    )

    answers: list[dict[str, Answer]] = Field(description="In the order of `texts`.")


class EmbedBody(Body):
    """Texts to embed."""

    model_config = example({"texts": [SIEMENS, RAIN]})

    texts: Texts
    normalize: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="Whether vectors have length 1 (default: as the model gives them)."
    )


class EmbedAnswer(BaseModel):
    """Sentence embeddings."""

    model_config = example({"embeddings": [[0.1, -0.2], [0.3, 0.0]]})

    embeddings: list[Vector] = Field(description="In the order of `texts`.")


class PairsBody(Body):
    """Pairs of texts, compared each by itself."""

    model_config = example({"pairs": [[SIEMENS, RAIN]]})

    pairs: list[Pair] = Field(min_length=1, max_length=MAX_TEXTS)


class MatrixBody(Body):
    """Texts, compared each with each of `others`, or with each other."""

    model_config = example({"texts": [SIEMENS, RAIN], "others": ["Stocks went up."]})

    texts: Texts
    others: Texts | None = Field(None, description="The columns (default: `texts`).")


class SimilarityAnswer(BaseModel):
    """Cosines of sentence embeddings, -1 to 1."""

    model_config = example({"scores": [0.42]})

    scores: list[float] | list[list[float]] = Field(description="One a pair; or a row a text.")


class OpenAIBody(Body):
    """What clients of OpenAI's embeddings send, but for lists of token numbers."""

    model_config = example({"model": "news", "input": [SIEMENS, RAIN]})

    input: Text | Texts
    model: str = Field(max_length=1000, description="Any name: a server has one model.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    dimensions: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="Only the model's own size; vectors are not shortened."
    )
    user: str | None = Field(None, max_length=1000, description="Not read.")


class OpenAIVector(BaseModel):
    """One embedding."""

    object: Literal["embedding"]
    index: int
    embedding: Vector | str


class OpenAIUsage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(BaseModel):
    """Embeddings of length 1, as OpenAI's are."""

    object: Literal["list"]
    data: list[OpenAIVector]
    model: str
    usage: OpenAIUsage


class TaskInfo(BaseModel):
    """A task of the model."""

    kind: str
    problem_type: str | None = None
    labels: list[str] | None = None
    text_pair: bool | None = Field(None, description="Whether it reads two texts jointly.")


class EmbeddingInfo(BaseModel):
    """The sentence embedding."""

    size: int
    normalized: bool
    max_tokens: int = Field(description="What is read of a text; tags are read beyond it.")


class InfoAnswer(BaseModel):
    """What is served."""

    model: str
    engine: Literal["torch", "onnx", "openvino"]
    tasks: dict[str, TaskInfo]
    embedding: EmbeddingInfo
    limits: dict[str, float] = Field(description="Bounds of a request and of the server; bytes and seconds.")
    versions: dict[str, str]


class StateAnswer(BaseModel):
    """Of the process."""

    status: Literal["ok", "draining"]
