"""The files in deploy/ agree with the code: options, ports, routes, metrics, times."""

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from poolgraph.cli import build_parser
from poolgraph.serving.metrics import METRICS, ROUTES, sample_names
from poolgraph.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PORT = ServeSettings(engine=None).port
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, lines joined and comments left out."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def parse(command: list[str]):
    """What the command line makes of a command; an unknown option is an error."""
    assert command[:1] == ["serve"]
    return build_parser().parse_args(command)


# --- containers


def test_both_dockerfiles_are_there():
    assert [file.suffix for file in DOCKERFILES] == [".cpu", ".gpu"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_container_runs_the_command_as_nobody_special(file):
    rows = instructions(file)
    found = dict(rows)
    entry, arguments = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    assert entry == ["poolgraph", "serve"]
    args = parse([*entry[1:], *arguments])
    assert (args.model, args.host, args.port) == (["/model"], "0.0.0.0", PORT)
    assert found["EXPOSE"] == str(PORT)
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert int(found["USER"]) > 0
    assert [keyword for keyword, _ in rows].index("USER") < [keyword for keyword, _ in rows].index("ENTRYPOINT")
    assert f":{PORT}/health" in found["HEALTHCHECK"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_container_has_no_torch_and_no_compiler(file):
    rows = instructions(file)
    last_stage = rows[[number for number, row in enumerate(rows) if row[0] == "FROM"][-1] :]
    assert not any("g++" in text or "pip install" in text for _, text in last_stage)
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", file.read_text())
    assert set(extras.split(",")) == {file.suffix[1:], "serve", "otel"}


def test_the_gpu_container_asks_for_the_gpu():
    args = json.loads(dict(instructions(DEPLOY / "Dockerfile.gpu"))["CMD"])
    assert parse(["serve", *args]).provider == "cuda"


# --- systemd


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "poolgraph.service")
    return parser


def test_the_unit_runs_the_command(unit):
    program, *command = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/poolgraph")
    args = parse(command)
    assert (args.host, args.port) == ("127.0.0.1", PORT)
    assert int(unit["Service"]["TimeoutStopSec"]) > args.grace
    assert args.api_key_file == "%d/key"
    assert str(args.cache_path).startswith(f"/var/cache/{unit['Service']['CacheDirectory']}/")


def test_the_unit_does_not_restart_what_a_restart_cannot_cure(unit):
    from poolgraph.cli import WRONG_INPUT

    assert unit["Service"]["Restart"] == "on-failure"
    assert int(unit["Service"]["RestartPreventExitStatus"]) == WRONG_INPUT


@pytest.mark.parametrize(
    ("name", "value"),
    [("DynamicUser", "yes"), ("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "yes")],
)
def test_the_unit_is_hardened(unit, name, value):
    assert unit["Service"][name] == value
    assert unit["Service"]["CapabilityBoundingSet"] == ""


# --- Kubernetes


@pytest.fixture(scope="module")
def kubernetes() -> dict:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(kubernetes) -> dict:
    return kubernetes["Deployment"]["spec"]["template"]["spec"]


def test_the_pod_runs_the_command(pod):
    [container] = pod["containers"]
    args = parse(["serve", *container["args"]])
    assert (args.host, args.port) == ("0.0.0.0", PORT)
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert args.model == [container["volumeMounts"][0]["mountPath"]]
    assert [variable["name"] for variable in container["env"]] == ["POOLGRAPH_API_KEY"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + args.grace
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]


def test_the_probes_ask_routes_that_need_no_key(pod):
    [container] = pod["containers"]
    open_routes = {"/health", *parse(["serve", *container["args"]]).public_routes}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert {probe["path"] for probe in probes.values()} <= open_routes & ROUTES
    assert {probe["port"] for probe in probes.values()} == {"http"}


def test_the_scrape_annotation_is_the_metrics_route(kubernetes, pod):
    annotations = kubernetes["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORT)
    assert annotations["prometheus.io/path"] in parse(["serve", *pod["containers"][0]["args"]]).public_routes


def test_the_pod_has_no_rights(pod):
    assert pod["securityContext"]["runAsNonRoot"]
    own = pod["containers"][0]["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"]["drop"] == ["ALL"]


def test_the_service_finds_the_pods(kubernetes):
    labels = kubernetes["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kubernetes["Service"]["spec"]["selector"].items() <= labels.items()
    assert kubernetes["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert kubernetes["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": PORT}]


# --- Grafana


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads((DEPLOY / "grafana.json").read_text())


def expressions(dashboard) -> list[str]:
    queries = [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_exists(dashboard):
    named = {name for text in expressions(dashboard) for name in re.findall(r"(?:poolgraph|process)_\w+", text)}
    assert named - sample_names() == set()


def test_every_metric_is_on_the_dashboard(dashboard):
    text = " ".join(expressions(dashboard))
    assert [metric.name for metric in METRICS if f"poolgraph_{metric.name}" not in text] == []


def test_labels_of_the_dashboard_exist(dashboard):
    labels = {label for metric in METRICS for label in metric.labels} | {"le", "job", "instance"}
    for text in expressions(dashboard):
        assert set(re.findall(r"(\w+)=~", text)) <= labels
        assert {name for group in re.findall(r"by \(([^)]*)\)", text) for name in group.split(", ")} <= labels


def test_panels_do_not_overlap(dashboard):
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]})
