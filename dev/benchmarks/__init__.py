"""What dev/benchmark.py measures; one module a sub-command."""
