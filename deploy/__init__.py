"""Copies a model to a device and runs commands there: a Raspberry Pi over ssh, a phone over adb.

Imports `edgeall.edge_runtime` and `edgeall.console`; nothing of training.
"""
