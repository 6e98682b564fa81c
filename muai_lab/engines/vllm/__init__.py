"""vLLM, a streaming engine: it batches and caches by itself, in processes of its own."""
