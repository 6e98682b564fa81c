"""The ONNX Runtime engine: a checkpoint exported once, its graph kept, and stepped over slots in place."""
