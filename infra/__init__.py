"""Bytes, runs and machines: S3, MLflow, Ray, and the services that are started here."""
