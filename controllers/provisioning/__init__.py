"""Upstream's provisioning controller manager: BFB, DPUSet, DPU, DPUNode, Node, DPUCluster, and its webhooks.

`dpu` is the engine, `dpu_phases` the table phase -> handler; the dpu_* files hold the phases.
"""
