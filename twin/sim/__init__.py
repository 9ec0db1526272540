"""Virtual time, and the only place that knows SimPy.

clock, links, stats:                    the environment in integer nanoseconds, shared bandwidth, statistics
kube, admission, watch, client:         the API server, and how one controller process reaches it
host, dms, dms_servers, volume, faults: hosts with their DPUs, DMS, the BFB volume, and what goes wrong
runner, manager, actor_runner:          who drives controllers and neighbours
trace, chronicle:                       one record per thing that happened, and what it means for DPUs
world:                                  all of it, wired to the controllers it is given
"""
