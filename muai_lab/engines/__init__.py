"""Engines: load a model and run steps of it, behind one contract."""
