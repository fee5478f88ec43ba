"""MLflow: calls that are repeated safely, runs, the registry of models."""
