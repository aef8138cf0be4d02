"""The microscope rig: cameras, the record, the loop that judges and records frames, and its page in the browser.

May import edge_runtime and console, never train or optimize.
"""
