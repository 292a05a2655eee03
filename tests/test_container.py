"""The container, what runs it, and `environment.yml` agree with the repository and the server; the steps run here.

There is no engine in these tests: the files are read, and `dockerfile_steps` runs the instructions one by one.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_steps import Container, Stage, build, context_files, instructions
from test_packaging import lines_of, pinned, project_name

import serve_hf
from serving.gate import OPEN_PATHS
from serving.limits import Limits

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
LONGEST_STOP = Limits().drain + Limits().deadline
"""Seconds from SIGTERM to the last answer."""
ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 8000)
method, path, token = sys.argv[1:]
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
connection.request(method, path, sys.stdin.read().encode() or None, headers)
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""
FACTS = """
import json, os, socket
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(json.dumps({
    "uid": os.getuid(),
    "first process": open("/proc/1/cmdline").read().split("\\0")[:4],
    "capabilities": int(status["CapEff"], 16),
    "cannot gain rights": status["NoNewPrivs"].strip() == "1",
    "system is sealed": refused(lambda: open("/opt/venv/new", "w")) and refused(lambda: open("/srv/new", "w")),
    "model is sealed": refused(lambda: open("/model/new", "w")),
    "there is no network": refused(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
}))
"""


def values(instruction: str) -> list[str]:
    """The values of an instruction wherever the Dockerfile has it."""
    return [value for name, value in instructions(DOCKERFILE) if name == instruction]


def entrypoint() -> list[str]:
    """The words that a container starts with."""
    (value,) = values("ENTRYPOINT")
    return json.loads(value)


def server_arguments(further: list[str]) -> Any:
    """How the server reads the entry point with an image's arguments after it."""
    words = entrypoint()
    return serve_hf.parse_serving([*words[words.index("serve_hf") + 1 :], *further])


def healthcheck() -> list[str]:
    """The words that ask whether a container is well."""
    (value,) = values("HEALTHCHECK")
    return json.loads(value.partition("CMD ")[2])


def compose() -> dict[str, Any]:
    """The compose file."""
    return yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())


def seconds(duration: str) -> int:
    """`45s` -> 45."""
    assert duration.endswith("s"), duration
    return int(duration[:-1])


def manifests() -> dict[str, Any]:
    """Kind -> manifest of the Kubernetes file."""
    return {one["kind"]: one for one in yaml.safe_load_all((REPOSITORY / "docker" / "kubernetes.yaml").read_text())}


def user() -> int:
    """The number that the image runs as."""
    (value,) = values("USER")
    number, group = value.split(":")
    assert number == group
    return int(number)


# ---------------------------------------------------------------------------------------------------------------------
# The image and the repository


def test_the_build_context_holds_what_the_wheel_needs_and_nothing_else() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    patterns = [line for lines in setup["options.data_files"].values() for line in lines.split("\n")[1:]]
    needed = {str(path.relative_to(REPOSITORY)) for pattern in patterns for path in REPOSITORY.glob(pattern)}
    needed |= {f"{name}.py" for name in lines_of("options", "py_modules")}
    needed |= {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "serving").glob("*.py")}
    needed |= {"setup.cfg", "pyproject.toml", "constraints.txt", "README.md", setup["metadata"]["license_files"]}
    assert set(context_files(REPOSITORY)) - {".dockerignore"} == needed


