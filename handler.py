"""What Inference Endpoints runs: a request's body comes in, every task's answer goes out, as JSON.

The platform loads this file by its path from a model's folder, calls `EndpointHandler(folder)` once and the handler for
each request; an exception becomes status 400 with its message. Decoding is the `multitask` pipeline's. It imports
nothing else of the folder, and travels with the weights.

    handler = EndpointHandler(folder)
    handler({"inputs": ["Shares of Siemens rose."], "parameters": {"tasks": ["topic"], "top_k": 3}})
"""

from typing import Any

from transformers import pipeline

MAX_TEXTS = 256
MAX_CHARACTERS = 100_000
"""Of one text. A model reads less; this bounds what tokenising a body can cost."""
BATCH_SIZE = 32
PARAMETERS = ("tasks", "top_k", "aggregation_strategy", "bf16")
PAIR_KEYS = {"text", "text_pair"}


class EndpointHandler:
    """Answers request bodies with one model.

    Args:
        path (str): The model's folder (or Hub id); its code is run.
    """

    def __init__(self, path: str = "") -> None:
        self.pipeline = pipeline("multitask", model=str(path), trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer one request.

        Args:
            data (dict): `inputs`: a text, a pair `{"text": ..., "text_pair": ...}`, or a list of texts and pairs (in a
                list, a pair may also be a list of two texts). `parameters` (optional): `tasks`, `top_k`,
                `aggregation_strategy` and `bf16` of the `multitask` pipeline.

        Returns:
            For each input a dict of plain JSON types, task -> answer, with `sentence_embedding`; for a list, a list.

        Raises:
            ValueError: for a body that is not of this form, has too many or too long texts, or an unknown task or
                strategy; the message says what must hold, what came, and the way out.
        """
        inputs, parameters = checked_body(data)
        if not isinstance(inputs, list):
            return self.pipeline([item_of(inputs, "inputs")], **parameters)[0]
        if not 0 < len(inputs) <= MAX_TEXTS:
            raise ValueError(f"inputs must hold 1 to {MAX_TEXTS} texts; got {len(inputs)}. Send several requests.")
        items = [item_of(item, f"inputs[{index}]", in_list=True) for index, item in enumerate(inputs)]
        return self.pipeline(items, batch_size=min(len(items), BATCH_SIZE), **parameters)


def checked_body(data: Any) -> tuple[Any, dict[str, Any]]:
    """`inputs` and `parameters` of a request's body, or ValueError for a body without inputs or with unknown fields."""
    if not isinstance(data, dict) or "inputs" not in data:
        given = f"the fields {sorted(map(str, data))}" if isinstance(data, dict) else type(data).__name__
        raise ValueError(f'The body must be {{"inputs": ..., "parameters": {{...}}}}; got {given}.')
    parameters = {} if data.get("parameters") is None else data["parameters"]
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters must be an object; got {type(parameters).__name__}: {parameters!r:.80}.")
    refuse_unknown("The body", data, ("inputs", "parameters"))
    refuse_unknown("parameters", parameters, PARAMETERS)
    return data["inputs"], parameters


def refuse_unknown(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise ValueError for a key of `given` that is not known."""
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        hint = " Options stand in parameters." if set(unknown) & set(PARAMETERS) else ""
        raise ValueError(f"{where} may have the fields {', '.join(known)}; got also {', '.join(unknown)[:80]}.{hint}")


def item_of(value: Any, where: str, in_list: bool = False) -> str | tuple[str, str]:
    """One input as the pipeline takes it: a text, or a pair; ValueError for anything else, and for a text too long."""
    if isinstance(value, dict) and value.keys() == PAIR_KEYS:
        value = [value["text"], value["text_pair"]]
        in_list = True
    is_pair = in_list and isinstance(value, list) and len(value) == 2
    texts = value if is_pair else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f'{where} must be a text (string) or a pair {{"text": ..., "text_pair": ...}} of texts; '
            f"got {type(value).__name__}: {value!r:.80}."
        )
    longest = max(map(len, texts))
    if longest > MAX_CHARACTERS:
        raise ValueError(f"{where} must have at most {MAX_CHARACTERS} characters a text; got {longest}. Split it.")
    return (texts[0], texts[1]) if is_pair else texts[0]
