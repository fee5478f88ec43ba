"""Models on suites of datasets and attacks: the one executor of every measurement, and its tables."""
