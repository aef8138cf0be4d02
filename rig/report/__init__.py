"""The report of a slide as a PDF file, made on this machine alone."""
