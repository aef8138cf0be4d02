"""edgeall: from a folder of labelled microscope images to a small, verified classifier on a Pi or a phone."""

__version__ = "0.1.0"
