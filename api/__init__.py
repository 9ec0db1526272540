"""The command `dpf-twin`: `cli` has verbs and flags; every other file answers one verb and loads when it is asked."""
