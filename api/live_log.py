"""Structured logs of a live process: one JSON line, or `key=value` words for a terminal. Secrets look REDACTED."""

from __future__ import annotations

import datetime
import json
import sys
import threading
from typing import Any, TextIO

from api.live_record import plain


class Log:
    """Writes records to a stream, whole lines only, from any thread."""

    def __init__(self, stream: TextIO | None = None, *, as_json: bool = False, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._json = as_json
        self._quiet = quiet
        self._lock = threading.Lock()

    def __call__(self, message: str, **facts: Any) -> None:
        if self._quiet:
            return
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json:
            line = json.dumps({"ts": at, "msg": message, **facts}, default=str)
        else:
            line = f"{at} {message}" + "".join(f" {k}={_word(v)}" for k, v in facts.items())
        with self._lock:
            self._stream.write(plain(line) + "\n")
            self._stream.flush()


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "\n=') else text
