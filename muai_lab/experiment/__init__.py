"""Experiments: one run from settings to report, in a directory that tells how it went."""
