"""Runs a Dockerfile's instructions one by one without a container engine: folders as file systems, and namespaces.

Not an engine: a stage is a folder that this machine's system (`/usr`, its Python) is bound into, read-only, in place of
the base image; there are no layers and no limits. What a stage runs is real: process 1 of its own process namespace,
root or the stage's user without capabilities, and, for `start`, no network and a file system that cannot be written to.
Linux, root, util-linux and iproute2 are needed.

    stages = build(Path("docker/Dockerfile"), context, scratch, {"EXTRAS": "serve"}, {"model": folder})
    with stages["baked"].start() as process: ...
"""

import json
import os
import shlex
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

SYSTEM = ("/usr", "/dev")
LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
SETTINGS = (
    "etc/hosts",
    "etc/resolv.conf",
    "etc/nsswitch.conf",
    "etc/ssl",
    "etc/passwd",
    "etc/group",
    "etc/ld.so.cache",
    "etc/localtime",
)
"""Of this machine, copied: what a base image has."""

ENTER = """
set -e
root=$1; user=$2; folder=$3; sealed=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
    mount --rbind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 3
done
shift
mount -t proc proc "$root/proc"
if [ "$sealed" = yes ]; then
    mount -o remount,bind,ro "$root"
    mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs "$root/tmp"
    ip link set lo up
fi
nothing="--clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"
[ "$user" = 0 ] && rights= || rights="--reuid $user --regid $user $nothing"
exec chroot "$root" setpriv $rights sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""
"""Makes the folder the root of what it starts, with the mounts that follow (from, to, ro or rw) up to `--`."""


@dataclass
class Stage:
    """What the instructions of a stage came to.

    Attributes:
        root (Path): The folder that stands for its file system.
        environment (dict): As its processes find it.
        user (str): Number of the user; `0` is root.
        folder (str): Working directory.
        entrypoint, healthcheck (list): Their words, in exec form.
    """

    root: Path
    environment: dict[str, str]
    user: str = "0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def command(self, words: Iterable[str], mounts: Iterable[tuple[str, str, str]] = (), sealed: bool = False) -> list:
        """The command line that runs words in this stage."""
        python = sys.base_prefix
        bound = [(path, path, "rw" if path == "/dev" else "ro") for path in SYSTEM]
        bound += [] if python.startswith("/usr") else [(python, python, "ro")]
        for _, target, _ in [*bound, *mounts]:
            (self.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        flat = [word for mount in [*bound, *mounts] for word in mount]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *(["--net"] if sealed else [])]
        how = [str(self.root), self.user, self.folder, "yes" if sealed else "no", *flat, "--"]
        return [*spaces, "sh", "-c", ENTER, "enter", *how, *words]

    def run(self, line: str, mounts: Iterable[tuple[str, str, str]], arguments: dict[str, str]) -> None:
        """A RUN instruction: a line of the shell, with the build's arguments as variables and with a network."""
        command = self.command(["sh", "-c", line], mounts)
        subprocess.run(command, env=arguments | self.environment, check=True)

    @contextmanager
    def start(self, *arguments: str, mounts: Iterable[tuple[str, str, str]] = ()) -> Iterator["Container"]:
        """The entry point with arguments after it, sealed: no network, nothing to write to but /tmp."""
        command = self.command([*self.entrypoint, *arguments], mounts, sealed=True)
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, env=self.environment, stderr=errors)
            try:
                yield Container(self, process, errors)
            finally:
                process.kill()
                process.wait()


@dataclass
class Container:
    """A stage that runs.

    Attributes:
        stage (Stage): What was started.
        process (Popen): Ends as the entry point does, with its code.
        errors (IO): What it writes to standard error.
    """

    stage: Stage
    process: subprocess.Popen
    errors: IO[str]

    @property
    def said(self) -> str:
        """Standard error so far."""
        self.errors.seek(0)
        return self.errors.read()

    @property
    def first(self) -> int:
        """Process 1 of the container, by its number outside; 0 until it is there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def execute(self, words: list[str], text: str = "") -> subprocess.CompletedProcess:
        """What `docker exec` would: words inside, as the stage's user."""
        user = ["--setuid", self.stage.user, "--setgid", self.stage.user]
        spaces = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--net", "--root", *user]
        environment = self.stage.environment
        return subprocess.run(
            [*spaces, *words], env=environment, input=text, capture_output=True, text=True, check=False
        )


