"""A cause and its remedy: S3, MLflow, this machine."""
