"""Generate the `_pb2` modules next to their `.proto` files."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    from grpc_tools import protoc
    here = Path(__file__).resolve().parent
    root = here.parents[2]
    files = [str(p) for p in sorted(here.glob("*.proto"))]
    return int(protoc.main(["protoc", f"-I{root}", f"--python_out={root}", f"--pyi_out={root}", *files]))


if __name__ == "__main__":
    sys.exit(main())
