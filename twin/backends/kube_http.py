"""HTTP to one API server: credentials, connection pool, rate limit, retries, and errors as client-go words them.

Credentials come from a kubeconfig (client certificate, token, token file, exec plugin, OIDC) or from the service
account of the pod we run in, by the official client's loaders. Keys never touch the disk here.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
import yaml

from twin.backends.base import AlreadyExists, ApiError, Conflict, Forbidden, Gone, Invalid, NotFound, Unavailable

CONNECT_S: Final = 10.0
ANSWER_S: Final = 60.0  # the server's own --request-timeout
RETRIES: Final = 10  # client-go's limit for answers with Retry-After
USER_AGENT: Final = "dpf-twin"

MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"

_BY_REASON: Final[Mapping[str, type[ApiError]]] = {
    e.reason: e for e in (NotFound, AlreadyExists, Conflict, Invalid, Forbidden, Gone)} | {"Gone": Gone}
_MATERIAL: Final = ("certificate-authority", "client-certificate", "client-key")
_BY_CODE: Final[Mapping[int, type[ApiError]]] = {e.code: e for e in (Forbidden, NotFound, Conflict, Gone, Invalid)}
_OVERLOAD: Final = frozenset({429, 502, 503, 504})


class Status(msgspec.Struct, rename="camel"):
    """The API server's answer to a request it did not fulfil (metav1.Status)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: dict[str, Any] = {}


def error_of(code: int, body: bytes) -> ApiError:
    """The exception for an answer with this code."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, msgspec.ValidationError):
        told = "the server could not find the requested resource" if code == 404 else body.decode(errors="replace")
        status = Status(message=told.strip(), code=code)
    cls = _BY_REASON.get(status.reason) or _BY_CODE.get(code) or (Unavailable if code in _OVERLOAD else ApiError)
    named = status.reason or (None if cls is not ApiError else "")  # some answers of 500 give none
    return cls(status.message or "unknown", code=status.code or code, reason=named, details=status.details)


class TokenBucket:
    """client-go's rate limit: `burst` at once, then `qps` a second. `wait()` blocks the caller for its turn."""

    def __init__(self, qps: float, burst: int) -> None:
        self._interval_s = 1.0 / qps
        self._burst_s = burst / qps
        self._next = float("-inf")
        self._lock = threading.Lock()

    def reserve(self, now: float) -> float:
        """Take a token at `now` (any seconds); returns how long to wait for it."""
        with self._lock:
            self._next = max(self._next, now - self._burst_s) + self._interval_s
            return max(0.0, self._next - now)

    def try_take(self, now: float) -> bool:
        """Take a token if there is one."""
        with self._lock:
            earliest = max(self._next, now - self._burst_s) + self._interval_s
            if earliest > now:
                return False
            self._next = earliest
            return True

    def wait(self) -> None:
        delay_s = self.reserve(time.monotonic())
        if delay_s:
            time.sleep(delay_s)


class Credentials:
    """Where the server is and how to prove who we are. `authorization()` refreshes tokens when they expire."""

    def __init__(self, configuration: Any, context: ssl.SSLContext) -> None:
        self.server = str(configuration.host).rstrip("/")
        self.server_name: str | None = configuration.tls_server_name
        self.proxy: str | None = configuration.proxy
        self.context = context
        self._configuration = configuration

    def authorization(self) -> dict[str, str]:
        setting = self._configuration.auth_settings().get("BearerToken")
        return {"Authorization": setting["value"]} if setting and setting["value"] else {}