def test_data_results_and_history_stay_out_of_the_context(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_bytes((REPOSITORY / ".dockerignore").read_bytes())
    out = ["data/train.csv", "outputs/news/model.safetensors", ".git/config", ".env", "token", ".venv/bin/x.py"]
    out += [
        "tests/test_x.py",
        "serving/cache/x.py",
        "docker/compose.yaml",
        "recipes/private/x.yaml",
        "model.safetensors",
    ]
    for name in [*out, "train_hf.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert context_files(tmp_path) == [".dockerignore", "train_hf.py"]


def test_every_copy_has_its_source() -> None:
    stages = [value.split()[-1] for value in values("FROM")]
    for value in values("COPY"):
        *flags, source, _ = value.split()
        if flags:
            assert [flag.partition("=")[2] for flag in flags if flag.startswith("--from=")][0] in stages
        else:
            assert source == "." and context_files(REPOSITORY)


def test_all_pythons_are_of_one_version() -> None:
    (base,) = (value.partition("=")[2] for value in values("ARG") if value.startswith("PYTHON_IMAGE"))
    version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-[a-z]+", base)
    assert version, f"{base} is not a full version of a slim image"
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert f"python={version[1]}" in environment["dependencies"]
    assert setup["mypy"]["python_version"] == version[1]
    assert setup["options"]["python_requires"] == f">={version[1]}"


def test_every_package_of_the_image_is_pinned() -> None:
    """Whatever pip installs, it is asked for with the constraints; extras are those of setup.cfg, with `serve`."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    (extras,) = (value.partition("=")[2].split(",") for value in values("ARG") if value.startswith("EXTRAS"))
    assert {"serve", "demo"} <= set(extras) <= set(setup["options.extras_require"])
    installs = [part for value in values("RUN") for part in value.split("&&") if re.search(r"\binstall\b", part)]
    assert installs and all("--constraint constraints.txt" in part for part in installs)
    (environment,) = (shlex.split(value) for value in values("ENV") if "PIP_" in value)
    assert {"PIP_CONSTRAINT=/build/constraints.txt", "PIP_BUILD_CONSTRAINT=/build/constraints.txt"} <= set(environment)
    wanted = [line for extra in extras for line in setup["options.extras_require"][extra].split("\n")[1:]]
    assert {project_name(line) for line in wanted} <= set(pinned())


def test_nothing_is_installed_where_the_model_is_served() -> None:
    named = instructions(DOCKERFILE)
    server = next(place for place, (name, value) in enumerate(named) if name == "FROM" and value.endswith(" server"))
    after = " ".join(value for name, value in named[server:] if name == "RUN")
    assert after.startswith("groupadd") and not re.search(r"\b(pip|apt|apt-get|gcc)\b", after)
    assert values("FROM")[-1] == "server AS mounted", "a build without --target makes the last stage"


def test_the_container_runs_as_a_user_without_rights_and_asks_nobody() -> None:
    (made,) = (value for value in values("RUN") if "useradd" in value)
    assert user() >= 10000 and f"--uid {user()} --gid {user()}" in made
    environment = dict(word.split("=", 1) for value in values("ENV") for word in shlex.split(value))
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["HF_HOME"].startswith("/tmp/")
    assert int(environment["OMP_NUM_THREADS"]) >= 1


def test_the_entry_point_is_the_server_on_the_exposed_port() -> None:
    given = server_arguments([])
    assert (given.model, given.host, [str(given.port)]) == ("/model", "0.0.0.0", values("EXPOSE"))
    assert entrypoint()[:4] == ["python", "-P", "-m", "serve_hf"]
    asked = healthcheck()[-1]
    assert f"'127.0.0.1', {given.port}" in asked and any(f"'{path}'" in asked for path in OPEN_PATHS)


# ---------------------------------------------------------------------------------------------------------------------
# What runs the image


@pytest.mark.parametrize("name", ["api", "demo"])
def test_a_compose_service_is_sealed_bounded_and_has_time_to_drain(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert service["cpus"] == int(service["environment"]["OMP_NUM_THREADS"])
    assert service["mem_limit"] and service["pids_limit"]
    assert seconds(service["stop_grace_period"]) > LONGEST_STOP
    (mount,) = service["volumes"]
    assert mount["read_only"] and mount["target"] == server_arguments([]).model
    ports = [port.split(":") for port in service["ports"]]
    assert [(host, inside) for host, _, inside in ports] == [("127.0.0.1", str(server_arguments([]).port))]
    assert (REPOSITORY / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)


def test_the_api_of_the_compose_file_reads_its_token_from_the_secret() -> None:
    service = compose()["services"]["api"]
    (secret,) = service["secrets"]
    assert secret in compose()["secrets"]
    assert server_arguments(service["command"]).token_file == f"/run/secrets/{secret}"


def test_the_images_of_compose_and_the_package_have_one_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    images = {service["image"] for service in compose()["services"].values()}
    assert images == {f"{setup['metadata']['name']}:{setup['metadata']['version']}"}


def test_kubernetes_asks_what_the_server_answers_and_waits_until_it_drained() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ((port, number),) = ((one["name"], one["containerPort"]) for one in container["ports"])
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port} and number == server_arguments([]).port
    assert {probe["path"] for probe in probes.values()} <= set(OPEN_PATHS)
    assert probes["readiness"]["path"] == "/ready" and probes["liveness"]["path"] == "/health"
    (service,) = manifests()["Service"]["spec"]["ports"]
    assert service["targetPort"] == port
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + LONGEST_STOP


def test_kubernetes_seals_the_container_and_gives_each_thread_a_core() -> None:
    deployment = manifests()["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    security = pod["securityContext"] | container["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] == security["runAsGroup"] == user()
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    environment = {one["name"]: one for one in container["env"]}
    assert environment["OMP_NUM_THREADS"]["value"] == container["resources"]["limits"]["cpu"]
    assert serve_hf.TOKEN_VARIABLE in environment and "value" not in environment[serve_hf.TOKEN_VARIABLE]
    assert set(container["resources"]) == {"requests", "limits"}
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [deployment["selector"]["matchLabels"], manifests()["Service"]["spec"]["selector"]]
    selectors.append(manifests()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_conda_installs_what_make_installs() -> None:
    """Python by conda, all else by pip: this project, editable, with known extras and the pinned versions."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert environment["name"] == setup["metadata"]["name"]
    (lines,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    (project,) = (line for line in lines if line.startswith("-e "))
    extras = re.fullmatch(r"-e \.\[([\w,-]+)\]", project)
    assert extras and set(extras[1].split(",")) <= set(setup["options.extras_require"])
    assert "-c constraints.txt" in lines and (REPOSITORY / "constraints.txt").is_file()
    assert all(line.startswith("-") for line in lines), "a version here would be a second place for pins"


def test_the_guides_unit_starts_the_server_with_a_token_and_lets_it_drain() -> None:
    guide = (REPOSITORY / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```ini\n(.*?)```", guide, flags=re.DOTALL)
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block)
    service = unit["Service"]  # its keys are read in lower and upper case alike
    _, script, *words = service["ExecStart"].split()
    assert (REPOSITORY / script).is_file() and serve_hf.parse_serving(words).token_file == "%d/token"
    assert service["LoadCredential"].startswith("token:")
    assert int(service["TimeoutStopSec"]) > LONGEST_STOP
    assert f"OMP_NUM_THREADS={int(service['CPUQuota'].rstrip('%')) // 100}" in service["Environment"].split()


def test_the_guide_names_what_the_files_hold() -> None:
    """Port, user, base image, version, seconds to stop: as the Dockerfile and the compose file say."""
    guide = (REPOSITORY / "docs" / "deployment.md").read_text()
    (base,) = (value.partition("=")[2] for value in values("ARG") if value.startswith("PYTHON_IMAGE"))
    service = compose()["services"]["api"]
    stop = service["stop_grace_period"]
    for fact in (base, service["image"], f"user {user()}", f"stop_grace_period: {stop}", f'"stopTimeout": {stop[:-1]}'):
        assert fact in guide, fact
    assert f"`--drain` ({Limits().drain:g} s) and `--deadline` ({Limits().deadline:g} s)" in guide
    assert f"port {values('EXPOSE')[0]}" in guide and f"mem_limit: {service['mem_limit']}" in guide


# ---------------------------------------------------------------------------------------------------------------------
# The steps, run


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Stage]:
    """Every stage of the Dockerfile, its packages from the indexes of this machine's pip."""
    namespaces = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False)
    if os.geteuid() != 0 or namespaces.returncode != 0:
        pytest.skip("The steps of a Dockerfile need root and namespaces of their own.")
    arguments = {"TORCH_INDEX": os.environ.get("PIP_EXTRA_INDEX_URL", "https://pypi.org/simple")}
    scratch = tmp_path_factory.mktemp("stages")
    return build(DOCKERFILE, REPOSITORY, scratch, arguments, {"model": model_folder})


def wait_until_ready(container: Container) -> None:
    """Until the health check agrees, or the server ended."""
    while container.execute(container.stage.healthcheck).returncode:
        assert container.process.poll() is None, container.said
        time.sleep(0.2)


def ask(container: Container, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, str]:
    """Status and body of an answer, asked for from inside: there is no network to ask through."""
    said = container.execute(["python", "-c", ASK, method, path, token], json.dumps(body) if body else "")
    assert said.returncode == 0, said.stderr
    status, _, answer = said.stdout.partition("\n")
    return int(status), answer


def give_to_others(folder: Path) -> None:
    """What the guide says to do before mounting: safetensors writes weights that their owner alone may read."""
    assert "chmod -R a+rX" in (REPOSITORY / "docs" / "deployment.md").read_text()
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)


