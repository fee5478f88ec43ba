"""The report's page with live data, served on loopback: `agft ui`."""
