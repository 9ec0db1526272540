"""Upstream's dpuservice controller manager: so far a DPUDeployment's DPUSets, and the webhook of DPUServiceIPAM."""
