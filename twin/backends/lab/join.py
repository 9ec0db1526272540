"""`kubeadm join` of an emulated DPU against a real API server: discovery, TLS bootstrap, a client certificate.

Discovery trusts `cluster-info` if its signature fits the bootstrap token and its authority has the pinned hash; the
kubelet's certificate comes from a CertificateSigningRequest that kube-controller-manager approves and signs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from twin.backends.base import ApiError, NotFound
from twin.backends.kube import Cluster, LiveKube
from twin.backends.kube_http import error_of, from_kubeconfig
from twin.backends.lab.certificates import Pair, kubeconfig, public_key_hash
from twin.model.core import Node
from twin.model.meta import Key, condition_status

SIGNER: Final = "kubernetes.io/kube-apiserver-client-kubelet"
SIGNED_S: Final = 30.0
_COMMAND: Final = re.compile(r"kubeadm join (\S+).*?--token (\S+)", re.DOTALL)
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")


class JoinFailed(Exception):
    """The join did not come about; the text is kubeadm's kind of last line. The DPU's loop tries again."""


@dataclass(frozen=True, slots=True)
class JoinCommand:
    """What the join command in a bf.cfg says."""

    server: str
    token: str
    hashes: tuple[str, ...]


def join_command(text: str) -> JoinCommand:
    """Find the command in a text. Raises: JoinFailed."""
    found = _COMMAND.search(text)
    if found is None:
        raise JoinFailed("no kubeadm join command")
    return JoinCommand(found[1], found[2], tuple(dict.fromkeys(_HASH.findall(text))))


def join(name: str, command: JoinCommand) -> str:
    """Join as this node; returns the kubelet's kubeconfig. Takes about as long as the signing: seconds at most.

    Raises: JoinFailed.
    """
    try:
        authority = _discover(command)
        url = f"https://{command.server}"
        bootstrap = _client(_token_kubeconfig(url, authority, command.token))
        try:
            _refuse_twin(bootstrap, name)
            pair = _certificate(bootstrap, name)
        finally:
            bootstrap.cluster.close()
    except (ApiError, ValueError, OSError, http.client.HTTPException) as error:
        raise JoinFailed(f"error execution phase kubelet-start: {error}") from error
    return kubeconfig("kubernetes", url, authority, f"system:node:{name}", pair)


def _client(text: str) -> LiveKube:
    credentials = from_kubeconfig(text)
    return LiveKube(Cluster(lambda: credentials), "kubeadm", cached=False)


def _discover(command: JoinCommand) -> str:
    """The cluster's authority, PEM. Raises: JoinFailed."""
    connection = http.client.HTTPSConnection(command.server, timeout=10.0, context=_unverified())
    try:
        connection.request("GET", "/api/v1/namespaces/kube-public/configmaps/cluster-info")
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise error_of(answer.status, body)
    data = msgspec.json.decode(body)["data"]
    id_, _, secret = command.token.partition(".")
    signature = data.get(f"jws-kubeconfig-{id_}")
    if not signature:
        raise JoinFailed(f'couldn\'t validate the identity of the API Server: no JWS signature for token ID "{id_}"')
    if not signed_by(signature, data["kubeconfig"], id_, secret):
        raise JoinFailed("couldn't validate the identity of the API Server: the JWS signature is not the token's")
    cluster = yaml.safe_load(data["kubeconfig"])["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    if command.hashes and public_key_hash(authority) not in command.hashes:
        raise JoinFailed("couldn't validate the identity of the API Server: cluster CA found in cluster-info ConfigMap "
                         f"is invalid: public key {public_key_hash(authority)} not pinned")
    return authority


def signed_by(signature: str, content: str, token_id: str, secret: str) -> bool:
    """Is this detached JWS (HS256) of the content by this bootstrap token?"""
    head, _, mark = signature.partition("..")
    try:
        header = msgspec.json.decode(_unpadded(head))
    except (ValueError, msgspec.DecodeError):
        return False
    if header.get("alg") != "HS256" or header.get("kid") != token_id:
        return False
    payload = base64.urlsafe_b64encode(content.encode()).rstrip(b"=")
    wanted = hmac.new(secret.encode(), head.encode() + b"." + payload, hashlib.sha256).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(wanted).rstrip(b"=").decode(), mark)


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _unverified() -> ssl.SSLContext:
    """Discovery begins before there is anything to trust."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _token_kubeconfig(url: str, authority: str, token: str) -> str:
    return yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {
            "server": url, "certificate-authority-data": base64.b64encode(authority.encode()).decode()}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]})


def _refuse_twin(kube: LiveKube, name: str) -> None:
    try:
        node = kube.read_live(Node, Key("", name))
    except NotFound:
        return
    if condition_status(node.status.conditions, "Ready") == "True":
        raise JoinFailed(f'a Node with name "{name}" and status "Ready" already exists in the cluster. You must delete '
                         "the existing Node or change the name of this new joining Node")


def _certificate(kube: LiveKube, name: str) -> Pair:
    """A client certificate for this kubelet. Raises: JoinFailed, ApiError."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
                         x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{name}")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = request.public_bytes(serialization.Encoding.PEM)
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    body: dict[str, Any] = {
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": base64.b64encode(pem).decode(), "signerName": SIGNER,
                 "usages": ["digital signature", "client auth"]}}
    connection = kube.cluster.connection
    made = msgspec.json.decode(connection.request("POST", path, body=msgspec.json.encode(body)))
    deadline = time.monotonic() + SIGNED_S
    while True:
        found = msgspec.json.decode(connection.request("GET", f"{path}/{made['metadata']['name']}"))
        status = found.get("status") or {}
        if status.get("certificate"):
            break
        if any(c["type"] in ("Denied", "Failed") for c in status.get("conditions") or ()):
            raise JoinFailed("the certificate signing request was refused")
        if time.monotonic() > deadline:
            raise JoinFailed(f"timed out after {SIGNED_S:.0f} s waiting for the certificate to be signed")
        time.sleep(0.05)
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                               serialization.NoEncryption()).decode()
    return Pair(base64.b64decode(status["certificate"]).decode(), secret)


class Joins:
    """Joins in the background, one attempt at a time per node; `joined` is told the node's kubeconfig.

    `ask` answers a DPU's loop: True once the join came about, else an attempt is under way and the loop asks again.
    """

    def __init__(self, joined: Callable[[str, str, str], None], say: Callable[[str], None] = lambda line: None) -> None:
        self._joined = joined
        self._say = say
        self._running: dict[str, threading.Thread] = {}
        self._done: dict[str, JoinCommand] = {}
        self._lock = threading.Lock()

    def ask(self, name: str, command: JoinCommand) -> bool:
        with self._lock:
            if self._done.get(name) == command:
                return True
            if name not in self._running:
                thread = threading.Thread(target=self._attempt, args=(name, command), name=f"join-{name}", daemon=True)
                self._running[name] = thread
                thread.start()
            return False

    def _attempt(self, name: str, command: JoinCommand) -> None:
        try:
            text = join(name, command)
            self._joined(name, command.server, text)
            with self._lock:
                self._done[name] = command
        except (JoinFailed, ApiError) as error:
            self._say(f"{name}: {error}")
        finally:
            with self._lock:
                self._running.pop(name, None)
