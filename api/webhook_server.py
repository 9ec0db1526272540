"""The admission webhooks over HTTPS: AdmissionReview v1 in, a patch out, and in between the simulation's `decide`.

One server answers for all webhooks, as upstream's manager does. It answers whether or not this process leads.
"""

from __future__ import annotations

import base64
import datetime
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec

from twin.model.kinds import KINDS
from twin.model.meta import Object
from twin.runtime.webhook import Denied, Json, Lister, Webhook

LIMIT: Final = 8 << 20  # bytes of a review; kube-apiserver's own objects are at most 3 MiB
NAME: Final = "dpf-twin"


class WebhookServer:
    """Listens on `address`. `ca` is the PEM of the authority to put into the webhook configurations."""

    def __init__(self, hooks: Sequence[Webhook], reader: Lister, address: tuple[str, int],
                 names: Sequence[str] = ()) -> None:
        import ssl

        self.hooks = {hook.path: hook for hook in hooks}
        self.ca, certificate, key = _certificates(address[0], names)
        self._reader = reader
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        from twin.backends.kube_http import load_client_pair
        load_client_pair(context, certificate, key)
        self._server = ThreadingHTTPServer(address, self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        self.url = f"https://{address[0]}:{self.port}"
        threading.Thread(target=self._server.serve_forever, name="webhooks", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def review(self, path: str, review: Json) -> Json:
        """The answer to an AdmissionReview."""
        hook = self.hooks[path]
        request = review["request"]
        operation = request["operation"]
        obj = request.get("object") or request.get("oldObject") or {}
        response: Json = {"uid": request["uid"], "allowed": True}
        try:
            changed = hook.decide(operation, msgspec.json.decode(msgspec.json.encode(obj)), request.get("oldObject"),
                                  self._reader)
        except Denied as no:
            response["allowed"] = False
            response["status"] = {"message": str(no), "code": no.code, **({"reason": no.reason} if no.reason else {})}
        else:
            if hook.mutating and changed != obj:
                patch = [{"op": "add" if name not in obj else "replace", "path": f"/{_escaped(name)}",
                          "value": value} for name, value in changed.items() if obj.get(name) != value]
                patch += [{"op": "remove", "path": f"/{_escaped(name)}"} for name in obj if name not in changed]
                response |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(patch)).decode()}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                path = self.path.partition("?")[0]
                size = int(self.headers.get("Content-Length") or 0)
                if path not in outer.hooks or not 0 < size <= LIMIT:
                    self._answer(404 if path not in outer.hooks else 413, b"{}")
                    return
                try:
                    body = msgspec.json.encode(outer.review(path, msgspec.json.decode(self.rfile.read(size))))
                except (msgspec.DecodeError, KeyError, TypeError):
                    self._answer(400, b'{"message":"not an AdmissionReview"}')
                    return
                self._answer(200, body)

            def _answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler


def configurations(hooks: Sequence[Webhook], client: Json) -> list[Json]:
    """MutatingWebhookConfiguration and ValidatingWebhookConfiguration. `client`: a clientConfig without its path."""
    out = []
    for kind, mutating in (("MutatingWebhookConfiguration", True), ("ValidatingWebhookConfiguration", False)):
        out.append({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": NAME},
            "webhooks": [_entry(hook, client) for hook in hooks if hook.mutating is mutating]})
    return out


def _entry(hook: Webhook, client: Json) -> Json:
    kind: type[Object] = KINDS[hook.kind.KIND]
    config = dict(client)
    if "url" in config:
        config["url"] = config["url"] + hook.path
    else:
        config["service"] = {**config["service"], "path": hook.path}
    return {"name": hook.name, "clientConfig": config, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 10,
            "rules": [{"apiGroups": [kind.GROUP], "apiVersions": [kind.VERSION], "operations": list(hook.operations),
                       "resources": [kind.PLURAL]}]}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _certificates(address: str, names: Sequence[str]) -> tuple[str, bytes, bytes]:
    """An authority of our own for this process's life, and the server's pair: nothing is written to a disk."""
    import ipaddress

    from twin.backends.lab.certificates import authority, issue
    ca = authority(f"dpf-twin-webhooks-{datetime.datetime.now(datetime.UTC):%Y%m%d%H%M%S}")
    try:
        ipaddress.ip_address(address)
        addresses = (address,) if address != "0.0.0.0" else ()
    except ValueError:
        addresses = ()
    pair = issue(ca, "dpf-twin-webhooks", addresses=addresses, names=("localhost", *names))
    return ca.certificate, pair.certificate.encode(), pair.key.encode()
