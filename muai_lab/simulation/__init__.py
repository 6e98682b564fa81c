"""Virtual time: the stack's own scheduler against a model of how long a step takes. Hours of traffic in seconds."""
