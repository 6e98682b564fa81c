"""The PyTorch engine: any Hugging Face decoder, and T5 encoder-decoders, step by step over slots."""
