"""The DeepSpeed engine: a model that `deepspeed.init_inference` prepared, on one rank or several, over our slots."""
