"""The neighbour systems, as reconcilers over the same protocols as DPF's controllers.

They run in simulation, and in a lab where the real neighbour is missing. One file per neighbour; `actor` is what they
share, `hosts` how they see the hardware.
"""
