"""Model files, the catalogue of known models, and downloads."""
