"""What a device does besides classifying: measure, inspect, explain, diagnose, write files and print results.

Imports `edgeall.edge_runtime` and `edgeall.console`.
"""
