"""A figure as plain values, and its two renderers: for the browser, and as PNG and PDF."""
