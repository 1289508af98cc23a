"""Bytes in: request bodies and fetched images."""
