"""Embedding and every head as one ONNX graph, run without torch's kernels. Needs this project with the extra `onnx`.

    python graphs.py FOLDER_OR_HUB_ID

The same as a command: `export_hf.py FOLDER --format onnx --precision int8 --output OUT`; `openvino` likewise.
"""

import sys
import tempfile
from pathlib import Path

from graph_export import export_graph
from graph_model import GraphModel
from saved_model import open_model

TEXTS = ["Maria plays football in Paris.", "Will it rain?"]

model, tokenizer = open_model(sys.argv[1], offline=False)
with tempfile.TemporaryDirectory() as root:
    export_graph(model, tokenizer, Path(root), "onnx", "fp32")
    graph = GraphModel.from_pretrained(root)
    print("inputs and files:", graph.inputs, sorted(path.name for path in Path(root).iterdir()))

difference = abs(graph.encode(TEXTS, tokenizer) - model.encode(TEXTS, tokenizer)).max()
print(f"embedding: the largest difference to the model's is {'below' if difference < 1e-4 else 'above'} 1e-4")
for name, answer in graph.predict(TEXTS, tokenizer)[0].items():
    print(f"{name}: {str(answer)[:70]}")
