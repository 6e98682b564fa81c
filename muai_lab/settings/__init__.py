"""Settings: the schema, the layers that fill it, and what is generated from it."""
