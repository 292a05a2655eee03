r"""The model as Inference Endpoints runs it: the folder's own `handler.py`, a request's body in, JSON out.

    python endpoint_handler.py FOLDER_OR_HUB_ID

On the platform nothing is to be done: it finds `handler.py` in the repository. The requests that it then answers:

    curl $ENDPOINT -H "Authorization: Bearer $HF_TOKEN" -H "Content-Type: application/json" \
        -d '{"inputs": ["It will rain in Paris."], "parameters": {"top_k": 2}}'
"""

import importlib
import json
import os
import sys

from huggingface_hub import snapshot_download

name = sys.argv[1]
folder = name if os.path.isdir(name) else snapshot_download(name)
sys.path.insert(0, folder)
handler = importlib.import_module("handler").EndpointHandler(folder)

body = {"inputs": ["It will rain in Paris.", {"text": "Maria sings.", "text_pair": "A woman sings."}]}
print(json.dumps(handler(body), indent=1)[:2000])

try:  # a bad body raises; the platform answers with status 400 and this message
    handler({"inputs": "It will rain.", "parameters": {"tasks": ["wether"]}})
except ValueError as error:
    print("refused:", error)
