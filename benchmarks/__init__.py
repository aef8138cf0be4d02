"""Measurements with limits. Not in the wheel; they import only `edgeall.edge_runtime` of the package."""
