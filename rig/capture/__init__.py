"""Cameras, watched folders and replays behind one interface, and the camera that reconnects after faults."""