def end(container: Container) -> int:
    """What it ends with after SIGTERM."""
    os.kill(container.first, signal.SIGTERM)
    return container.process.wait(60)


def handles_sigterm(number: int) -> bool:
    """Whether a process, by its number, has a handler for SIGTERM."""
    status = Path(f"/proc/{number}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, flags=re.MULTILINE)
    assert caught
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_steps_make_a_server_that_answers_sealed_and_ends_at_sigterm(stages: dict[str, Stage]) -> None:
    """Baked: no network, nothing to write to but /tmp, no capability; the health check says when it is up."""
    with stages["baked"].start() as container:
        wait_until_ready(container)
        facts = json.loads(container.execute(["python", "-c", FACTS]).stdout)
        assert facts.pop("uid") == user() and facts.pop("capabilities") == 0
        assert facts.pop("first process") == entrypoint()[:4]
        assert all(facts.values()), facts
        status, answer = ask(container, "POST", "/predict", {"texts": ["Anna sings."], "embeddings": True})
        assert status == 200 and {"topic", "ner", "sentence_embedding"} <= set(json.loads(answer)["answers"][0])
        assert end(container) == 0


@pytest.mark.slow
def test_the_api_of_the_compose_file_serves_a_mounted_model_to_those_with_the_token(
    stages: dict[str, Stage], model_folder: Path, tmp_path: Path
) -> None:
    service = compose()["services"]["api"]
    give_to_others(shutil.copytree(model_folder, tmp_path / "model"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / service["secrets"][0]).write_text("right\n")
    mounts = [(str(tmp_path / "model"), "/model", "ro"), (str(tmp_path / "secrets"), "/run/secrets", "ro")]
    with stages["mounted"].start(*service["command"], mounts=mounts) as container:
        wait_until_ready(container)
        body = {"texts": ["Anna sings."]}
        assert [ask(container, "POST", "/embed", body, token)[0] for token in ("", "wrong", "right")] == [401, 401, 200]
        assert end(container) == 0


@pytest.mark.slow
def test_without_a_model_the_container_says_so_in_one_line(stages: dict[str, Stage]) -> None:
    with stages["mounted"].start() as container:
        assert container.process.wait(120) == 2
        assert container.said.startswith("serve_hf.py: error: ") and "/model" in container.said
        assert "Traceback" not in container.said


@pytest.mark.slow
def test_a_stop_while_the_model_loads_ends_the_container_at_once(stages: dict[str, Stage]) -> None:
    """Process 1 gets only the signals that it handles; the one before it serves must not be lost."""
    with stages["baked"].start() as container:
        while not (container.first and handles_sigterm(container.first)):
            time.sleep(0.01)
        assert "libtorch" not in Path(f"/proc/{container.first}/maps").read_text(), "premise: it has yet to load"
        assert end(container) == 0


@pytest.mark.slow
def test_the_demo_of_the_compose_file_is_a_page(stages: dict[str, Stage], model_folder: Path, tmp_path: Path) -> None:
    give_to_others(shutil.copytree(model_folder, tmp_path / "model"))
    command = compose()["services"]["demo"]["command"]
    with stages["mounted"].start(*command, mounts=[(str(tmp_path / "model"), "/model", "ro")]) as container:
        wait_until_ready(container)
        status, page = ask(container, "GET", "/demo/")
        assert status == 200 and "<html" in page
        assert end(container) == 0
