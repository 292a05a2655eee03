"""One head, and the embedding, as plain folders that open without remote code. Needs this project installed.

    python native_folders.py FOLDER_OR_HUB_ID

The same as commands: `export_hf.py FOLDER --format native --task NAME --output OUT`.
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModel, pipeline

from native_export import NoPlainClassError, write_native
from saved_model import open_model

model, tokenizer = open_model(sys.argv[1], offline=False)
with tempfile.TemporaryDirectory() as root:
    for task, spec in model.config.tasks.items():
        if not spec["kind"].endswith("classification"):
            continue  # of these the embedding is the plain form
        folder = Path(root) / task
        try:
            write_native(model, tokenizer, folder, task)
        except NoPlainClassError as error:
            print(f"{task}: {error}")
            continue
        plain = pipeline(spec["kind"], model=str(folder))
        print(f"{task}: {type(plain.model).__name__} answers {plain('Maria plays football in Paris.')[:1]}")

    write_native(model, tokenizer, Path(root) / "embedding")
    encoder = AutoModel.from_pretrained(Path(root) / "embedding")
    print(f"embedding: {type(encoder).__name__}, and modules.json for SentenceTransformer(folder)")
