"""Our CRDs and our admission against a real API server: random mistakes in good manifests, the same answers."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from twin.backends.base import ApiError
from twin.backends.lab.control_plane import ControlPlanes
from twin.model.kinds import KINDS
from twin.model.meta import Object
from twin.model.schema import crd, has_crd
from twin.model.validation import same
from twin.sim.admission import admit

Json = dict[str, Any]
CASES = int(os.environ.get("ADMISSION_CASES", "400"))

pytestmark = pytest.mark.slow

TIME = "2025-01-01T00:00:00Z"
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
CHAIN = {"switches": [{"ports": [{"serviceInterface": {
    "matchLabels": {"a": "b"}, "ipam": {"matchLabels": {"x": "y"}, "defaultGateway": True}}}]}]}
INTERFACE = {"interfaceType": "vf", "vf": {"vfID": 1, "pfID": 0, "parentInterfaceRef": "p0", "virtualNetwork": "v"}}
CHART = {"source": {"repoURL": "https://a", "version": "1", "chart": "c"}, "values": {"x": {"y": [1]}}}
GOOD: dict[str, Json] = {
    "BFB": {"url": "http://a/b.bfb", "fileName": "a.bfb"},
    "DPU": {"dpuNodeName": "n", "dpuDeviceName": "d", "bfb": "b", "pciAddress": "0000-2b-00", "dpuFlavor": "f",
            "nodeEffect": {"taint": {"key": "a", "effect": "NoSchedule", "value": "x", "timeAdded": TIME}},
            "cluster": {"name": "c", "namespace": "n", "nodeLabels": {"a": "b"}}, "bmcIP": "1.2.3.4"},
    "DPUCluster": {"type": "kamaji", "version": "v1", "maxNodes": 10, "kubeconfig": "k", "clusterEndpoint": {
        "keepalived": {"vip": "1.1.1.1", "virtualRouterID": 5, "interface": "eth0", "nodeSelector": {"a": "b"}}}},
    "DPUDevice": {"pciAddress": "0000-2b-00", "psid": "MT_0000000001", "opn": "900-9D3B6-00CV-AA0", "numberOfPFs": 2},
    "DPUFlavor": {"grub": {"kernelParameters": ["a"]}, "nvconfig": [{"device": "*", "parameters": ["A=1"]}],
                  "configFiles": [{"path": "/a", "operation": "append", "raw": "r"}], "dpuMode": "dpu",
                  "dpuResources": {"cpu": 4, "memory": "8Gi"}, "systemReservedResources": {"cpu": "1"}},
    "DPUNode": {"nodeRebootMethod": {"script": {"name": "s"}}, "dpus": [{"name": "a"}, {"name": "b"}],
                "nodeDMSAddress": {"ip": "1.2.3.4", "port": 9339}},
    "DPUSet": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
               "dpuNodeSelector": SELECTOR, "dpuSelector": {"a": "b"}, "dpuTemplate": {
                   "annotations": {"a": "b"}, "spec": {
                       "bfb": {"name": "b"}, "dpuFlavor": "f", "nodeEffect": {"customLabel": {"a": "b"}}}}},
    "DPFOperatorConfig": {
        "networking": {"controlPlaneMTU": 1500}, "overrides": {"paused": True},
        "provisioningController": {"bfbPVCName": "p", "image": "a/b:1", "installInterface": {
            "installViaRedfish": {"bfbRegistryAddress": "a"}}}},
    "DPUService": {
        "helmChart": CHART, "serviceID": "x", "interfaces": ["a"], "serviceDaemonSet": {"resources": {"cpu": 1}},
        "configPorts": {"ports": [{"name": "a", "port": 1, "protocol": "TCP", "nodePort": 30000}]}},
    "DPUDeployment": {
        "dpus": {"bfb": "b", "flavor": "f", "nodeEffect": {"hold": True},
                 "dpuSets": [{"nameSuffix": "s", "nodeSelector": SELECTOR, "dpuAnnotations": {"a": "b"}}]},
        "services": {"a": {"serviceTemplate": "t", "serviceConfiguration": "c"}},
        "serviceChains": {"switches": [{"ports": [{"service": {"name": "a", "interface": "i"}}]}]}},
    "DPUServiceTemplate": {"deploymentServiceName": "a", "helmChart": CHART, "resourceRequirements": {"cpu": "1"}},
    "DPUServiceConfiguration": {"deploymentServiceName": "a", "interfaces": [{"name": "a", "network": "b"}],
                                "serviceConfiguration": {"deployInCluster": False, "serviceDaemonSet": {
                                    "labels": {"svc.dpu.nvidia.com/custom-flows": "firefly"}}}},
    "DPUServiceCredentialRequest": {"serviceAccount": {"name": "a"}, "secret": {"name": "s"}, "type": "kubeconfig"},
    "DPUServiceInterface": {"template": {"spec": {"template": {"spec": INTERFACE}}}},
    "ServiceInterfaceSet": {"template": {"spec": INTERFACE}}, "ServiceInterface": INTERFACE,
    "DPUServiceChain": {"template": {"spec": {"template": {"spec": CHAIN}}}},
    "ServiceChainSet": {"template": {"spec": CHAIN}}, "ServiceChain": CHAIN,
    "DPUServiceIPAM": {"ipv4Network": {"network": "10.0.0.0/24", "prefixSize": 29, "exclusions": ["a"],
                                       "allocations": {"a": "b"}, "routes": [{"dst": "x"}]}},
    "DPUServiceNAD": {"resourceType": "sf", "bridge": "b", "mtu": 1500, "ipam": True},
}
VALUES: list[Any] = [None, "", 0, 1, -1, 1.5, 2.0, True, False, [], {}, "x", "a/b", {"a": "b"}, ["x"], [{}], 10001,
                     {"name": "q"}, "ftp://x", "dpu.nvidia.com/x", {"dpu.nvidia.com/x": "y"}, "A B", "é", "1\n"]
OWN = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")


class Real:
    """A plain HTTPS client of the admin: what is compared is what the server says, not what a client makes of it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
        for name in ("client-certificate", "client-key"):
            (folder / name).write_bytes(base64.b64decode(user[f"{name}-data"]))
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        context.load_cert_chain(folder / "client-certificate", folder / "client-key")
        host, _, port = cluster["server"].removeprefix("https://").partition(":")
        self.connection = http.client.HTTPSConnection(host, int(port), context=context)

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        self.connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        answer: Json = json.loads(response.read())
        return response.status, answer


