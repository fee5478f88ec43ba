"""Methods side by side: a search each, fresh seeds, final sets, paired differences."""
