"""Programs that measure and write a results file: ``python -m benchmarks.NAME`` from the root of the checkout."""
