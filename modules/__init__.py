"""The network and its anomaly scores: tensors in, tensors out."""
