from lab_parts import cluster, dpu_plane, host, kube, planes, programs, space

__all__ = ["cluster", "dpu_plane", "host", "kube", "planes", "programs", "space"]
