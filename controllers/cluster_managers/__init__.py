"""Upstream's cluster managers: who makes DPU clusters, by Kamaji, or takes those that somebody else made."""
