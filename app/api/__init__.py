"""The HTTP contract: one file for each endpoint, and what they share."""
