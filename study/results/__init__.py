"""Pure functions over the stored rows of trials: who is best, what happened, what mattered."""
