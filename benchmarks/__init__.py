"""Whatever measures and writes a results file: ``python -m benchmarks.NAME`` from the root of the checkout."""
