"""One line on stderr while a run is going: virtual time, DPUs per phase, speed against real time.

Off without a terminal and with `--no-progress`. It reads the wall clock and changes nothing in the run.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, TextIO

from twin.model.provisioning import PHASES
from twin.model.units import duration

if TYPE_CHECKING:
    from rich.live import Live

EVERY_S: Final = 0.125
"""Wall seconds between two drawings of the line."""


def line(t_s: float, phases: Iterable[str], wall_s: float, *, horizon_s: float | None = None, label: str = "",
         width: int = 0) -> str:
    """The text of the line. `phases` holds the phase of every DPU object; the fullest phases stay when it is cut."""
    found = Counter(phases)
    order = [p for p in (*PHASES, *sorted(found.keys() - set(PHASES))) if found[p]]
    speed = f"{t_s / wall_s:,.0f}x real time" if wall_s > 0 and t_s > 0 else "starting"
    of = f" of {duration(horizon_s)}" if horizon_s else ""
    head = " · ".join(part for part in (label, f"{duration(t_s)}{of}", speed, f"{found.total()} DPUs") if part)
    rank = {p: i for i, p in enumerate(sorted(order, key=lambda p: -found[p]))}
    for keep in range(len(order), -1, -1):
        shown = [f"{p} {found[p]}" for p in order if rank[p] < keep]
        text = head + (": " + ", ".join(shown) if shown else "") + (", ..." if 0 < keep < len(order) else "")
        if not width or len(text) <= width:
            return text
    return head[:width]


class Progress:
    """A context manager; `update` may be called as often as one likes, it draws eight times a second."""

    def __init__(self, *, enabled: bool = True, stream: TextIO | None = None, horizon_s: float | None = None,
                 label: str = "") -> None:
        self._stream = stream if stream is not None else sys.stderr
        self.enabled = enabled and self._stream.isatty()
        self.horizon_s = horizon_s
        self.label = label
        self._began = self._drawn = time.perf_counter()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.enabled:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), transient=True, auto_refresh=False,
                              redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, label: str) -> None:
        """Another run begins: its speed counts from now."""
        self.label = label
        self._began = time.perf_counter()

    @property
    def due(self) -> bool:
        """Is it time to draw again? Ask before collecting the phases of 10,000 DPUs."""
        return self._live is not None and time.perf_counter() - self._drawn >= EVERY_S

    def update(self, t_s: float, phases: Iterable[str]) -> None:
        """`phases` is consumed only when the line is drawn."""
        if self._live is None or not self.due:
            return
        from rich.text import Text

        self._drawn = time.perf_counter()
        text = line(t_s, phases, self._drawn - self._began, horizon_s=self.horizon_s, label=self.label,
                    width=self._live.console.width - 1)
        self._live.update(Text(text, style="dim"), refresh=True)
