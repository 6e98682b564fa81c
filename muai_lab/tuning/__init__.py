"""The tuner: searches the configuration by measurement, confirms the winner, exports what earned its change."""
