"""Datasets that are drawn here: shapes, colours, textures, letters, digits, counts."""
