"""Who proposes the next trial, and who stops one early."""
