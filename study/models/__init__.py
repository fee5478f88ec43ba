"""Promoted versions: their files in S3, HEAD, the registry in MLflow, the model card."""
