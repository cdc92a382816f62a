"""The Kubernetes manifests: rendered by kubectl, judged by the published schemas, compared with the daemon.

There is no cluster: nothing is applied. What the schemas cannot know (that a path exists, that a label
selects something) is compared here.
"""

from __future__ import annotations

import gc
import re
import runpy
import subprocess
import sys
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from exporter_proxy.cli import DEFAULT_CONFIG_FILES
from exporter_proxy.config import load_config
from exporter_proxy.config.schema import ListenAddress
from tests.daemon import REPOSITORY, Daemon
from tests.packaging.artefacts import PACKAGING, needs

KUBERNETES = PACKAGING / "kubernetes"
RULES = PACKAGING / "prometheus" / "exporter_proxy.rules.yml"
KUSTOMIZATIONS = ["node", "pod", "rules"]
WORKLOADS = ["node", "pod"]
OLDEST_KUBERNETES = "1.25"
OPERATOR_GROUP = "monitoring.coreos.com/v1"
DAEMON = "exporter-proxy"

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Manifest]]:
    """What `kubectl apply -k` would send, by directory and kind."""
    found: dict[str, dict[str, Manifest]] = {}
    for name in KUSTOMIZATIONS:
        command = [needs("kubectl"), "kustomize", str(KUBERNETES / name)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        manifests = [*yaml.safe_load_all(result.stdout)]
        found[name] = {manifest["kind"]: manifest for manifest in manifests}
        assert len(found[name]) == len(manifests), f"{name} has two of a kind"
    return found


@pytest.fixture(scope="module")
def operator() -> ModuleType:
    """The operator's published schema; importing it takes seconds, and nothing else needs it."""
    from cloudcoil.models.prometheus_operator import v1

    # Two hundred thousand objects, which later tests that look for garbage need not walk, see conftest.
    gc.collect()
    gc.freeze()
    return v1


def pod_template(manifests: dict[str, Manifest]) -> Manifest:
    (workload,) = [manifest for kind, manifest in manifests.items() if kind in ("DaemonSet", "Deployment")]
    template: Manifest = workload["spec"]["template"]
    assert workload["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    return template


def daemon_container(manifests: dict[str, Manifest]) -> Manifest:
    containers = pod_template(manifests)["spec"]["containers"]
    (found,) = [container for container in containers if container["name"] == DAEMON]
    return dict(found)


def endpoints(manifests: dict[str, Manifest]) -> list[Manifest]:
    """What Prometheus is to scrape, of a ServiceMonitor or a PodMonitor."""
    if "ServiceMonitor" in manifests:
        return list(manifests["ServiceMonitor"]["spec"]["endpoints"])
    return list(manifests["PodMonitor"]["spec"]["podMetricsEndpoints"])


def lost(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Keys of ``ours`` that a model has not kept, since it does not know them."""
    if isinstance(ours, dict):
        unknown = [f"{place}.{key}" for key in ours if key not in theirs]
        return unknown + [
            one for key in ours if key in theirs for one in lost(ours[key], theirs[key], f"{place}.{key}")
        ]
    if isinstance(ours, list):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [one for index, (our, their) in pairs for one in lost(our, their, f"{place}[{index}]")]
    return []


def unknown_to_the_operator(manifest: Manifest, operator: ModuleType) -> list[str]:
    """The keys that its published schema does not have; raises ValidationError for what does not fit it."""
    model = getattr(operator, manifest["kind"]).model_validate(manifest)
    return lost(manifest, model.model_dump(mode="json", by_alias=True, exclude_unset=True))


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_manifests_fit_the_published_schemas(
    rendered: dict[str, dict[str, Manifest]], name: str, operator: ModuleType
) -> None:
    for manifest in rendered[name].values():
        if manifest["apiVersion"] == OPERATOR_GROUP:
            assert not unknown_to_the_operator(manifest, operator)
        else:
            for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
                kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("name", "kind", "key"), [("node", "DaemonSet", "spec"), ("pod", "PodMonitor", "spec")]
)
def test_the_schemas_notice_a_misspelt_key(
    rendered: dict[str, dict[str, Manifest]], name: str, kind: str, key: str, operator: ModuleType
) -> None:
    misspelt = {**rendered[name][kind], key: {**rendered[name][kind][key], "selectors": {}}}
    if kind == "PodMonitor":
        assert unknown_to_the_operator(misspelt, operator) == [f".{key}.selectors"]
    else:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(misspelt, OLDEST_KUBERNETES, strict=True)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_every_file_is_part_of_its_kustomization(name: str) -> None:
    directory = KUBERNETES / name
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    files = [file for one in kustomization.get("configMapGenerator", []) for file in one["files"]]
    listed = [*kustomization["resources"], *files, "kustomization.yaml"]
    assert sorted(listed) == sorted(path.name for path in directory.iterdir())
    assert kustomization["namespace"]


def test_the_rules_are_those_of_prometheus(rendered: dict[str, dict[str, Manifest]]) -> None:
    made = runpy.run_path(str(KUBERNETES / "build_rules.py"))["text"]()
    assert made == (KUBERNETES / "rules" / "prometheusrule.yaml").read_text()
    assert rendered["rules"]["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_may_do_next_to_nothing(rendered: dict[str, dict[str, Manifest]], name: str) -> None:
    pod = pod_template(rendered[name])["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all(mount["readOnly"] for mount in container.get("volumeMounts", []))
        assert container["resources"]["limits"]["memory"]
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", container["image"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_daemon_finds_its_configuration(rendered: dict[str, dict[str, Manifest]], name: str) -> None:
    pod = pod_template(rendered[name])["spec"]
    (mount,) = daemon_container(rendered[name])["volumeMounts"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    config_map = rendered[name]["ConfigMap"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert {f"{mount['mountPath']}/{file}" for file in config_map["data"]} == {DEFAULT_CONFIG_FILES[-1]}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_daemon_takes_its_configuration(name: str) -> None:
    path = KUBERNETES / name / "config.yml"
    command = [sys.executable, "-m", "exporter_proxy", "check", f"--config.file={path}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"{path}: OK (2 exporters)\n"), result.stderr


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_path_of_the_daemon_is_one_endpoint_with_the_labels_of_the_rules(
    rendered: dict[str, dict[str, Manifest]], name: str
) -> None:
    config = load_config(str(KUBERNETES / name / "config.yml"))
    found = {}
    for endpoint in endpoints(rendered[name]):
        set_to = {rule["targetLabel"]: rule.get("replacement") for rule in endpoint["relabelings"]}
        found[endpoint["path"]] = (set_to.get("job"), set_to.get("exporter"))
        assert endpoint["port"] == "metrics"
    assert len(found) == len(endpoints(rendered[name]))
    assert found == {
        "/metrics": ("exporter_proxy", None),
        **{exporter.path: (None, exporter.name) for exporter in config.exporters},
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_port_is_the_one_that_the_daemon_listens_on(
    rendered: dict[str, dict[str, Manifest]], name: str
) -> None:
    (listen,) = load_config(str(KUBERNETES / name / "config.yml")).listen
    assert isinstance(listen, ListenAddress)
    (port,) = daemon_container(rendered[name])["ports"]
    assert (port["name"], port["containerPort"]) == ("metrics", listen.port)
    if name == "node":
        (offered,) = rendered[name]["Service"]["spec"]["ports"]
        assert (offered["name"], offered["port"], offered["targetPort"]) == (
            "metrics",
            listen.port,
            "metrics",
        )


@pytest.mark.parametrize("name", WORKLOADS)
def test_exporters_listen_where_the_daemon_looks_for_them(
    rendered: dict[str, dict[str, Manifest]], name: str
) -> None:
    arguments = [
        argument
        for container in pod_template(rendered[name])["spec"]["containers"]
        for argument in container.get("args", [])
    ]
    listened_on = {argument.partition("=")[2] for argument in arguments if "web.listen-address=" in argument}
    asked = {
        exporter.source.backend for exporter in load_config(str(KUBERNETES / name / "config.yml")).exporters
    }
    # kube-proxy is the node's own.
    assert asked - listened_on == ({"127.0.0.1:10249"} if name == "node" else set())
    assert listened_on <= asked


@pytest.mark.parametrize("name", WORKLOADS)
def test_monitors_and_policies_select_the_pods(rendered: dict[str, dict[str, Manifest]], name: str) -> None:
    labels = pod_template(rendered[name])["metadata"]["labels"]
    if name == "node":
        service = rendered[name]["Service"]
        assert service["spec"]["selector"] == labels
        selector = rendered[name]["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= service["metadata"]["labels"].items()
    else:
        assert rendered[name]["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
        assert rendered[name]["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_only_prometheus_reaches_the_sidecar(rendered: dict[str, dict[str, Manifest]]) -> None:
    policy = rendered["pod"]["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = [rule for rule in policy["ingress"] if {"port": 9099, "protocol": "TCP"} in rule["ports"]]
    assert rule["from"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
        }
    ]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    served = {
        port["containerPort"]
        for container in pod_template(rendered["pod"])["spec"]["containers"]
        for port in container.get("ports", [])
    }
    assert opened == served


@pytest.mark.parametrize(
    ("name", "resources"), [("node", {"services", "endpoints", "pods"}), ("pod", {"pods"})], ids=WORKLOADS
)
def test_prometheus_may_find_the_targets_and_nothing_else(
    rendered: dict[str, dict[str, Manifest]], name: str, resources: set[str]
) -> None:
    role, binding = rendered[name]["Role"], rendered[name]["RoleBinding"]
    (rule,) = role["rules"]
    assert (set(rule["resources"]), set(rule["verbs"]), rule["apiGroups"]) == (
        resources,
        {"list", "watch"},
        [""],
    )
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["namespace"] for subject in binding["subjects"]] == ["monitoring"]
    monitor = rendered[name]["ServiceMonitor" if name == "node" else "PodMonitor"]
    assert (
        role["metadata"]["namespace"] == binding["metadata"]["namespace"] == monitor["metadata"]["namespace"]
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_probes_are_answered_as_the_configuration_has_it(
    rendered: dict[str, dict[str, Manifest]], name: str
) -> None:
    config = yaml.safe_load(rendered[name]["ConfigMap"]["data"]["config.yml"])
    config["listen"] = "127.0.0.1:0"
    container = daemon_container(rendered[name])
    probes = {kind: container[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "livenessProbe": "/-/healthy",
        "readinessProbe": "/-/ready",
    }
    with Daemon(config) as daemon:
        for probe in probes.values():
            assert probe["port"] == "metrics"
            daemon.get(probe["path"]).expect_ok()
    # In the node's network the kubelet has to come from an address that the daemon lets in.
    hosts = {probe.get("host") for probe in probes.values()}
    assert hosts == ({"127.0.0.1"} if "allow_clients" in config else {None})


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_stopping_pod_has_time_to_finish_its_scrapes(
    rendered: dict[str, dict[str, Manifest]], name: str
) -> None:
    config = load_config(str(KUBERNETES / name / "config.yml"))
    pod = pod_template(rendered[name])["spec"]
    assert pod["terminationGracePeriodSeconds"] > config.shutdown_timeout_seconds
