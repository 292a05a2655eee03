"""The command: it serves a folder over loopback, drains on SIGTERM, and says in one line what it cannot open."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

import serve_hf
from prediction_engine import open_engine

REPOSITORY = Path(__file__).resolve().parent.parent
LONG = "the new city is very fast and the old team won the game " * 60


def address_of(process: subprocess.Popen[str]) -> str:
    """Where a process serves, once it says so on its standard error."""
    assert process.stderr
    heard = ""
    while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", heard)):
        line = process.stderr.readline()
        assert line, f"it ended:\n{heard}"
        heard += line
    return found.group(1)


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of the command with a free port, and its address."""
    command = [sys.executable, "-u", "serve_hf.py", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, address_of(process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_sigterm_drains_a_process(model_folder: Path) -> None:
    """Requests that it has taken are answered, those that come then get 503, and it ends with code 0."""
    body = {"texts": [LONG] * 32}
    with served(str(model_folder), "--bf16", "false", "--drain", "1", "--max_batch", "8") as (process, address):
        with ThreadPoolExecutor(2) as threads, httpx2.Client(base_url=address, timeout=60) as client:
            held = [threads.submit(httpx2.post, f"{address}/predict", json=body, timeout=60) for _ in range(2)]
            under_way = b"multitask_requests_in_flight 3.0"  # these two, and the question itself
            while under_way not in client.get("/metrics").content:
                pass
            process.send_signal(signal.SIGTERM)
            while client.get("/ready").status_code == 200:
                pass
            refused = client.post("/embed", json={"texts": ["sun"]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert client.get("/health").status_code == 200
            answers = [answer.result() for answer in held]
        assert [answer.status_code for answer in answers] == [200] * 2
        assert all(len(answer.json()["answers"]) == 32 for answer in answers)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_command_serves_with_a_token_and_writes_down_no_text(model_folder: Path) -> None:
    secret = "Anna has a secret."
    model, tokenizer = open_engine(str(model_folder))
    with served(str(model_folder), MULTITASK_API_TOKEN="right") as (process, address):
        body = {"texts": [secret]}
        assert httpx2.post(f"{address}/embed", json=body).status_code == 401
        answer = httpx2.post(f"{address}/embed", json=body, headers={"Authorization": "Bearer right"})
        assert np.allclose(answer.json()["embeddings"], model.encode([secret], tokenizer), atol=0.02)  # bfloat16
        assert httpx2.post(f"{address}/embed", content=json.dumps([secret])).status_code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert "secret" not in errors and "right" not in errors and "embed" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder", "--offline"], "no/such/folder"),
        (["no/such/folder", "--max_batch", "0"], "max_batch must be above 0; got 0"),
        (["no/such/folder", "--token_file", "no/such/file"], "No such file"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_hf.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.startswith("serve_hf.py: error: ")
    assert "Traceback" not in error


def test_the_token_comes_from_the_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve_hf.read_token(None) is None
    monkeypatch.setenv(serve_hf.TOKEN_VARIABLE, "of the environment")
    (tmp_path / "token").write_text("of the file\n")
    (tmp_path / "empty").write_text("\n")
    assert serve_hf.read_token(str(tmp_path / "token")) == "of the file"
    assert serve_hf.read_token(None) == "of the environment"
    with pytest.raises(ValueError, match="is empty"):
        serve_hf.read_token(str(tmp_path / "empty"))
