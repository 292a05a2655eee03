"""Command: serve a model over HTTP.

    python serve_hf.py outputs/news
    curl -d '{"texts": ["Shares of Siemens rose."]}' -H 'Content-Type: application/json' localhost:8000/predict

    python serve_hf.py outputs/news-int8 --port 9000 --max_wait 5
    MULTITASK_API_TOKEN=... python serve_hf.py outputs/news --host 0.0.0.0
    python serve_hf.py outputs/news --demo      # and a page for people: http://127.0.0.1:8000/demo

The model is a folder of `train_hf.py`, one of `export_hf.py --format onnx|openvino`, or a Hub id. Endpoints: /predict,
/embed, /similarity, /v1/embeddings (as OpenAI's), /info, /health, /ready, /metrics; /openapi.json describes them. All
share one queue, from which texts of several requests go through the model together. SIGTERM drains, then ends. The
extra `serve` is needed, for `--demo` also `demo`.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from command_help import CommandParser
from input_errors import one_line_errors

TOKEN_VARIABLE = "MULTITASK_API_TOKEN"


def parse_serving(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = CommandParser(doc=__doc__)
    parser.add_argument("model", help="Folder of a saved model or an exported graph, or a Hub id.")
    parser.add_argument("--demo", action="store_true", help="Also show the web demo, at /demo (default: no).")
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="Address to listen at (default: 127.0.0.1, this machine).")
    network.add_argument("--port", type=int, default=8000, help="Port; 0 for a free one (default: 8000).")
    network.add_argument(
        "--token_file",
        help=f"File with the token that clients must send (default: the variable {TOKEN_VARIABLE}, or no token).",
    )
    work = parser.add_argument_group("work")
    work.add_argument("--max_batch", type=int, default=32, help="Texts that share a call of the model (default: 32).")
    work.add_argument("--max_wait", type=float, default=2, help="Milliseconds a text waits for others (default: 2).")
    work.add_argument("--bf16", choices=["true", "false"], help="Multiply in bfloat16 (default: where there is any).")
    work.add_argument("--offline", action="store_true", help="Never ask the Hub.")
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--max_queue", type=int, default=2048, help="Texts that may wait; then 429 (default: 2048).")
    bounds.add_argument("--max_requests", type=int, default=512, help="Requests under way; then 429 (default: 512).")
    bounds.add_argument("--max_body", type=float, default=4, help="MiB of a request's body; then 413 (default: 4).")
    bounds.add_argument("--deadline", type=float, default=30, help="Seconds to an answer; then 503 (default: 30).")
    bounds.add_argument(
        "--drain", type=float, default=2, help="Seconds after SIGTERM in which newcomers get 503 (default: 2)."
    )
    return parser.parse_args(argv)


def read_token(file: str | None) -> str | None:
    """The token of a file, or else of the environment; None if there is neither.

    Raises:
        ValueError: for an empty one, which would let everybody in.
    """
    token = Path(file).expanduser().read_text(encoding="utf-8") if file else os.environ.get(TOKEN_VARIABLE)
    if token is not None and not token.strip():
        raise ValueError(f"The token of {file or TOKEN_VARIABLE} is empty. Write one, or name none.")
    return token.strip() if token else None


def main(argv: list[str] | None = None) -> None:
    """Parse, open, serve."""
    given = parse_serving(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    from serving.api import create_app
    from serving.engine import Engine
    from serving.limits import Limits
    from serving.server import DrainingServer

    with one_line_errors("serve_hf.py"):
        token = read_token(given.token_file)
        limits = Limits(
            max_batch=given.max_batch,
            max_wait=given.max_wait / 1000,
            max_queue=given.max_queue,
            max_requests=given.max_requests,
            max_body=int(given.max_body * 2**20),
            deadline=given.deadline,
            drain=given.drain,
        )
        engine = Engine(given.model, None if given.bf16 is None else given.bf16 == "true", given.offline)
        app = create_app(engine, limits, token)
        if given.demo:
            from serving.app import add_demo, model_folder

            add_demo(app, model_folder(given.model, given.offline))
    DrainingServer(app, given.host, given.port).run()
    engine.close()


if __name__ == "__main__":
    # process 1 of a container has no default action: without this, a stop while the model still loads would be lost
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    main()
