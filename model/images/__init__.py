"""Images: bytes to pixels, and pictures of results."""
