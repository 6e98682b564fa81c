"""The inference stack: scheduling, driving an engine, telling observers."""
