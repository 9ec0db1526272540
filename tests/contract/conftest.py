"""The fixtures of real parts are those of tests/backends."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "backends"))

from lab_parts import cluster, dpu_plane, host, kube, planes, programs, space

__all__ = ["cluster", "dpu_plane", "host", "kube", "planes", "programs", "space"]
