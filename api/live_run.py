"""`dpf-twin live`: connect, say what will be owned, ask, serve, lead, work, drain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from api.output import Refused, note

if TYPE_CHECKING:
    from api.live import Config, Live
    from api.live_log import Log
    from api.webhook_server import WebhookServer
    from twin.runtime.reconcile import Controller

LISTEN: Final = "127.0.0.1:8081"
"""controller-runtime's default health address; on loopback unless told otherwise."""


class Unreachable(Exception):
    """A real part is missing or unreachable, in one line. Exit code 3."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True)
class LiveRequest:
    """The flags of `live`, parsed."""

    kubeconfig: str = ""
    context: str = ""
    lab: bool = False
    folder: str = ""
    shadow: bool = False
    yes: bool = False
    controllers: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    namespace: str = "dpf-operator-system"
    volume: str = "/bfb"
    listen: str = ""
    webhooks: str = ""
    out: str = ""
    record: str = ""
    report: bool = True
    log_format: str = "text"
    until_s: float | None = None
    quiet: bool = False


def live(request: LiveRequest) -> int:
    """Raises: Refused, Unreachable."""
    from api.live import Live
    from api.live_log import Log
    from reports.folder import check_writable

    if request.log_format not in ("text", "json"):
        raise Refused(f"--log-format: must be text or json (got {request.log_format})")
    if request.out:
        check_writable(Path(request.out))
    config = configure(request)
    log = Log(sys.stderr, as_json=request.log_format == "json", quiet=request.quiet)
    process = Live(config, log)
    try:
        connect(process)
        consent(process, request)
        return _serve(process, request, log)
    finally:
        process.close()


def configure(request: LiveRequest) -> Config:
    """What the flags mean. Raises: Refused, Unreachable."""
    from api.live import Config
    from twin.backends.base import Settings

    kubeconfig, volume = _where(request)
    _check_kubeconfig(kubeconfig, request.context)
    if not volume.is_dir():
        raise Refused(f"--volume: {volume} is no folder: mount the BFB volume there")
    return Config(
        kubeconfig=kubeconfig, context=request.context or None, controllers=chosen(request.controllers),
        actors=played(request.actors, lab=request.lab), record=recorded(request),
        policies=policies(request.policies), settings=Settings(namespace=request.namespace), volume=volume,
        identity=f"{socket.gethostname()}_{uuid.uuid4()}", lead=not request.shadow, shadow=request.shadow)


def _where(request: LiveRequest) -> tuple[Path | None, Path]:
    """(kubeconfig, volume). Raises: Refused, Unreachable."""
    if not request.lab:
        if request.kubeconfig or "KUBERNETES_SERVICE_HOST" not in os.environ:
            given = request.kubeconfig or os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0]
            if not given:
                raise Refused("live: give --kubeconfig FILE or --lab (there is no KUBECONFIG and this is no pod)")
            return Path(given).expanduser(), Path(request.volume)
        return None, Path(request.volume)
    from api.lab import open_lab

    if request.kubeconfig:
        raise Refused("live: --lab has a kubeconfig of its own; leave --kubeconfig out")
    lab = open_lab(request.folder)
    state = lab.state()
    if state != "running":
        raise Unreachable(f"live: the lab in {lab.folder} is {state}: run `dpf-twin lab "
                          + ("up`" if state == "absent" else "down` and `dpf-twin lab up`"))
    # Downloads go to the lab's image servers; everything else is on loopback.
    os.environ |= {"http_proxy": (lab.folder / "http_proxy").read_text(), "no_proxy": "127.0.0.0/8,127.0.0.1,localhost"}
    return Path(lab.status()["kubeconfig"]), lab.folder / "bfb"


def _check_kubeconfig(path: Path | None, context: str) -> None:
    """Raises: Refused."""
    import yaml

    from twin.backends.kube_http import from_kubeconfig

    if path is None:
        return
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Refused(f"kubeconfig {path}: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise Refused(f"kubeconfig {path}: not YAML") from None
    known = [c.get("name") for c in (content.get("contexts") or ())] if isinstance(content, dict) else []
    if context and context not in known:
        raise Refused(f"--context: {path} has no context {context!r}, there is {', '.join(map(str, known)) or 'none'}")
    try:
        from_kubeconfig(path, context or None)
    except ValueError as error:
        raise Refused(f"kubeconfig {path}: {error}") from None


def chosen(names: Sequence[str]) -> tuple[Controller, ...]:
    """The controllers of these names; all without any. Raises: Refused."""
    from controllers import CONTROLLERS

    known = {c.name: c for c in CONTROLLERS}
    wrong = [n for n in names if n not in known]
    if wrong:
        raise Refused(f"--controllers: must be some of {', '.join(known)} (got {', '.join(wrong)})")
    return tuple(known[n] for n in names) or CONTROLLERS


def played(names: Sequence[str], *, lab: bool) -> tuple[str, ...]:
    """The neighbours of these names. Raises: Refused."""
    from api.live_actors import ACTORS

    known = [a.name for a in ACTORS]
    wrong = [n for n in names if n not in known]
    if wrong:
        raise Refused(f"--actors: must be some of {', '.join(known)} (got {', '.join(wrong)})")
    if names and lab:
        raise Refused("live: --lab has every neighbour already; leave --actors out")
    return tuple(names)


def recorded(request: LiveRequest) -> frozenset[str] | None:
    """What is kept in memory for the run folder; without one, nothing. None: by the fleet's size. Raises: Refused."""
    from api.rehearse import recorded as wanted

    if request.record and not request.out:
        raise Refused("live: --record goes with --out")
    if request.out and not request.record:
        return None
    return wanted(request.record, 0) if request.out else frozenset()


