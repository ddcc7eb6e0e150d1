"""Model families, one file each, and the configuration they are built from."""
