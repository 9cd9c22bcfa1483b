"""What tools/benchmark.py measures; one module a sub-command."""
