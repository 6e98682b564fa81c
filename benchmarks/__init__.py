"""Benchmarks: whole figures that the documentation quotes, each with the command that shows it."""
