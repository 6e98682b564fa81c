"""Sub-commands: arguments, progress and exit status; no logic."""
