"""Settings: the schema, the layers that fill it, and the pages and files generated from it."""
