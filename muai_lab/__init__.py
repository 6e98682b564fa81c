"""muai_lab: measure and tune LLM inference."""

__version__ = "0.1.0"
