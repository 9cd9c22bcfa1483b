"""Scores: the evaluator, records of runs, tables that compare them."""
