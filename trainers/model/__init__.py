"""The robust model: architectures, weights, files from elsewhere."""
