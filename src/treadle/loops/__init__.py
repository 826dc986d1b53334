"""Loops: one code, many executions. A loop knows no algorithm by name; an algorithm knows no loop."""
