"""The typed settings of training and evaluation. Imports no torch."""
