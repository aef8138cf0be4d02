"""Our figures beside peers and limits. Not in the wheel; may import `edgeall.edge_runtime` and nothing else of ours."""