def policies(names: Sequence[str]) -> frozenset[str]:
    """Raises: Refused."""
    from scenarios.load import policies as known

    wrong = [n for n in names if n not in known()]
    if wrong:
        raise Refused(f"--policy: must be one of {', '.join(known())} (got {', '.join(wrong)})")
    return frozenset(names)


def connect(process: Live) -> None:
    """Reach the cluster, check what it serves and what we may do, fill the caches. Raises: Refused, Unreachable."""
    from api.live_check import check_access, check_crds
    from twin.backends.base import ApiError, Unavailable

    server = process.lease_cluster.connection.server
    try:
        process.lease_cluster.version()
        check_crds(process.lease_cluster)
        check_access(process.lease_cluster, process.config)
        process.prepare()
    except Unavailable as error:
        raise Unreachable(f"{server}: {error}") from None
    except ApiError as error:
        if error.code == 401:
            raise Refused(f"{server}: the server does not know us: {error}") from None
        raise Refused(f"{server}: {error}") from None


def consent(process: Live, request: LiveRequest) -> None:
    """Say what is going to be owned and what it may disrupt, and have a yes. Raises: Refused."""
    from api.live_check import others, plan_words

    active = others(process)
    for line in plan_words(process, request.shadow):
        note(line)
    if active and not request.shadow:
        raise Refused(f"another controller is active: {active}; stop it first, or look on with --shadow")
    if request.shadow or request.yes:
        return
    if not sys.stdin.isatty():
        raise Refused("live: this is no terminal: give --yes to go ahead, or --shadow")
    note("Go ahead? Type yes:")
    if sys.stdin.readline().strip().lower() not in ("yes", "y"):
        raise Refused("live: not agreed, nothing was done")


def _serve(process: Live, request: LiveRequest, log: Log) -> int:
    """Endpoints, webhooks, signals, the run itself. Returns the exit code."""
    from api.live_metrics import Endpoints

    address = _address(request.listen or LISTEN, "--listen")
    with contextlib.ExitStack() as stack:
        try:
            endpoints = Endpoints(process, address, required=bool(request.listen))
        except OSError as error:
            raise Refused(f"--listen: {address[0]}:{address[1]}: {(error.strerror or str(error)).lower()}") from None
        stack.callback(endpoints.close)
        if not request.shadow:
            stack.enter_context(_webhooks(process, request, log))
        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.signal(number, lambda *_: process.stop())
            stack.callback(signal.signal, number, previous)
        if request.until_s is not None:
            process.stop_in(request.until_s)
        log("started", metrics=f"http://{endpoints.address}/metrics", controllers=",".join(
            c.name for c in process.config.controllers), shadow=request.shadow)
        process.run()
    if request.out and process.recorder is not None:
        from api.live_folder import write

        note(f"run folder: {write(process, Path(request.out), report=request.report)}")
    if process.failure is not None:
        note(f"ended: {process.failure}")
        return 3
    return 0


@contextlib.contextmanager
def _webhooks(process: Live, request: LiveRequest, log: Log) -> Iterator[WebhookServer | None]:
    """Serve the webhooks where asked; in a lab, where the API server finds them. Raises: Refused."""
    from api.webhook_server import WebhookServer, configurations
    from controllers.provisioning.webhooks import WEBHOOKS
    from controllers.services.webhooks import WEBHOOKS as SERVICE_WEBHOOKS
    from twin.backends.kube import LiveKube

    if not request.webhooks and not request.lab:
        yield None
        return
    hooks = (*WEBHOOKS, *SERVICE_WEBHOOKS)
    address = _address(request.webhooks or "127.0.0.1:0", "--webhooks")
    if address[0] == "0.0.0.0":
        raise Refused("--webhooks: give the address under which the API server reaches this process")
    reader = LiveKube(process.cluster, "webhooks")
    try:
        server = WebhookServer(hooks, cast(Any, reader), address)
    except OSError as error:
        raise Refused(f"--webhooks: {address[0]}:{address[1]}: {(error.strerror or str(error)).lower()}") from None
    import base64

    client = {"caBundle": base64.b64encode(server.ca.encode()).decode(), "url": server.url}
    kube = LiveKube(process.lease_cluster, "dpf-twin")
    for manifest in configurations(hooks, client):
        kube.apply(manifest, "dpf-twin", force=True)
    log("webhooks", url=server.url)
    try:
        yield server
    finally:
        server.close()


def _address(text: str, flag: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise Refused(f"{flag}: must be ADDRESS:PORT (got {text})")
    return host or "0.0.0.0", int(port)
