"""Open a folder for answering: a saved model, or the ONNX or OpenVINO graph that was exported from one.

    model, tokenizer = open_engine("outputs/news-int8")
    model.predict(["Shares of Siemens rose."], tokenizer)

Both answer through the same decoding (`pipeline_multitask`). Training and scoring open models by `saved_model`.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from graph_model import ONNX_FILE, OPENVINO_FILE, GraphModel
from input_errors import explain_loading
from saved_model import open_model


def open_engine(name: str, offline: bool = False) -> tuple[Any, Any]:
    """What answers texts as `MultiTaskModel` does, and its tokenizer; never with code from the folder.

    Args:
        name (str): Folder of a saved model or an exported graph, or the Hub id of a model.
        offline (bool): Never ask the Hub.

    Raises:
        ValueError: for what can be opened as neither.
    """
    folder = Path(name).expanduser()
    if not any((folder / file).is_file() for file in (ONNX_FILE, OPENVINO_FILE)):
        return open_model(name, offline)
    with explain_loading(f"The graph in {name!r}"):
        model = GraphModel.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
    return model, tokenizer
