"""What Kubernetes and SkyPilot take: they know every field of the files under launch/, and its type, and read its meaning as we do.

kubernetes_fields.json has the types that the file uses, with all their fields, from the models of the client package kubernetes 31.0.0
(Kubernetes 1.31). SkyPilot's fields are those of its task schema (sky/utils/schemas.py), as far as the file uses its sections.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from plait.engine.monitoring.signals import Paused
from plait.errors import PlaitError

ROOT = Path(__file__).resolve().parents[2]
FIELDS = json.loads((Path(__file__).parent / "kubernetes_fields.json").read_text())
KINDS = {"Service": "V1Service", "Job": "V1Job"}
PLAIN = {"str": str, "int": int, "bool": bool, "object": (int, str)}
SKY = {
    "": {"name", "resources", "num_nodes", "workdir", "file_mounts", "envs", "secrets", "setup", "run", "volumes", "service", "config"},
    "resources": {
        *{"cloud", "infra", "region", "zone", "accelerators", "cpus", "memory", "use_spot", "job_recovery", "disk_size", "disk_tier"},
        *{"instance_type", "network_tier", "ports", "image_id", "labels", "autostop", "priority", "any_of", "ordered"},
    },
    "resources.job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
    "file_mounts./runs": {"name", "source", "store", "mode", "persistent"},
}


def faults(kind, value, where):
    """Lines about fields that a Kubernetes type does not have, lacks, or has of another type."""
    if match := re.fullmatch(r"list\[(\w+)\]", kind):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [line for i, item in enumerate(value) for line in faults(match[1], item, f"{where}[{i}]")]
    if match := re.fullmatch(r"dict\(str, (\w+)\)", kind):
        return [line for name, item in value.items() for line in faults(match[1], item, f"{where}.{name}")]
    if kind in PLAIN:
        right = isinstance(value, PLAIN[kind]) and (kind != "int" or not isinstance(value, bool))
        return [] if right else [f"{where} is {value!r}, not a {kind}"]
    known = FIELDS[kind]
    lines = [f"{where} lacks {name}" for name in known["required"] if name not in value]
    for name, item in value.items():
        lines += faults(known["fields"][name], item, f"{where}.{name}") if name in known["fields"] else [f"{where}.{name} is not known"]
    return lines


@pytest.fixture
def job():
    parts = list(yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()))
    return next(part for part in parts if part["kind"] == "Job")


def test_kubernetes_knows_every_field_and_its_type():
    for part in yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()):
        assert faults(KINDS[part["kind"]], part, part["kind"]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda job: job["spec"].update(restartpolicy="Never"), "Job.spec.restartpolicy is not known"),
        (lambda job: job["spec"].update(completions="2"), "Job.spec.completions is '2', not a int"),
        (lambda job: job["spec"].pop("template"), "Job.spec lacks template"),
    ],
)
def test_a_mistake_in_the_file_would_be_found(job, change, told):
    change(job)
    assert faults("V1Job", job, "Job") == [told]


def test_kubernetes_fails_the_job_for_a_mistake_and_starts_again_what_saved_or_was_evicted(job):
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy is refused with any other
    mistake, saved, evicted = spec["podFailurePolicy"]["rules"]
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailJob", [PlaitError.exit_code])
    assert (saved["action"], saved["onExitCodes"]["values"]) == ("Ignore", [Paused.exit_code])
    assert (evicted["action"], evicted["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget", "status": "True"}])
    assert {rule["onExitCodes"]["containerName"] for rule in (mistake, saved)} == {container["name"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    kept = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    assert kept == {"runs", "cache"}
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["HF_HOME"].startswith(mounted["cache"] + "/") and f"--data.cache={mounted['cache']}/" in container["args"][0]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_the_image_has_what_the_job_runs(job):
    dockerfile = (ROOT / "launch" / "Dockerfile").read_text()
    workdir = re.search(r"^WORKDIR (\S+)$", dockerfile, re.MULTILINE)[1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["workingDir"] == workdir
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    config = re.search(r"plait train (\S+)", container["args"][0])[1]
    assert config.split("/")[0] in copied and (ROOT / config).is_file()
    assert f"-t {container['image']} " in dockerfile


def test_skypilot_knows_every_field_and_starts_again_what_saved():
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    for section, known in SKY.items():
        part = task
        for name in filter(None, section.split(".")):
            part = part[name]
        assert set(part) <= known, section
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [Paused.exit_code] and recovery["strategy"] in ("FAILOVER", "EAGER_NEXT_REGION")
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT_CACHED" and task["file_mounts"]["/runs"]["store"] in ("s3", "gcs", "azure", "r2")
    assert {"cpus", "memory", "disk_size"} <= set(task["resources"]) and task["workdir"] == "."
    assert all(isinstance(value, str) for value in task["envs"].values())
