"""Makes a verified, packed file of a classifier that was trained and converted elsewhere."""
