"""The recipes in cluster/, each against what its own tool accepts; none of them can be run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from raybench import gauges

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
LAUNCHER = ["aws.yaml", "gcp.yaml", "onprem.yaml"]
KUBERAY = {"RayCluster": "rayclusters.yaml", "RayJob": "rayjobs.yaml"}


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


def tool(name: str) -> str:
    """Return the path of a program that the dev extra installs beside Python."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'raybench[dev]'")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Ray's cluster launcher


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_takes_it(name: str) -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config  # private: `ray up` has no dry run

    (config,) = documents(CLUSTER / name)
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 2}))


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launched_cluster_wants_the_token_and_shows_its_dashboard_to_nobody(name: str) -> None:
    (config,) = documents(CLUSTER / name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2 and "--dashboard-host=127.0.0.1" in starts[0]
    if "docker" in config:
        assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    else:
        assert all("export RAY_AUTH_MODE=token;" in command for command in starts)
    assert config["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_clouds_train_on_spot_gpus_and_replace_them(name: str) -> None:
    (config,) = documents(CLUSTER / name)
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0, "GPU": 0} and gpu["resources"]["GPU"] == 1
    assert 0 < gpu["min_workers"] <= gpu["max_workers"] == config["max_workers"]
    assert "spot" in json.dumps(gpu["node_config"]).lower() and "spot" not in json.dumps(head["node_config"]).lower()


# ---------------------------------------------------------------------------------------------------------------------
# Kubernetes


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a CRD's openAPIV3Schema as a JSON Schema that refuses what it does not name."""
    out = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if "properties" in schema:
        out["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            out[key] = strict(schema[key])
    return out


def crd(kind: str) -> dict[str, Any]:
    folder = Path(os.environ.get("RAYBENCH_TEST_KUBERAY") or ROOT.parent / "shared" / "kuberay")
    path = folder / KUBERAY[kind]
    if not path.exists():
        pytest.skip(f"{KUBERAY[kind]}, KubeRay's definition of {kind}, is neither in ../shared/kuberay nor in"
                    " $RAYBENCH_TEST_KUBERAY")  # fmt: skip
    import yaml  # with its parser in C: the file has a megabyte

    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [
        version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"
    ]
    # What every object has, and CRDs leave to Kubernetes.
    schema["properties"]["metadata"]["properties"] = {
        "name": {"type": "string"}, "labels": {"type": "object"}, "annotations": {"type": "object"}
    }  # fmt: skip
    return strict(schema)


@pytest.mark.parametrize(("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_kuberay_takes_it(name: str, kind: str) -> None:
    schema = crd(kind)
    (manifest,) = [each for each in documents(CLUSTER / name) if each["kind"] == kind]
    assert manifest["apiVersion"] == "ray.io/v1"
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    cluster = manifest["spec"] if kind == "RayCluster" else manifest["spec"]["rayClusterSpec"]
    cluster["workerGroupSpecs"][0]["maxReplica"] = 8
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "6379"
    cluster["authOptions"]["mode"] = "tokens"
    assert sorted(error.message for error in validator.iter_errors(manifest)) == [
        "'6379' is not of type 'integer'",
        "'tokens' is not one of ['disabled', 'token']",
        "Additional properties are not allowed ('maxReplica' was unexpected)",
    ]


@pytest.mark.parametrize(("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_a_cluster_on_kubernetes_wants_the_token_and_is_not_exposed(name: str, kind: str) -> None:
    (manifest,) = [each for each in documents(CLUSTER / name) if each["kind"] == kind]
    cluster = manifest["spec"] if kind == "RayCluster" else manifest["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    (head_container,) = head["template"]["spec"]["containers"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == head_container["image"]
    assert 0 < workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    volumes = {volume["name"] for volume in head["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in head_container["volumeMounts"]} == volumes


# ---------------------------------------------------------------------------------------------------------------------
# Slurm and Docker


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([tool("shellcheck"), CLUSTER / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    done = subprocess.run([tool("hadolint"), "--no-color", CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "Dockerfile"
    bad.write_text((CLUSTER / "Dockerfile").read_text().replace("--no-cache-dir ", ""))
    done = subprocess.run([tool("hadolint"), "--no-color", bad], capture_output=True, text=True)
    assert done.returncode == 1 and "DL3042" in done.stdout


def test_the_image_is_built_from_what_the_package_needs() -> None:
    ignored, *kept = (
        line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    )
    assert ignored == "*"
    names = {line[1:] for line in kept if line.startswith("!")}
    assert all((ROOT / name).exists() for name in names)
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "constraints.txt"} < names
    for key in ("readme", "license-files", "packages", "suites"):  # what the build reads
        (value,) = re.findall(rf'^{key} = \[?"([^"]+)"', project, re.MULTILINE)
        assert ("suites" if key == "suites" else value) in names


STAND_INS = {
    # The job's one node. What is no program of Ray's is run; Ray itself says what it was told, and how it was let in.
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "ray": 'echo "$RAY_AUTH_MODE ray $*"; [ "$1" = get-auth-token ] && touch ~/.ray/auth_token'
    " || { touch ~/started; exec sleep 60; }",
    "python": 'until [ -e ~/started ]; do sleep 0.05; done; echo "waits for $3 nodes at $2"',
    "raybench": 'echo "raybench $*"; [ "$1 $2" = "run none" ] && exit 2; trap "exit 130" TERM; sleep 0.1;'
    ' [ "$2" = long ] && { kill -TERM $PPID; while :; do sleep 0.1; done; }; exit 0',
}


@pytest.mark.parametrize(("suite", "status"), [("table1", 0), ("none", 2), ("long", 130)])
def test_the_slurm_script_runs_a_suite_and_ends_as_it_does(tmp_path: Path, suite: str, status: int) -> None:
    """With stand-ins for Slurm and Ray. ``long`` is told that its time is up."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / ".ray").mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"}
    own = {"HOME": str(tmp_path), "RAYBENCH_VENV": str(tmp_path), "SLURMD_NODENAME": "node7"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM"))}
    command = ["bash", str(CLUSTER / "slurm.sh"), suite, "--limit", "3"]
    done = subprocess.run(command, env={**kept, **job, **own}, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    said = done.stdout.splitlines()
    assert f"raybench run {suite} --limit 3 --address node7:22345" in said
    assert "waits for 1 nodes at node7:22345" in said
    assert (
        "token ray start --block --num-cpus=8 --num-gpus=2 --temp-dir=/tmp/raybench-12345 --head --port=22345"
        " --dashboard-host=127.0.0.1 --ray-client-server-port=32345" in said
    )


# ---------------------------------------------------------------------------------------------------------------------
# Prometheus and Grafana

METRICS = {gauges.exported(name): set(metric.tags) for name, metric in gauges.METRICS.items()}
"""What raybench exports, by its name in Prometheus, with its labels."""


def test_the_grafana_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads((CLUSTER / "grafana" / "raybench.json").read_text())
    assert (board["title"], board["uid"]) == ("raybench", "raybench")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    shown = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            (match,) = re.finditer(
                r'(?:sum|max) by \((?P<by>[a-z, ]+)\) \((?P<name>\w+)\{suite=~"\$suite"\}\)', target["expr"]
            )
            labels = set(match["by"].split(", "))
            assert match[0] == target["expr"] and labels <= METRICS[match["name"]]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == labels
            shown.add(match["name"])
    assert shown == set(METRICS)
    (variable,) = board["templating"]["list"]
    assert variable["query"]["query"] == "label_values(ray_raybench_trials, suite)"
    (source,) = documents(CLUSTER / "grafana" / "provisioning" / "datasources" / "prometheus.yml")[0]["datasources"]
    panels = [*board["panels"], *(target for panel in board["panels"] for target in panel["targets"]), variable]
    assert all(panel["datasource"] == {"type": source["type"], "uid": source["uid"]} for panel in panels)


def test_panels_do_not_lie_on_each_other() -> None:
    board = json.loads((CLUSTER / "grafana" / "raybench.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not own & taken and max(x for x, _ in own) < 24
        taken |= own


def test_prometheus_finds_the_nodes_with_the_token() -> None:
    (config,) = documents(CLUSTER / "prometheus.yml")
    (job,) = config["scrape_configs"]
    (nodes,) = job["http_sd_configs"]
    assert nodes["url"].endswith("/api/prometheus/sd")
    assert nodes["authorization"] == {"type": "Bearer", "credentials_file": "auth_token"}
    pytest.importorskip("ray")
    import ray.dashboard.modules.reporter.reporter_head as served

    assert '"/api/prometheus/sd"' in Path(served.__file__).read_text()


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def test_every_file_that_is_yaml_or_json_can_be_read() -> None:
    for path in FILES:
        if path.suffix in (".yaml", ".yml"):
            assert all(documents(path)), path
        elif path.suffix == ".json":
            json.loads(path.read_text())


@pytest.mark.parametrize("name", [*LAUNCHER, "raycluster.yaml", "rayjob.yaml", "slurm.sh", "Dockerfile"])
def test_token_authentication_is_on_in_every_recipe(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert re.search(r"RAY_AUTH_MODE=token|authOptions:\s+mode: token", text)
    assert "disabled" not in text and "0.0.0.0" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_file_holds_a_secret(path: Path) -> None:
    found = re.findall(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b|(?:password|secret|token|api_?key)\w*\s*[:=]\s*['\"][^'\"$]",
        path.read_text(),
        re.IGNORECASE,
    )
    assert found == []


def test_versions_of_ray_and_python_are_the_projects() -> None:
    ray = importlib.metadata.version("ray")
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and pinned[1] == ray
    for path in FILES:
        text = path.read_text()
        assert set(re.findall(r"rayproject/ray:([\d.]+)-", text)) | set(re.findall(r"rayVersion: (\S+)", text)) <= {ray}
        assert set(re.findall(r"rayproject/ray:[\d.]+-(py\d+)", text)) <= {"py311"}
