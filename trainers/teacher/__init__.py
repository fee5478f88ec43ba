"""The frozen model's answers on clean images, computed once and kept."""