def base_image(root: Path) -> Stage:
    """This machine's system in place of a base image."""
    for name in ("proc", "tmp", "root", "var/tmp", "etc"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in LINKS:
        if (path := Path("/", name)).is_symlink():
            (root / name).symlink_to(path.readlink())
    for name in SETTINGS:
        if (source := Path("/", name)).is_dir():
            shutil.copytree(source, root / name, symlinks=False)
        elif source.exists():
            shutil.copy(source, root / name)
    paths = [f"{sys.base_prefix}/bin", *("/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin".split())]
    return Stage(root, {"PATH": ":".join(dict.fromkeys(paths)), "HOME": "/root", "LANG": "C.UTF-8"})


def copy_of(stage: Stage, root: Path) -> Stage:
    """A stage that goes on from another: its files, as links to the same, which no instruction writes to again."""
    subprocess.run(["cp", "--archive", "--link", str(stage.root), str(root)], check=True)
    return replace(stage, root=root, environment=dict(stage.environment))


def context_files(context: Path) -> list[str]:
    """The files of a build context that `.dockerignore` lets through."""
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line.strip() and not line.startswith("#")]
    return sorted(path for path in exclude_paths(str(context), patterns) if (context / path).is_file())


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Name and value of each instruction; continued lines are joined."""
    structure = DockerfileParser(path=str(dockerfile)).structure
    return [(part["instruction"], part["value"]) for part in structure if part["instruction"] != "COMMENT"]


def mounts_of(line: str, arguments: dict[str, str]) -> tuple[str, list[tuple[str, str, str]]]:
    """A RUN line without its `--mount` of pip's cache, for which this machine's stands, and the folders it needs.

    Those are what pip's variables name: its indexes and certificates may be files of this machine.
    """
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    words = line.split()
    flags = [word for word in words if word.startswith("--mount=")]
    targets = [dict(part.partition("=")[::2] for part in flag.split(","))["target"] for flag in flags]
    named = [value for name, value in arguments.items() if name.startswith("PIP_") and Path(value).is_dir()]
    Path(cache.stdout.strip()).mkdir(parents=True, exist_ok=True)
    mounts = [(cache.stdout.strip(), target, "rw") for target in targets] + [(path, path, "ro") for path in named]
    return line.split(flags[-1], 1)[1] if flags else line, mounts


def build(
    dockerfile: Path, context: Path, scratch: Path, arguments: dict[str, str], contexts: dict[str, Path]
) -> dict[str, Stage]:
    """Run every instruction of every stage.

    Args:
        dockerfile (Path): What to run.
        context (Path): Folder that COPY reads, less what its `.dockerignore` keeps out.
        scratch (Path): Empty folder for the stages.
        arguments (dict): Of the build (`--build-arg`); those that pip reads from the environment go along.
        contexts (dict): Stage -> folder that stands in its place (`--build-context`).

    Raises:
        subprocess.CalledProcessError: if an instruction fails.
        NotImplementedError: for an instruction that this does not know.
    """
    outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    stages: dict[str, Stage] = {}
    of_from: dict[str, str] = {}  # an ARG before the first FROM holds for FROM alone, a later one for its stage
    known = of_from
    stage = Stage(Path("/"), {})
    for name, value in instructions(dockerfile):
        variables = of_from if name == "FROM" else known | stage.environment
        filled = string.Template(value).safe_substitute(variables)
        match name:
            case "ARG":
                key, _, default = value.partition("=")
                known[key] = arguments.get(key, default)
            case "FROM":
                known = {}
                source, _, called = filled.split()
                root = scratch / called
                if called in contexts:
                    stage = Stage(contexts[called], {})
                elif source == "scratch":
                    root.mkdir()
                    stage = Stage(root, {})
                elif source in stages:
                    stage = copy_of(stages[source], root)
                else:
                    stage = base_image(root)
                stages[called] = stage
            case "ENV":
                stage.environment |= dict(word.split("=", 1) for word in shlex.split(filled))
            case "WORKDIR":
                stage.folder = filled
                (stage.root / filled.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                copy(stage, filled.split(), context, stages)
            case "RUN":
                line, mounts = mounts_of(value, outside)
                stage.run(line, mounts, known | outside)
            case "USER":
                stage.user, _, group = filled.partition(":")
                assert group == stage.user, "setpriv and nsenter get one number for both"
            case "EXPOSE":
                pass  # says which port, and opens none
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(value.partition("CMD ")[2])
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case _:
                raise NotImplementedError(name)
    return stages


def copy(stage: Stage, words: list[str], context: Path, stages: dict[str, Stage]) -> None:
    """A COPY instruction, of all of the context or of one folder of another stage."""
    *flags, source, target = words
    options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    place = stage.root / (target if target.startswith("/") else f"{stage.folder}/{target}").lstrip("/")
    if "from" in options:
        place.mkdir(parents=True, exist_ok=True)
        folder = stages[options["from"]].root / source.lstrip("/")
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{folder}/.", str(place)], check=True)
        subprocess.run(["chown", "--recursive", options.get("chown", "0:0"), str(place)], check=True)
        return
    assert source == ".", source
    for name in context_files(context):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(context / name, place / name)
