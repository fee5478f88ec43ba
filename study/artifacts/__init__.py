"""Bytes by address: checkpoints, prepared datasets, weights from elsewhere."""
