"""Services that are started here, on loopback and with credentials."""
