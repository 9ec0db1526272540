"""Stories: a fleet, manifests, what happens later, what is expected. Here simulation and controllers are joined.

    from pathlib import Path
    from scenarios.load import load_scenario
    from scenarios.run import run

    result = run(load_scenario(Path("scenarios/library/first-install.yaml")), seed=7)

base, load, variables, objects:     what a user writes, read and checked
story, apply, run, replicate:       a run, and many
result, measure, expect, pending:   what came of it
check, rules_*:                     known problems before anything runs
library, fleets, manifests, parts:  the stories that ship; stock: what a DPF installation brings along
"""