@pytest.fixture(scope="module")
def real(planes: ControlPlanes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """An API server of its own, with our CRDs and a namespace `n`."""
    real = Real(Path(planes.start("admission", controllers=()).kubeconfig), tmp_path_factory.mktemp("admin"))
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for kind in (k for k in KINDS.values() if has_crd(k)):
        status, answer = real.ask("POST", crds, crd(kind))
        assert status == 201, (kind.KIND, answer["message"])
    assert real.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})[0] == 201
    for kind in (k for k in KINDS.values() if has_crd(k)):
        while real.ask("GET", _path(kind))[0] == 404:
            pass  # until the server serves it
    yield real
    planes.remove("admission")


def _path(kind: type[Object], namespace: str = "n") -> str:
    return f"/apis/{kind.GROUP}/{kind.VERSION}/namespaces/{namespace}/{kind.PLURAL}"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in inside:
        yield from _places(inner, (*path, step))


def _spoil(spec: Json, dice: Random) -> None:
    *way, last = dice.choice(list(_places(spec)))
    target: Any = spec
    for step in way:
        target = target[step]
    fate = dice.random()
    if fate < 0.25 and isinstance(target, dict):
        del target[last]
    elif fate < 0.33 and isinstance(target, dict):
        target[dice.choice(["foo", "name", "hold", "drain", "virtualNetwork"])] = dice.choice(VALUES)
    else:
        target[last] = copy.deepcopy(dice.choice(VALUES))


