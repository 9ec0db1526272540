"""What the twin costs: `make bench` prints one table and writes reports/out/bench.json."""
