"""Whether a study's stored records follow from its specification: derived again, number by number."""
