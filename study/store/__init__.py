"""The truth about a study: its rows in one database (SQLite or PostgreSQL), the lease, the requests."""
