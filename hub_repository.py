"""A model repository on the Hub as the target of a publication: may we write there, and all files in one commit.

It decides nothing about the files (`hub_folder`) and opens no model. Whatever the client raises leaves as a ValueError
of one line that says what the Hub holds now, and what to do.

    target = Target("alice/news", revision="main", tag="v1")
    head = prepare(api, target)
    commit = upload(api, target, staged, head, message="Publish")
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from hub_folder import PUBLISHED, published_files
from input_errors import is_refusal

SIBLING_KEY = "multitask_repository"
"""In the config.json of a native folder: the repository of the model that it is a part of."""


@dataclass(frozen=True)
class Target:
    """Where a model goes.

    Attributes:
        repo_id (str): `owner/name`.
        revision (str): Branch; one that is not there is made from `main`.
        tag (str): Name for the new commit, if any.
        is_public (bool): Whether everybody may read it.
        overwrite (bool): Whether a repository that holds something else may be written to.
        sibling_of (str): The model's own repository, where this one is for a native folder of it.
    """

    repo_id: str
    revision: str = "main"
    tag: str | None = None
    is_public: bool = False
    overwrite: bool = False
    sibling_of: str | None = None


def prepare(api: HfApi, target: Target) -> str:
    """Make sure that a target can be written to, made (private, empty) if it is not there; the commit it is at.

    Raises:
        ValueError: without a token, network or rights; for a repository that holds something else or that everybody
            can read, and for a tag that is taken.
    """
    with explain(target, "Nothing was changed"):
        api.whoami()
        try:
            found = api.model_info(target.repo_id)
        except RepositoryNotFoundError:
            api.create_repo(target.repo_id, private=True)
        else:
            if found.private is False and not target.is_public:
                raise ValueError(
                    f"A model is published privately unless --public is given, but everybody can read "
                    f"{target.repo_id} already. Give --public, or another repository."
                )
            refuse_foreign(api, target)
        refs = api.list_repo_refs(target.repo_id)
        if target.tag is not None and target.tag in {tag.name for tag in refs.tags}:
            raise ValueError(
                f"A tag names one publication for good, and {target.repo_id} has {target.tag!r} already. Choose "
                "another --tag, or leave it out."
            )
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        if target.revision not in heads:
            api.create_branch(target.repo_id, branch=target.revision)
        return heads.get(target.revision, heads["main"])


def refuse_foreign(api: HfApi, target: Target) -> None:
    """Raise ValueError if a repository holds files and is no earlier publication of ours, unless that may be lost."""
    files = set(api.list_repo_files(target.repo_id)) - {".gitattributes"}
    config: dict[str, Any] = {}
    if "config.json" in files:
        path = Path(api.hf_hub_download(target.repo_id, "config.json"))
        config = json.loads(path.read_text(encoding="utf-8"))
    kind = config.get("model_type")
    is_ours = config.get(SIBLING_KEY) == target.sibling_of if target.sibling_of else kind == "multitask"
    if files and not is_ours and not target.overwrite:
        held = f"a {kind} model" if kind else ", ".join(sorted(files)[:3])
        raise ValueError(
            f"A model goes into a repository of its own or onto an earlier publication of it; {target.repo_id} holds "
            f"{held}. Choose another name, or write to it all the same with --overwrite (its history stays)."
        )


def upload(api: HfApi, target: Target, folder: Path, head: str, message: str) -> CommitInfo:
    """Publish a folder in one commit, then tag it, then open the repository if it is to be public.

    Files of an earlier publication that this one does not have are removed by the same commit; files that no
    publication writes (a licence, a note) stay. Without a change, no commit is made.

    Args:
        api (HfApi): The client.
        target (Target): Where to.
        folder (Path): What `hub_folder.copy_published` wrote.
        head (str): The commit that `prepare` found; a later one is not overwritten.
        message (str): Of the commit.

    Raises:
        ValueError: if it does not get through; the target has all files then, or none of them.
    """
    nothing = f"No file of it was published; {target.repo_id} is as it was (empty, if it is new)"
    with explain(target, nothing):
        files = {path.as_posix() for path in published_files(folder)}
        there = api.list_repo_files(target.repo_id, revision=head)
        stale = [path for path in there if PUBLISHED.fullmatch(path) and path not in files]
        operations = [CommitOperationAdd(path, folder / path) for path in sorted(files)]
        commit = api.create_commit(
            target.repo_id,
            [*operations, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            revision=target.revision,
            parent_commit=head,
        )
    with explain(target, f"All files were published ({commit.commit_url}), but the tag or the visibility was not set"):
        if target.tag is not None:
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid)
        if target.is_public:
            api.update_repo_settings(target.repo_id, private=False)
    return commit


@contextmanager
def explain(target: Target, state: str) -> Iterator[None]:
    """Turn what the client raises into a ValueError: what went wrong, what the Hub holds now (`state`), the way out."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ValueError(
            f"Publishing needs a token that may write to {target.repo_id}; there is none. Log in with `hf auth login`, "
            "or set HF_TOKEN."
        ) from error
    except ValueError as error:
        if is_refusal(error):
            raise
        said = " ".join(str(error).split())
        raise ValueError(f"{target.repo_id} cannot be written so: {said} {state}. Mend it and run again.") from error
    except (HTTPError, OSError, RuntimeError) as error:  # OSError: offline; RuntimeError: around what broke an upload
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        response = cause.response if isinstance(cause, HfHubHTTPError) else None
        status = response.status_code if response is not None else 0
        raise ValueError(reason_of(cause, status, target, state)) from error


def reason_of(error: BaseException, status: int, target: Target, state: str) -> str:
    """The sentence for an HTTP status, 0 where no answer came."""
    owner = target.repo_id.partition("/")[0]
    said = (getattr(error, "server_message", None) or str(error).strip() or type(error).__name__).splitlines()[0]
    said = said.rstrip(". ")
    reasons = {
        0: f"The Hub was not reached or the connection broke ({type(error).__name__}: {said}). {state}. Run the "
        "command again.",
        401: f"The Hub does not accept the token ({said}). {state}. Log in again with `hf auth login`.",
        403: f"This token may not write to {target.repo_id} ({said}). {state}. Publish under your own name in place of "
        f"{owner!r}, or use a token with write access there.",
        409: f"The name {target.repo_id} is taken ({said}). {state}. Choose another name.",
        412: f"Somebody changed {target.repo_id} meanwhile ({said}). {state}. Look at it, then run the command again.",
    }
    return reasons.get(status, f"The Hub refused with status {status} ({said}). {state}.")
