"""Breaks the rendered dev overlay in one place at a time and expects `validate.py` to name that place.

    python -m unittest discover -s deploy/kubernetes

A rule that lets its mutation through is a rule that checks nothing.
"""

from __future__ import annotations

import copy
import tempfile
import unittest
from pathlib import Path
from typing import Any, Callable

import validate

OVERLAY = validate.HERE / "overlays" / "dev"
CONTROL_PLANE = ("Deployment", "hermes-control-plane")
WORKER = ("Deployment", "hermes-worker-coder")


class Manifests:
    """The rendered objects, to be broken."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = objects

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return next(o for o in self.objects if o["kind"] == kind and o["metadata"]["name"].startswith(name))

    def drop(self, kind: str, name: str) -> None:
        self.objects.remove(self.get(kind, name))

    def pod(self, at: tuple[str, str] = CONTROL_PLANE) -> dict[str, Any]:
        return self.get(*at)["spec"]["template"]["spec"]

    def container(self, at: tuple[str, str] = CONTROL_PLANE) -> dict[str, Any]:
        return self.pod(at)["containers"][0]


def setting(path: Callable[[Manifests], dict[str, Any]], key: str, value: Any) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        path(manifests)[key] = value

    return mutate


def removing(path: Callable[[Manifests], dict[str, Any]], key: str) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        del path(manifests)[key]

    return mutate


MUTATIONS: list[tuple[str, Callable[[Manifests], None], str]] = [
    ("text for a number", setting(lambda m: m.get(*CONTROL_PLANE)["spec"], "replicas", "two"), "replicas"),
    ("unknown field", setting(lambda m: m.get("NetworkPolicy", "hermes-worker")["spec"], "policyTypez", []), "policyTypez"),
    ("boolean environment", lambda m: m.container()["env"].append({"name": "X", "value": True}), "env"),
    ("object twice", lambda m: m.objects.append(copy.deepcopy(m.get("Service", "hermes-http"))), "appears twice"),
    ("other namespace", setting(lambda m: m.get("Service", "hermes-http")["metadata"], "namespace", "other"), "namespaces"),
    ("root", setting(lambda m: m.pod()["securityContext"], "runAsUser", 0), "not root"),
    ("may be root", setting(lambda m: m.pod()["securityContext"], "runAsNonRoot", False), "not root"),
    ("no seccomp", removing(lambda m: m.pod()["securityContext"], "seccompProfile"), "seccompProfile"),
    ("profile of the node alone", setting(lambda m: m.pod(WORKER)["securityContext"], "seccompProfile", validate.WORKER_PROFILE),
     "need each other"),
    ("unmasked proc alone", setting(lambda m: m.container(WORKER)["securityContext"], "procMount", "Unmasked"), "need each other"),
    ("other profile", setting(lambda m: m.pod(WORKER)["securityContext"], "seccompProfile", {"type": "Unconfined"}), "seccompProfile"),
    ("writable root", setting(lambda m: m.container(WORKER)["securityContext"], "readOnlyRootFilesystem", False), "readOnly"),
    ("escalation", setting(lambda m: m.container()["securityContext"], "allowPrivilegeEscalation", True), "Escalation"),
    ("capability", setting(lambda m: m.container()["securityContext"], "capabilities", {"drop": ["ALL"], "add": ["NET_RAW"]}),
     "capabilities"),
    ("host path", lambda m: m.pod()["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "hostPath"),
    ("host network", setting(lambda m: m.pod(), "hostNetwork", True), "hostNetwork"),
    ("API credentials", setting(lambda m: m.pod(WORKER), "automountServiceAccountToken", True), "automount"),
    ("account credentials", removing(lambda m: m.get("ServiceAccount", "hermes-worker-main"), "automountServiceAccountToken"),
     "automount"),
    ("real secret", removing(lambda m: m.get("Secret", "hermes-operator")["metadata"], "annotations"), "annotated"),
    ("latest", setting(lambda m: m.container(), "image", "hermes-control-plane:latest"), "latest"),
    ("no tag", setting(lambda m: m.container(), "image", "registry.example:5000/hermes-control-plane"), "tag"),
    ("no memory limit", removing(lambda m: m.container(WORKER)["resources"]["limits"], "memory"), "resources.limits"),
    ("no requests", removing(lambda m: m.container()["resources"], "requests"), "resources.requests"),
    ("no readiness", removing(lambda m: m.container(), "readinessProbe"), "readinessProbe"),
    ("probe of no port", setting(lambda m: m.container()["livenessProbe"]["httpGet"], "port", "admin"), "'admin'"),
    ("mount of nothing", lambda m: m.container()["volumeMounts"].append({"name": "x", "mountPath": "/x"}), "'x'"),
    ("unset variable", setting(lambda m: m.container(WORKER), "env", []), "POD_NAMESPACE"),
    ("missing ConfigMap", lambda m: m.drop("ConfigMap", "hermes-config"), "ConfigMap"),
    ("missing Secret", lambda m: m.drop("Secret", "hermes-operator"), "Secret"),
    ("missing key", removing(lambda m: m.get("Secret", "hermes-database")["data"], "password"), "no key 'password'"),
    ("undeclared Secret", removing(lambda m: m.get(*WORKER)["metadata"], "annotations"), "hermes-join-coder"),
    ("declared, not mounted", setting(lambda m: m.get(*WORKER)["metadata"]["annotations"], validate.EXTERNAL_SECRETS,
                                      "hermes-join-coder,stray"), "'stray'"),
    ("missing account", lambda m: m.drop("ServiceAccount", "hermes-worker-coder"), "ServiceAccount"),
    ("missing headless Service", lambda m: m.drop("Service", "hermes-postgres"), "headless"),
    ("selector of nobody", setting(lambda m: m.get(*WORKER)["spec"]["selector"]["matchLabels"], "hermes.dev/agent", "x"),
     "does not match its own pods"),
    ("selector of another", removing(lambda m: m.get(*WORKER)["spec"]["selector"]["matchLabels"], "hermes.dev/agent"),
     "also matches the pods of Deployment/hermes-worker-main"),
    ("Service of nobody", setting(lambda m: m.get("Service", "hermes-grpc")["spec"], "selector", {"a": "b"}), "matches no pods"),
    ("Service of no port", setting(lambda m: m.get("Service", "hermes-grpc")["spec"]["ports"][0], "targetPort", "grpcs"),
     "'grpcs'"),
    ("budget of nobody", setting(lambda m: m.get("PodDisruptionBudget", "hermes")["spec"]["selector"]["matchLabels"],
                                 "app.kubernetes.io/name", "x"), "matches no pods"),
    ("nothing denied", lambda m: m.drop("NetworkPolicy", "hermes-default-deny"), "denies everything"),
    ("worker shut in", setting(lambda m: m.get("NetworkPolicy", "hermes-worker")["spec"]["egress"][0]["ports"][0], "port", 443),
     "egress to the control plane"),
    ("control plane shut", lambda m: m.get("NetworkPolicy", "hermes-control-plane")["spec"]["ingress"].pop(0),
     "ingress to the control plane"),
    ("database shut", lambda m: m.drop("NetworkPolicy", "hermes-postgres"), "port 5432"),
]


class Mutations(unittest.TestCase):
    """One subtest per mutation."""

    def test_every_mutation_is_named(self) -> None:
        objects = validate.render(OVERLAY)
        self.assertEqual(validate.object_faults(objects), [])
        for name, mutate, expected in MUTATIONS:
            with self.subTest(name):
                broken = Manifests(copy.deepcopy(objects))
                mutate(broken)
                faults = validate.object_faults(broken.objects, validate.VERSIONS[-1:])
                self.assertTrue(any(expected in fault for fault in faults), f"{expected!r} is not in {faults}")

    def test_a_strict_worker_keeps_its_user_namespace(self) -> None:
        objects = Manifests(validate.render(validate.HERE / "overlays" / "dev-strict"))
        self.assertEqual(validate.object_faults(objects.objects, validate.VERSIONS[-1:]), [])
        self.assertFalse(objects.pod(WORKER)["hostUsers"])
        self.assertNotIn("hostUsers", objects.pod())
        del objects.pod(WORKER)["hostUsers"]
        faults = validate.object_faults(objects.objects, validate.VERSIONS[-1:])
        self.assertTrue(any("hostUsers: false" in fault for fault in faults), faults)

    def test_ambiguous_scalars_are_found_in_the_source(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "a.yaml").write_text('a: "on"\nb: off\nc: {y: [No]}\n', encoding="utf-8")
            faults = list(validate.source_faults(Path(directory)))
        self.assertEqual([fault.split(":")[1] for fault in faults], ["2", "3", "3"])

    def test_a_kustomization_that_does_not_build_is_a_fault(self) -> None:
        with tempfile.TemporaryDirectory() as directory, self.assertRaises(ValueError):
            validate.render(Path(directory))


if __name__ == "__main__":
    unittest.main()