def from_kubeconfig(config: str | Path, context: str | None = None) -> Credentials:
    """Credentials from a kubeconfig: a path, or its text.

    Raises: ValueError when it cannot be used, naming what is wrong with it.
    """
    path = config if isinstance(config, Path) else None
    try:
        content = yaml.safe_load(path.read_text() if path else str(config))
    except OSError as error:
        raise ValueError(f"kubeconfig {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError("error loading config file: yaml: " + str(error).replace("\n", " ")) from error
    if not isinstance(content, dict) or not content.get("clusters"):
        raise ValueError("invalid configuration: no configuration has been provided, "
                         "try setting KUBERNETES_MASTER environment variable")
    from kubernetes.client import Configuration
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader
    base = str(path.parent) if path else os.getcwd()
    configuration = Configuration()
    # The loader makes this folder only for what an exec plugin hands out, so a kill -9 leaves nothing otherwise.
    folder = os.path.join(tempfile.gettempdir(), f"dpf-twin-{secrets.token_hex(8)}")
    try:
        material, stripped = _take_material(content, context, base)
        loader = KubeConfigLoader(stripped, active_context=context, config_base_path=base, temp_file_path=folder)
        loader.load_and_set(configuration)
        _check_plugin(configuration, _chosen(content, context)[1])
        tls = _tls(configuration, material)
    except (ConfigException, ssl.SSLError, ValueError, OSError) as error:
        raise ValueError(f"invalid configuration: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Credentials(configuration, tls)


def in_cluster() -> Credentials:
    """The service account of the pod we run in. Raises: ValueError outside a cluster."""
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config
    configuration = Configuration()
    try:
        load_incluster_config(configuration)
    except ConfigException as error:
        raise ValueError(f"not in a cluster: {error}") from error
    return Credentials(configuration, _tls(configuration, {}))


def _check_plugin(configuration: Any, user: Mapping[str, Any]) -> None:
    """The loader only logs a plugin that fails, and goes on as nobody. Raises: ValueError."""
    plugin = user.get("exec")
    if plugin and not configuration.api_key and not configuration.cert_file:
        raise ValueError(f"getting credentials: exec: executable {plugin.get('command')} failed or answered with none")


def _chosen(content: Mapping[str, Any], context: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The cluster and the user of the context; empty where there is none."""
    entry = _named(content.get("contexts"), context or content.get("current-context")).get("context") or {}
    return (_named(content.get("clusters"), entry.get("cluster")).get("cluster") or {},
            _named(content.get("users"), entry.get("user")).get("user") or {})


def _take_material(content: Mapping[str, Any], context: str | None, base: str) -> tuple[dict[str, bytes], Any]:
    """Certificates and keys of the chosen context, and the kubeconfig without them: no loader writes them to disk."""
    cluster, user = _chosen(content, context)
    material: dict[str, bytes] = {}
    for holder, field in ((cluster, "certificate-authority"), (user, "client-certificate"), (user, "client-key")):
        if holder.get(f"{field}-data"):
            material[field] = base64.b64decode(holder[f"{field}-data"])
        elif holder.get(field):
            material[field] = (Path(base) / holder[field]).read_bytes()
    return material, _without_material(content)


def _named(entries: Any, name: Any) -> Mapping[str, Any]:
    return next((e for e in entries or () if e.get("name") == name), {})


def _without_material(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_material(v) for k, v in value.items() if k.removesuffix("-data") not in _MATERIAL}
    return [_without_material(v) for v in value] if isinstance(value, list) else value


def _tls(configuration: Any, material: Mapping[str, bytes]) -> ssl.SSLContext:
    authority = material.get("certificate-authority")
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert or None, cadata=authority.decode() if authority else None)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:  # from an exec plugin
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    elif "client-certificate" in material:
        load_client_pair(context, material["client-certificate"], material.get("client-key", b""))
    return context


def load_client_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Give a context a client certificate without writing the key to a disk. Raises: ssl.SSLError."""
    handle = os.memfd_create("pair")
    try:
        os.write(handle, certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


class Connection:
    """Requests to one API server. Thread-safe.

    `observe` is told of every answered request: (verb, path, seconds, code); code 0 means no answer. `before` is asked
    with the method at the last moment before anything is sent, after every wait: what it raises is raised.
    """

    def __init__(self, credentials: Callable[[], Credentials], *, limit: TokenBucket | None = None,
                 connections: int = 16, answer_s: float = ANSWER_S) -> None:
        self._make = credentials
        self._limit = limit
        self._answer_s = answer_s
        self._connections = connections
        self.observe: Callable[[str, str, float, int], None] = lambda verb, path, seconds, code: None
        self.before: Callable[[str], None] = lambda method: None
        self._load()

    def _load(self) -> None:
        self.credentials = self._make()
        self.server = self.credentials.server
        options: dict[str, Any] = {
            "maxsize": self._connections, "ssl_context": self.credentials.context, "retries": False}
        if self.credentials.server_name:
            options["server_hostname"] = self.credentials.server_name
        proxy = self.credentials.proxy
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def request(self, method: str, path: str, query: Mapping[str, str] | None = None, body: bytes | None = None,
                content_type: str = "application/json") -> bytes:
        """The answer's body. Raises: ApiError by what the server said, Unavailable when it said nothing."""
        if self._limit is not None:
            self._limit.wait()
        retries = RETRIES
        while True:
            self.before(method)
            started = time.monotonic()
            response = self._send(method, path, query, body, content_type)
            self.observe(method, path, time.monotonic() - started, response.status)
            if response.status < 300:
                return response.data
            wait = response.headers.get("Retry-After", "")
            if not (wait.isdigit() and retries and (response.status == 429 or response.status >= 500)):
                raise error_of(response.status, response.data)
            retries -= 1
            time.sleep(float(wait))

    def _send(self, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None,
              content_type: str) -> urllib3.BaseHTTPResponse:
        response = self._try(method, path, query, body, content_type)
        if response.status == 401:  # a rotated kubeconfig or token: read the credentials again, once
            self._load()
            response = self._try(method, path, query, body, content_type)
        return response

    def _try(self, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None, content_type: str,
             *, stream_s: float | None = None) -> urllib3.BaseHTTPResponse:
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **self.credentials.authorization()}
        if body is not None:
            headers["Content-Type"] = content_type
        timeout = urllib3.Timeout(connect=CONNECT_S, read=stream_s or self._answer_s)
        for last in (False, True):
            try:
                return self._pool.request(method, url, body=body, headers=headers, timeout=timeout,
                                          preload_content=stream_s is None)
            except urllib3.exceptions.HTTPError as error:
                if last or method != "GET" or isinstance(error, urllib3.exceptions.TimeoutError):
                    self.observe(method, path, 0.0, 0)
                    raise no_answer(method, url, error) from error
        raise AssertionError("unreachable")

    def stream(self, path: str, query: Mapping[str, str], silence_s: float) -> urllib3.BaseHTTPResponse:
        """A watch's open answer. Raises as `request`; reading from it raises urllib3's errors."""
        response = self._try("GET", path, query, None, "", stream_s=silence_s)
        if response.status == 401:
            self._load()
            response = self._try("GET", path, query, None, "", stream_s=silence_s)
        if response.status >= 300:
            body = response.read()
            response.release_conn()
            raise error_of(response.status, body)
        return response

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._pool.clear()


def no_answer(method: str, url: str, error: Exception) -> Unavailable:
    """What client-go says when no answer came."""
    reason = getattr(error, "reason", None) or error
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    where = f"dial tcp {parts.hostname}:{port}"
    landed = False
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        text = f"dial tcp: lookup {parts.hostname}: no such host"
    elif isinstance(reason, urllib3.exceptions.NewConnectionError):
        refused = "refused" in str(reason)
        text = f"{where}: connect: {'connection refused' if refused else _cause(reason)}"
    elif isinstance(reason, urllib3.exceptions.ConnectTimeoutError):
        text = f"{where}: i/o timeout"
    elif isinstance(reason, (urllib3.exceptions.SSLError, ssl.SSLError)):
        text = _tls_text(str(reason))
    elif isinstance(reason, urllib3.exceptions.ReadTimeoutError):
        text, landed = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)", True
    else:
        text, landed = ("EOF" if "without response" in str(reason) else _cause(reason)), True
    shown = Unavailable(f'{method.capitalize()} "{url}": {text}')
    shown.maybe_landed = landed and method != "GET"
    return shown


def _cause(error: BaseException) -> str:
    inner = error.__cause__ or error.__context__
    return str(getattr(inner, "strerror", None) or error).lower()


def _tls_text(said: str) -> str:
    if "expired" in said:
        return "tls: failed to verify certificate: x509: certificate has expired or is not yet valid"
    if "self-signed" in said or "unable to get local issuer" in said or "CERTIFICATE_VERIFY_FAILED" in said:
        return "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    if "ALERT" in said:
        return "remote error: tls: " + said.partition("alert ")[2].partition("]")[0].strip("() _").lower()
    return f"tls: {said}"
