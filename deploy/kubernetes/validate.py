#!/usr/bin/env python3
"""Checks the manifests without a cluster and without a network.

    pip install -r deploy/requirements.txt
    python deploy/kubernetes/validate.py            # base and every overlay
    python deploy/kubernetes/validate.py DIR ...    # those kustomizations only

Each kustomization is rendered by `kubectl kustomize`; every object is held against the schema of its kind (unknown
fields are faults), then against the rules below: what the "restricted" pod security level asks for, pinned images,
limits and probes, and that whatever one object names (ConfigMap, Secret, key, ServiceAccount, port, label) exists.
A Secret that is made by hand is named in the annotation `hermes.dev/external-secrets` of the workload that mounts it.

Exit code 0: no fault. 1: faults, one a line on stdout. 2: the check itself could not run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator

import yaml

HERE = Path(__file__).resolve().parent
# The oldest release that the manifests are meant for, and a newer one.
VERSIONS = ("1.30", "1.34")
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}
CLUSTER_SCOPED = {"Namespace"}
EXTERNAL_SECRETS = "hermes.dev/external-secrets"
DEV_ONLY = "hermes.dev/dev-only"
# Plain scalars that YAML 1.1 (kubectl) reads as a boolean and YAML 1.2 as text.
AMBIGUOUS = re.compile(r"^(y|n|yes|no|on|off)$", re.IGNORECASE)
PINNED_IMAGE = re.compile(r"^[^\s:@]+(:[0-9]+/[^\s:@]+)?(:(?!latest$)[\w][\w.-]*)?(@sha256:[0-9a-f]{64})?$")
# What components/strict gives to workers, together with a user namespace of the pod's own.
WORKER_PROFILE = {"type": "Localhost", "localhostProfile": "hermes-worker.json"}
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}

Object = dict[str, Any]


class CannotRun(Exception):
    """The check itself failed: a missing tool, not a faulty manifest."""


def render(directory: Path) -> list[Object]:
    """The objects of one kustomization; a kustomization that does not build raises ValueError."""
    try:
        done = subprocess.run(
            ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError as error:
        raise CannotRun("kubectl is not installed: it renders the kustomizations (1.27 or newer)") from error
    if done.returncode != 0:
        raise ValueError(f"kubectl kustomize failed: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def title(obj: Object) -> str:
    return f"{obj.get('kind', '?')}/{obj.get('metadata', {}).get('name', '?')}"


def schema_faults(objects: Iterable[Object], version: str) -> Iterator[str]:
    """Every object against the schema of its kind; a kind without a schema is a fault too."""
    try:
        import kubernetes_validate
    except ImportError as error:
        raise CannotRun("kubernetes-validate is not installed: pip install -r deploy/requirements.txt") from error
    for obj in objects:
        try:
            kubernetes_validate.validate(obj, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(part) for part in error.path)
            yield f"{title(obj)}: {path}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{title(obj)}: no schema: {error} (Kubernetes {version})"


def pod_templates(objects: Iterable[Object]) -> Iterator[tuple[Object, Object]]:
    for obj in objects:
        if obj.get("kind") in WORKLOADS:
            yield obj, obj["spec"]["template"]
        elif obj.get("kind") == "CronJob":
            yield obj, obj["spec"]["jobTemplate"]["spec"]["template"]
        elif obj.get("kind") == "Pod":
            yield obj, obj


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod.get("containers", [])]


def identity_faults(objects: list[Object]) -> Iterator[str]:
    """No object twice; one namespace, the same for all, where the kustomization sets one."""
    seen: set[tuple[str, str, str]] = set()
    namespaces: set[str] = set()
    for obj in objects:
        metadata = obj.get("metadata", {})
        key = (str(obj.get("kind")), str(metadata.get("namespace", "")), str(metadata.get("name")))
        if key in seen:
            yield f"{title(obj)}: appears twice"
        seen.add(key)
        if obj.get("kind") not in CLUSTER_SCOPED:
            namespaces.add(key[1])
    if len(namespaces) > 1:
        yield f"objects are spread over the namespaces {sorted(namespaces)}"


def security_faults(objects: list[Object]) -> Iterator[str]:
    """The "restricted" pod security level, and what it does not ask for: a read-only root and no API credentials."""
    for owner, template in pod_templates(objects):
        pod, where = template["spec"], title(owner)
        pod_context = pod.get("securityContext", {})
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: automountServiceAccountToken must be false"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{where}: {field} is not allowed"
        for volume in pod.get("volumes", []):
            for kind in set(volume) - {"name"} - RESTRICTED_VOLUMES:
                yield f"{where}: volume {volume['name']}: {kind} is not allowed"
        for container in containers(pod):
            at, context = f"{where}: container {container['name']}", container.get("securityContext", {})
            merged = {**pod_context, **context}
            if merged.get("runAsNonRoot") is not True or merged.get("runAsUser") in (None, 0):
                yield f"{at}: must run as a numbered user that is not root"
            seccomp = merged.get("seccompProfile", {})
            if seccomp not in ({"type": "RuntimeDefault"}, WORKER_PROFILE):
                yield f"{at}: seccompProfile must be RuntimeDefault, or {WORKER_PROFILE['localhostProfile']} of the node"
            wider = [seccomp == WORKER_PROFILE, context.get("procMount") == "Unmasked"]
            if any(wider) and not (all(wider) and pod.get("hostUsers") is False):
                yield f"{at}: {WORKER_PROFILE['localhostProfile']} and procMount: Unmasked need each other and hostUsers: false"
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{at}: allowPrivilegeEscalation must be false and privileged unset"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{at}: readOnlyRootFilesystem must be true"
            capabilities = context.get("capabilities", {})
            if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
                yield f"{at}: must drop ALL capabilities and add none"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{at}: hostPort is not allowed"
    for obj in objects:
        if obj.get("kind") == "ServiceAccount" and obj.get("automountServiceAccountToken") is not False:
            yield f"{title(obj)}: automountServiceAccountToken must be false"
        if obj.get("kind") == "Secret" and obj.get("metadata", {}).get("annotations", {}).get(DEV_ONLY) != "true":
            yield f"{title(obj)}: a Secret in the repository must be annotated {DEV_ONLY}"


def operation_faults(objects: list[Object]) -> Iterator[str]:
    """Images that stay the same, limits that hold, probes where somebody can ask, mounts that exist."""
    for owner, template in pod_templates(objects):
        pod, where = template["spec"], title(owner)
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in owner.get("spec", {}).get("volumeClaimTemplates", [])}
        for container in containers(pod):
            at, image = f"{where}: container {container['name']}", container.get("image", "")
            if not PINNED_IMAGE.match(image) or not (":" in image.rsplit("/", 1)[-1] or "@" in image):
                yield f"{at}: image {image!r} needs a tag other than latest, or a digest"
            for bound in ("requests", "limits"):
                missing = {"cpu", "memory"} - set(container.get("resources", {}).get(bound, {}))
                if missing:
                    yield f"{at}: resources.{bound} lacks {', '.join(sorted(missing))}"
            if container.get("ports"):
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    if probe not in container:
                        yield f"{at}: {probe} is missing"
            ports = {port.get("name") for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                handler = container.get(probe, {})
                port = (handler.get("httpGet") or handler.get("tcpSocket") or {}).get("port")
                if isinstance(port, str) and port not in ports:
                    yield f"{at}: {probe} asks port {port!r}, which it does not have"
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{at}: mounts volume {mount['name']!r}, which does not exist"
            known = {variable["name"] for variable in container.get("env", [])}
            for text in [*container.get("command", []), *container.get("args", [])]:
                for name in re.findall(r"(?<!\$)\$\(([A-Za-z_][A-Za-z0-9_]*)\)", text):
                    if name not in known:
                        yield f"{at}: {text!r} uses $({name}), which env does not set"


def named_objects(pod: Object) -> Iterator[tuple[str, str, set[str]]]:
    """(kind, name, keys) of every ConfigMap and Secret that a pod cannot start without."""
    sources = list(pod.get("volumes", []))
    for volume in pod.get("volumes", []):
        sources += volume.get("projected", {}).get("sources", [])
    for source in sources:
        for field, kind, name in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
            body = source.get(field)
            if body and not body.get("optional"):
                yield kind, body.get(name) or body["name"], {item["key"] for item in body.get("items", [])}
    for container in containers(pod):
        for source in container.get("envFrom", []):
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source and not source[field].get("optional"):
                    yield kind, source[field]["name"], set()
        for variable in container.get("env", []):
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                body = variable.get("valueFrom", {}).get(field)
                if body and not body.get("optional"):
                    yield kind, body["name"], {body["key"]}


def reference_faults(objects: list[Object]) -> Iterator[str]:
    """What a workload names exists, or is declared as made by hand (Secrets only)."""
    keys = {
        (obj["kind"], obj["metadata"]["name"]): {*(obj.get("data") or {}), *(obj.get("stringData") or {})}
        for obj in objects
        if obj.get("kind") in ("Secret", "ConfigMap")
    }
    accounts = {obj["metadata"]["name"] for obj in objects if obj.get("kind") == "ServiceAccount"}
    headless = {
        obj["metadata"]["name"]
        for obj in objects
        if obj.get("kind") == "Service" and obj["spec"].get("clusterIP") == "None"
    }
    for owner, template in pod_templates(objects):
        where, annotations = title(owner), owner["metadata"].get("annotations", {})
        external = {name.strip() for name in annotations.get(EXTERNAL_SECRETS, "").split(",") if name.strip()}
        account = template["spec"].get("serviceAccountName")
        if account not in accounts:
            yield f"{where}: ServiceAccount {account!r} does not exist"
        if owner["kind"] == "StatefulSet" and owner["spec"].get("serviceName") not in headless:
            yield f"{where}: headless Service {owner['spec'].get('serviceName')!r} does not exist"
        mounted = set()
        for kind, name, wanted in named_objects(template["spec"]):
            mounted.add(name)
            if (kind, name) in keys:
                for key in sorted(wanted - keys[(kind, name)]):
                    yield f"{where}: {kind} {name!r} has no key {key!r}"
            elif kind != "Secret" or name not in external:
                yield f"{where}: {kind} {name!r} does not exist and is not declared in {EXTERNAL_SECRETS}"
        # A generated Secret carries a hash in its name; the declared name is its stem.
        for name in external:
            if not any(other == name or re.fullmatch(re.escape(name) + r"-[a-z0-9]{10}", other) for other in mounted):
                yield f"{where}: {EXTERNAL_SECRETS} declares {name!r}, which nothing mounts"


def selects(selector: Object, labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        present, values = rule["key"] in labels, rule.get("values", [])
        holds = {
            "In": present and labels.get(rule["key"]) in values,
            "NotIn": labels.get(rule["key"]) not in values,
            "Exists": present,
            "DoesNotExist": not present,
        }[rule["operator"]]
        if not holds:
            return False
    return True


def selector_faults(objects: list[Object]) -> Iterator[str]:
    """Every selector selects something, and two workloads never select each other's pods."""
    pods = [(owner, template["metadata"].get("labels", {}), template["spec"])
            for owner, template in pod_templates(objects) if owner["kind"] != "Pod"]
    for owner, labels, spec in pods:
        selector = owner["spec"].get("selector", {})
        if not selects(selector, labels):
            yield f"{title(owner)}: its selector does not match its own pods"
        for other, other_labels, _ in pods:
            if other is not owner and selects(selector, other_labels):
                yield f"{title(owner)}: its selector also matches the pods of {title(other)}"
        for spread in spec.get("topologySpreadConstraints", []):
            if not selects(spread.get("labelSelector", {}), labels):
                yield f"{title(owner)}: topologySpreadConstraints does not match its own pods"
    for obj in objects:
        spec = obj.get("spec", {})
        if obj.get("kind") == "Service":
            chosen = [pod for _, labels, pod in pods if selects({"matchLabels": spec.get("selector", {})}, labels)]
            if not spec.get("selector") or not chosen:
                yield f"{title(obj)}: its selector matches no pods"
            for port in spec.get("ports", []):
                target = port.get("targetPort", port["port"])
                for pod in chosen:
                    offered = [p for container in containers(pod) for p in container.get("ports", [])]
                    if not any(target in (p.get("name"), p["containerPort"]) for p in offered):
                        yield f"{title(obj)}: port {target!r} is not one of its pods'"
        elif obj.get("kind") in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec.get("selector") if obj["kind"] == "PodDisruptionBudget" else spec.get("podSelector")
            if not any(selects(selector or {}, labels) for _, labels, _ in pods):
                yield f"{title(obj)}: its selector matches no pods"


