"""ASGI middleware and the connection handling below the endpoints."""
