"""The version, in a module of its own so that `dpf-twin --version` imports nothing else."""

VERSION = "0.1.0"
DPF_RELEASE = "v25.4"