def network_faults(objects: list[Object]) -> Iterator[str]:
    """Denied by default, and the two ways that everything depends on are open on the right ports."""
    policies = [obj["spec"] for obj in objects if obj.get("kind") == "NetworkPolicy"]
    if not any(
        policy.get("podSelector") == {}
        and set(policy.get("policyTypes", [])) == {"Ingress", "Egress"}
        and not policy.get("ingress")
        and not policy.get("egress")
        for policy in policies
    ):
        yield "no NetworkPolicy denies everything by default"

    templates = {owner["metadata"]["name"]: template for owner, template in pod_templates(objects)}
    control_plane = templates.get("hermes-control-plane", {}).get("metadata", {}).get("labels", {})

    def allowed(direction: str, subject: dict[str, str], peer: dict[str, str], port: int) -> bool:
        side = "from" if direction == "ingress" else "to"
        return any(
            selects(policy.get("podSelector", {}), subject)
            and any(
                any(way.get("port") == port for way in rule.get("ports", []))
                and any("podSelector" in at and "namespaceSelector" not in at and selects(at["podSelector"], peer)
                        for at in rule.get(side, []))
                for rule in policy.get(direction, [])
            )
            for policy in policies
        )

    for name, template in templates.items():
        labels = template["metadata"].get("labels", {})
        if name.startswith("hermes-worker"):
            for direction, subject, peer in (("egress", labels, control_plane), ("ingress", control_plane, labels)):
                if not allowed(direction, subject, peer, 7443):
                    yield f"{name}: no NetworkPolicy allows {direction} to the control plane's port 7443"
        if name == "hermes-postgres":
            for direction, subject, peer in (("egress", control_plane, labels), ("ingress", labels, control_plane)):
                if not allowed(direction, subject, peer, 5432):
                    yield f"{name}: no NetworkPolicy allows {direction} from the control plane to port 5432"


