"""Where a model goes on the Hub, and how: the real client against a Hub on loopback, in this process.

The client's address is given to it; whether it is offline and which protocol it uploads by are read at import, so the
fixture sets those two constants of `huggingface_hub`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub
from safetensors.torch import save_file

from hub_repository import Target, prepare, upload

# of httpx2, about how huggingface_hub streams a file to it
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "tester/model"
CARD = "---\nlibrary_name: transformers\n---\n# A model\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The client of the user `tester`."""
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What would be published: a file in git, one by LFS, a card."""
    (tmp_path / "config.json").write_text('{"model_type": "multitask"}')
    save_file({"weight": torch.arange(1000.0)}, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def publish(api: HfApi, folder: Path, target: Target) -> str:
    """Both steps of a publication; the commit."""
    return upload(api, target, folder, prepare(api, target), "Publish").oid


def test_all_files_go_in_one_commit_into_a_private_repository(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    oid = publish(api, folder, Target(NAME))
    repository = hub.repository(NAME)
    assert repository.is_private
    assert [commit.sha for commit in repository.history()][0] == oid and len(repository.history()) == 2
    for name in ("config.json", "model.safetensors", "README.md"):
        assert repository.files()[name] == (folder / name).read_bytes()


def test_publishing_the_same_again_makes_no_commit_and_a_change_makes_one(hub, api: HfApi, folder: Path) -> None:
    first = publish(api, folder, Target(NAME))
    assert publish(api, folder, Target(NAME)) == first
    (folder / "config.json").write_text('{"model_type": "multitask", "pooling": "cls"}')
    second = publish(api, folder, Target(NAME))
    assert hub.repository(NAME).history()[0].sha == second != first
    assert hub.repository(NAME).history()[0].parent == first


def test_files_of_an_earlier_publication_go_and_those_of_the_owner_stay(hub, api: HfApi, folder: Path) -> None:
    (folder / "confusion_old.png").write_bytes(b"a picture")
    publish(api, folder, Target(NAME))
    repository = hub.repository(NAME)
    repository.commit({**repository.files(), "LICENSE": b"mine"}, "by hand")
    (folder / "confusion_old.png").unlink()
    publish(api, folder, Target(NAME))
    assert "LICENSE" in repository.files() and "confusion_old.png" not in repository.files()


def test_a_branch_and_a_tag_name_the_new_commit_and_main_stays(hub, api: HfApi, folder: Path) -> None:
    first = publish(api, folder, Target(NAME))
    (folder / "config.json").write_text('{"model_type": "multitask", "pooling": "cls"}')
    second = publish(api, folder, Target(NAME, revision="trial", tag="v2"))
    repository = hub.repository(NAME)
    assert repository.branches == {"main": first, "trial": second} and repository.tags == {"v2": second}


def test_a_repository_is_opened_only_when_everything_is_there(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    publish(api, folder, Target(NAME, is_public=True))
    assert not hub.repository(NAME).is_private
    paths = [path for _, path in hub.requests]
    assert paths.index(f"/api/models/{NAME}/commit/main") < paths.index(f"/api/models/{NAME}/settings")


def test_a_public_repository_is_not_written_to_unasked(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    publish(api, folder, Target(NAME, is_public=True))
    with pytest.raises(ValueError, match="everybody can read tester/model already. Give --public"):
        prepare(api, Target(NAME))


@pytest.mark.parametrize(
    ("files", "held"),
    [({"data.txt": b"x"}, r"holds data\.txt"), ({"config.json": b'{"model_type": "bert"}'}, "holds a bert model")],
)
def test_what_is_not_ours_is_overwritten_only_when_asked(hub, api, folder: Path, files: dict, held: str) -> None:
    hub.add(NAME, files, private=True)
    with pytest.raises(ValueError, match=held):
        publish(api, folder, Target(NAME))
    assert hub.repository(NAME).files() == files
    publish(api, folder, Target(NAME, overwrite=True))
    assert hub.repository(NAME).files()["README.md"] == CARD.encode()
    assert hub.repository(NAME).history()[1].files == files, "what was there stays in the history"


def test_a_tag_that_is_taken_is_refused_before_anything_is_sent(hub, api: HfApi, folder: Path) -> None:
    publish(api, folder, Target(NAME, tag="v1"))
    hub.requests.clear()
    with pytest.raises(ValueError, match="has 'v1' already. Choose another --tag"):
        prepare(api, Target(NAME, tag="v1"))
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}


def test_a_wrong_token_is_refused(hub: LoopbackHub, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"does not accept the token .* Nothing was changed. Log in again"):
        prepare(HfApi(endpoint=hub.url, token="hf_wrong"), Target(NAME))


def test_no_token_is_refused_before_anything_is_asked(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="needs a token .* there is none. Log in with `hf auth login`"):
        prepare(HfApi(endpoint=hub.url), Target(NAME))
    assert hub.requests == []


def test_a_namespace_of_others_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    with pytest.raises(ValueError, match="may not write to somebody/model .* in place of 'somebody'"):
        prepare(api, Target("somebody/model"))
    assert hub.repositories == {}


def test_a_native_folder_goes_onto_the_earlier_one_of_the_same_model_alone(hub, api: HfApi, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "multitask_repository": "tester/model"}')
    name = f"{NAME}-ner"
    publish(api, folder, Target(name, sibling_of=NAME))
    (folder / "README.md").write_text(CARD + "More.")
    publish(api, folder, Target(name, sibling_of=NAME))
    assert hub.repository(name).files()["README.md"].endswith(b"More.")
    for target in (Target(name, sibling_of="tester/other"), Target(name)):
        with pytest.raises(ValueError, match="holds a bert model"):
            publish(api, folder, target)


def test_a_public_model_of_others_is_refused_whatever_it_holds(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    hub.add("somebody/model", {"config.json": b'{"model_type": "multitask"}'})
    target = Target("somebody/model", is_public=True)
    with pytest.raises(ValueError, match="may not write to somebody/model"):
        publish(api, folder, target)


def test_a_name_that_is_taken_where_it_cannot_be_seen_is_refused(
    hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody makes the repository between our look and our wish to make it."""
    look = api.model_info

    def look_then_lose(repo_id: str):
        try:
            return look(repo_id)
        finally:
            hub.add(repo_id, {})

    monkeypatch.setattr(api, "model_info", look_then_lose)
    with pytest.raises(ValueError, match="The name tester/model is taken"):
        prepare(api, Target(NAME))


