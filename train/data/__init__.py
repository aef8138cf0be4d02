"""Data sets: finding, scanning, splitting, auditing, drawing and downloading labelled images, and the pixel cache.

May import `edgeall.edge_runtime` and `edgeall.console`; trains nothing.
"""
