"""The documentation: pages for people, and the two programs that keep them true (`generate`, `examples`)."""
