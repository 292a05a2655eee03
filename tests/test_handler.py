"""The Inference Endpoints handler: answers as `predict` does, in plain JSON; refuses bad bodies; loads as there."""

import json
from pathlib import Path
from typing import Any

import pytest
from elsewhere import run_elsewhere
from transformers import AutoTokenizer

from handler import MAX_CHARACTERS, MAX_TEXTS, EndpointHandler
from modeling_multitask import MultiTaskModel

TEXT = "Anna won the game in Paris."
OTHER = "The new phone is fast."

# huggingface-inference-toolkit, `check_and_register_custom_pipeline_from_directory`, then a request's way through JSON
TOOLKIT = """
from pathlib import Path
model_dir = sys.argv[1]
custom_module = Path(model_dir) / "handler.py"
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", custom_module)
sys.path.insert(0, str(model_dir))
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
pipeline = module.EndpointHandler(model_dir)
found["answers"] = [json.dumps(pipeline(json.loads(body))) for body in sys.argv[2:]]
found["file"] = module.__file__
"""


@pytest.fixture(scope="module")
def handler(model_folder: Path) -> EndpointHandler:
    """The handler of the saved model."""
    return EndpointHandler(str(model_folder))


@pytest.fixture(scope="module")
def predicted(model_folder: Path) -> list[dict[str, Any]]:
    """What `predict` answers for the text, the other and the pair of both."""
    model = MultiTaskModel.from_pretrained(model_folder)
    return model.predict(
        [TEXT, OTHER, (TEXT, OTHER)], AutoTokenizer.from_pretrained(model_folder, trust_remote_code=True)
    )


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Same tasks, same decisions, same numbers."""
    assert answer.keys() == expected.keys()
    assert answer["sentence_embedding"] == pytest.approx(expected["sentence_embedding"].tolist(), abs=1e-6)
    assert answer["topic"]["label"] == expected["topic"]["label"]
    assert answer["topic"]["scores"] == pytest.approx(expected["topic"]["scores"], abs=1e-6)
    spans = [[(span["entity_group"], span["start"], span["end"]) for span in a["ner"]] for a in (answer, expected)]
    assert spans[0] == spans[1]


def test_texts_and_pairs_are_answered_as_predict_answers_them(handler: EndpointHandler, predicted):
    pair = {"text": TEXT, "text_pair": OTHER}
    answers = handler({"inputs": [TEXT, OTHER, [TEXT, OTHER], pair]})
    for answer, expected in zip(answers, [*predicted, predicted[2]], strict=True):
        assert_same(answer, expected)
    assert "similarity" in answers[3] and "joint" in answers[3]
    assert_same(handler({"inputs": TEXT}), predicted[0])
    assert_same(handler({"inputs": pair, "parameters": None}), predicted[2])


def test_a_list_of_two_texts_is_two_texts(handler: EndpointHandler):
    assert len(handler({"inputs": [TEXT, OTHER]})) == 2


def test_an_answer_is_plain_json(handler: EndpointHandler):
    answer = handler({"inputs": [[TEXT, OTHER]]})
    assert json.loads(json.dumps(answer)) == answer


def test_parameters_are_those_of_the_pipeline(handler: EndpointHandler):
    parameters = {"tasks": ["topic", "ner"], "top_k": 2, "aggregation_strategy": "none"}
    answer = handler({"inputs": TEXT, "parameters": parameters})
    assert set(answer) == {"topic", "ner", "sentence_embedding"}
    assert len(answer["topic"]["scores"]) == 2
    assert "entity" in answer["ner"][0]


BAD_BODIES: dict[str, tuple[Any, str]] = {
    "no body": (None, r'The body must be {"inputs".*got NoneType'),
    "a list": ([TEXT], "got list"),
    "no inputs": ({"text": TEXT}, r"got the fields \['text'\]"),
    "unknown field": ({"inputs": TEXT, "input": 1}, "may have the fields inputs, parameters; got also input"),
    "option beside": ({"inputs": TEXT, "top_k": 1}, "got also top_k. Options stand in parameters"),
    "unknown parameter": (
        {"inputs": TEXT, "parameters": {"topk": 1}},
        "tasks, top_k, aggregation_strategy, bf16; got.* topk",
    ),
    "parameters no object": ({"inputs": TEXT, "parameters": ["topic"]}, "parameters must be an object; got list"),
    "empty list": ({"inputs": []}, f"1 to {MAX_TEXTS} texts; got 0"),
    "too many": ({"inputs": [TEXT] * (MAX_TEXTS + 1)}, f"got {MAX_TEXTS + 1}. Send several requests"),
    "too long": ({"inputs": "a" * (MAX_CHARACTERS + 1)}, f"at most {MAX_CHARACTERS} characters"),
    "too long in a pair": ({"inputs": [[TEXT, "a" * (MAX_CHARACTERS + 1)]]}, r"inputs\[0\] must have at most"),
    "null": ({"inputs": None}, "inputs must be a text .* got NoneType"),
    "number": ({"inputs": [TEXT, 3]}, r"inputs\[1\] must be a text .* got int: 3"),
    "triple": ({"inputs": [[TEXT, TEXT, TEXT]]}, r"inputs\[0\] must be a text"),
    "half a pair": ({"inputs": {"text": TEXT}}, "inputs must be a text .* got dict"),
    "pair of numbers": ({"inputs": {"text": TEXT, "text_pair": 1}}, "pair .* of texts; got list"),
    "half a surrogate": ({"inputs": "\ud83d"}, "must be Unicode"),
    "unknown task": ({"inputs": TEXT, "parameters": {"tasks": ["tpoic"]}}, "Unknown tasks .*tpoic.* tasks are: anchor"),
    "one task as text": ({"inputs": TEXT, "parameters": {"tasks": "topic"}}, "Give a list of tasks"),
    "no class": ({"inputs": TEXT, "parameters": {"top_k": 0}}, "top_k must be a whole number of at least 1"),
    "bf16 as text": ({"inputs": TEXT, "parameters": {"bf16": "yes"}}, "bf16 is true, false, or None .*got 'yes'"),
    "strategy": ({"inputs": TEXT, "parameters": {"aggregation_strategy": "best"}}, "must be one of none, simple"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_with_what_must_hold_and_what_came(handler: EndpointHandler, name: str):
    body, message = BAD_BODIES[name]
    with pytest.raises(ValueError, match=message) as refused:
        handler(body)
    assert len(str(refused.value)) < 400, "an error is read by a person, whatever the body's size"


@pytest.mark.slow
def test_the_toolkits_loading_steps_open_a_folder_elsewhere(model_folder: Path, predicted, tmp_path: Path):
    bodies = [{"inputs": TEXT}, {"inputs": [TEXT, OTHER, [TEXT, OTHER]], "parameters": {"tasks": None}}]
    found = run_elsewhere(TOOLKIT, tmp_path, str(model_folder), *map(json.dumps, bodies))
    single, several = map(json.loads, found["answers"])
    assert found["file"] == str(model_folder / "handler.py")
    for answer, expected in zip([single, *several], [predicted[0], *predicted], strict=True):
        assert_same(answer, expected)
