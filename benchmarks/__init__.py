"""Small experiments beside the pipeline: python -m benchmarks.NAME."""
