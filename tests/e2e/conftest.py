"""Makes the one real study of `e2e_run` known to the tests here."""

from e2e_run import killed_and_finished

__all__ = ["killed_and_finished"]