RULES = (
    identity_faults, security_faults, operation_faults, reference_faults, selector_faults, network_faults,
)


def object_faults(objects: list[Object], versions: Iterable[str] = VERSIONS) -> list[str]:
    """All faults of one rendered kustomization."""
    faults = [fault for version in versions for fault in schema_faults(objects, version)]
    if faults:
        return faults  # The rules below rely on the shapes that the schema promises.
    return [fault for rule in RULES for fault in rule(objects)]


def source_faults(root: Path) -> Iterator[str]:
    """Unquoted y, n, on, off …: a boolean to kubectl, text to others."""
    for path in sorted(root.rglob("*.yaml")):
        for token in yaml.scan(path.read_text(encoding="utf-8")):
            if isinstance(token, yaml.ScalarToken) and token.plain and AMBIGUOUS.match(token.value):
                line = token.start_mark.line + 1
                yield f"{path.relative_to(root)}:{line}: quote {token.value!r}, it is a boolean to some readers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kustomization", nargs="*", type=Path, help="folders to check instead of base and overlays/*")
    directories = parser.parse_args().kustomization or [HERE / "base", *sorted((HERE / "overlays").iterdir())]
    faults = [f"source: {fault}" for fault in source_faults(HERE)]
    checked = 0
    for directory in directories:
        try:
            objects = render(directory)
            checked += len(objects)
            faults += [f"{directory.name}: {fault}" for fault in object_faults(objects)]
            if not objects:
                faults.append(f"{directory.name}: renders no object")
        except ValueError as error:
            faults.append(f"{directory.name}: {error}")
        except CannotRun as error:
            print(f"validate: {error}", file=sys.stderr)
            return 2
    for fault in faults:
        print(fault)
    print(f"{checked} objects of {len(directories)} kustomizations, {len(faults)} faults", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