def _bare(obj: Json) -> Json:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k not in OWN}}


def _errors(message: str) -> list[str]:
    """The errors of an Invalid message without their order: Go walks maps at random."""
    _, found, rest = message.partition(" is invalid: ")
    if not found:
        return [message]
    listed = rest[1:-1] if rest.startswith("[") else rest
    return sorted(re.split(r", (?=(?:spec|status|metadata|<nil>)[.:\[ ])", listed))


def test_random_mistakes_get_the_answers_of_a_real_server(real: Real) -> None:
    for number in range(CASES):
        dice = Random(f"admission/{number}")
        name = dice.choice(list(GOOD))
        kind, path = KINDS[name], _path(KINDS[name])
        good: Json = {"apiVersion": kind.api_version(), "kind": name, "spec": copy.deepcopy(GOOD[name]),
                      "metadata": {"name": f"a{number}", "namespace": "n"}}
        new, old = copy.deepcopy(good), None
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            if new["spec"]:
                _spoil(new["spec"], dice)
        if dice.random() < 0.35:
            _, stored = real.ask("POST", path, good)
            old, version = _bare(stored), stored["metadata"]["resourceVersion"]
            body = {**new, "metadata": {**new["metadata"], "resourceVersion": version}}
            status, answer = real.ask("PUT", f"{path}/a{number}", body)
        else:
            status, answer = real.ask("POST", path, new)
        _compare(kind, new, old, status, answer)


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["hbn_ovn", "hbn_only"])
def test_upstreams_own_manifests_are_taken_whole(real: Real, folder: str) -> None:
    """No field of theirs is unknown to our CRDs, and what is stored is what our own admission makes of it."""
    shared = Path(__file__).parents[3] / "shared" / "dpf" / "manifests" / "v25.4" / folder
    if not shared.exists():
        pytest.skip("../shared is not here")
    variables = {"BLUEFIELD_BITSTREAM": "http://x/b.bfb", "DPUCLUSTER_VIP": "10.0.0.9",
                 "DPUCLUSTER_INTERFACE": "eno1", "TARGETCLUSTER_API_SERVER_PORT": "6443"}
    taken = 0
    for path in sorted(shared.glob("*.yaml")):
        text = re.sub(r"\$\{?([A-Z_]+)\}?", lambda found: variables.get(found[1], "https://x"), path.read_text())
        for manifest in (m for m in yaml.safe_load_all(text) if m):
            kind, namespace = KINDS[manifest["kind"]], manifest["metadata"]["namespace"]
            real.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            url = f"{_path(kind, namespace)}?fieldValidation=Strict&dryRun=All"
            status, answer = real.ask("POST", url, manifest)
            assert status == 201, (path.name, answer["message"])
            assert same(_bare(answer), _ours(kind, manifest, None)[2]), (path.name, answer)
            taken += 1
    assert taken >= 10


def _compare(kind: type[Object], new: Json, old: Json | None, status: int, answer: Json) -> None:
    code, message, stored = _ours(kind, new, old)
    if LIST_FOR_TEXT.search(message):
        return
    assert status == code, (new, old, answer, message)
    if stored is None:
        assert _errors(answer["message"]) == _errors(message), (new, old)
    else:
        assert same(_bare(answer), stored), (new, old, answer)


# A real server lets a list pass where a string with a format belongs; our typed store could not hold it.
LIST_FOR_TEXT = re.compile(r'(timeAdded|ip) in body must be of type string: "array"')


def _ours(kind: type[Object], new: Json, old: Json | None) -> tuple[int, str, Json | None]:
    try:
        return (200, "", admit(kind, new, old, operation="UPDATE")) if old else (
            201, "", admit(kind, new, None, operation="CREATE"))
    except ApiError as error:
        return error.code, str(error), None
