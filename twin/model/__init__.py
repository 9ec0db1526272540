"""Floor 0: values and pure functions. No clock, no I/O, no SimPy.

meta, kinds, core, provisioning, services, operator: Kubernetes objects as frozen structs with their rules
rules, schema, validation, typed, fielderror, cel:    what an API server makes of these rules
fleet, parts, device, faults, rollout:               hardware, trouble, and the arithmetic of roll-outs
timing, timing_profile, units:                       durations, where they come from, how people write them
bfcfg, bfb_image, dms_commands:                      what travels to a DPU: files and commands, written and read
yamlmarks, mistakes:                                 files with line and column, and the form of a user's mistakes
"""