def test_a_commit_that_came_between_is_not_overwritten(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    head = prepare(api, Target(NAME))
    theirs = hub.repository(NAME).commit({"notes.txt": b"theirs"}, "theirs")
    with pytest.raises(ValueError, match="Somebody changed tester/model meanwhile"):
        upload(api, Target(NAME), folder, head, "Publish")
    assert hub.repository(NAME).branches["main"] == theirs


def test_a_hub_that_cannot_be_reached_is_said(hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token=hub.token)
    with pytest.raises(ValueError, match=r"The Hub was not reached .*ConnectError.* Nothing was changed. Run"):
        prepare(nowhere, Target(NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="offline mode is enabled"):
        prepare(api, Target(NAME))


def test_a_card_that_the_hub_refuses_is_said_and_nothing_is_sent(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: Our Own!\n---\n")
    with pytest.raises(ValueError, match="license: 'Our Own!' is not valid .*No file of it was published"):
        publish(api, folder, Target(NAME))
    assert hub.repository(NAME).files().keys() == {".gitattributes"} and hub.large_files == {}


def test_a_commit_that_is_cut_off_publishes_nothing_and_can_be_made_again(hub, api: HfApi, folder: Path) -> None:
    target = Target(NAME, tag="v1", is_public=True)
    hub.interrupt["commit"] = 1
    with pytest.raises(ValueError, match=r"connection broke .* No file of it was published; tester/model is as it was"):
        publish(api, folder, target)
    repository = hub.repository(NAME)
    assert repository.is_private and repository.files().keys() == {".gitattributes"} and repository.tags == {}
    publish(api, folder, target)
    assert not repository.is_private and repository.files("v1")["README.md"] == CARD.encode()


def test_an_upload_that_is_cut_off_once_is_repeated_by_the_client(hub, api: HfApi, folder: Path) -> None:
    hub.interrupt["upload_large"] = 1
    publish(api, folder, Target(NAME))
    assert hub.interrupt["upload_large"] == 0, "the premise: it was cut off"
    assert hub.repository(NAME).files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_upload_that_never_gets_through_publishes_nothing(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    """The client waits between its tries, half a minute in all."""
    hub.interrupt["upload_large"] = 1000
    with pytest.raises(ValueError, match=r"connection broke .* No file of it was published"):
        publish(api, folder, Target(NAME))
    assert hub.repository(NAME).files().keys() == {".gitattributes"}


def test_a_tag_that_fails_after_the_commit_is_said_as_such(hub: LoopbackHub, api: HfApi, folder: Path) -> None:
    hub.interrupt["add_tag"] = 1
    with pytest.raises(ValueError, match=r"All files were published .* but the tag or the visibility was not set"):
        publish(api, folder, Target(NAME, tag="v1", is_public=True))
    assert hub.repository(NAME).is_private and "README.md" in hub.repository(NAME).files()
